"""The compressive tokenizer as a frame codec: clips of pixels <-> a keyframe and the ids of each frame."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from rlir_ray.models.compressive_codec import CompressiveCodec
from rlir_ray.models.rlvr_compressive import RlvrCompressiveTokenizer
from rlir_ray.models.tokenizer_forms import open_tokenizer
from rlir_ray.trajectory import EncodedClips

FOLDER = Path(__file__).parents[1] / "golden" / "rlvr_compressive"


@pytest.fixture(scope="module")
def codec() -> CompressiveCodec:
    return CompressiveCodec.from_pretrained(FOLDER)


@pytest.fixture(scope="module")
def golden() -> dict[str, Tensor]:
    return load_file(FOLDER / "io.safetensors")


@pytest.fixture(scope="module")
def clips(golden: dict[str, Tensor]) -> Tensor:
    return golden["pixels_u8"].movedim(2, -1)


def test_ids_and_frames_are_the_published_ones(
    codec: CompressiveCodec, golden: dict[str, Tensor], clips: Tensor
) -> None:
    found = codec.encode_clips(clips)
    assert found.keyframes is not None and found.codes.dtype == found.keyframes.dtype == torch.int64
    assert torch.equal(found.keyframes, golden["tokenize.context_ids"][:, 0].long())
    assert torch.equal(found.codes[:, 1:], golden["tokenize.dynamics_ids"].long())
    decoded = codec.decode_clips(found)
    published = (golden["detokenize.pixels"] * 255).round().clamp(0, 255).to(torch.uint8).movedim(2, -1)
    # Rounding of a value near a half may differ by one.
    assert decoded.shape == clips.shape and int((decoded[:, 1:].int() - published[:, 1:].int()).abs().max()) <= 1


def test_a_frame_is_decoded_with_its_own_clips_keyframe_alone(codec: CompressiveCodec, clips: Tensor) -> None:
    found = codec.encode_clips(clips)
    decoded = codec.decode_clips(found)
    small = CompressiveCodec(codec.model, max_frames=1)
    assert torch.equal(small.encode_clips(clips).codes, found.codes)
    assert int((small.decode_clips(found).int() - decoded.int()).abs().max()) <= 1
    assert found.keyframes is not None
    swapped = codec.decode_clips(EncodedClips(found.codes, found.keyframes.flip(0)))
    assert (swapped != decoded).any()
    # Clips in a row with one keyframe, as those of a group, decode it once.
    group = EncodedClips(found.codes.repeat_interleave(2, 0), found.keyframes.repeat_interleave(2, 0))
    assert int((codec.decode_clips(group)[::2].int() - decoded.int()).abs().max()) <= 1
    late = codec.decode_clips(EncodedClips(found.codes[:, 2:], found.keyframes))
    assert int((late.int() - decoded[:, 2:].int()).abs().max()) <= 1


def test_a_stem_folds_pixels_into_channels(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = RlvrCompressiveTokenizer(
        in_channels=12,
        out_channels=12,
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(8, 16),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=4,
        max_att_resolution=8,
        resolution=16,
        patch_size=2,
    ).eval()
    codec = CompressiveCodec(model, pixel_unshuffle=2)
    assert (codec.height, codec.width) == (32, 40) and codec.num_codes == codec.num_keyframe_codes == 4375
    clips = torch.randint(0, 256, (2, 3, 32, 40, 3), dtype=torch.uint8)
    encoded = codec.encode_clips(clips)
    assert encoded.keyframes is not None
    assert encoded.codes.shape == (2, 3, 20) and encoded.keyframes.shape == (2, 80)
    codec.save_pretrained(tmp_path / "tokenizer")
    again = open_tokenizer(tmp_path / "tokenizer", 32, 40)
    assert torch.equal(again.decode_clips(encoded), codec.decode_clips(encoded))
    with pytest.raises(ValueError, match=r"must be for frames of 64x80, got 32x40; set world\.height=32 world\.width"):
        open_tokenizer(tmp_path / "tokenizer", 64, 80)


def test_other_input_is_refused_in_one_line(codec: CompressiveCodec, clips: Tensor, tmp_path: Path) -> None:
    found = codec.encode_clips(clips)
    with pytest.raises(ValueError, match=r"reads uint8 frames \[N, 64, 80, 3\], got torch.uint8 \[2, 3, 32, 80, 3\]"):
        codec.encode_clips(clips[:, :, :32])
    with pytest.raises(ValueError, match="decodes clips with their keyframes, got none"):
        codec.decode_clips(EncodedClips(found.codes))
    with pytest.raises(ValueError, match=r"image tokens must be in 0\.\.4374, got .*4375"):
        codec.decode_clips(EncodedClips(found.codes * 0 + 4375, found.keyframes))
    for open_folder in (CompressiveCodec.from_pretrained, lambda folder: open_tokenizer(folder, 64, 80)):
        with pytest.raises(ValueError, match=r"no .*tokenizer in .* \(config.json is missing\)"):
            open_folder(tmp_path)
    shutil.copytree(FOLDER, tmp_path / "broken")
    settings = json.loads((FOLDER / "config.json").read_text())
    del settings["patch_size"]
    (tmp_path / "broken" / "config.json").write_text(json.dumps(settings))
    with pytest.raises(ValueError, match=r"got a config\.json without patch_size in"):
        open_tokenizer(tmp_path / "broken", 64, 80)
