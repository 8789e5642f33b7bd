"""RLVR-World's frame tokenizer against outputs of the published code, and as the tokenizer of a token world model."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from rlir_ray.families import open_codec
from rlir_ray.models.autoregressive import WorldModel
from rlir_ray.models.checkpoints import open_diffusers_model
from rlir_ray.models.rlvr_codec import RlvrCodec
from rlir_ray.models.rlvr_tokenizer import RlvrTokenizer
from rlir_ray.run.resolved import resolve
from rlir_ray.spaces.layouts import RlvrLayout
from rlir_ray.spaces.rlvr import RT1_SPACE
from tests.world import MakeConfig

FOLDER = Path(__file__).parents[1] / "golden" / "rlvr_frame"
NEAR = 1e-4


@pytest.fixture(scope="module")
def golden() -> dict[str, Tensor]:
    return load_file(FOLDER / "io.safetensors")


@pytest.fixture(scope="module")
def model() -> RlvrTokenizer:
    return open_diffusers_model(RlvrTokenizer, FOLDER, "the tokenizer")


def small_model() -> RlvrTokenizer:
    """240 codes, and a quarter of the frame's height and width."""
    torch.manual_seed(0)
    return RlvrTokenizer(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(8, 8, 16),
        latent_channels=8,
        norm_num_groups=4,
        fsq_levels=8,
        resolution=16,
    ).eval()


def largest(difference: Tensor) -> float:
    return float(difference.abs().max())


@torch.inference_mode()
def test_the_published_folder_gives_the_published_ids(model: RlvrTokenizer, golden: dict[str, Tensor]) -> None:
    images = golden["pixels_u8"][0].float() / 255
    assert largest(model.encoder(images) - golden["encode.features"]) < NEAR
    pre_quant = model.pre_quant(images)
    assert largest(pre_quant - golden["encode.pre_quant"]) < NEAR
    codes, ids = model.quantizer.quantize(pre_quant.movedim(1, -1))
    assert torch.equal(codes.movedim(-1, 1), golden["encode.codes"])
    assert torch.equal(ids, golden["encode.ids"][0].long()) and torch.equal(model.encode(images), ids)


@pytest.mark.parametrize(("ids", "pixels"), [("encode.ids", "decode.pixels"), ("random.ids", "random.pixels")])
@torch.inference_mode()
def test_ids_give_the_published_pixels(model: RlvrTokenizer, golden: dict[str, Tensor], ids: str, pixels: str) -> None:
    assert largest(model.decode(golden[ids][0]) - golden[pixels][0]) < NEAR


@torch.inference_mode()
def test_the_codec_gives_the_published_ids_in_raster_order(golden: dict[str, Tensor]) -> None:
    codec = RlvrCodec.from_pretrained(FOLDER, height=64, width=80, max_frames=1)
    assert codec.grid == (4, 5) and codec.tokens_per_frame == 20 and codec.num_codes == 4375
    tokens = codec.encode(golden["pixels_u8"][0].permute(0, 2, 3, 1))
    assert torch.equal(tokens, golden["encode.ids"][0].long().flatten(1))
    wanted = (golden["decode.pixels"][0] * 255).clamp(0, 255).permute(0, 2, 3, 1)
    decoded = codec.decode(tokens)
    assert decoded.dtype == torch.uint8 and largest(decoded.float() - wanted) < 0.51
    assert codec.encode(decoded[:0]).shape == (0, 20) and codec.decode(tokens[:0]).shape == (0, 64, 80, 3)


def test_scaling_to_the_model_and_back_is_exact() -> None:
    codec = RlvrCodec(small_model(), height=16, width=16)
    frames = torch.arange(256, dtype=torch.uint8).reshape(1, 16, 16, 1).expand(1, 16, 16, 3)
    pixels = codec.scale(frames)
    assert (float(pixels.min()), float(pixels.max())) == (0, 1) and torch.equal(codec.unscale(pixels), frames)


def test_the_published_sizes() -> None:
    with torch.device("meta"):
        model = RlvrTokenizer()
    assert sum(each.numel() for each in model.parameters()) == 104_414_088 and len(model.state_dict()) == 256
    codec = RlvrCodec(model, height=256, width=320)
    assert codec.grid == (16, 20) and codec.num_codes == 4375


@torch.inference_mode()
def test_bf16_autocast_rounds_in_float32(model: RlvrTokenizer, golden: dict[str, Tensor]) -> None:
    images = golden["pixels_u8"][0].float() / 255
    with torch.autocast("cpu", torch.bfloat16):
        pre_quant, ids = model.pre_quant(images), model.encode(images)
    assert pre_quant.dtype == torch.bfloat16
    assert torch.equal(ids, model.quantizer.quantize(pre_quant.float().movedim(1, -1))[1])


