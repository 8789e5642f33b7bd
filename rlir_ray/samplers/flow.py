"""The flow engine: generates frame after frame, denoising each from noise given a cache of the earlier frames.

Evaluation uses ODE steps only. For reinforcement learning, some steps of each frame (the window) are SDE steps; only
these are stored and trained (MixGRPO, https://arxiv.org/abs/2507.21802). Legend: B clips, P prompts, G trajectories of
a group, C context frames, F generated frames, K steps of a frame, S of them in the window, D h w a latent.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from rlir_ray.algorithm.flow_steps import ode_step, sde_step
from rlir_ray.algorithm.guidance import NO_GUIDANCE, guided_velocity
from rlir_ray.algorithm.seeds import pair_seed
from rlir_ray.config import FlowConfig
from rlir_ray.models.flow_matcher import FlowMatcher
from rlir_ray.models.rescoring import FlowRescorer, first_read
from rlir_ray.samplers.base import PolicySampler, clip_of
from rlir_ray.samplers.calls import check_call
from rlir_ray.spaces.layouts import NO_ACTION
from rlir_ray.spaces.space import Actions
from rlir_ray.trajectory import EncodedClips, EncodedVideo, FlowRecord, Prompt, TrajectoryGroup, stored_codes

if TYPE_CHECKING:
    from rlir_ray.models.flow import FlowWorldModel, FrameCache


def window_start(config: FlowConfig, policy_version: int, seed: int) -> int:
    """Return the first step of a group's window.

    Args:
        config: `window_moves` is `sliding`: the window moves one step from noisy to clean every `window_interval`
            versions, then starts again; `random`: the group's seed draws the window; `first`: the window covers the
            noisiest steps, which decide the content of a frame. A window that moves ends at step `window_end` at the
            latest.
        policy_version: version of the weights that sample.
        seed: the group's seed.
    """
    num_places = (config.window_end or config.num_sde_steps) - config.window + 1
    if config.window_moves == "first":
        return 0
    if config.window_moves == "sliding":
        return policy_version // config.window_interval % num_places
    return int(np.random.default_rng([seed, 1]).integers(num_places))


@dataclass(frozen=True, slots=True)
class Draws:
    """All noise for the clips of a call, in the order of the groups."""

    start: Tensor
    """[B, F, D, h, w], where denoising starts."""
    context: Tensor
    """[P, C, D, h, w], added to the context frames; shared by a group."""
    history: Tensor
    """[B, F, D, h, w], added to the generated frames when later frames read them."""
    steps: Tensor
    """[B, F, S, D, h, w], used by the SDE steps."""


class FlowSampler(PolicySampler["FlowWorldModel"]):
    """Sampler of flow world models.

    Args:
        policy: the sampler keeps it and loads published weights into it.
        config: steps, window, noise.
        explore: take and store SDE steps in the window; false: take ODE steps only and store the clean frames alone.
        keep_means: store the steps' means too, for objectives that compare means.
        noise_scale: factor of the initial noise; below 1, clips lie closer to the likeliest ones.
        guidance: scale of the action guidance; 1: none.
        compares: score one clip a call again without a cache, if the clip has SDE steps.
        matcher: store its scores of the clean frames as log-probabilities; only with `explore` false.
    """

    def __init__(
        self,
        policy: FlowWorldModel,
        config: FlowConfig,
        *,
        explore: bool,
        keep_means: bool = False,
        noise_scale: float = 1.0,
        guidance: float = NO_GUIDANCE,
        compares: bool = True,
        matcher: FlowMatcher | None = None,
    ) -> None:
        # The matcher scores with the learner's own pass: there is nothing to compare.
        rescore = matcher or FlowRescorer(config, policy.span, guidance)
        super().__init__(policy, rescore, compares and matcher is None)
        self.matcher = matcher
        self.config, self.keep_means, self.noise_scale, self.guidance = config, keep_means, noise_scale, guidance
        self.window = config.window if explore else 0
        self.device = next(policy.parameters()).device
        self.levels = policy.sampling_levels(config.num_steps, config.shift)  # [K + 1]

    @torch.inference_mode()
    def sample(
        self, prompts: Sequence[Prompt], group_ids: Sequence[int], seeds: Sequence[int], group_size: int
    ) -> list[tuple[TrajectoryGroup, EncodedVideo]]:
        """Sample one group for each prompt.

        Args:
            prompts: all with the same C and F.
            group_ids, seeds: one for each prompt; a group's draws depend on its own seed only.
            group_size: G.
        """
        num_context, num_frames = check_call(prompts, group_ids, seeds, self.policy.latent_shape)
        context = torch.from_numpy(np.stack([prompt.context for prompt in prompts]).astype(np.float32))
        layout = self.policy.layout
        # No action leads into the first frame.
        first = layout.classes(layout.space.nothing(1))
        classes = [np.concatenate([first, layout.classes(prompt.actions)]) for prompt in prompts]
        actions = torch.from_numpy(np.stack(classes)).to(self.device)  # [P, C + F, columns]
        draws = self._draw(seeds, group_size, num_context, num_frames)
        starts = [window_start(self.config, self.policy_version, seed) if self.window else 0 for seed in seeds]
        rollout = _Rollout(self, context.to(self.device), actions, draws, starts, group_size)
        for frame in range(num_frames):
            rollout.generate(frame)
        pairs = [
            self._group(prompt, group_id, seed, num_context, rollout, slice(i * group_size, (i + 1) * group_size))
            for i, (prompt, group_id, seed) in enumerate(zip(prompts, group_ids, seeds, strict=True))
        ]
        self._compare(pairs[0][0])
        return pairs

    def _draw(self, seeds: Sequence[int], group_size: int, num_context: int, num_frames: int) -> Draws:
        shape, parts = self.policy.latent_shape, []
        for seed in seeds:
            generator = torch.Generator().manual_seed(seed)
            # Noise that is not a decision, but differs between the clips of a group, adds noise to the advantages.
            num_draws = 1 if self.config.shared_noise else group_size
            start, history = (
                torch.randn(num_draws, num_frames, *shape, generator=generator).expand(group_size, *[-1] * 4)
                for _ in range(2)
            )
            context = torch.randn(1, num_context, *shape, generator=generator)
            steps = torch.randn(group_size, num_frames, self.window, *shape, generator=generator)
            # A frame starts at the first level, which is not 1 for all forms.
            first = self.policy.start_std(self.levels[0])
            parts.append((start * self.noise_scale * first, context, history, steps))
        return Draws(*(torch.cat(column).to(self.device) for column in zip(*parts, strict=True)))

    def _group(
        self, prompt: Prompt, group_id: int, seed: int, num_context: int, rollout: _Rollout, rows: slice
    ) -> tuple[TrajectoryGroup, EncodedVideo]:
        record, logprobs = rollout.record(rows, self.keep_means)
        num_decisions = prompt.num_frames * max(1, self.window)
        if self.matcher is not None:
            seeds = [pair_seed(seed, row) for row in range(len(record.latents))]
            record = replace(record, pair_seeds=np.array(seeds, np.int64))
            num_decisions = prompt.num_frames * self.matcher.num_pairs
            logprobs = self._match(record, num_decisions)
        clips = torch.cat([rollout.context[rows], torch.stack(rollout.frames, 1)[rows]], 1)  # [G, C + F, D, h, w]
        group = TrajectoryGroup(
            prompt_id=prompt.prompt_id,
            group_id=group_id,
            seed=seed,
            policy_version=self.policy_version,
            record=record,
            behavior_logprobs=logprobs,
            loss_mask=np.ones((len(clips), num_decisions), np.bool_),
            recorded=prompt.recorded_clip,
        )
        codes = stored_codes(clips.cpu().numpy())
        video = EncodedVideo(
            group_id=group_id,
            codes=codes,
            num_context=num_context,
            actions=prompt.actions,
            policy_version=self.policy_version,
            recorded=prompt.recorded,
        )
        return group, video

    # -----------------------------------------------------------------------------------------------------------------
    # One frame

    def velocity(self, x: Tensor, level: Tensor, action: Tensor, place: Tensor, cache: FrameCache) -> Tensor:
        """Compute the velocity of the frame that is made, [B, D, h, w]; action [B, 1, columns], place [1]."""
        if self.guidance == NO_GUIDANCE:
            return self.policy.read(x[:, None], level[:, None], action, place, cache=cache)[0][:, 0]
        # Both passes are one: two frames at one place share the cache, and neither attends to the other.
        twice, levels = x[:, None].expand(-1, 2, *x.shape[1:]), level[:, None].expand(-1, 2)
        actions = torch.cat([action, torch.full_like(action, NO_ACTION)], 1)
        with_action, without = self.policy.read(twice, levels, actions, place.repeat(2), cache=cache)[0].unbind(1)
        return guided_velocity(with_action, without, self.guidance, self.config.guidance_rescale)

    def as_history(self, latents: Tensor, noise: Tensor) -> Tensor:
        """Return finished frames as later frames read them."""
        share = self.config.history_noise
        return (1 - share) * latents + share * noise

    def history_levels(self, seen: Tensor) -> Tensor:
        """Return the noise levels of the history, [B, frames]."""
        return torch.full(seen.shape[:2], self.config.history_noise, device=seen.device)

    def read_history(
        self, seen: Tensor, actions: Tensor, places: Tensor | None = None, cache: FrameCache | None = None
    ) -> FrameCache:
        """Return the cache entries of frames of the history."""
        return self.policy.read(seen, self.history_levels(seen), actions, places, cache=cache)[1]

    def _match(self, record: FlowRecord[npt.NDArray[np.generic]], num_decisions: int) -> npt.NDArray[np.float32]:
        """Score the clean frames [G, T], one clip a pass, which bounds the memory."""
        clips = (clip_of(record, row, self.device) for row in range(len(record.latents)))
        return _to_numpy(torch.cat([self.rescore(self.policy, clip, num_decisions).logprobs for clip in clips]))


class _Rollout:
    """The clips of one call and the data of their steps."""

    def __init__(
        self, sampler: FlowSampler, context: Tensor, actions: Tensor, draws: Draws, starts: Sequence[int], size: int
    ) -> None:
        self.sampler, self.draws = sampler, draws
        self.num_context = context.shape[1]
        self.levels = sampler.levels.to(context.device)
        # The model reads the context once for a prompt; the prompt's group shares the cache.
        seen = sampler.as_history(context, draws.context)
        self.first = first_read(self.num_context, sampler.policy.span)  # first frame in the cache
        self.cache = self.sampler.read_history(seen[:, self.first :], actions[:, self.first : self.num_context]).repeat(
            size
        )
        self.context, self.actions = context.repeat_interleave(size, 0), actions.repeat_interleave(size, 0)
        self.history = [seen.repeat_interleave(size, 0)]  # [B, C, ...], then [B, 1, ...] a frame
        self.starts = torch.tensor(starts, device=context.device).repeat_interleave(size)  # [B]
        self.frames: list[Tensor] = []  # [B, D, h, w] each
        self.states: list[Tensor] = []  # [B, S + 1, D, h, w] a frame
        self.means: list[Tensor] = []  # [B, S, D, h, w] a frame
        self.logprobs: list[Tensor] = []  # [B, S] a frame

    def generate(self, frame: int) -> None:
        """Denoise the next frame of every clip."""
        if frame:
            self._cache_frame(frame - 1)
        place = torch.tensor([self.num_context + frame - self.first])
        action = self.actions[:, self.num_context + frame, None]
        x = self.draws.start[:, frame]  # [B, D, h, w]
        clips, window = torch.arange(len(x), device=x.device), self.sampler.window
        states = x.new_empty(len(x), window + 1, *x.shape[1:])
        means, logprobs = torch.empty_like(states[:, :window]), x.new_empty(len(x), window)
        for number in range(len(self.levels) - 1):
            level, following = (self.levels[number + i].expand(len(x)) for i in (0, 1))
            velocity = self.sampler.velocity(x, level, action, place, self.cache)
            x_next = ode_step(x, velocity, level, following)
            at = number - self.starts  # [B], which step of the window this is
            inside = clips[(at >= 0) & (at < window)]
            if len(inside):
                step = sde_step(
                    self.sampler.config.sde,
                    x[inside],
                    velocity[inside],
                    level[inside],
                    following[inside],
                    self.sampler.config.noise_level,
                    noise=self.draws.steps[inside, frame, at[inside]],
                )
                x_next[inside] = step.latents
                states[inside, at[inside]], states[inside, at[inside] + 1] = x[inside], step.latents
                means[inside, at[inside]], logprobs[inside, at[inside]] = step.mean, step.logprobs
            x = x_next
        if not window:
            states[:, 0] = x
        self.frames.append(x)
        self.states.append(states)
        self.means.append(means)
        self.logprobs.append(logprobs)

    def _cache_frame(self, frame: int) -> None:
        """Read a generated frame, slightly noised, into the cache, which then holds what the next frame reads."""
        seen = self.sampler.as_history(self.frames[frame], self.draws.history[:, frame])[:, None]
        self.history.append(seen)
        place = self.num_context + frame
        self.first = first_read(place + 1, self.sampler.policy.span)
        if self.first:
            # All places change when a window slides, so the model reads all its frames again.
            window = torch.cat(self.history, 1)[:, self.first :]
            self.cache = self.sampler.read_history(window, self.actions[:, self.first : place + 1])
        else:
            read = self.sampler.read_history(seen, self.actions[:, place, None], torch.tensor([place]), self.cache)
            self.cache = self.cache.append(read)

    def record(
        self, rows: slice, keep_means: bool
    ) -> tuple[FlowRecord[npt.NDArray[np.generic]], npt.NDArray[np.float32] | None]:
        """Return the columns of a group and its log-probabilities [G, T]."""
        latents = torch.stack(self.states, 1)[rows]  # [G, F, S + 1, D, h, w]
        history = torch.cat(self.history, 1)[rows]
        window, start = latents.shape[2] - 1, int(self.starts[rows][0])
        levels = self.levels[start : start + window + 1] if window else self.levels[-1:]
        return FlowRecord(
            latents=_to_numpy(latents),
            levels=_to_numpy(levels.expand(*latents.shape[:2], -1)),
            history=_to_numpy(history),
            history_levels=_to_numpy(self.sampler.history_levels(history)),
            actions=self.actions[rows].to("cpu", torch.uint8).numpy(),
            means=_to_numpy(torch.stack(self.means, 1)[rows]) if keep_means and window else None,
        ), _to_numpy(torch.stack(self.logprobs, 1)[rows].flatten(1)) if window else None


class FlowStepper:
    """Stepper of flow world models.

    Args:
        sampler: has the policy, and says how a frame is denoised: by ODE steps.
        num_frames: most frames of a clip, context included; a model that reads `span` frames at once has its span.
    """

    def __init__(self, sampler: FlowSampler, num_frames: int) -> None:
        self.sampler, span = sampler, sampler.policy.span
        self.num_frames, self.num_kept = (num_frames, (num_frames + 1) // 2) if span is None else (span, span - 1)
        self.uncertainty: npt.NDArray[np.float64] | None = None
        self._unread: tuple[Tensor, Tensor] | None = None
        """The last frame as later frames read it, and its action; None: the cache holds all frames."""

    @torch.inference_mode()
    def start(self, context: EncodedClips, actions: Sequence[Actions], seeds: Sequence[Sequence[int]]) -> None:
        latents = context.codes.to(self.sampler.device, torch.float32)
        noise = torch.stack([torch.stack([self._draw(seed)[1] for seed in each]) for each in seeds])
        seen = self.sampler.as_history(latents, noise.to(self.sampler.device))
        self._cache = self.sampler.read_history(seen, self._classes(actions))
        self._place, self._unread = latents.shape[1], None

    @torch.inference_mode()
    def step(self, actions: Sequence[Actions], seeds: Sequence[int]) -> Tensor:
        sampler = self.sampler
        if self._unread is not None:
            seen, past = self._unread
            places = torch.tensor([self._place - 1])
            self._cache = self._cache.append(sampler.read_history(seen, past, places, self._cache))
        start, noise = (torch.stack(part).to(sampler.device) for part in zip(*map(self._draw, seeds), strict=True))
        action, levels = self._classes(actions), sampler.levels.to(sampler.device)
        x = start * sampler.noise_scale * sampler.policy.start_std(levels[0])
        for level, following in zip(levels[:-1].expand(len(x), -1).T, levels[1:].expand(len(x), -1).T, strict=True):
            velocity = sampler.velocity(x, level, action, torch.tensor([self._place]), self._cache)
            x = ode_step(x, velocity, level, following)
        self._unread = sampler.as_history(x, noise)[:, None], action
        self._place += 1
        return x

    def _draw(self, seed: int) -> tuple[Tensor, Tensor]:
        """Draw the noise of a frame's start, and that with which later frames read the frame, [D, h, w] each."""
        generator, shape = torch.Generator().manual_seed(seed), self.sampler.policy.latent_shape
        return torch.randn(shape, generator=generator), torch.randn(shape, generator=generator)

    def _classes(self, actions: Sequence[Actions]) -> Tensor:
        """Return the classes of as many actions of each clip, int64 [B, actions, columns]."""
        classes = [self.sampler.policy.layout.classes(each) for each in actions]
        return torch.from_numpy(np.stack(classes)).to(self.sampler.device)


def _to_numpy(values: Tensor) -> npt.NDArray[np.float32]:
    return np.ascontiguousarray(values.cpu().numpy())
