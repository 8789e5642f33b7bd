"""Action following as MineWorld's evaluator computes it (arXiv 2504.08388), on MineWorld's seven tasks.

A clip maps button names to 0/1 [F] and "camera" to degrees [F, 2], pitch first. Imports numpy only; independent of
models. `evaluation.following` has other figures: means over the commanded classes of any action groups.
Legend: B clips, F frames, N frames of all clips, C classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from rlir_ray.data.files import Json
from rlir_ray.rewards.classification import accuracy, confusion
from rlir_ray.spaces.space import Actions
from rlir_ray.spaces.vpt import BUTTONS, IDM_BUTTONS, VPT_CAMERA, buttons_of, camera_of

if TYPE_CHECKING:
    from torch import Tensor

Clip = Mapping[str, npt.ArrayLike]
Columns = dict[str, npt.NDArray[np.generic]]

# Class i of a task: its i-th button alone is pressed. Class 0: no button or both. Other buttons are not evaluated.
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
    """Compute how well the recorded actions were recovered, as MineWorld's evaluator does.

    Precision, recall and F1 of each task are those of scikit-learn, over the frames of all clips. Micro is the
    accuracy. Macro is the mean over the classes that occur on either side; a division by zero gives 0.

    Args:
        predicted: B clips that an inverse dynamics model read in the generated frames.
        recorded: the B commanded clips of the same frames. Both sides may hold contradictions (jump and sneak, attack
            and use), which stay as they are.

    Returns:
        `per_task`: task -> the six figures (``precision_micro`` ... ``f1_macro``) and `class_num`.
        `mean`: the six figures averaged over the tasks, and `camera_loss`, the mean absolute difference of VPT's camera
        bins (not degrees) over both axes.

    Raises:
        ValueError: the numbers of clips or of frames differ, a button is missing, or a value has a wrong type.

    Example: one clip of two frames; jump was read in both and recorded in the first; all else is right. Then jump has
    ``precision_micro == 0.5`` and ``recall_macro == 0.5``.
    """
    read, commanded = pooled(predicted, recorded)
    per_task = {}
    for task, members in TASKS.items():
        num_classes = len(members) + 1
        counts = confusion(task_classes(read, members), task_classes(commanded, members), num_classes)
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
        `tasks`: the tasks with a recorded button. `mean`: the six figures over these tasks (None without a task) and
        `camera_loss` over the axes that turn (None without such an axis).

    Raises:
        ValueError: as in `action_following`.

    Example: only jump is ever pressed, with an F1 of .255: ``f1_macro == 0.255`` here, .894 in MineWorld's mean.
    """
    read, commanded = pooled(predicted, recorded)
    per_task = action_following(predicted, recorded)["per_task"]
    tasks = [task for task, members in TASKS.items() if task_classes(commanded, members).any()]
    mean = {figure: float(np.mean([per_task[task][figure] for task in tasks])) if tasks else None for figure in FIGURES}
    bins = VPT_CAMERA.bins(commanded[CAMERA])  # [N, 2]
    turns = (bins != VPT_CAMERA.null_class).any(0)  # [2]
    distance = np.abs(VPT_CAMERA.bins(read[CAMERA]) - bins)[:, turns]
    return {"tasks": tasks, "mean": {**mean, "camera_loss": float(distance.mean()) if turns.any() else None}}


def pooled(predicted: Sequence[Clip], recorded: Sequence[Clip]) -> tuple[Columns, Columns]:
    """Concatenate the frames of all clips, for each side: button -> bool [N], camera -> float64 [N, 2]."""
    if len(predicted) != len(recorded) or not len(recorded):
        raise ValueError(
            f"predicted and recorded must have equally many clips, >= 1, got {len(predicted)} and {len(recorded)}; "
            "pair every generated clip with its recording"
        )
    sides: tuple[list[Columns], list[Columns]] = [], []
    for index, pair in enumerate(zip(predicted, recorded, strict=True)):
        one, other = _read(pair[0], f"predicted[{index}]"), _read(pair[1], f"recorded[{index}]")
        if len(one[CAMERA]) != len(other[CAMERA]):
            raise ValueError(
                f"a clip and its recording must have equally many frames, got {len(one[CAMERA])} and "
                f"{len(other[CAMERA])} in clip {index}; cut both to the generated frames"
            )
        sides[0].append(one)
        sides[1].append(other)
    read, commanded = ({name: np.concatenate([clip[name] for clip in side]) for name in side[0]} for side in sides)
    return read, commanded