def test_a_saved_folder_opens_again_with_the_same_ids_at_the_size_that_its_config_states(tmp_path: Path) -> None:
    model = small_model()
    model.save_pretrained(tmp_path)
    codec = RlvrCodec.from_pretrained(tmp_path)
    assert (codec.height, codec.width, codec.grid) == (16, 20, (4, 5))
    frames = torch.randint(0, 256, (2, 16, 20, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    assert torch.equal(codec.encode(frames), RlvrCodec(model, height=16, width=20).encode(frames))


def test_what_is_no_tokenizer_of_this_form_is_refused(tmp_path: Path) -> None:
    codec = RlvrCodec(small_model(), height=24, width=32)
    with pytest.raises(ValueError, match=r"reads uint8 frames \[N, 24, 32, 3\], got"):
        codec.encode(torch.zeros(1, 24, 40, 3, dtype=torch.uint8))
    with pytest.raises(ValueError, match=r"decodes tokens \[N, 48\], got \[1, 40\]"):
        codec.decode(torch.zeros(1, 40, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"must be in 0..239, got 0..240"):
        codec.decode(torch.tensor([[240] + 47 * [0]]))
    with pytest.raises(ValueError, match="multiples of the tokenizer's downsampling 4, got 24x30"):
        RlvrCodec(small_model(), height=24, width=30)
    with pytest.raises(ValueError, match=r"no tokenizer in .* \(config.json is missing\)"):
        RlvrCodec.from_pretrained(tmp_path / "none")
    for field, value, message in (
        ("norm_type", "spatial", "norm_type of RLVR-World's tokenizers must be group"),
        ("up_block_types", ["UpDecoderBlock2D"], "up_block_types of RLVR-World's tokenizers must be"),
        ("fsq_levels", 11, "must be one of 8, 10, 12, 14, 16, got 11"),
        ("dropout", 0.1, "must set only fields of RlvrTokenizer, got dropout=0.1"),
        ("latent_channels", 8, r"encoder.conv_out.bias \[16\] instead of \[8\]"),
    ):
        folder = tmp_path / field
        shutil.copytree(FOLDER, folder)
        settings = json.loads((FOLDER / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(settings | {field: value}))
        with pytest.raises(ValueError, match=message):
            RlvrCodec.from_pretrained(folder, height=64, width=80)


@pytest.mark.parametrize("class_name", ["RlvrTokenizer", "CNNFSQModel256"])
def test_it_is_the_tokenizer_of_a_token_world_model(make_config: MakeConfig, tmp_path: Path, class_name: str) -> None:
    small_model().save_pretrained(tmp_path / "tokenizer")
    config_file = tmp_path / "tokenizer" / "config.json"
    config_file.write_text(json.dumps(json.loads(config_file.read_text()) | {"_class_name": class_name}))
    for name, num_codes in (("policy", 240), ("other", 239)):
        model = WorldModel.create(num_codes=num_codes, tokens_per_frame=48, hidden_size=12, num_heads=1, num_layers=1)
        model.save_pretrained(tmp_path / name)
    overrides = [f"models.policy={tmp_path}/policy", f"models.tokenizer={tmp_path}/tokenizer"]
    config = make_config(*overrides, "architecture.num_codes=0")
    assert resolve(config).frame_shape == (48,)
    codec = open_codec(config)
    assert isinstance(codec, RlvrCodec) and (codec.height, codec.width) == (24, 32)
    with pytest.raises(
        ValueError, match="must have frames of 48 tokens of 240 codes, as the tokenizer, got 48 tokens of 239"
    ):
        resolve(make_config(f"models.policy={tmp_path}/other", overrides[1]))


def test_a_world_model_of_its_ids_gets_rt1s_actions_as_13_tokens(tmp_path: Path) -> None:
    torch.manual_seed(0)
    sizes = {"hidden_size": 12, "intermediate_size": 16, "num_heads": 1, "num_layers": 1}
    WorldModel.create(num_codes=4375, tokens_per_frame=4, layout=RlvrLayout(), **sizes).save_pretrained(tmp_path)
    model = WorldModel.from_pretrained(tmp_path)
    assert isinstance(model.layout, RlvrLayout) and model.num_codes == 4375 and model.config.vocab_size == 4633
    frames = torch.randint(0, 4375, (3, 4))
    actions = torch.from_numpy(model.layout.tokens(RT1_SPACE.nothing(3), model.num_codes))
    tokens = model.sequence.assemble(frames[None], actions[None, 1:])
    with torch.no_grad():
        logprobs = model(tokens, num_decisions=8)
    # 3 frames of 4 ids and 2 actions of 13; a random model finds all 4375 ids about alike: ln 4375 = 8.38.
    assert tokens.shape == (1, 38) and float((logprobs + 8.38).abs().max()) < 0.5
