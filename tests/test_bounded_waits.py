"""No wait without a bound: the code is read for calls that could wait for ever."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# Method or function -> how many positional arguments it has when one of them is its bound.
BOUNDED_BY_KEYWORD = {"ray.get", "ray.wait", "futures.wait", "concurrent.futures.wait", "asyncio.wait"}
BOUNDED_BY_ARGUMENT = {"result", "join", "wait", "communicate", "barrier", "monitored_barrier"}
BOUND_NAMES = {"timeout", "timeout_s"}
SUBPROCESS = {"subprocess.run", "subprocess.check_output", "subprocess.check_call", "subprocess.call"}


def unbounded(source: str) -> list[str]:
    """Each call that may wait for ever, as `line: code`."""
    found = []
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        name = ast.unparse(node.func)
        method = name.rsplit(".", 1)[-1]
        has_bound = any(keyword.arg in BOUND_NAMES for keyword in node.keywords)
        if name in BOUNDED_BY_KEYWORD | SUBPROCESS:
            is_bounded = has_bound
        elif isinstance(node.func, ast.Attribute) and method in BOUNDED_BY_ARGUMENT:
            is_bounded = has_bound or bool(node.args)
        else:
            continue
        if not is_bounded:
            found.append(f"{node.lineno}: {ast.unparse(node)}")
    return found


@pytest.mark.parametrize(
    "code",
    [
        "ray.get(ref)", "ray.wait(refs, num_returns=1)", "future.result()", "thread.join()", "event.wait()",
        "subprocess.run(command)", "futures.wait(all)",
    ],
)  # fmt: skip
def test_the_scan_finds(code):
    assert unbounded(code) == [f"1: {code}"]


@pytest.mark.parametrize(
    "code",
    ["ray.get(ref, timeout=3)", "future.result(3)", "thread.join(timeout=2)", "', '.join(names)", "event.wait(1)"],
)
def test_the_scan_lets_pass(code):
    assert unbounded(code) == []


def test_every_wait_of_the_package_has_a_bound():
    found = [
        f"{path.relative_to(ROOT)}:{line}"
        for room in ("actors", "rlir_ray")
        for path in sorted((ROOT / room).rglob("*.py"))
        for line in unbounded(path.read_text())
    ]
    # WeightSync.wait is bounded inside.
    assert [line for line in found if "self.wait(" not in line] == []
