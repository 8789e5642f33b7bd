"""RLVR-World's compressive tokenizer against outputs of the published code, and what its parts depend on."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from rlir_ray.models.checkpoints import open_diffusers_model
from rlir_ray.models.rlvr_compressive import RlvrCompressiveTokenizer

FOLDER = Path(__file__).parents[1] / "golden" / "rlvr_compressive"
NEAR = 1e-4


@pytest.fixture(scope="module")
def golden() -> dict[str, Tensor]:
    return load_file(FOLDER / "io.safetensors")


@pytest.fixture(scope="module")
def model() -> RlvrCompressiveTokenizer:
    return open_diffusers_model(RlvrCompressiveTokenizer, FOLDER, "the tokenizer")


@pytest.fixture(scope="module")
def images(golden: dict[str, Tensor]) -> Tensor:
    return golden["pixels_u8"].float() / 255


def largest(difference: Tensor) -> float:
    return float(difference.abs().max())


@torch.inference_mode()
def test_the_published_folder_gives_the_published_ids(
    model: RlvrCompressiveTokenizer, golden: dict[str, Tensor], images: Tensor
) -> None:
    vectors, context = model.context_vectors(images[:, 0])
    features = model.later_features(images[:, 1:].flatten(0, 1), context)
    assert largest(vectors - golden["context.pre_quant"]) < NEAR
    assert largest(features - golden["dynamics.features"]) < NEAR
    assert largest(model.patch_vectors(features) - golden["dynamics.pre_quant"]) < NEAR
    context_ids, ids = model.tokenize(images)
    assert torch.equal(context_ids, golden["tokenize.context_ids"].long())
    assert torch.equal(ids, golden["tokenize.dynamics_ids"].long())


@pytest.mark.parametrize(("ids", "pixels"), [("tokenize", "detokenize"), ("random", "random")])
@torch.inference_mode()
def test_ids_give_the_published_pixels(
    model: RlvrCompressiveTokenizer, golden: dict[str, Tensor], ids: str, pixels: str
) -> None:
    found = model.detokenize(golden[f"{ids}.context_ids"], golden[f"{ids}.dynamics_ids"])
    assert largest(found - golden[f"{pixels}.pixels"]) < NEAR


@torch.inference_mode()
def test_one_decoded_context_serves_every_later_frame_of_every_trajectory(
    model: RlvrCompressiveTokenizer, golden: dict[str, Tensor]
) -> None:
    wanted = golden["detokenize.pixels"]
    context = model.decode_context(golden["tokenize.context_ids"][:, 0])
    assert largest(context.images - wanted[:, 0]) < NEAR
    ids = golden["tokenize.dynamics_ids"]
    # Frame by frame, and the two frames of a clip as two trajectories of one prompt.
    singly = torch.cat([model.decode_later(context, ids[:, frame : frame + 1]) for frame in range(2)], 1)
    as_group = model.decode_later(context, ids.flatten(0, 1)[:, None])
    assert largest(singly - wanted[:, 1:]) < NEAR
    assert as_group.shape[:2] == (4, 1) and largest(as_group[:, 0].unflatten(0, (2, 2)) - wanted[:, 1:]) < NEAR


@torch.inference_mode()
def test_a_later_frame_depends_on_its_context_but_on_no_neighbour(
    model: RlvrCompressiveTokenizer, golden: dict[str, Tensor], images: Tensor
) -> None:
    context_ids, ids = model.tokenize(images.flip(1)[:, [2, 1]])
    assert torch.equal(context_ids, golden["tokenize.context_ids"].long())
    assert torch.equal(ids[:, 0], golden["tokenize.dynamics_ids"][:, 0].long())
    other = model.tokenize(images[:, [2, 1]])[1]
    assert not torch.equal(other, ids)
    assert largest(model.detokenize(context_ids.flip(0), ids)[:, 1] - golden["detokenize.pixels"][:, 1]) > 0.1


@torch.inference_mode()
def test_the_offset_of_context_ids_in_a_sequence_vanishes(
    model: RlvrCompressiveTokenizer, golden: dict[str, Tensor]
) -> None:
    ids = golden["random.context_ids"][:, 0]
    assert torch.equal(model.decode_context(ids + 4375).images, model.decode_context(ids).images)


def test_the_published_sizes() -> None:
    with torch.device("meta"):
        model = RlvrCompressiveTokenizer()
    assert sum(each.numel() for each in model.parameters()) == 129_448_016 and len(model.state_dict()) == 506
    assert model.grid == (32, 40) and model.patches == (8, 10)
    # Both encoders' last two blocks have 32 rows; of the decoder's features only those of the middle do.
    assert [each.q_pos_emb.shape for each in model.cond_encoder.cross_att_blocks] == [(1280, 256), (1280, 512)]
    assert [each.q_pos_emb.shape for each in model.cond_decoder.cross_att_blocks] == [(1280, 512)]


@torch.inference_mode()
def test_larger_features_attend_up_to_the_limit() -> None:
    # Height 32, 3 blocks: the encoder's have 16, 8 and 8 rows, the decoder's middle 8 and its blocks 16, 32 and 32.
    torch.manual_seed(0)
    model = RlvrCompressiveTokenizer(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(8, 8, 16),
        latent_channels=8,
        norm_num_groups=4,
        max_att_resolution=16,
        resolution=32,
        patch_size=2,
    ).eval()
    sizes = [
        [len(each.q_pos_emb) for each in part.cross_att_blocks] for part in (model.cond_encoder, model.cond_decoder)
    ]
    assert sizes == [[16 * 20, 8 * 10, 8 * 10], [8 * 10, 16 * 20]]
    assert model(torch.rand(1, 3, 3, 32, 40)).shape == (1, 3, 3, 32, 40)


def test_attention_drops_in_training_only(
    model: RlvrCompressiveTokenizer, golden: dict[str, Tensor], images: Tensor
) -> None:
    torch.manual_seed(0)
    with torch.no_grad():
        _, context = model.context_vectors(images[:, 0])
        later = images[:, 1:].flatten(0, 1)
        try:
            assert largest(model.train().later_features(later, context) - golden["dynamics.features"]) > 0.01
        finally:
            model.eval()
        assert largest(model.later_features(later, context) - golden["dynamics.features"]) < NEAR


@torch.inference_mode()
def test_bf16_autocast_rounds_in_float32(model: RlvrCompressiveTokenizer, images: Tensor) -> None:
    with torch.autocast("cpu", torch.bfloat16):
        vectors, context = model.context_vectors(images[:, 0])
        later = model.patch_vectors(model.later_features(images[:, 1:].flatten(0, 1), context))
        context_ids, ids = model.tokenize(images)
    assert vectors.dtype == later.dtype == torch.bfloat16
    assert torch.equal(
        context_ids[:, 0], model.context_quantizer.quantize(vectors.float().movedim(1, -1))[1].flatten(1)
    )
    assert torch.equal(ids.flatten(0, 1), model.quantizer.quantize(later.float())[1])


def test_a_saved_folder_opens_again_with_the_same_ids(
    tmp_path: Path, model: RlvrCompressiveTokenizer, golden: dict[str, Tensor], images: Tensor
) -> None:
    model.save_pretrained(tmp_path)
    opened = open_diffusers_model(RlvrCompressiveTokenizer, tmp_path, "the tokenizer")
    with torch.inference_mode():
        assert torch.equal(opened.tokenize(images)[1], golden["tokenize.dynamics_ids"].long())


def test_what_is_of_another_form_is_refused(tmp_path: Path, model: RlvrCompressiveTokenizer) -> None:
    with pytest.raises(ValueError, match=r"reads clips \[B, 1 \+ F, 3, 64, 80\], got \[1, 3, 3, 64, 64\]"):
        model.tokenize(torch.zeros(1, 3, 3, 64, 64))
    with pytest.raises(ValueError, match=r"got \[2, 1, 3, 64, 80\]; .*at least one later frame"):
        model.tokenize(torch.zeros(2, 1, 3, 64, 80))
    with pytest.raises(ValueError, match=r"decodes 80 ids of a frame .* got \[2, 20\]"):
        model.decode_context(torch.zeros(2, 20, dtype=torch.int64))
    context = model.decode_context(torch.zeros(2, 80, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"decodes 20 ids of a frame and whole groups of 2 contexts, got \[3, 1, 20\]"):
        model.decode_later(context, torch.zeros(3, 1, 20, dtype=torch.int64))
    for field, value, message in (
        ("context_length", 2, "context_length must be 1, got 2"),
        ("resolution", 72, "height and width of frames must be multiples of 16 and 16, .* got 72x90"),
        ("down_block_types", ["DownBlock2D"] * 4, "down_block_types of RLVR-World's tokenizers must be"),
        ("dyn_fsq_levels", 9, "must be one of 8, 10, 12, 14, 16, got 9"),
        ("max_att_resolution", 16, r"missing: cond_decoder.cross_att_blocks.1.att.in_proj_bias"),
    ):
        folder = tmp_path / field
        shutil.copytree(FOLDER, folder)
        settings = json.loads((FOLDER / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(settings | {field: value}))
        with pytest.raises(ValueError, match=message):
            open_diffusers_model(RlvrCompressiveTokenizer, folder, "the tokenizer")
