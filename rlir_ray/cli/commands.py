"""The command line. Heavy imports come after the arguments are read, so that help is instant."""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
import traceback
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NoReturn

from rlir_ray.cli.console import protect_standard_streams
from rlir_ray.cli.convert import run_convert
from rlir_ray.cli.generate import run_generate
from rlir_ray.cli.merge import run_merge
from rlir_ray.cli.parser import build_parser
from rlir_ray.cli.play import run_play
from rlir_ray.cli.world_commands import WORLD_HANDLERS, Command
from rlir_ray.run.environment import check_actors, ensure_home

INTERRUPTED = 130
# Errors of bugs: their messages are unclear without the name of the error.
NAMELESS = (LookupError, AttributeError, TypeError, ArithmeticError, AssertionError)


def _train(arguments: argparse.Namespace, rest: list[str]) -> None:
    from rlir_ray.cli.console import StepView
    from rlir_ray.config.load import load_config, recipes
    from rlir_ray.config.unread_keys import reject_unread

    if not arguments.recipe:
        # The defaults alone would train without a time limit, on a world that the user may not want.
        raise ValueError(
            f"train needs a recipe, got none; add --recipe doom_tiny_ar, another of {', '.join(recipes())}, or "
            "your own FILE.yaml"
        )
    overrides = [*arguments.overrides, *rest]
    config = load_config(arguments.recipe, overrides)
    reject_unread(config, overrides)
    with contextlib.closing(StepView(config.train)) as view:
        view.stage("starting")
        check_actors()
        from actors.pipeline import Pipeline
        from rlir_ray.cli.outcome import outcome_lines

        pipeline = Pipeline(config, callbacks=[view.step], progress=view.stage, trace=arguments.trace)
        with _traceback_to(pipeline.folder.path / "run.log"):
            result = pipeline.train()
            # A finished run has its report already, unless a process ended while it wrote the report.
            if not result.interrupted and not (result.was_finished and (result.folder / "report.html").is_file()):
                from rlir_ray.evaluation.report import write_report

                view.stage("writing the report")
                write_report(pipeline.folder.path)
    lines = outcome_lines(
        result.folder,
        config.train,
        result.num_steps,
        result.metrics,
        result.groups,
        interrupted=result.interrupted,
        generated_name="" if config.run.name else result.folder.name,
    )
    print("\n".join(lines))
    if result.interrupted:
        sys.exit(INTERRUPTED)


def _doctor(arguments: argparse.Namespace, rest: list[str]) -> None:
    from rlir_ray.config.load import load_config
    from rlir_ray.config.unread_keys import reject_unread
    from rlir_ray.run.doctor import Finding, machine_findings

    overrides, failed = [*arguments.overrides, *rest], False
    config = load_config(arguments.recipe, overrides)
    reject_unread(config, overrides)

    def show(findings: Iterable[Finding]) -> None:
        nonlocal failed
        for finding in findings:
            failed |= finding.level == "fail"
            print(finding.line(), flush=True)

    show(machine_findings(config))
    try:
        check_actors()
        from actors.cluster.doctor import ray_findings
    except ValueError as error:
        show([Finding("fail", "actors", str(error))])
    except ImportError as error:
        show([Finding("fail", "ray", f"cannot be imported ({error}); make install")])
    else:
        show(ray_findings(config))
    if failed:
        sys.exit(1)


def _report(arguments: argparse.Namespace, rest: list[str]) -> None:
    from rlir_ray.evaluation.report import write_report
    from rlir_ray.run.address import find_folder

    print(write_report(find_folder(arguments.run)))


def _ledger(arguments: argparse.Namespace, rest: list[str]) -> None:
    from rlir_ray.algorithm.ledger import FILE, Ledger, account
    from rlir_ray.run.address import ADDRESS_FILE, find_folder

    folder = find_folder(arguments.run)
    if not (folder / FILE).is_file():
        raise ValueError(f"a run must hold {FILE}, got none in {folder}; the first checkpoint writes this file")
    # A killed run leaves its address file; its groups in flight end when the run resumes.
    is_open = (folder / ADDRESS_FILE).exists()
    lines, fault = account(Ledger.from_json((folder / FILE).read_text(encoding="utf-8")), is_open)
    print("\n".join(lines))
    if fault:
        print(f"error: {fault}", file=sys.stderr)
        sys.exit(1)


