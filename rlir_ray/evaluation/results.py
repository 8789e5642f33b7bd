"""Results of evaluations, their paired differences, and the files that hold both in a run's folder.

A comparison pairs the values of each prompt, so that the difficulty of the prompt cancels. Independent of models.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from rlir_ray.algorithm.guidance import NO_GUIDANCE
from rlir_ray.data.files import Json, number, write_json
from rlir_ray.evaluation.following import Following, bootstrap_std, standard_error
from rlir_ray.evaluation.following_json import following_from_json, following_to_json
from rlir_ray.evaluation.quality import FIGURES, Quality
from rlir_ray.evaluation.video import Clips, save_clips, write_videos
from rlir_ray.rewards.classification import or_none

# The report's table has this order.
BASE, SUPERVISED, POST_TRAINED = NAMES = ("base", "supervised", "post-trained")
REAL, RECONSTRUCTED = "real", "reconstructed"
FILE = "evaluation.json"
Sampling = tuple[float | None, float]
"""Temperature (None: the clips are real) and scale of the action guidance."""


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """The figures of one model, or of the real clips, over the held-out prompts.

    In JSON: ``{"name", "temperature", "guidance", "num_prompts", "seed", "policy_version",
    "following": {"reward": F, "judge": F}, "quality": Q}``. F is ``{FIGURE, FIGURE_se, ..., "per_group": {field:
    {"accuracy", "macro_f1"}}, "groups", "space", "commanded", "recovered", "commanded_values", "recovered_values"}``
    with the figures of `Following.headline`.
    `commanded` and `recovered` are the classes [P, F, K]: a line for each clip, a word for each frame, base-36 digits
    for each field; the values are those of the axes [P, F, A]. Q has brightness, sharpness, motion, psnr and
    ssim, each ``{"mean", "clips": [P]}``.
    """

    name: str
    """A model: `base`, `supervised`, `post-trained` or a user's name. Real clips: `real` or `reconstructed`."""
    seed: int
    following: dict[str, Following]
    """Inverse dynamics model (`reward`, `judge`) -> its figures; a model that the run lacks is missing."""
    quality: Quality
    temperature: float | None = None
    """Sampling temperature; None: the clips are real."""
    guidance: float = NO_GUIDANCE
    """Scale of the action guidance; 1: none."""
    policy_version: int | None = None
    """Version of the weights that sampled the clips; None: the clips are real."""

    @property
    def sampling(self) -> Sampling:
        return (self.temperature, self.guidance)

    @property
    def num_prompts(self) -> int:
        return len(self.quality.brightness)

    def to_json(self) -> dict[str, object]:
        return {
            "name": self.name,
            "temperature": self.temperature,
            "guidance": self.guidance,
            "num_prompts": self.num_prompts,
            "seed": self.seed,
            "policy_version": self.policy_version,
            "following": {idm: following_to_json(part) for idm, part in self.following.items()},
            "quality": self.quality.to_json(),
        }

    @classmethod
    def from_json(cls, content: Json) -> Evaluation:
        return cls(
            name=content["name"],
            temperature=content["temperature"],
            # Evaluations of earlier versions have no guidance.
            guidance=content.get("guidance", NO_GUIDANCE),
            seed=content["seed"],
            policy_version=content["policy_version"],
            following={idm: following_from_json(part) for idm, part in content["following"].items()},
            quality=Quality.from_json(content["quality"]),
        )


@dataclass(frozen=True, kw_only=True)
class Change:
    """Mean over the prompts of after minus before, and its paired standard error; NaN if one side has no figure."""

    mean: float
    se: float


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """The changes from one evaluation to another over the same prompts."""

    before: str
    before_temperature: float | None
    after: str
    after_temperature: float | None
    following: dict[str, dict[str, Change]]
    """Inverse dynamics model -> changes of its headline figures."""
    quality: dict[str, Change]
    """Figure of `Quality` -> its change."""
    before_guidance: float = NO_GUIDANCE
    after_guidance: float = NO_GUIDANCE

    @property
    def is_of_one_sampling(self) -> bool:
        return (self.before_temperature, self.before_guidance) == (self.after_temperature, self.after_guidance)

    def to_json(self) -> dict[str, object]:
        content = asdict(self)
        for changes in (*content["following"].values(), content["quality"]):
            for change in changes.values():
                change.update({name: or_none(value) for name, value in change.items()})
        return content

    @classmethod
    def from_json(cls, content: Json) -> Comparison:
        following = {idm: _changes(part) for idm, part in content["following"].items()}
        return cls(**{**content, "following": following, "quality": _changes(content["quality"])})


def _changes(content: Json) -> dict[str, Change]:
    return {figure: Change(mean=number(part["mean"]), se=number(part["se"])) for figure, part in content.items()}


def compare(before: Evaluation, after: Evaluation) -> Comparison:
    """Compute paired differences and their standard errors.

    Raises:
        ValueError: the evaluations differ in prompts or commands.
    """
    return Comparison(
        before=before.name,
        before_temperature=before.temperature,
        after=after.name,
        after_temperature=after.temperature,
        following={
            idm: following_changes(before.following[idm], part)
            for idm, part in after.following.items()
            if idm in before.following
        },
        quality=quality_changes(before.quality, after.quality),
        before_guidance=before.guidance,
        after_guidance=after.guidance,
    )


