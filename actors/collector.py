"""Admit rollout calls, receive scores, and hand out the groups of a step.

The collector holds references and scores, no column and no video. Legend: G trajectories, F frames.
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

from actors.cluster.errors import one_line
from actors.cluster.waiting import POLL_S, WAY_OUT, Stopped, in_brackets
from actors.learner.in_flight import InFlightSteps, ReadyGroup
from actors.reward.replica import Scored
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

Submit = Callable[[Sequence[int], Sequence[int], Sequence[int]], list[tuple[GroupRefs, "futures.Future[Scored]"]]]
"""Group ids, seeds and prompt indices of one call -> references and the scores to come, one pair a group."""


class Collector:
    """Args:
    config: `train`, `reward`, `rollout` and the seed are read.
    ledger, admission: of the run.
    submit: starts sampling and scoring of one call.
    prompt_ids: of the training prompts.
    group_bytes: what one group may hold in the object store.
    stop: set when the user ends the run.
    recording: gets the spans of the pools' work.
    progress: called once when sampling waits for room in the object store.
    activity: says what the pools are busy with, for the message of a wait that was too long.
    learner: steps in flight while groups are collected; a step that ends frees slots. None: no step is in flight.
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
        self._in_flight: dict[int, tuple[GroupRefs, futures.Future[Scored]]] = {}
        self._ready: dict[int, ReadyGroup] = {}
        self._failures = Failures(config.train.max_failed_fraction)
        self._without_signal: list[RewardScores] = []
        """Scores of dropped groups of the step that is collected now."""
        self._dropped: dict[int, list[RewardScores]] = {}
        """The same for steps that were handed out, by their first group."""
        self._counted: set[int] = set()
        self._step = StepTotals(self._counted)
        self._last_report: tuple[ray.ObjectRef[CallReport], CallReport] | None = None
        self._room_since: float | None = None
        self._has_told = False

    def collect(self, version: int, num_steps_left: int) -> list[ReadyGroup]:
        """Block until the groups of a step are scored; return the oldest first.

        With train.stale_policy=wait the step waits for a slow group, so that no group grows too old; with drop the
        step takes the groups that are scored.

        Args:
            version: of the learner; groups that lag too far behind are dropped here, where a step would consume them.
            num_steps_left: this step included; no group is sampled for a step after them.

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
            # Admit before the step is handed out: the pools must not idle while the learner trains.
            self.admit(num_steps_left)
            if groups := self._due(num_groups):
                self._dropped[groups[0].group_id], self._without_signal = self._without_signal, []
                return groups
            self._receive()

    def _due(self, num_groups: int) -> list[ReadyGroup]:
        """Take the groups of the next step; none while one of them is missing."""
        known = {*self._ready, *(self._in_flight if self.config.train.stale_policy == "wait" else ())}
        first = sorted(known)[:num_groups]
        if len(first) < num_groups or any(group_id not in self._ready for group_id in first):
            return []
        return [self._ready.pop(group_id) for group_id in first]

    def trained(self, groups: Sequence[ReadyGroup], skipped: str = "") -> None:
        """End these groups and free their slots; call this when the step's weights were published.

        Args:
            skipped: why the step's update was skipped, so that its groups count as failed; empty: the update was done.
        """
        end = (FAILED, skipped_cause(skipped)) if skipped else (TRAINED,)
        for group in groups:
            self._end(group.group_id, *end)

    def admit(self, num_steps_left: int) -> None:
        """Start calls for the free slots, at most for `num_steps_left` steps that are not submitted yet.

        While groups are in flight only whole steps are admitted; dropped groups are replaced when all groups in flight
        are scored. So at max_staleness=0 no call, and no float, depends on which answer comes first.
        """
        per_step, per_call = self.config.train.prompts_per_step, self.config.rollout.prompts_per_call
        num_more = per_step * num_steps_left - len(self._ready) - len(self._in_flight)
        room = self.admission.available(self.group_bytes)
        self._note_room(room < min(self.admission.free_slots, num_more))
        num_admitted = max(0, min(room, num_more))
        if self._in_flight:
            num_admitted -= num_admitted % per_step
        while num_admitted:
            self._call(min(per_call, num_admitted))
            num_admitted -= min(per_call, num_admitted)

    def _note_room(self, is_short: bool) -> None:
        """Add up the time in which sampling waits for room in the object store."""
        now = time.monotonic()
        if self._room_since is not None:
            self._step.room_s += now - self._room_since
        self._room_since = now if is_short else None
        if is_short and not self._has_told:
            self._has_told = True
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
        """Block until any group is scored or fails, a step ends, or the user ends the run."""
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
                who = f"the scores of {len(waiting)} groups from the rollout and reward pools" if waiting else "a step"
                raise TimeoutError(f"waited {timeout_s:.0f} s for {who}{in_brackets(self.activity())}; {WAY_OUT}")
            awaited: list[futures.Future[Any]] = [*waiting, step] if step is not None else list(waiting)
            if not awaited:
                raise RuntimeError("no group can be sampled: all slots are taken and nothing is in flight")
            done, _ = futures.wait(awaited, timeout=POLL_S, return_when=futures.FIRST_COMPLETED)
        for group_id in sorted(waiting[future] for future in done if future in waiting):
            self._take(group_id, *self._in_flight.pop(group_id))

    def _take(self, group_id: int, refs: GroupRefs, future: futures.Future[Scored]) -> None:
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
            # Only the groups of this step count: ready groups beyond it show that there is signal.
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
        """Wait for the groups in flight without using their results: their bytes are free only then."""
        futures.wait([future for _, future in self._in_flight.values()], timeout=self.config.train.wait_timeout_s)

    def metrics(self, groups: Sequence[ReadyGroup], version: int, wait: Span | None = None) -> dict[str, float]:
        """Return the metrics of the step that trained these groups; times and frames count since the last call.

        Rewards are those of the step's groups and of the groups without signal that were dropped while the step was
        collected: each scored group counts in one step.

        Args:
            groups: of the step.
            version: of the learner before the step.
            wait: of the driver, for these groups.
        """
        totals, self._step = self._step, StepTotals(self._counted)
        # A fixed order: the order of arrival must not change the last digit of a mean.
        scores = [group.scores for group in groups] + self._dropped.pop(groups[0].group_id, [])
        scores.sort(key=lambda one: one.group_id)
        lag = [staleness(version, group.report.policy_version) for group in groups]
        counts = self.ledger.counts()
        return {
            **reward_metrics(scores, self.config.reward.discount),
            **totals.metrics(),
            **(waited_for(wait, [one.report.span for one in groups], [one.scored for one in groups]) if wait else {}),
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
        """Resume from the ledger: use these groups, and sample the others that were in flight again.

        Groups keep their numbers, and so their prompts and seeds. A group that the budget no longer holds fails.
        """
        known = {group.group_id: group for group in ready}
        held = []
        for group_id in self.ledger.in_flight:
            if not self.admission.can_admit(1, self.group_bytes):
                self.ledger.finish(group_id, FAILED, "the run resumed with less room than it had when it was stopped")
                continue
            self.admission.admit(group_id, self.group_bytes)
            held.append(group_id)
        self._ready |= {group_id: known[group_id] for group_id in held if group_id in known}
        again = [group_id for group_id in held if group_id not in known]
        per_call, seed = self.config.rollout.prompts_per_call, self.config.seed
        for first in range(0, len(again), per_call):
            ids = again[first : first + per_call]
            indices = [prompt_index(seed, group_id, len(self.prompt_ids)) for group_id in ids]
            submitted = self.submit(ids, [group_seed(seed, group_id) for group_id in ids], indices)
            self._in_flight |= dict(zip(ids, submitted, strict=True))


class StepTotals:
    """Totals of the pools' work since the last step.

    Args:
        counted: rollout calls that were counted: a call whose groups train in several steps counts in the first.
    """

    def __init__(self, counted: set[int]) -> None:
        self.counted = counted
        self.started = time.monotonic()
        self.num_frames = 0
        self.score_s = self.room_s = 0.0
        self.calls: dict[int, CallReport] = {}

    def add(self, scored: Scored, report: CallReport) -> None:
        self.num_frames += scored.scores.frame_rewards.size
        self.score_s += scored.seconds
        if report.call_id not in self.counted:
            self.counted.add(report.call_id)
            self.calls[report.call_id] = report

    def metrics(self) -> dict[str, float]:
        """Seconds of the pools."""
        return {
            "time/sample_s": sum(call.span.seconds for call in self.calls.values()),
            "time/score_s": self.score_s,
            "time/room_s": self.room_s,
            "throughput/frames_per_s": self.num_frames / (time.monotonic() - self.started),
        }
