"""Admission of groups: slots bound the staleness of groups, a byte budget bounds their memory.

A group takes a slot when it is admitted. It frees the slot when it is dropped, or when it is trained and the weights of
its step have been sent to the rollout pool (an actor samples nothing more before it holds these weights). There are
`prompts_per_step * (max_staleness + 1)` slots, and groups are consumed in the order of admission. Therefore no group is
too stale when it is sampled. The driver still measures staleness when it consumes a group.
"""

from __future__ import annotations


def staleness(learner_version: int, policy_version: int) -> int:
    """Count the versions between a group's weights and the learner's weights, when a step consumes the group."""
    return learner_version - policy_version


def is_stale(learner_version: int, policy_version: int, max_staleness: int) -> bool:
    """Return whether a group is too stale to train on."""
    return staleness(learner_version, policy_version) > max_staleness


class Admission:
    """Slots and bytes of the groups in flight.

    Args:
        max_staleness: versions that a group may lag behind the learner; 0 gives the slots of one step.
        prompts_per_step: groups of one optimiser step.
        budget_bytes: most bytes of all groups in flight, `object_store_budget_bytes`.
    """

    def __init__(self, max_staleness: int, prompts_per_step: int, budget_bytes: int) -> None:
        self.num_slots = prompts_per_step * (max_staleness + 1)
        self.prompts_per_step = prompts_per_step
        self.budget_bytes = budget_bytes
        self.peak_bytes = 0
        self._bytes: dict[int, int] = {}  # group_id -> bytes, of the groups in flight

    @property
    def in_flight(self) -> int:
        """Number of groups in flight."""
        return len(self._bytes)

    @property
    def bytes_in_flight(self) -> int:
        """Bytes of all groups in flight."""
        return sum(self._bytes.values())

    @property
    def free_slots(self) -> int:
        """Number of slots that no group holds."""
        return self.num_slots - self.in_flight

    def available(self, nbytes_each: int = 0) -> int:
        """Count the groups of `nbytes_each` bytes that slots and bytes admit now.

        Raises:
            ValueError: the budget cannot hold the groups of one step; the step would wait forever.
        """
        if nbytes_each * self.prompts_per_step > self.budget_bytes:
            raise ValueError(
                f"object_store_budget_bytes must hold {self.prompts_per_step} groups, got {self.budget_bytes}; "
                f"set object_store_budget_bytes={nbytes_each * self.prompts_per_step} or lower train.prompts_per_step"
            )
        if nbytes_each == 0:
            return self.free_slots
        return max(0, min(self.free_slots, (self.budget_bytes - self.bytes_in_flight) // nbytes_each))

    def can_admit(self, num_groups: int = 1, nbytes_each: int = 0) -> bool:
        """Return whether slots and bytes admit this many groups now."""
        return num_groups <= self.available(nbytes_each)

    def admit(self, group_id: int, nbytes: int = 0) -> None:
        """Take a slot; `nbytes` is an estimate until `resize` sets the measured size."""
        assert group_id not in self._bytes, f"group {group_id} was admitted twice"
        assert self.can_admit(1, nbytes), f"group {group_id} was admitted without room"
        self._bytes[group_id] = nbytes
        self.peak_bytes = max(self.peak_bytes, self.bytes_in_flight)

    def resize(self, group_id: int, nbytes: int) -> None:
        """Replace the estimated size of a group in flight by the measured size."""
        assert group_id in self._bytes, f"group {group_id} is not in flight"
        self._bytes[group_id] = nbytes
        self.peak_bytes = max(self.peak_bytes, self.bytes_in_flight)

    def release(self, group_id: int) -> None:
        """Free the slot and the bytes of a group that has ended."""
        assert group_id in self._bytes, f"group {group_id} is not in flight"
        del self._bytes[group_id]