def following_changes(before: Following, after: Following) -> dict[str, Change]:
    """Compute the changes of the headline figures.

    Raises:
        ValueError: the evaluations differ in prompts or commands.
    """
    one, other = before.commanded, after.commanded
    # Evaluations of earlier versions have no values of ungraded axes.
    graded, same = before.is_graded, before.fields == after.fields and np.array_equal(one.classes, other.classes)
    if not same or not np.array_equal(one.values[..., graded], other.values[..., graded]):
        raise ValueError(
            f"two evaluations must have the same prompts and commands, got {one.classes.shape} and "
            f"{other.classes.shape} (P, F, fields) or other commands; evaluate both with one prompt set"
        )
    changes = {
        "accuracy": _change(after.prompt_accuracy - before.prompt_accuracy),
        "macro_f1": Change(
            mean=after.macro_f1 - before.macro_f1,
            se=bootstrap_std(after.resampled_macro_f1 - before.resampled_macro_f1),
        ),
        "axis_error": _change(after.prompt_axis_error - before.prompt_axis_error),
        "r2": Change(mean=after.r2 - before.r2, se=bootstrap_std(after.resampled_r2 - before.resampled_r2)),
    }
    return {figure: changes[figure] for figure in after.headline}


def quality_changes(before: Quality, after: Quality) -> dict[str, Change]:
    """Compute the changes of the figures that both sides have, over the same prompts."""
    pairs = {figure: (getattr(before, figure), getattr(after, figure)) for figure in FIGURES}
    return {figure: _change(two - one) for figure, (one, two) in pairs.items() if one is not None and two is not None}


def _change(differences: npt.NDArray[np.float64]) -> Change:
    return Change(mean=float(differences.mean()), se=standard_error(differences))


def compare_all(evaluations: Sequence[Evaluation]) -> list[Comparison]:
    """Compare each model with the models before it in `NAMES`.

    Compare equal temperatures and guidance. Also compare the model's first evaluation with every evaluation of the
    other model: a gain that a lower temperature or guidance also gives is not a gain of training.
    """
    found = []
    known = [evaluation for evaluation in evaluations if evaluation.name in NAMES]
    first = {evaluation.name: evaluation.sampling for evaluation in reversed(known)}
    for after in known:
        for before in known:
            headline = after.sampling in (first[after.name], before.sampling)
            if NAMES.index(before.name) < NAMES.index(after.name) and headline:
                found.append(compare(before, after))
    return found


@dataclass(frozen=True, kw_only=True)
class Results:
    """The content of `evaluation.json`: ``{"ceiling": {"real": E, "reconstructed": E}, "evaluations": [E, ...],
    "comparisons": [{"before", "before_temperature", "before_guidance", "after", "after_temperature", "after_guidance",
    "following": {idm: {figure: D}}, "quality": {figure: D}}, ...]}``, E as in `Evaluation`, D ``{"mean", "se"}``.
    """

    ceiling: dict[str, Evaluation] = field(default_factory=dict)
    evaluations: list[Evaluation] = field(default_factory=list)
    comparisons: list[Comparison] = field(default_factory=list)

    def find(self, name: str) -> Evaluation | None:
        """Return a model's first evaluation (the headline); None: the model was not evaluated."""
        return next((evaluation for evaluation in self.evaluations if evaluation.name == name), None)

    def save(self, run_dir: Path) -> None:
        content = {
            "ceiling": {name: evaluation.to_json() for name, evaluation in self.ceiling.items()},
            "evaluations": [evaluation.to_json() for evaluation in self.evaluations],
            "comparisons": [comparison.to_json() for comparison in self.comparisons],
        }
        write_json(Path(run_dir) / FILE, content)

    @classmethod
    def load(cls, run_dir: Path) -> Results:
        """Read the results of a run.

        Raises:
            ValueError: the run's folder holds no evaluation.
        """
        path = Path(run_dir) / FILE
        if not path.is_file():
            raise ValueError(f"a run's folder must hold {FILE}, got {run_dir}; let its training finish first")
        content = json.loads(path.read_text(encoding="utf-8"))
        return cls(
            ceiling={name: Evaluation.from_json(part) for name, part in content["ceiling"].items()},
            evaluations=[Evaluation.from_json(part) for part in content["evaluations"]],
            comparisons=[Comparison.from_json(part) for part in content["comparisons"]],
        )


def _load_or_new(run_dir: Path) -> Results:
    return Results.load(run_dir) if (Path(run_dir) / FILE).is_file() else Results()


def judged_samplings(run_dir: Path, name: str, policy_version: int) -> set[Sampling]:
    """Return temperature and guidance of each evaluation of this version of a model."""
    found = _load_or_new(run_dir).evaluations
    return {each.sampling for each in found if (each.name, each.policy_version) == (name, policy_version)}


def record_ceiling(run_dir: Path, ceiling: dict[str, Evaluation], clips: Clips) -> None:
    """Save what `evaluate_real` returns: the ceiling, and the real clips for the report."""
    results = _load_or_new(run_dir)
    Results(ceiling=ceiling, evaluations=results.evaluations, comparisons=results.comparisons).save(run_dir)
    save_clips(run_dir, clips)


def record_evaluation(run_dir: Path, evaluation: Evaluation, clips: Clips | None = None) -> None:
    """Save what `evaluate_policy` returns; replace that of the same name, temperature and guidance.

    Args:
        run_dir: folder of the run.
        evaluation: the new evaluation; the comparisons with the others are computed again.
        clips: clips for the side-by-side videos, which are written again; give those of the headline only.
    """
    results = _load_or_new(run_dir)
    same = (evaluation.name, evaluation.sampling)
    others = [other for other in results.evaluations if (other.name, other.sampling) != same]
    evaluations = sorted([*others, evaluation], key=lambda each: (*NAMES, each.name).index(each.name))
    Results(ceiling=results.ceiling, evaluations=evaluations, comparisons=compare_all(evaluations)).save(run_dir)
    if clips is not None:
        save_clips(run_dir, clips)
        write_videos(run_dir)
