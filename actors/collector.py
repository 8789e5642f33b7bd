"""Admit rollout calls, receive scores, and return the groups of a step.

The collector holds references and scores, but no column and no video. Legend: G trajectories, F frames.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from concurrent import futures
from dataclasses import replace
from typing import Any

import numpy as np
import ray

from actors.cluster.diagnostics import one_line
from actors.cluster.waiting import POLL_S, WAY_OUT, Stopped, in_brackets
from actors.learner.in_flight import InFlightSteps, ReadyGroup
from actors.reward.replica import ScoreReport
from actors.rollout.actor import CallReport
from actors.rollout.pool import GroupRefs
from rlir_ray.algorithm.admission import Admission, is_stale, staleness
from rlir_ray.algorithm.ledger import END_STATES, FAILED, NO_SIGNAL, STALE, TRAINED, Failures, Ledger, skipped_cause
from rlir_ray.algorithm.seeds import group_seed, prompt_index
from rlir_ray.config import Config
from rlir_ray.local import check_signal, group_signal, reward_metrics
from rlir_ray.run.tracing import Span, TraceRecorder, waited_for
from rlir_ray.samplers import difference_metrics
from rlir_ray.trajectory import RewardScores

Submit = Callable[[Sequence[int], Sequence[int], Sequence[int]], list[tuple[GroupRefs, "futures.Future[ScoreReport]"]]]
"""Takes the group ids, seeds and prompt indices of one call; returns references and a future of scores per group."""


class Collector:
    """The part of the loop that admits groups, receives their scores and selects the groups of each step.

    Args:
        config: the run's configuration; `train`, `reward`, `rollout` and the seed are read.
        ledger: the state of every group of the run.
        admission: the slots and bytes of the groups in flight.
        submit: starts the sampling and scoring of one call.
        prompt_ids: ids of the training prompts.
        group_bytes: largest number of bytes that one group can take in the object store.
        stop: event that is set when the user ends the run.
        recording: receives the spans of the pools' work.
        progress: called once when sampling waits for room in the object store.
        activity: describes the current work of the pools, for the message of a timeout.
        learner: steps that may be in flight while groups are collected; a finished step frees slots. None: no step is
            in flight.
    """

    def __init__(
        self,
        config: Config,
        ledger: Ledger,
        admission: Admission,
        submit: Submit,
        *,
        prompt_ids: Sequence[str],
        group_bytes: int,
        stop: threading.Event,
        recording: TraceRecorder | None = None,
        progress: Callable[[str], None] = lambda text: None,
        activity: Callable[[], str] = lambda: "",
        learner: InFlightSteps | None = None,
    ) -> None:
        self.learner = learner
        self.config, self.ledger, self.admission, self.submit = config, ledger, admission, submit
        self.prompt_ids, self.group_bytes, self.stop = prompt_ids, group_bytes, stop
        self.recording, self.progress, self.activity = recording or TraceRecorder(), progress, activity
        self._in_flight: dict[int, tuple[GroupRefs, futures.Future[ScoreReport]]] = {}
        self._ready: dict[int, ReadyGroup] = {}
        self._failures = Failures(config.train.max_failed_fraction)
        self._without_signal: list[RewardScores] = []
        """Scores of the groups that were dropped for the step that is being collected."""
        self._dropped: dict[int, list[RewardScores]] = {}
        """Scores of the groups that were dropped for each returned step, by the first group id of the step."""
        self._counted_calls: set[int] = set()
        self._step = StepTotals(self._counted_calls)
        self._last_report: tuple[ray.ObjectRef[CallReport], CallReport] | None = None
        self._room_since: float | None = None
        self._has_reported_wait = False

    def collect(self, version: int, num_steps_left: int) -> list[ReadyGroup]:
        """Block until the groups of a step are scored; return them, oldest first.

        With train.stale_policy=wait, wait for slow groups, so that no group becomes stale. With
        train.stale_policy=drop, take the groups that are scored first.

        Args:
            version: the learner's version when it trains the step; groups that are too stale for it are dropped.
            num_steps_left: steps still to collect, this step included; bounds the number of sampled groups.

        Raises:
            Stopped: the user ended the run.
            TimeoutError: no group was scored within train.wait_timeout_s.
            RuntimeError: too many of the last groups failed.
        """
        num_groups = self.config.train.prompts_per_step
        while True:
            if self.learner is not None:
                self.learner.finish_done()
            self._drop_stale(version)
            # Admit new groups before returning the step: the pools must not idle while the learner trains.
            self.admit(num_steps_left)
            if groups := self._take_step(num_groups):
                self._dropped[groups[0].group_id], self._without_signal = self._without_signal, []
                return groups
            self._receive()

    def _take_step(self, num_groups: int) -> list[ReadyGroup]:
        """Take the groups of the next step; return an empty list while one of these groups is missing."""
        known = {*self._ready, *(self._in_flight if self.config.train.stale_policy == "wait" else ())}
        first = sorted(known)[:num_groups]
        if len(first) < num_groups or any(group_id not in self._ready for group_id in first):
            return []
        return [self._ready.pop(group_id) for group_id in first]

    def finish(self, groups: Sequence[ReadyGroup], skipped: str = "") -> None:
        """Record the end of a step's groups and free their slots; call this after the step's weights are published.

        Args:
            groups: the groups of the step.
            skipped: why the step's update was skipped, so that its groups count as failed; empty: the update was done.
        """
        end = (FAILED, skipped_cause(skipped)) if skipped else (TRAINED,)
        for group in groups:
            self._end(group.group_id, *end)

    def admit(self, num_steps_left: int) -> None:
        """Start calls for the free slots.

        While groups are in flight, admit only the groups of whole steps; replace dropped groups once all groups in
        flight are scored. At max_staleness=0 this makes calls and floats independent of the order of arrival.

        Args:
            num_steps_left: steps that are not submitted to the learner yet; no group is sampled beyond these steps.
        """
        per_step, per_call = self.config.train.prompts_per_step, self.config.rollout.prompts_per_call
        num_more = per_step * num_steps_left - len(self._ready) - len(self._in_flight)
        room = self.admission.available(self.group_bytes)
        self._track_room_wait(room < min(self.admission.free_slots, num_more))
        num_admitted = max(0, min(room, num_more))
        if self._in_flight:
            num_admitted -= num_admitted % per_step
        while num_admitted:
            self._call(min(per_call, num_admitted))
            num_admitted -= min(per_call, num_admitted)

    def _track_room_wait(self, is_short: bool) -> None:
        """Measure how long sampling waits for room in the object store; report the first wait."""
        now = time.monotonic()
        if self._room_since is not None:
            self._step.room_s += now - self._room_since
        self._room_since = now if is_short else None
        if is_short and not self._has_reported_wait:
            self._has_reported_wait = True
            self.progress(
                f"sampling waits for room: {self.admission.in_flight} groups hold {self.admission.bytes_in_flight} of "
                f"object_store_budget_bytes={self.admission.budget_bytes}"
            )

    def _call(self, num_groups: int) -> None:
        seed, first = self.config.seed, self.ledger.next_group_id
        group_ids = range(first, first + num_groups)
        indices = [prompt_index(seed, group_id, len(self.prompt_ids)) for group_id in group_ids]
        for group_id, index in zip(group_ids, indices, strict=True):
            self.admission.admit(group_id, self.group_bytes)
            self.ledger.admit(group_id, self.prompt_ids[index])
        submitted = self.submit(group_ids, [group_seed(seed, group_id) for group_id in group_ids], indices)
        self._in_flight |= dict(zip(group_ids, submitted, strict=True))

    def _receive(self) -> None:
        """Block until a group is scored or fails, a step ends, or the user ends the run."""
        timeout_s = self.config.train.wait_timeout_s
        deadline = time.monotonic() + timeout_s
        waiting = {future: group_id for group_id, (_, future) in self._in_flight.items()}
        step = self.learner.report_future() if self.learner is not None else None
        # Any: futures of scores, and of a step's report.
        done: set[futures.Future[Any]] = set()
        while not done:
            if self.stop.is_set():
                raise Stopped
            if time.monotonic() > deadline:
                scores = f"the scores of {len(waiting)} groups from the rollout and reward pools"
                awaited = scores if waiting else "a step"
                raise TimeoutError(f"waited {timeout_s:.0f} s for {awaited}{in_brackets(self.activity())}; {WAY_OUT}")
            pending: list[futures.Future[Any]] = [*waiting, step] if step is not None else list(waiting)
            if not pending:
                raise RuntimeError("no group can be sampled: all slots are taken and nothing is in flight")
            done, _ = futures.wait(pending, timeout=POLL_S, return_when=futures.FIRST_COMPLETED)
        for group_id in sorted(waiting[future] for future in done if future in waiting):
            self._receive_group(group_id, *self._in_flight.pop(group_id))

    def _receive_group(self, group_id: int, refs: GroupRefs, future: futures.Future[ScoreReport]) -> None:
        # Fault tolerance: record a lost group with its cause; another group takes its slot.
        try:
            scored = future.result(0)
            report = self._report(refs.report_ref)
        except Exception as error:
            self._fail(group_id, one_line(error))
            return
        if failure := report.failures.get(group_id) or scored.scores.failure:
            self._fail(group_id, failure)
            return
        self._failures.add()
        # The video is no longer needed; the training columns stay until a step has trained them.
        self.admission.resize(group_id, report.column_bytes[group_id])
        report = replace(report, span=self.recording.add("rollout", f"sample from {report.call_id} on", report.span))
        span = self.recording.add("reward", f"score {group_id}", scored.span)
        self._step.add(scored, report)
        advantages = group_signal(self.config, scored.scores)
        if advantages is None:
            self._end(group_id, NO_SIGNAL)
            self._without_signal.append(scored.scores)
            # Count the groups of this step alone: ready groups beyond it would show that there is signal.
            missing = self.config.train.prompts_per_step - len(self._ready)
            check_signal(self.config, num_seen=len(self._without_signal) + len(self._ready), num_missing=missing)
        else:
            self._ready[group_id] = ReadyGroup(group_id, refs.group_ref, advantages, report, span, scored.scores)

    def _report(self, ref: ray.ObjectRef[CallReport]) -> CallReport:
        """Fetch the report of a call once for all its groups."""
        if self._last_report is None or self._last_report[0] != ref:
            self._last_report = ref, ray.get(ref, timeout=self.config.train.wait_timeout_s)
        return self._last_report[1]

    def _fail(self, group_id: int, cause: str) -> None:
        self._end(group_id, FAILED, cause)
        self._failures.add(cause)

    def _drop_stale(self, version: int) -> None:
        limit = self.config.train.max_staleness
        for group_id, group in list(self._ready.items()):
            if is_stale(version, group.report.policy_version, limit):
                del self._ready[group_id]
                self._end(group_id, STALE)

    def _end(self, group_id: int, state: str, cause: str = "") -> None:
        self.ledger.finish(group_id, state, cause)
        self.admission.release(group_id)

    def drain(self) -> None:
        """Wait for the groups in flight and ignore their results: their bytes stay in the store until they end."""
        futures.wait([future for _, future in self._in_flight.values()], timeout=self.config.train.wait_timeout_s)

    def metrics(self, groups: Sequence[ReadyGroup], version: int, wait: Span | None = None) -> dict[str, float]:
        """Return the metrics of the step that trained these groups; times and frames count since the last call.

        Reward metrics cover the step's groups and the groups without signal that were dropped while the step was
        collected. So each scored group counts in exactly one step.

        Args:
            groups: the groups of the step.
            version: the learner's version before the step.
            wait: the span in which the driver waited for these groups; None: unknown.
        """
        totals, self._step = self._step, StepTotals(self._counted_calls)
        # Sort by group id: the order of arrival must not change the last digit of a mean.
        scores = [group.scores for group in groups] + self._dropped.pop(groups[0].group_id, [])
        scores.sort(key=lambda score: score.group_id)
        lag = [staleness(version, group.report.policy_version) for group in groups]
        counts = self.ledger.counts()
        return {
            **reward_metrics(scores, self.config.reward),
            **totals.metrics(),
            **(
                waited_for(wait, [each.report.span for each in groups], [each.scored for each in groups])
                if wait
                else {}
            ),
            **difference_metrics([group.report.difference for group in groups]),
            **{f"groups/{state}": float(counts[state]) for state in END_STATES},
            "staleness/mean": float(np.mean(lag)),
            "staleness/max": float(max(lag)),
            "object_store/in_flight_bytes": float(self.admission.bytes_in_flight),
            "object_store/peak_bytes": float(self.admission.peak_bytes),
        }

    def ready(self) -> list[ReadyGroup]:
        """Return the scored groups with signal that no step has taken yet."""
        return [self._ready[group_id] for group_id in sorted(self._ready)]

    def restore(self, ready: Sequence[ReadyGroup]) -> None:
        """Resume the groups in flight of the ledger: use the given groups, and sample all others again.

        Groups keep their ids, and so their prompts and seeds. A group fails if the budget has no room for it any more.

        Args:
            ready: groups of the checkpoint that were scored but not trained.
        """
        known = {group.group_id: group for group in ready}
        admitted = []
        for group_id in self.ledger.in_flight:
            if not self.admission.can_admit(1, self.group_bytes):
                self.ledger.finish(group_id, FAILED, "the run resumed with less room than it had when it was stopped")
                continue
            self.admission.admit(group_id, self.group_bytes)
            admitted.append(group_id)
        self._ready |= {group_id: known[group_id] for group_id in admitted if group_id in known}
        resampled = [group_id for group_id in admitted if group_id not in known]
        per_call, seed = self.config.rollout.prompts_per_call, self.config.seed
        for first in range(0, len(resampled), per_call):
            ids = resampled[first : first + per_call]
            indices = [prompt_index(seed, group_id, len(self.prompt_ids)) for group_id in ids]
            submitted = self.submit(ids, [group_seed(seed, group_id) for group_id in ids], indices)
            self._in_flight |= dict(zip(ids, submitted, strict=True))


class StepTotals:
    """Totals of the pools' work since the last step.

    Args:
        counted: ids of the rollout calls that are counted already; a call whose groups train in several steps counts in
            the first of these steps.
    """

    def __init__(self, counted: set[int]) -> None:
        self.counted = counted
        self.started = time.monotonic()
        self.num_frames = 0
        self.score_s = self.room_s = 0.0
        self.calls: dict[int, CallReport] = {}

    def add(self, scored: ScoreReport, report: CallReport) -> None:
        """Add a scored group, and its rollout call where the call is not counted yet."""
        self.num_frames += scored.scores.frame_rewards.size
        self.score_s += scored.seconds
        if report.call_id not in self.counted:
            self.counted.add(report.call_id)
            self.calls[report.call_id] = report

    def metrics(self) -> dict[str, float]:
        """Return the seconds of the pools' work, and the throughput in frames."""
        return {
            "time/sample_s": sum(call.span.seconds for call in self.calls.values()),
            "time/score_s": self.score_s,
            "time/room_s": self.room_s,
            "throughput/frames_per_s": self.num_frames / (time.monotonic() - self.started),
        }
