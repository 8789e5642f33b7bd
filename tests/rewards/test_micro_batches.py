"""Items that wait are worked off together."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Sequence

import pytest

from rlir_ray.rewards import micro_batches
from rlir_ray.rewards.micro_batches import MicroBatches


class Work:
    """Doubles numbers and remembers the batches; waits for `go` before each, so that others can come meanwhile."""

    def __init__(self, fails_with: Callable[[Sequence[int]], Exception | None] = lambda items: None) -> None:
        self.batches: list[list[int]] = []
        self.go = threading.Event()
        self.go.set()
        self.fails_with = fails_with

    def __call__(self, items: list[int]) -> list[int | Exception]:
        self.batches.append(items)
        assert self.go.wait(60)
        if error := self.fails_with(items):
            raise error
        return [ValueError(f"{item} is odd") if item % 2 else 2 * item for item in items]


async def answers(work: Work, items: Sequence[int], first_alone: bool = False) -> list[object]:
    """All items at once; or the first one alone, the others while it is worked off."""
    batches = MicroBatches[int, int](work, size=lambda item: item, max_size=10, kind=lambda item: item > 100)
    tasks = []
    if first_alone:
        work.go.clear()
        tasks.append(asyncio.create_task(batches.submit(items[0])))
        while not work.batches:
            await asyncio.sleep(0.001)
        items = items[1:]
    tasks += [asyncio.create_task(batches.submit(item)) for item in items]
    await asyncio.sleep(0)
    work.go.set()
    return list(await asyncio.gather(*tasks, return_exceptions=True))


def test_what_waits_is_gathered_up_to_the_size_and_in_order() -> None:
    work = Work()
    assert asyncio.run(answers(work, [4, 4, 6, 2, 8], first_alone=True)) == [8, 8, 12, 4, 16]
    # 4 alone; then 4 + 6 fit in 10, then 2 + 8.
    assert work.batches == [[4], [4, 6], [2, 8]]


def test_a_burst_is_one_batch_and_a_larger_item_goes_alone() -> None:
    work = Work()
    assert asyncio.run(answers(work, [2, 4, 12, 2])) == [4, 8, 24, 4]
    assert work.batches == [[2, 4, 2], [12]]


def test_an_item_that_is_alone_does_not_wait_for_a_burst(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(micro_batches, "GATHER_S", 3600.0)

    async def scenario() -> tuple[int, bool]:
        batches = MicroBatches[int, int](Work(), size=lambda item: item, max_size=10, kind=lambda item: None)
        alone = await asyncio.wait_for(batches.submit(2, is_alone=True), 60)
        waiting = asyncio.create_task(batches.submit(4))
        done, _ = await asyncio.wait([waiting], timeout=0.1)
        waiting.cancel()
        return alone, bool(done)

    assert asyncio.run(scenario()) == (4, False)


def test_items_of_two_kinds_share_no_batch() -> None:
    work = Work()
    assert asyncio.run(answers(work, [2, 102, 4])) == [4, 204, 8]
    assert work.batches == [[2, 4], [102]]


def test_an_item_that_fails_takes_no_other_along_and_a_failed_batch_fails_whole() -> None:
    one, two, three = asyncio.run(answers(Work(), [2, 3, 4]))
    assert (one, three) == (4, 8) and isinstance(two, ValueError)
    broken = asyncio.run(answers(Work(lambda items: OSError("no device")), [2, 4]))
    assert [str(each) for each in broken] == ["no device", "no device"]


def test_a_caller_that_is_gone_is_left_out() -> None:
    async def scenario() -> list[list[int]]:
        work = Work()
        work.go.clear()
        batches = MicroBatches[int, int](work, size=lambda item: item, max_size=10, kind=lambda item: None)
        first = asyncio.create_task(batches.submit(2))
        while not work.batches:
            await asyncio.sleep(0.001)
        gone, last = (asyncio.create_task(batches.submit(item)) for item in (4, 6))
        await asyncio.sleep(0)
        gone.cancel()
        work.go.set()
        assert await asyncio.gather(first, last) == [4, 12]
        with pytest.raises(asyncio.CancelledError):
            await gone
        return work.batches

    assert asyncio.run(scenario()) == [[2], [6]]


def test_a_call_of_another_kind_takes_its_turn_in_the_same_thread() -> None:
    async def scenario() -> tuple[str, str]:
        names: list[str] = []

        def work(items: list[int]) -> list[int]:
            names.append(threading.current_thread().name)
            return items

        batches = MicroBatches[int, int](work, size=lambda item: 1, max_size=1, kind=lambda item: None)
        await batches.submit(1)
        return names[0], await batches.run(lambda: threading.current_thread().name)

    one, two = asyncio.run(scenario())
    assert one == two != threading.current_thread().name
