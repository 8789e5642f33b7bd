"""No wait without a bound: the code is read for calls that could wait for ever."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# Method or function -> how many positional arguments it has when one of them is its bound.
BOUNDED_BY_KEYWORD = {"ray.get", "ray.wait", "futures.wait", "concurrent.futures.wait", "asyncio.wait"}
BOUNDED_BY_ARGUMENT = {"result", "join", "wait", "communicate", "barrier", "monitored_barrier"}
BOUND_NAMES = {"timeout", "timeout_s"}
NEVER_BOUNDED = {"serve.status", "torch.distributed.all_reduce", "torch.distributed.broadcast"}
BOUNDED_ELSEWHERE = {
    # The process that asks the queue bounds its own wait; the queue ends with its group.
    "actors/learner/command_queue.py": (
        "await self._broadcasts.get()",
        "await self._commands[rank].get()",
        "self._all_registered.wait()",
    ),
    "actors/control/commands.py": ("await self._commands.get()",),
    # The collector's wait for scores, and a thread that is waited for; a replica ends itself after reward.timeout_s.
    "actors/reward/calls.py": (
        "await self.handle.score.remote([request.video_ref for request in requests], is_alone)",
    ),
    "actors/reward/deployment.py": ("serve.status()",),
    # The process group's timeout, which Ray Train sets to train.wait_timeout_s.
    "rlir_ray/learner/deepspeed.py": ("torch.distributed.all_reduce(total, op=operation)",),
    # Bounded inside.
    "actors/weights/sync.py": ("self.wait(most=0 if broadcasts and sender else self.pool.max_staleness)",),
}
"""File -> waits whose bound is not in the call, and where it is."""
SUBPROCESS = {"subprocess.run", "subprocess.check_output", "subprocess.check_call", "subprocess.call"}


def unbounded(source: str) -> list[str]:
    """Each call that may wait for ever, as `line: code`."""
    found = []
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.Await) and _is_remote(node.value):
            found.append(f"{node.lineno}: {ast.unparse(node)}")
        if not isinstance(node, ast.Call):
            continue
        name = ast.unparse(node.func)
        method = name.rsplit(".", 1)[-1]
        has_bound = any(keyword.arg in BOUND_NAMES for keyword in node.keywords)
        if name in BOUNDED_BY_KEYWORD | SUBPROCESS:
            is_bounded = has_bound
        elif isinstance(node.func, ast.Attribute) and method in BOUNDED_BY_ARGUMENT:
            is_bounded = has_bound or bool(node.args)
        elif name in NEVER_BOUNDED:
            is_bounded = False
        else:
            continue
        if not is_bounded:
            found.append(f"{node.lineno}: {ast.unparse(node)}")
    return found


def _is_remote(value: ast.expr) -> bool:
    """An actor's answer, or what comes out of a queue."""
    if not isinstance(value, ast.Call) or not isinstance(value.func, ast.Attribute):
        return False
    return value.func.attr == "remote" or (value.func.attr == "get" and not value.args)


@pytest.mark.parametrize(
    "code",
    [
        "await actor.ask.remote(3)",
        "await queue.get()",
        "serve.status()",
        "ray.get(ref)",
        "ray.wait(refs, num_returns=1)",
        "future.result()",
        "thread.join()",
        "event.wait()",
        "subprocess.run(command)",
        "futures.wait(all)",
    ],
)
def test_the_scan_finds(code):
    assert unbounded(code) == [f"1: {code}"]


@pytest.mark.parametrize(
    "code",
    [
        "await asyncio.wait_for(actor.ask.remote(3), 5)",
        "ray.get(ref, timeout=3)",
        "future.result(3)",
        "thread.join(timeout=2)",
        "', '.join(names)",
        "event.wait(1)",
    ],
)
def test_the_scan_lets_pass(code):
    assert unbounded(code) == []


def test_every_wait_of_the_package_has_a_bound():
    found = {
        (str(path.relative_to(ROOT)), line.split(": ", 1)[1])
        for room in ("actors", "rlir_ray")
        for path in sorted((ROOT / room).rglob("*.py"))
        for line in unbounded(path.read_text())
    }
    elsewhere = {(path, code) for path, codes in BOUNDED_ELSEWHERE.items() for code in codes}
    assert found - elsewhere == set()
    # What is no longer there needs no excuse.
    assert elsewhere - found == set()
