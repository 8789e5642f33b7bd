"""The flow world model: what may see what, and the passes that must agree."""

from __future__ import annotations

import pytest
import torch

from rlir_ray.models.flow import FlowWorldModel, open_flow_model
from rlir_ray.models.rescoring import two_streams
from rlir_ray.spaces.fields import Axis, Uniform
from rlir_ray.spaces.layouts import FieldsLayout, layout_settings
from rlir_ray.spaces.mineworld import ACTION_CLASS_COUNTS
from rlir_ray.spaces.space import ActionSpace
from rlir_ray.spaces.vpt import VPT_SPACE
from tests.second_space import SPACE, second_flow_model

SMALL = {
    "latent_channels": 4,
    "latent_height": 4,
    "latent_width": 6,
    "hidden_size": 48,
    "num_layers": 2,
    "num_heads": 2,
}


def lively(seed: int = 0, **changes: int) -> FlowWorldModel:
    """A model whose gates are open: a fresh one says zero to everything."""
    torch.manual_seed(seed)
    model = FlowWorldModel(**(SMALL | changes)).eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.1 * torch.randn_like(weight))
    return model


def clips(num_clips: int = 2, num_frames: int = 5, seed: int = 1) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    latents = torch.randn(num_clips, num_frames, 4, 4, 6, generator=generator)
    levels = torch.rand(num_clips, num_frames, generator=generator)
    columns = [torch.randint(count, (num_clips, num_frames), generator=generator) for count in ACTION_CLASS_COUNTS]
    return latents, levels, torch.stack(columns, -1)


def test_fresh_model_says_zero() -> None:
    assert FlowWorldModel(**SMALL)(*clips()).abs().max() == 0


@pytest.mark.parametrize("changed", ["latents", "level", "action"])
@torch.no_grad()
def test_future_frame_never_changes_an_earlier_output(changed: str) -> None:
    model, (latents, levels, actions) = lively(), clips()
    before = model(latents, levels, actions)
    if changed == "latents":
        latents[:, 3] += 1
    elif changed == "level":
        levels[:, 3] = 1 - levels[:, 3]
    else:
        actions[:, 3, 3] = (actions[:, 3, 3] + 1) % ACTION_CLASS_COUNTS[3]
    after = model(latents, levels, actions)
    assert torch.equal(before[:, :3], after[:, :3])
    assert (before[:, 3:] - after[:, 3:]).abs().amax((0, 2, 3, 4)).min() > 1e-4


@torch.no_grad()
def test_every_action_column_is_heard() -> None:
    model, (latents, levels, actions) = lively(), clips(num_frames=2)
    before = model(latents, levels, actions)
    for column, count in enumerate(ACTION_CLASS_COUNTS):
        changed = actions.clone()
        changed[:, 1, column] = (changed[:, 1, column] + 1) % count
        assert (model(latents, levels, changed)[:, 1] - before[:, 1]).abs().max() > 1e-5


@torch.no_grad()
def test_attention_inside_a_frame_is_full() -> None:
    """The first token of a frame sees its last one."""
    model, (latents, levels, actions) = lively(), clips(num_frames=1)
    before = model(latents, levels, actions)
    latents[..., -2:, -2:] += 1
    assert (model(latents, levels, actions) - before)[..., :2, :2].abs().max() > 1e-5


@torch.no_grad()
def test_frame_after_a_cache_equals_the_uncached_pass() -> None:
    model, (latents, levels, actions) = lively(), clips()
    whole = model(latents, levels, actions)
    _, cache = model.read(latents[:, :2], levels[:, :2], actions[:, :2])
    for frame in range(2, 5):
        part = slice(frame, frame + 1)
        velocity, read = model.read(
            latents[:, part], levels[:, part], actions[:, part], torch.tensor([frame]), cache=cache
        )
        cache = cache.append(read)
        torch.testing.assert_close(velocity[:, 0], whole[:, frame], atol=1e-5, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("span", [None, 4, 2, 1])
def test_two_streams_equal_one_pass_a_frame_and_level(span: int | None) -> None:
    model, (history, levels, actions) = lively(), clips(num_frames=4)
    generator = torch.Generator().manual_seed(5)
    noisy = torch.randn(2, 3, 2, 4, 4, 6, generator=generator)  # places 2, 3, 4 at two levels each
    noisy_levels = torch.rand(2, 3, 2, generator=generator)
    leading = clips(num_frames=3, seed=7)[2]
    found = two_streams(model, history, levels, actions, noisy, noisy_levels, leading, span)
    for frame, place in enumerate((2, 3, 4)):
        before = slice(max(0, place + 1 - span) if span else 0, place)
        for step in range(2):
            alone = model(
                torch.cat([history[:, before], noisy[:, frame, step, None]], 1),
                torch.cat([levels[:, before], noisy_levels[:, frame, step, None]], 1),
                torch.cat([actions[:, before], leading[:, frame, None]], 1),
            )[:, -1]
            torch.testing.assert_close(found[:, frame, step], alone, atol=1e-5, rtol=0)


def test_folder_opens_as_it_was_saved(tmp_path) -> None:
    model = lively(patch_size=1)
    model.save_pretrained(tmp_path)
    again = open_flow_model(tmp_path)
    with torch.no_grad():
        assert torch.equal(again(*clips()), model(*clips()))
    assert again.tokens_per_frame == 24


def test_folder_keeps_the_action_space_of_a_model(tmp_path) -> None:
    model = second_flow_model()
    model.save_pretrained(tmp_path / "second")
    again = open_flow_model(tmp_path / "second")
    assert again.layout.space == SPACE and again.layout.name == "fields"
    assert [table.num_embeddings for table in again.actions] == [3, 9]
    generator = torch.Generator().manual_seed(0)
    latents, levels = torch.randn(1, 2, 4, 6, 8, generator=generator), torch.full((1, 2), 0.5)
    actions = torch.tensor([[[1, 4], [2, 8]]])
    with torch.no_grad():
        assert torch.equal(again(latents, levels, actions), model(latents, levels, actions))
    lively().save_pretrained(tmp_path / "first")
    assert open_flow_model(tmp_path / "first").layout.space == VPT_SPACE


@pytest.mark.parametrize(("num_bins", "fits"), [(256, True), (257, False)])
def test_fields_of_more_classes_than_a_byte_holds_are_refused(num_bins: int, fits: bool) -> None:
    space = ActionSpace((Axis(name="steer", low=-1, high=1, quantizer=Uniform(num_bins=num_bins)),))
    settings = SMALL | layout_settings(FieldsLayout(space))
    if fits:
        assert FlowWorldModel(**settings).layout.class_counts == (256,)
    else:
        with pytest.raises(ValueError, match="must have at most 256 classes, got 257; give the quantizer"):
            FlowWorldModel(**settings)


def test_gradient_checkpointing_changes_no_gradient() -> None:
    model = lively()
    gradients = []
    for enabled in (False, True):
        model.zero_grad()
        if enabled:
            model.enable_gradient_checkpointing()
        model(*clips()).square().mean().backward()
        gradients.append(model.embed.weight.grad.clone())
    torch.testing.assert_close(*gradients)


def test_sizes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="patch_size must divide"):
        FlowWorldModel(**(SMALL | {"patch_size": 4}))
    with pytest.raises(ValueError, match="num_heads must divide"):
        FlowWorldModel(**(SMALL | {"num_heads": 5}))
