"""Compares what the benchmarks have just measured with `benchmarks/baselines/`: ratios within one run, never seconds.

Exits with 1 if one is worse than its tolerance allows, or missing. `--update` makes the results the new baselines.
Run: `python -m benchmarks.compare`.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent


@dataclass(frozen=True, slots=True)
class Ratio:
    """What is compared of a result."""

    file: str
    path: tuple[str, ...]
    """Keys; `*` takes all."""
    tolerance: float
    """Share of the baseline by which it may be worse: what it differs by between runs on a machine with other work."""
    higher_is_better: bool = True


RATIOS = (
    Ratio("overlap", ("found", "*", "overlapped", "efficiency"), 0.2),
    Ratio("overlap", ("found", "*", "speedup"), 0.2),
    Ratio("overhead", ("found", "pools_over_local"), 0.05, higher_is_better=False),
    Ratio("weight_sync", ("engines", "*", "*", "share_of_memcpy"), 0.4),
    Ratio("learner", ("step", "*", "over_torch"), 0.15, higher_is_better=False),
    Ratio("learner", ("memory", "*", "over_formula"), 0.05, higher_is_better=False),
    Ratio("recovery", ("found", "*", "over_start"), 0.3, higher_is_better=False),
    Ratio("reward_scaling", ("throughput", "share_of_linear", "*"), 0.2),
    Ratio("rollout_engines", ("engines", "ratios", "tokens_per_processor_s", "*"), 0.15),
    Ratio("flow_rollout", ("cached_over_uncached",), 0.2),
    Ratio("flow_rollout", ("window_over_full_sampling_and_training",), 0.2),
)


def select(value: Any, path: tuple[str, ...], name: tuple[str, ...] = ()) -> Iterator[tuple[str, float]]:
    """Name and value of each number at a path."""
    if not path:
        yield " / ".join(name), float(value)
        return
    for key in value if path[0] == "*" else path[:1]:
        # A part that was not measured, vLLM where it is not installed, is found missing when the two are compared.
        if key in value:
            yield from select(value[key], path[1:], (*name, key))


def verdict(ratio: Ratio, baseline: float, now: float) -> str:
    change = now / baseline - 1
    worse = -change if ratio.higher_is_better else change
    # Also false of NaN.
    return "ok" if worse <= ratio.tolerance else "WORSE"


def compare(results: Path, baselines: Path) -> list[tuple[str, str]]:
    """A line and a verdict for each ratio of the baselines."""
    found = []
    for ratio in RATIOS:
        name = f"{ratio.file}.json"
        if not (baselines / name).is_file() or not (results / name).is_file():
            where = baselines if not (baselines / name).is_file() else results
            found.append((f"{ratio.file}: no {where.name}/{name}", "MISSING"))
            continue
        before = dict(select(json.loads((baselines / name).read_text()), ratio.path))
        if not before:
            found.append((f"{ratio.file}: no {' / '.join(ratio.path)} in the baseline", "MISSING"))
        now = dict(select(json.loads((results / name).read_text()), ratio.path))
        for key, value in before.items():
            line = f"{ratio.file}: {key}: {value:.3f}"
            if key in now:
                found.append((f"{line} -> {now[key]:.3f}", verdict(ratio, value, now[key])))
            else:
                found.append((f"{line} -> none", "MISSING"))
    return found


def update(results: Path, baselines: Path) -> None:
    """All of them or none."""
    names = sorted({f"{ratio.file}.json" for ratio in RATIOS})
    if missing := [name for name in names if not (results / name).is_file()]:
        sys.exit(f"every benchmark must have a result in {results}, got none for {missing}; run `make bench`")
    baselines.mkdir(exist_ok=True)
    for name in names:
        shutil.copyfile(results / name, baselines / name)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=HERE / "results")
    parser.add_argument("--baselines", type=Path, default=HERE / "baselines")
    parser.add_argument("--update", action="store_true", help="the results are the new baselines")
    options = parser.parse_args()
    if options.update:
        update(options.results, options.baselines)
        return
    found = compare(options.results, options.baselines)
    for line, judged in found:
        print(f"{judged:8}{line}")
    if bad := [line for line, judged in found if judged != "ok"]:
        sys.exit(
            f"{len(bad)} of {len(found)} ratios are worse than the baselines allow or missing; look at load_average in "
            "the results and run the benchmark again on an idle machine, or accept them with --update"
        )


if __name__ == "__main__":
    main()
