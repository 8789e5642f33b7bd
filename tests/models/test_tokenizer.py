from __future__ import annotations

import pytest
import torch

from rlir_ray.models.tokenizer import FrameTokenizer, build_tokenizer


def small_tokenizer(**changes: object) -> FrameTokenizer:
    torch.manual_seed(0)
    settings = {"height": 16, "width": 24, "num_codes": 32, "code_size": 4, "block_channels": (8, 8), **changes}
    tokenizer = build_tokenizer(**settings).eval()
    torch.nn.init.normal_(tokenizer.codebook)
    return tokenizer


def random_frames(count: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (count, 16, 24, 3), generator=generator, dtype=torch.uint8)


def test_grid_is_the_frame_over_unshuffle_and_halvings() -> None:
    tokenizer = small_tokenizer()
    # 4 (unshuffle) * 2 (one halving) = 8: 16/8 x 24/8
    assert tokenizer.grid == (2, 3)
    assert tokenizer.tokens_per_frame == 6
    assert tokenizer.num_codes == 32


def test_encode_and_decode_keep_the_promised_shapes_and_types() -> None:
    tokenizer = small_tokenizer()
    tokens = tokenizer.encode(random_frames(5))
    assert tokens.shape == (5, 6)
    assert tokens.dtype == torch.int64
    assert tokens.min() >= 0 and tokens.max() < 32
    assert len(tokens.unique()) > 1
    decoded = tokenizer.decode(tokens)
    assert decoded.shape == (5, 16, 24, 3)
    assert decoded.dtype == torch.uint8


def test_tokens_do_not_depend_on_the_micro_batch() -> None:
    tokenizer = small_tokenizer()
    whole = tokenizer.encode(random_frames(5))
    tokenizer.max_frames = 2
    assert torch.equal(tokenizer.encode(random_frames(5)), whole)
    assert tokenizer.encode(random_frames(0)).shape == (0, 6)
    assert tokenizer.decode(whole[:0]).shape == (0, 16, 24, 3)


def test_encode_agrees_with_the_quantiser_of_the_published_class_in_raster_order() -> None:
    tokenizer = small_tokenizer()
    with torch.no_grad():
        latents = tokenizer.latents(tokenizer.scale(random_frames(3)))
        codes, _, (_, _, indices) = tokenizer.model.quantize(latents)
    tokens = tokenizer.encode(random_frames(3))
    assert torch.equal(tokens.flatten(), indices)
    assert torch.allclose(tokenizer.lookup(tokens), codes, atol=1e-6)


def test_without_unshuffle_decoding_equals_the_plain_vq_model() -> None:
    tokenizer = small_tokenizer(pixel_unshuffle=1, block_channels=(8, 8, 8))
    frames = random_frames(2)
    with torch.no_grad():
        plain = tokenizer.model(frames.permute(0, 3, 1, 2).float() / 127.5 - 1).sample
    expected = ((plain + 1) * 127.5).round().clamp(0, 255).permute(0, 2, 3, 1)
    decoded = tokenizer.decode(tokenizer.encode(frames)).float()
    # One grey level at most: the two ways round differently in the last float.
    assert (decoded - expected).abs().max() <= 1


def test_scaling_to_the_model_and_back_is_exact() -> None:
    tokenizer = small_tokenizer()
    frames = random_frames(2)
    assert torch.equal(tokenizer.unscale(tokenizer.scale(frames)), frames)


def test_saved_folder_opens_as_a_plain_vq_model_and_as_the_same_tokenizer(tmp_path) -> None:
    from diffusers import VQModel

    tokenizer = small_tokenizer()
    tokenizer.save_pretrained(tmp_path)
    plain = VQModel.from_pretrained(tmp_path)
    assert torch.equal(plain.quantize.embedding.weight, tokenizer.codebook)
    again = FrameTokenizer.from_pretrained(tmp_path)
    assert torch.equal(again.encode(random_frames(4)), tokenizer.encode(random_frames(4)))
    assert again.pixel_unshuffle == 4


def test_float16_storage_leaves_the_live_weights_alone(tmp_path) -> None:
    tokenizer = small_tokenizer()
    before = tokenizer.codebook.clone()
    tokenizer.save_pretrained(tmp_path, torch.float16)
    assert torch.equal(tokenizer.codebook, before)
    stored = FrameTokenizer.from_pretrained(tmp_path).codebook
    assert stored.dtype == torch.float32
    assert torch.equal(stored, before.half().float())


def test_plain_vq_folder_needs_a_frame_size(tmp_path) -> None:
    small_tokenizer(pixel_unshuffle=1).model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"has no tokenizer\.json; give the frames' height and width"):
        FrameTokenizer.from_pretrained(tmp_path)
    assert FrameTokenizer.from_pretrained(tmp_path, height=16, width=24).grid == (8, 12)


def test_wrong_frames_and_tokens_are_refused_with_the_way_out() -> None:
    tokenizer = small_tokenizer()
    with pytest.raises(ValueError, match=r"reads uint8 frames \[N, 16, 24, 3\], got torch.float32"):
        tokenizer.encode(random_frames(1).float())
    with pytest.raises(ValueError, match=r"must be in 0\.\.31, got 0\.\.32"):
        tokenizer.decode(torch.tensor([[0, 1, 2, 3, 4, 32]]))
    with pytest.raises(ValueError, match="multiples of the tokenizer's downsampling 8, got 20x24"):
        small_tokenizer(height=20)
    with pytest.raises(ValueError, match="no tokenizer in"):
        FrameTokenizer.from_pretrained("/nonexistent")
