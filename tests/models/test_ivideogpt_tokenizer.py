"""iVideoGPT's compressive tokenizer against outputs of the published code, and what its context frames change."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from rlir_ray.models.checkpoints import open_diffusers_model
from rlir_ray.models.ivideogpt_sequences import IvideogptSequences
from rlir_ray.models.ivideogpt_tokenizer import IvideogptTokenizer

FOLDER = Path(__file__).parents[1] / "golden" / "ivideogpt"
NEAR = 1e-4


@pytest.fixture(scope="module")
def golden() -> dict[str, Tensor]:
    return load_file(FOLDER / "io.safetensors")


@pytest.fixture(scope="module")
def images(golden: dict[str, Tensor]) -> Tensor:
    return golden["pixels_u8"].float() / 255


def open_model(folder: Path = FOLDER / "tokenizer") -> IvideogptTokenizer:
    return open_diffusers_model(IvideogptTokenizer, folder, "the tokenizer")


@pytest.fixture(scope="module")
def model() -> IvideogptTokenizer:
    return open_model()


def largest(difference: Tensor) -> float:
    return float(difference.abs().max())


@torch.inference_mode()
def test_the_published_folder_gives_the_published_ids(
    model: IvideogptTokenizer, golden: dict[str, Tensor], images: Tensor
) -> None:
    vectors, _ = model.context_vectors(images[:, :2].flatten(0, 1))
    assert largest(vectors - golden["context.pre_quant"]) < NEAR
    context, frames = model.tokenize(images)
    assert context.shape == (2, 2, 256) and frames.shape == (2, 2, 16)
    wanted_context, wanted = IvideogptSequences.of(model).split(golden["tokenize.ids"])
    assert torch.equal(context, wanted_context) and torch.equal(frames, wanted)


@torch.inference_mode()
def test_ids_give_the_published_pixels(model: IvideogptTokenizer, golden: dict[str, Tensor]) -> None:
    context, frames = IvideogptSequences.of(model).split(golden["tokenize.ids"])
    found = model.detokenize(context, frames)
    # The file holds every second pixel.
    assert found.shape == (2, 4, 3, 64, 64) and largest(found[..., ::2, ::2] - golden["detokenize.pixels"]) < NEAR


@torch.inference_mode()
def test_one_decoded_context_serves_every_later_frame_of_every_trajectory(
    model: IvideogptTokenizer, golden: dict[str, Tensor]
) -> None:
    ids, frames = IvideogptSequences.of(model).split(golden["tokenize.ids"])
    context = model.decode_context(ids.flatten(0, 1))
    # The two later frames of a clip as two trajectories of one prompt.
    found = model.decode_later(context, frames.flatten(0, 1)[:, None])[:, 0].unflatten(0, (2, 2))
    assert largest(found[..., ::2, ::2] - golden["detokenize.pixels"][:, 2:]) < NEAR


@torch.inference_mode()
def test_later_frames_depend_on_each_context_frame_and_their_order(model: IvideogptTokenizer, images: Tensor) -> None:
    later = images[:, 2:].flatten(0, 1)
    features = model.later_features(later, model.context_vectors(images[:, :2].flatten(0, 1))[1])
    for other in (images[:, [1, 0]], images[:, [0, 0]], images[:, [1, 1]]):
        changed = model.later_features(later, model.context_vectors(other.flatten(0, 1))[1])
        assert largest(changed - features) > 0.01


@torch.inference_mode()
def test_one_context_frame_keeps_the_positions_of_the_last(tmp_path: Path, images: Tensor) -> None:
    model = open_model()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    model.set_context_length(1)
    for name, value in model.state_dict().items():
        # Each of the two context frames has half of the rows.
        kept = before[name][len(value) :] if name.endswith("kv_pos_emb") else before[name]
        assert torch.equal(value, kept), name
    context, frames = model.tokenize(images)
    assert context.shape == (2, 1, 256) and frames.shape == (2, 3, 16)
    model.save_pretrained(tmp_path)
    opened = open_model(tmp_path)
    assert opened.num_context == 1 and torch.equal(opened.tokenize(images)[1], frames)
    with pytest.raises(ValueError, match=r"context_length must be in 1\.\.1, .* got 2"):
        model.set_context_length(2)


def test_the_published_sizes() -> None:
    deep = {
        "block_out_channels": (128, 256, 256, 512, 768),
        "down_block_types": ("DownEncoderBlock2D",) * 5,
        "up_block_types": ("UpDecoderBlock2D",) * 5,
    }
    with torch.device("meta"):
        small, large = IvideogptTokenizer(), IvideogptTokenizer(resolution=256, max_att_resolution=32, **deep)
    # Published as 114 M and 310 M.
    assert sum(each.numel() for each in small.parameters()) == 114_159_174
    assert sum(each.numel() for each in large.parameters()) == 310_472_774
    for model in (small, large):
        assert model.grid == (16, 16) and model.patches == (4, 4)
        assert IvideogptSequences.of(model) == IvideogptSequences()
    first = small.cond_decoder.cross_att_blocks[0]
    assert first.q_pos_emb.shape == (256, 512) and first.kv_pos_emb.shape == (512, 512)


def test_what_is_of_another_form_is_refused(tmp_path: Path, model: IvideogptTokenizer) -> None:
    with pytest.raises(ValueError, match=r"reads clips \[B, 2 \+ F, 3, 64, 64\], got \[1, 2, 3, 64, 64\]"):
        model.tokenize(torch.zeros(1, 2, 3, 64, 64))
    with pytest.raises(ValueError, match=r"decodes 256 ids of a frame and whole groups of 2 contexts, got \[3, 256\]"):
        model.decode_context(torch.zeros(3, 256, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"ids must be in 0\.\.95, got 96\.\.96"):
        model.decode_context(torch.full((2, 256), 96))
    for field, value, message in (
        ("context_length", 3, "context_length must be 1 or 2, got 3"),
        ("context_length", 1, r"kv_pos_emb \[512, 16\] instead of \[256, 16\]"),
        ("resolution", 72, "resolution must be a multiple of 16, .* got 72"),
        ("norm_type", "spatial", "norm_type of iVideoGPT's tokenizers must be group"),
        ("num_dyn_embeddings", 65, r"dynamics_quantize.embedding.weight \[64, 8\] instead of \[65, 8\]"),
        ("max_att_resolution", 8, "unexpected: cond_encoder.cross_att_blocks"),
    ):
        folder = tmp_path / f"{field}{value}"
        shutil.copytree(FOLDER / "tokenizer", folder)
        settings = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(settings | {field: value}))
        with pytest.raises(ValueError, match=message):
            open_model(folder)
