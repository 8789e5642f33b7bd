"""Warnings at the end of a training: the inverse dynamics model recovers no actions, the world model ignores actions.

Each function returns one line, or an empty text if there is no reason to warn. Independent of models.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from rlir_ray.rewards.calibration import GATE_MARGIN

# Share of the held-out loss; a smaller rise with wrong actions does not count, even if its standard error is smaller.
MIN_SHARE = 0.002
OWN, WRONG, ERROR = "validation_loss", "validation_loss_wrong_actions", "wrong_actions_error"


def idm_warning(gate: Mapping[str, float | None], groups: Sequence[str], score: str = "macro-F1") -> str:
    """Warn of an inverse dynamics model that scores exact clips no better than static ones.

    Args:
        gate: score by kind of clip (`exact`, `static`, …) of `rlir_ray.rewards.calibration.gate`; None for NaN.
        groups: fields that the model was trained on.
        score: name of the score (`rlir_ray.rewards.field_scores.score_words`).
    """
    exact, static = gate["exact"], gate["static"]
    if exact is None or static is None:
        return (
            f"warning: none of the groups {','.join(groups)} occurs in the held-out recordings, so the model was not "
            "evaluated; set --groups to the groups in use, or hold out recordings in which the player acts"
        )
    if exact > static + GATE_MARGIN:
        return ""
    return (
        f"warning: the model recovers no actions: held-out clips score {score} {exact:.2f}, the same clips frozen at "
        f"the first frame {static:.2f}; check that action k of each recording leads into frame k and that the frames "
        f"show {','.join(groups)}, then train longer (--minutes, --num-steps) or on more recordings"
    )


def loss_metrics(own: npt.ArrayLike, wrong: npt.ArrayLike) -> dict[str, float]:
    """Summarize the held-out losses of windows with their own actions and with the actions of another window, each [B].

    Returns:
        `validation_loss`; with two windows or more also `validation_loss_wrong_actions` and `wrong_actions_error`, the
        standard error of their paired difference.
    """
    mine, others = np.asarray(own, np.float64), np.asarray(wrong, np.float64)
    found = {OWN: float(mine.mean())}
    if len(mine) > 1:
        error = float((others - mine).std(ddof=1) / math.sqrt(len(mine)))
        found |= {WRONG: float(others.mean()), ERROR: error}
    return found


def world_model_warning(final: Mapping[str, float]) -> str:
    """Warn of a world model whose held-out loss does not rise with the actions of another clip.

    The loss rises if the difference exceeds two paired standard errors and `MIN_SHARE` of the loss.

    Args:
        final: metrics of `loss_metrics` that are finite.
    """
    if OWN not in final:
        return "warning: the held-out loss is not finite; lower --learning-rate and train again"
    if WRONG not in final:
        return (
            "warning: the held-out recordings hold one window, which cannot show if the model follows actions; hold "
            "out longer recordings or raise --num-validation"
        )
    own, wrong = final[OWN], final[WRONG]
    if wrong - own > max(2 * final.get(ERROR, 0.0), MIN_SHARE * abs(own)):
        return ""
    return (
        f"warning: the model ignores the actions: its held-out loss is {own:.4g}, and {wrong:.4g} with another clip's "
        "actions; check that action k leads into frame k and that the player acts in the recordings, then train longer "
        "(--minutes, --num-steps) or on more of them"
    )
