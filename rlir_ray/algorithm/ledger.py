"""The ledger: every admitted group ends in exactly one state. Plain values, so that it can be part of a checkpoint."""

from __future__ import annotations

import json
from collections import Counter, deque
from dataclasses import asdict, dataclass

FILE = "ledger.json"
IN_FLIGHT = "in_flight"
TRAINED = "trained"
STALE = "stale"
NO_SIGNAL = "no_signal"
FAILED = "failed"
END_STATES = (TRAINED, STALE, NO_SIGNAL, FAILED)

# Failures are counted over this many groups. A run survives occasional failures of a pool, but a pool that keeps
# failing is broken, and the run must end.
FAILURE_WINDOW = 100


@dataclass(frozen=True, kw_only=True, slots=True)
class Entry:
    """The entry of one group."""

    group_id: int
    prompt_id: str
    state: str = IN_FLIGHT
    """State of the group: `IN_FLIGHT` or one of `END_STATES`."""
    cause: str = ""
    """Cause of a failure; empty in other states."""


class Ledger:
    """The states of all groups of a run.

    Example: ``admit(0, "p")``, ``finish(0, "trained")``, ``counts() == {"in_flight": 0, "trained": 1, ...}``.
    """

    def __init__(self) -> None:
        self._entries: dict[int, Entry] = {}

    @property
    def next_group_id(self) -> int:
        """Id of the next group: ids follow the order of admission."""
        return len(self._entries)

    @property
    def in_flight(self) -> list[int]:
        """Ids of the groups in flight."""
        return [entry.group_id for entry in self._entries.values() if entry.state == IN_FLIGHT]

    def __getitem__(self, group_id: int) -> Entry:
        return self._entries[group_id]

    def admit(self, group_id: int, prompt_id: str) -> None:
        """Add the entry of a group.

        Raises:
            ValueError: the group was admitted before.
        """
        if group_id in self._entries:
            raise ValueError(f"a group is admitted once, got group {group_id} again; number groups with next_group_id")
        self._entries[group_id] = Entry(group_id=group_id, prompt_id=prompt_id)

    def finish(self, group_id: int, state: str, cause: str = "") -> None:
        """Set the end state of a group, once.

        Raises:
            ValueError: an unknown state or group, a group that has already ended, or a failure without a cause.
        """
        if state not in END_STATES:
            raise ValueError(f"a group's end must be one of {', '.join(END_STATES)}, got {state!r}; use one of them")
        if group_id not in self._entries:
            raise ValueError(f"only admitted groups end, got group {group_id}; admit it first")
        entry = self._entries[group_id]
        if entry.state != IN_FLIGHT:
            raise ValueError(f"a group ends once, got {state!r} for group {group_id} after {entry.state}; end it once")
        if (state == FAILED) != bool(cause):
            raise ValueError(f"only a failed group has a cause, got {state!r} with {cause!r}; add or drop it")
        self._entries[group_id] = Entry(group_id=group_id, prompt_id=entry.prompt_id, state=state, cause=cause)

    def fail_in_flight(self, cause: str) -> list[int]:
        """End all groups in flight as failed and return their ids; call this at the end of a run."""
        lost = self.in_flight
        for group_id in lost:
            self.finish(group_id, FAILED, cause)
        return lost

    def counts(self) -> dict[str, int]:
        """Count the groups in each state; zeros included."""
        counted = Counter(entry.state for entry in self._entries.values())
        return {state: counted[state] for state in (IN_FLIGHT, *END_STATES)}

    def check(self) -> None:
        """Raise ValueError unless every admitted group has ended."""
        if self.in_flight:
            raise ValueError(
                f"every admitted group must end, got {len(self.in_flight)} in flight, first {self.in_flight[0]}; "
                "finish them or call fail_in_flight"
            )

    def causes(self) -> dict[str, int]:
        """Count the failed groups by cause, the most frequent cause first."""
        return dict(Counter(entry.cause for entry in self._entries.values() if entry.state == FAILED).most_common())

    def missing(self) -> list[int]:
        """Return the ids below the highest id whose groups were never admitted."""
        return sorted(set(range(max(self._entries, default=-1) + 1)) - set(self._entries))

    def to_json(self) -> str:
        """Return the ledger as JSON text, which `from_json` reads."""
        entries = [asdict(entry) for entry in self._entries.values()]
        return json.dumps({"counts": self.counts(), "groups": entries}, indent=1, allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> Ledger:
        """Read the text that `to_json` wrote.

        Raises:
            ValueError: the text is not a ledger, or contains an unknown state.
        """
        ledger = cls()
        try:
            lines = [Entry(**entry) for entry in json.loads(text)["groups"]]
        except (KeyError, TypeError, json.JSONDecodeError) as error:
            raise ValueError(f"a ledger must be what to_json writes, got {error}; use the run's ledger.json") from None
        for line in lines:
            ledger.admit(line.group_id, line.prompt_id)
            if line.state != IN_FLIGHT:
                ledger.finish(line.group_id, line.state, line.cause)
        return ledger


def account(ledger: Ledger, is_open: bool) -> tuple[list[str], str]:
    """List for a person how all groups ended.

    Args:
        ledger: the run's ledger.
        is_open: whether the run still trains, or was killed and can resume, so that groups in flight end later.

    Returns:
        The lines, and the first error in one line; the error is empty if every group is accounted for.
    """
    counts = ledger.counts()
    lines = [f"{count:>8}  {state.replace('_', ' ')}" for state, count in counts.items()]
    lines += [f"{count:>8}  failed: {cause}" for cause, count in ledger.causes().items()]
    if missing := ledger.missing():
        return lines, f"no number may be missing, got {len(missing)} that are, first {missing[0]}; restore the ledger"
    if ledger.in_flight and not is_open:
        try:
            ledger.check()
        except ValueError as error:
            return lines, str(error)
    end = "the others in flight when it was written" if ledger.in_flight else "no number is missing"
    return [*lines, f"{sum(counts.values()):>8}  groups: each that ended did so in one state, {end}"], ""


class Failures:
    """The counter of failed groups, which ends the run if too many of the last groups failed.

    Args:
        max_fraction: fraction of any `FAILURE_WINDOW` consecutive groups that may fail; below 1.
    """

    def __init__(self, max_fraction: float) -> None:
        self.max_failures = round(max_fraction * FAILURE_WINDOW)
        self._last: deque[bool] = deque(maxlen=FAILURE_WINDOW)

    def add(self, cause: str = "") -> None:
        """Count the next group; `cause` says why the group failed, and is empty if it did not.

        Raises:
            RuntimeError: too many of the last groups failed.
        """
        self._last.append(bool(cause))
        if cause and sum(self._last) > self.max_failures:
            raise RuntimeError(
                f"{sum(self._last)} of the last {len(self._last)} groups failed, the last one with: {cause}; fix "
                f"that, or raise train.max_failed_fraction={self.max_failures / FAILURE_WINDOW:g}"
            )


class SkippedUpdates:
    """The counter of skipped updates, which ends the run if too many in a row were skipped.

    Args:
        most: number of skipped updates in a row that ends the run.
    """

    def __init__(self, most: int) -> None:
        self.most, self.num_in_a_row = most, 0

    @property
    def is_too_many(self) -> bool:
        """Whether too many updates in a row were skipped."""
        return self.num_in_a_row >= self.most

    def add(self, step: int, cause: str) -> None:
        """Count the update of a step; `cause` says why the update was skipped, and is empty if it was done.

        Raises:
            RuntimeError: too many updates in a row were skipped.
        """
        self.num_in_a_row = self.num_in_a_row + 1 if cause else 0
        if self.is_too_many:
            raise RuntimeError(
                f"an update must be finite, got {self.num_in_a_row} in a row that were skipped, the last one in step "
                f"{step}: {cause}; lower train.learning_rate, or raise train.max_skipped_updates={self.most}"
            )


def skipped_cause(cause: str) -> str:
    """Return the cause that the ledger records for the groups of a skipped update."""
    return f"update skipped: {cause}"
