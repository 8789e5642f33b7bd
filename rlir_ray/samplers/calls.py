"""Whether the prompts of one sampling call go together and fit the policy; the same for every engine."""

from __future__ import annotations

from collections.abc import Sequence

from rlir_ray.trajectory import FrameShape, Prompt


def check_call(
    prompts: Sequence[Prompt], group_ids: Sequence[int], seeds: Sequence[int], frame_shape: FrameShape
) -> tuple[int, int]:
    """Context and generated frames of all prompts of a call.

    Args:
        prompts, group_ids, seeds: one of each for every group.
        frame_shape: of an encoded frame, as the policy takes it: (tokens,) or (channels, height, width).

    Raises:
        ValueError: they differ in number or shape, or the policy is for frames of another shape.
    """
    if not len(prompts) == len(group_ids) == len(seeds) >= 1:
        raise ValueError(
            f"a call needs as many group ids and seeds as prompts, at least one, got {len(prompts)} prompts, "
            f"{len(group_ids)} ids and {len(seeds)} seeds; give one of each for every group"
        )
    shapes = {(len(prompt.context), prompt.context.shape[1:], prompt.num_frames) for prompt in prompts}
    if len(shapes) > 1:
        raise ValueError(
            f"prompts of one call must agree on (context frames, encoded frame, frames), got {sorted(shapes)}; "
            "sample them in separate calls"
        )
    num_context, found, num_frames = shapes.pop()
    if tuple(found) != frame_shape:
        raise ValueError(
            f"prompts must have frames encoded as the policy's {frame_shape}, got {tuple(found)}; encode them with "
            "the policy's own tokenizer"
        )
    return num_context, num_frames