def _evaluate(arguments: argparse.Namespace, rest: list[str]) -> None:
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    from rlir_ray.evaluation.command import EvaluationRequest, evaluate

    evaluate(
        EvaluationRequest(
            policy=arguments.policy,
            data=arguments.data,
            idm=arguments.idm,
            tokenizer=arguments.tokenizer,
            recipe=arguments.recipe,
            num_clips=arguments.num_clips,
            lpips=arguments.lpips,
            fvd=arguments.fvd,
            rlvr=arguments.rlvr,
            out=arguments.out,
            overrides=(*arguments.overrides, *rest),
        )
    )


def _scale(arguments: argparse.Namespace, rest: list[str]) -> None:
    from rlir_ray.config import require
    from rlir_ray.run.address import AUTH_VARIABLE, find_run

    what = f"the number of {arguments.pool} actors"
    require(arguments.number >= 1, what, "must be >= 1", arguments.number, "scale to 1 or more")
    run = find_run(arguments.run)
    if run.auth_mode:
        # The Ray of a run requires a token. Ray reads the mode when it is imported.
        os.environ.setdefault(AUTH_VARIABLE, run.auth_mode)
    check_actors()
    from actors.control.commands import scale_run

    print(scale_run(run, arguments.pool, arguments.number))


@contextlib.contextmanager
def _traceback_to(log: Path) -> Iterator[None]:
    """Append the traceback of an error to a log file, because the user sees one line of the error."""
    try:
        yield
    except Exception as error:
        # If the disk is full, report the first error rather than the failed write of its traceback.
        with contextlib.suppress(OSError):
            with log.open("a", encoding="utf-8") as lines:
                lines.writelines(traceback.format_exception(error))
            error.add_note(f"full log: {log}")
        raise


HANDLERS: dict[str, Command] = {
    "train": _train,
    "scale": _scale,
    "doctor": _doctor,
    "eval": _evaluate,
    "convert": run_convert,
    "merge": run_merge,
    "generate": run_generate,
    "play": run_play,
    "report": _report,
    "ledger": _ledger,
    **WORLD_HANDLERS,
}


def _fail(error: BaseException, code: int) -> NoReturn:
    # Ray's errors hold the error of the other process as their cause.
    cause = getattr(error, "cause", None) or error
    text = [line.strip() for line in str(cause).splitlines() if line.strip()] or [type(cause).__name__]
    line = text[-1 if type(cause).__module__.startswith("ray.") else 0]
    if isinstance(cause, NAMELESS):
        line = f"{type(cause).__name__}: {line}"
    lines = [line, *getattr(error, "__notes__", [])]
    print("error: " + "\n       ".join(lines), file=sys.stderr)
    sys.exit(code)


def main(argv: Sequence[str] | None = None) -> None:
    """Run a command. Exit codes: 0 done, 1 failed, 2 bad input, 130 interrupted."""
    protect_standard_streams()
    # Ray reports its usage only if the user asks for it.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    parser = build_parser()
    arguments, rest = parser.parse_known_args(argv)
    if rest and arguments.command not in ("train", "doctor", "pretrain", "assets", "eval", "audit"):
        parser.error(f"unknown arguments: {' '.join(rest)}")
    if getattr(arguments, "keys", False):
        from rlir_ray.config.reference import keys_help

        print(keys_help())
        return
    try:
        ensure_home()
        HANDLERS[arguments.command](arguments, rest)
    except ValueError as error:
        _fail(error, 2)
    except KeyboardInterrupt:
        _fail(KeyboardInterrupt("interrupted"), INTERRUPTED)
    except Exception as error:
        _fail(error, 1)
