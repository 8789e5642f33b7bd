from __future__ import annotations

import numpy as np
import pytest
import torch

from rlir_ray.actions import GROUPS, VPT_CAMERA, Actions
from rlir_ray.rewards.agreement import accepted_classes, agreement, class_weights, frame_weights

GROUP_NAMES = ("forward_back", "jump", "yaw")


def _actions(yaw: tuple[float, ...] = (0.0, 5.85)) -> Actions:
    """Forward held in both frames, jump in the second."""
    buttons = np.zeros((len(yaw), 23), np.bool_)
    buttons[:, 2] = True
    buttons[1:, 3] = True
    return Actions(buttons, np.array([[0.0, degrees] for degrees in yaw], np.float32))


def _probabilities() -> dict[str, torch.Tensor]:
    """One clip of two frames; classes of forward_back are none, forward, back."""
    yaw = torch.zeros(1, 2, 11)
    yaw[0, 0, 5], yaw[0, 0, 6] = 0.6, 0.4  # commanded: bin 5
    yaw[0, 1, 9], yaw[0, 1, 8] = 0.3, 0.7  # commanded: bin 9
    return {
        "forward_back": torch.tensor([[[0.2, 0.5, 0.3], [0.1, 0.2, 0.7]]]),
        "jump": torch.tensor([[[0.9, 0.1], [0.4, 0.6]]]),
        "yaw": yaw,
    }


def test_soft_groups_is_the_mean_probability_of_the_commanded_classes() -> None:
    accepted = accepted_classes(_actions(), GROUP_NAMES)
    reward = agreement(_probabilities(), accepted, rule="groups", match="soft")
    # (.5 + .9 + .6) / 3 and (.2 + .6 + .3) / 3
    torch.testing.assert_close(reward, torch.tensor([[2 / 3, 1.1 / 3]]))


def test_exact_groups_is_the_share_of_groups_recovered() -> None:
    reward = agreement(_probabilities(), accepted_classes(_actions(), GROUP_NAMES), rule="groups", match="exact")
    torch.testing.assert_close(reward, torch.tensor([[1.0, 1 / 3]]))


def test_joint_needs_every_group_and_its_soft_form_is_the_product() -> None:
    accepted = accepted_classes(_actions(), GROUP_NAMES)
    torch.testing.assert_close(
        agreement(_probabilities(), accepted, rule="joint", match="exact"), torch.tensor([[1.0, 0.0]])
    )
    torch.testing.assert_close(
        agreement(_probabilities(), accepted, rule="joint", match="soft"), torch.tensor([[0.27, 0.036]])
    )


def test_fields_compares_each_button_and_axis_by_itself() -> None:
    accepted = accepted_classes(_actions(), GROUP_NAMES)
    # Frame 1: back recovered for forward, so both buttons are wrong; jump is right; yaw is wrong: 1 of 4.
    torch.testing.assert_close(
        agreement(_probabilities(), accepted, rule="fields", match="exact"), torch.tensor([[1.0, 0.25]])
    )
    # Frame 0: forward .5, back 1 - .3, jump 1 - .1, yaw .6; frame 1: .2, 1 - .7, .6, .3.
    torch.testing.assert_close(
        agreement(_probabilities(), accepted, rule="fields", match="soft"), torch.tensor([[2.7 / 4, 1.4 / 4]])
    )


def test_a_camera_off_by_one_bin_agrees_within_one() -> None:
    accepted = accepted_classes(_actions(), GROUP_NAMES, camera="within", tolerance=1)
    assert accepted["yaw"].sum(1).tolist() == [3, 3]
    torch.testing.assert_close(
        agreement(_probabilities(), accepted, rule="groups", match="exact"), torch.tensor([[1.0, 2 / 3]])
    )


def test_cell_accepts_what_the_world_models_quantiser_cannot_tell_apart() -> None:
    accepted = accepted_classes(_actions((0.0, 5.85)), ("yaw",), camera="cell")["yaw"]
    # MineWorld's null bin ends at 1.054 degrees: bins 4, 5, 6 with centres -.615, 0, .615.
    assert torch.nonzero(accepted[0]).flatten().tolist() == [4, 5, 6]
    assert torch.nonzero(accepted[1]).flatten().tolist() == [9]


def test_every_command_accepts_its_own_bin_under_every_camera_rule() -> None:
    angles = tuple(np.linspace(-95, 95, 77))
    own = VPT_CAMERA.bins(np.float32(angles))
    for camera in ("exact", "within", "cell"):
        accepted = accepted_classes(_actions(angles), ("yaw",), camera=camera)["yaw"].numpy()
        assert accepted[np.arange(len(angles)), own].all()


def test_an_ignored_camera_leaves_the_buttons() -> None:
    assert list(accepted_classes(_actions(), GROUP_NAMES, camera="ignore")) == ["forward_back", "jump"]
    with pytest.raises(ValueError, match="leaves no action group"):
        accepted_classes(_actions(), ("pitch", "yaw"), camera="ignore")


@pytest.mark.parametrize("share", [[0.9, 0.1], [0.5, 0.3, 0.2], [0.998, 0.001, 0.001], [0.7, 0.3, 0.0]])
def test_class_weights_keep_the_mean_reward_and_favour_rare_classes(share: list[float]) -> None:
    weights = class_weights(share)
    np.testing.assert_allclose((weights * share).sum(), 1, rtol=1e-6)
    assert (np.diff(weights[np.argsort(share)]) <= 0).all()
    assert weights.max() / weights.min() <= 5 / 0.2


def test_class_weights_of_an_unseen_table_are_refused() -> None:
    with pytest.raises(ValueError, match="class shares"):
        class_weights([0.0, 0.0])


def test_weights_scale_a_groups_agreement_frame_by_frame() -> None:
    # Shares .9 and .1: 1 / (2 * .9) and 1 / (2 * .1), whose mean under the shares is 1 already.
    weights = frame_weights(_actions(), ("jump",), {"jump": class_weights([0.9, 0.1])})
    accepted = accepted_classes(_actions(), ("jump",))
    reward = agreement(_probabilities(), accepted, rule="groups", match="soft", weights=weights)
    torch.testing.assert_close(reward, torch.tensor([[0.9 / 1.8, 0.6 / 0.2]]))
    with pytest.raises(ValueError, match=r"reward\.rule=groups"):
        agreement(_probabilities(), accepted, rule="joint", match="soft", weights=weights)


def test_perfect_recovery_gives_one_under_every_rule() -> None:
    actions = _actions()
    certain = {name: table.float()[None] for name, table in accepted_classes(actions, tuple(GROUPS)).items()}
    for rule in ("groups", "joint", "fields"):
        for match in ("exact", "soft"):
            accepted = accepted_classes(actions, tuple(GROUPS))
            assert agreement(certain, accepted, rule=rule, match=match).tolist() == [[1.0, 1.0]]