def _read(clip: Clip, where: str) -> Columns:
    """Check a clip and return the columns of the tasks: button -> bool [F], camera -> float64 [F, 2]."""
    names = [name for members in TASKS.values() for name in members]
    if missing := [name for name in (*names, CAMERA) if name not in clip]:
        raise ValueError(f"a clip must hold the camera and the tasks' buttons, {where} lacks {missing}; add zeros")
    camera = np.asarray(clip[CAMERA], np.float64)
    if camera.ndim != 2 or camera.shape[1] != 2 or not len(camera) or not np.isfinite(camera).all():
        raise ValueError(
            f"camera must be finite degrees [F, 2] with F >= 1, {where} has {_shown(camera)}; give a pair (pitch, yaw) "
            "for each frame"
        )
    columns: Columns = {CAMERA: camera}
    for name in names:
        values = np.asarray(clip[name])
        if values.shape != (len(camera),):
            raise ValueError(
                f"the columns of a clip must have one length, {where} has {name} {list(values.shape)} and "
                f"{len(camera)} frames of camera; give one value for each frame"
            )
        if not np.isin(values, (0, 1)).all():
            raise ValueError(f"a button must be 0 or 1, {where} has {name} {_shown(values)}; give 1 for pressed")
        columns[name] = values == 1
    return columns


def _shown(values: npt.NDArray[np.generic]) -> str:
    return f"{list(values.shape)} with {values.ravel()[:4].tolist()}..."


def task_classes(columns: Columns, members: Sequence[str]) -> npt.NDArray[np.int64]:
    """Compute the class of a task in each frame, int64 [N]."""
    pressed = np.stack([columns[name] for name in members], -1)
    return np.where(pressed.sum(-1) == 1, pressed.argmax(-1) + 1, 0)


def _figures(counts: npt.NDArray[np.int64]) -> dict[str, float]:
    """Compute the six figures of a confusion [C, C]; rows are recorded classes, columns predicted classes."""
    hits, recorded, predicted = np.diag(counts), counts.sum(1), counts.sum(0)
    macro = {
        "precision": hits / np.maximum(predicted, 1),
        "recall": hits / np.maximum(recorded, 1),
        "f1": 2 * hits / np.maximum(recorded + predicted, 1),
    }
    occurs = recorded + predicted > 0  # scikit-learn ignores the other classes
    figures = {f"{figure}_macro": float(values[occurs].mean()) for figure, values in macro.items()}
    # Each frame has exactly one class. So each false positive is a false negative of another class, and the three
    # micro averages are equal.
    return {**{f"{figure}_micro": accuracy(counts) for figure in macro}, **figures}


# ---------------------------------------------------------------------------------------------------------------------
# Clips


def actions_clip(
    actions: Actions, *, pressed: npt.NDArray[np.bool_] | None = None, whole_degrees: bool = False
) -> Columns:
    """Convert commanded actions to a clip.

    Args:
        actions: actions of the F generated frames.
        pressed: the recorded buttons of these frames, bool [F, 23], with the contradictions that actions do not hold;
            the published evaluators take the buttons as they come. None: the buttons of the actions.
        whole_degrees: truncate the camera to whole degrees, as in MineWorld's recordings and its published
            `camera_loss`.

    Returns:
        Each of the 23 buttons int64 [F], and the camera float64 [F, 2].
    """
    # Remove the rounding error of float32, so that 3 degrees are not truncated to 2.
    camera = np.round(camera_of(actions).astype(np.float64), 4)
    buttons = buttons_of(actions.classes) if pressed is None else pressed
    return _clip(buttons, np.trunc(camera) if whole_degrees else camera)


def logits_clips(logits: Mapping[str, Tensor]) -> list[Columns]:
    """Convert the output of an inverse dynamics model to clips, with the most probable value of each head.

    Args:
        logits: buttons [B, F, 20, 2] and camera [B, F, 2, 11]. MineWorld's evaluator shows the model the generated
            frames only, without the context.

    Returns:
        B clips, as `classes_clips`.

    Raises:
        ValueError: a value is not finite.
    """
    if not all(bool(values.isfinite().all()) for values in logits.values()):
        raise ValueError("an inverse dynamics model must give finite values, got others; check its weights")
    buttons, camera = (logits[head].argmax(-1).cpu().numpy() for head in ("buttons", CAMERA))
    return classes_clips(buttons, camera)


def classes_clips(buttons: npt.NDArray[np.integer], camera: npt.NDArray[np.integer]) -> list[Columns]:
    """Convert values of an inverse dynamics model's heads to clips.

    Args:
        buttons: int [B, F, 20], 1 for pressed, in the order of `IDM_BUTTONS`.
        camera: int [B, F, 2], bins of `VPT_CAMERA`, pitch first.

    Returns:
        B clips: each of the 23 buttons int64 [F] and the camera float64 [F, 2] at the centres of its bins. Buttons
        without a head (swapHands, pickItem, ESC) are 0. Contradictions stay, as in MineWorld's evaluator.
    """
    unseen = np.zeros((*buttons.shape[:2], len(BUTTONS) - len(IDM_BUTTONS)), np.int64)
    pressed = np.concatenate([buttons, unseen], -1)  # [B, F, 23]
    return [_clip(*clip) for clip in zip(pressed, VPT_CAMERA.centres(camera), strict=True)]


def _clip(buttons: npt.NDArray[np.generic], camera: npt.NDArray[np.floating]) -> Columns:
    """Build a clip of buttons [F, 23] and camera [F, 2]."""
    columns = zip(BUTTONS, buttons.T.astype(np.int64), strict=True)
    return {**dict(columns), CAMERA: camera}
