"""MineWorld's evaluation (arXiv 2504.08388): action following on its seven tasks, and its table's row.

A clip maps button names to 0/1 [F] and "camera" to degrees [F, 2], pitch first. Numpy only; knows nothing of models.
Its figures are not those of `evaluation.following`, which average over the commanded classes of any groups.
Legend: B clips, F frames, N frames of all clips, C classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from rlir_ray.data.files import Json
from rlir_ray.rewards.classification import accuracy, confusion
from rlir_ray.spaces.actions import BUTTONS, JUDGED_BUTTONS, VPT_CAMERA, Actions

if TYPE_CHECKING:
    from torch import Tensor

Clip = Mapping[str, npt.ArrayLike]
Columns = dict[str, npt.NDArray[np.generic]]

# Class i of a task is its i-th button pressed alone; class 0 is none of them, or both. The others are not judged.
TASKS = {
    "back/forward": ("back", "forward"),
    "left/right": ("left", "right"),
    "sneak/sprint": ("sneak", "sprint"),
    "use": ("use",),
    "attack": ("attack",),
    "jump": ("jump",),
    "drop": ("drop",),
}
CAMERA = "camera"
FIGURES = tuple(f"{figure}_{average}" for average in ("micro", "macro") for figure in ("precision", "recall", "f1"))


def action_following(predicted: Sequence[Clip], recorded: Sequence[Clip]) -> Json:
    """Compute the recovery of the recorded actions as MineWorld's evaluator does.

    Precision, recall and F1 of each task are scikit-learn's, over the frames of all clips: micro is the accuracy; macro
    is the mean over the classes that occur in either, 0 for what divides by nothing.

    Args:
        predicted: B clips that an inverse dynamics model read in the generated frames.
        recorded: the B clips that were commanded, of the same frames. Contradictions (jump and sneak, attack and use)
            are taken as they come, on both sides.

    Returns:
        `per_task`: task -> the six figures (``precision_micro`` ... ``f1_macro``) and `class_num`.
        `mean`: the six figures averaged over the tasks, and `camera_loss`, the mean absolute difference of VPT's camera
        bins (not degrees), both axes pooled.

    Raises:
        ValueError: the numbers of clips or of frames differ, a button is missing, or a value is none of its kind.

    Example: one clip of two frames, jump read in both and recorded in the first, all else right: jump has
    ``precision_micro == 0.5`` and ``recall_macro == 0.5``.
    """
    read, commanded = _pooled(predicted, recorded)
    per_task = {}
    for task, members in TASKS.items():
        num_classes = len(members) + 1
        counts = confusion(_classes(read, members), _classes(commanded, members), num_classes)
        per_task[task] = {**_figures(counts), "class_num": num_classes}
    distance = np.abs(VPT_CAMERA.bins(read[CAMERA]) - VPT_CAMERA.bins(commanded[CAMERA]))  # [N, 2]
    mean = {figure: float(np.mean([scores[figure] for scores in per_task.values()])) for figure in FIGURES}
    return {"per_task": per_task, "mean": {**mean, "camera_loss": float(distance.mean())}}


def following_in_use(predicted: Sequence[Clip], recorded: Sequence[Clip]) -> Json:
    """Average the result of `action_following` over the tasks that the recordings use.

    MineWorld's own means count 1 for a task that never occurs, and 0 for a camera axis that never turns.

    Args:
        predicted, recorded: as in `action_following`.

    Returns:
        `tasks`: those of which a button was recorded. `mean`: the six figures over them, None without one, and
        `camera_loss` over the axes that turn, None without one.

    Raises:
        ValueError: as in `action_following`.

    Example: only jump is ever pressed, with an F1 of .255: ``f1_macro == 0.255`` here, .894 in MineWorld's mean.
    """
    read, commanded = _pooled(predicted, recorded)
    per_task = action_following(predicted, recorded)["per_task"]
    tasks = [task for task, members in TASKS.items() if _classes(commanded, members).any()]
    mean = {figure: float(np.mean([per_task[task][figure] for task in tasks])) if tasks else None for figure in FIGURES}
    bins = VPT_CAMERA.bins(commanded[CAMERA])  # [N, 2]
    turns = (bins != VPT_CAMERA.null_bin).any(0)  # [2]
    distance = np.abs(VPT_CAMERA.bins(read[CAMERA]) - bins)[:, turns]
    return {"tasks": tasks, "mean": {**mean, "camera_loss": float(distance.mean()) if turns.any() else None}}


def _pooled(predicted: Sequence[Clip], recorded: Sequence[Clip]) -> tuple[Columns, Columns]:
    """Return the frames of all clips, one side after the other: a button bool [N], the camera float64 [N, 2]."""
    if len(predicted) != len(recorded) or not len(recorded):
        raise ValueError(
            f"predicted and recorded must have as many clips, at least one, got {len(predicted)} and {len(recorded)}; "
            "pair every generated clip with its recording"
        )
    sides: tuple[list[Columns], list[Columns]] = [], []
    for index, pair in enumerate(zip(predicted, recorded, strict=True)):
        one, other = _read(pair[0], f"predicted[{index}]"), _read(pair[1], f"recorded[{index}]")
        if len(one[CAMERA]) != len(other[CAMERA]):
            raise ValueError(
                f"a clip and its recording must have as many frames, got {len(one[CAMERA])} and {len(other[CAMERA])} "
                f"in clip {index}; cut both to the generated frames"
            )
        sides[0].append(one)
        sides[1].append(other)
    read, commanded = ({name: np.concatenate([clip[name] for clip in side]) for name in side[0]} for side in sides)
    return read, commanded


def _read(clip: Clip, where: str) -> Columns:
    """Return the columns that count: a button bool [F], the camera float64 [F, 2]."""
    names = [name for members in TASKS.values() for name in members]
    if missing := [name for name in (*names, CAMERA) if name not in clip]:
        raise ValueError(f"a clip must hold every judged button and the camera, {where} lacks {missing}; add zeros")
    camera = np.asarray(clip[CAMERA], np.float64)
    if camera.ndim != 2 or camera.shape[1] != 2 or not len(camera) or not np.isfinite(camera).all():
        raise ValueError(
            f"camera must be finite degrees [F, 2] with F >= 1, {where} has {_shown(camera)}; give (pitch, yaw) a frame"
        )
    columns: Columns = {CAMERA: camera}
    for name in names:
        values = np.asarray(clip[name])
        if values.shape != (len(camera),):
            raise ValueError(
                f"the columns of a clip must have one length, {where} has {name} {list(values.shape)} and "
                f"{len(camera)} frames of camera; give one value a frame"
            )
        if not np.isin(values, (0, 1)).all():
            raise ValueError(f"a button must be 0 or 1, {where} has {name} {_shown(values)}; give what is pressed")
        columns[name] = values == 1
    return columns


def _shown(values: npt.NDArray[np.generic]) -> str:
    return f"{list(values.shape)} with {values.ravel()[:4].tolist()}..."


def _classes(columns: Columns, members: Sequence[str]) -> npt.NDArray[np.int64]:
    """Return int64 [N]."""
    pressed = np.stack([columns[name] for name in members], -1)
    return np.where(pressed.sum(-1) == 1, pressed.argmax(-1) + 1, 0)


def _figures(counts: npt.NDArray[np.int64]) -> dict[str, float]:
    """Return the six figures of a confusion [C, C], rows recorded, columns predicted."""
    hits, recorded, predicted = np.diag(counts), counts.sum(1), counts.sum(0)
    macro = {
        "precision": hits / np.maximum(predicted, 1),
        "recall": hits / np.maximum(recorded, 1),
        "f1": 2 * hits / np.maximum(recorded + predicted, 1),
    }
    occurs = recorded + predicted > 0  # scikit-learn knows no other classes than these
    figures = {f"{figure}_macro": float(values[occurs].mean()) for figure, values in macro.items()}
    # Every frame has one class, so that each false alarm is a miss elsewhere: the three micro averages agree.
    return {**{f"{figure}_micro": accuracy(counts) for figure in macro}, **figures}


# ---------------------------------------------------------------------------------------------------------------------
# Clips


def actions_clip(actions: Actions, *, whole_degrees: bool = False) -> Columns:
    """Return commanded actions as a clip.

    Args:
        actions: F frames, those that were generated.
        whole_degrees: cut the camera to whole degrees, as MineWorld's recordings carry it; its published `camera_loss`
            is measured so.

    Returns:
        Each of the 23 buttons int64 [F], and the camera float64 [F, 2].
    """
    # Takes float32's error back: 3 degrees must not be cut to 2.
    camera = np.round(actions.camera.astype(np.float64), 4)
    return _clip(actions.buttons, np.trunc(camera) if whole_degrees else camera)


def logits_clips(logits: Mapping[str, Tensor]) -> list[Columns]:
    """Return an inverse dynamics model's recovered actions as clips: each head's most probable value.

    Args:
        logits: buttons [B, F, 20, 2] and camera [B, F, 2, 11]. MineWorld's evaluator shows the model the generated
            frames only, without the context.

    Returns:
        B clips, see `readings_clips`.

    Raises:
        ValueError: a value is not finite.
    """
    if not all(bool(values.isfinite().all()) for values in logits.values()):
        raise ValueError("an inverse dynamics model must give finite values, got others; check its weights")
    buttons, camera = (logits[head].argmax(-1).cpu().numpy() for head in ("buttons", CAMERA))
    return readings_clips(buttons, camera)


def readings_clips(buttons: npt.NDArray[np.integer], camera: npt.NDArray[np.integer]) -> list[Columns]:
    """Return values of an inverse dynamics model's heads as clips.

    Args:
        buttons: int [B, F, 20], 1 for pressed, in the order of `JUDGED_BUTTONS`.
        camera: int [B, F, 2], bins of `VPT_CAMERA`, pitch first.

    Returns:
        B clips: each of the 23 buttons int64 [F], 0 for those that have no head (swapHands, pickItem, ESC), and the
        camera float64 [F, 2] at its bins' centres. Contradictions stay, as in MineWorld's evaluator.
    """
    unseen = np.zeros((*buttons.shape[:2], len(BUTTONS) - len(JUDGED_BUTTONS)), np.int64)
    pressed = np.concatenate([buttons, unseen], -1)  # [B, F, 23]
    return [_clip(*clip) for clip in zip(pressed, VPT_CAMERA.degrees(camera), strict=True)]


def _clip(buttons: npt.NDArray[np.generic], camera: npt.NDArray[np.floating]) -> Columns:
    """Return [F, 23] and [F, 2]."""
    columns = zip(BUTTONS, buttons.T.astype(np.int64), strict=True)
    return {**dict(columns), CAMERA: camera}


# ---------------------------------------------------------------------------------------------------------------------
# The published table

NO_WEIGHTS = "no weights given"


MEANS = {"P": "precision_macro", "R": "recall_macro", "F1": "f1_macro", "camera": "camera_loss"}


def in_use_lines(in_use: Json) -> list[str]:
    """Return the action figures over the tasks in use, for a terminal, and what the published row is that follows.

    Args:
        in_use: of `following_in_use`.
    """
    cells = {name: "–" if in_use["mean"][key] is None else f"{in_use['mean'][key]:.3f}" for name, key in MEANS.items()}
    return [
        f"actions over the tasks in use ({', '.join(in_use['tasks']) or 'none'}) and the camera axes that turn",
        *_columns(cells),
        "",
        "MineWorld's published columns, over its seven tasks (one that never occurs counts 1)",
    ]


def table_lines(
    following: Json | None,
    *,
    fps: float,
    psnr: float,
    ssim: float,
    lpips: float | None = None,
    fvd: float | None = None,
) -> list[str]:
    """Return the row of MineWorld's main table, for a terminal.

    Args:
        following: of `action_following`; P, R and F1 are its macro means over the tasks, camera is in bins. None where
            no inverse dynamics model was given.
        fps: frames generated in a second.
        psnr, ssim, lpips: means over the frames; dB, -1..1 and 0 or more.
        fvd: of all clips; as `lpips` None where its network's weights were not given.

    Returns:
        The header and the row, in columns of one width.
    """
    cells = {
        "FPS": f"{fps:.2f}",
        **{name: f"{following['mean'][key]:.3f}" if following else NO_WEIGHTS for name, key in MEANS.items()},
        "PSNR": f"{psnr:.2f}",
        "SSIM": f"{ssim:.3f}",
        "LPIPS": NO_WEIGHTS if lpips is None else f"{lpips:.3f}",
        "FVD": NO_WEIGHTS if fvd is None else f"{fvd:.1f}",
    }
    return _columns(cells)


def _columns(cells: Mapping[str, str]) -> list[str]:
    """Return a header and a row, in columns of one width."""
    widths = [max(len(name), len(text)) for name, text in cells.items()]
    return [
        "  ".join(f"{text:>{width}}" for text, width in zip(texts, widths, strict=True))
        for texts in (list(cells), list(cells.values()))
    ]
