"""The reward as a separate service, which several runs share and which scores single clips over HTTP.

`serve deploy deploy/serve_reward.yaml` starts the service; runs use it with `reward.address=serve://rlir_reward`.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from ray import serve
from starlette.requests import Request
from starlette.responses import JSONResponse

from actors.reward.deployment import serve_options
from actors.reward.replica import RewardReplica, build_reward
from rlir_ray.config import Config, require
from rlir_ray.config.load import load_config
from rlir_ray.data.files import Json
from rlir_ray.families import action_space
from rlir_ray.rewards.fingerprint import reward_fingerprint
from rlir_ray.rewards.uploads import (
    CURL,
    MAX_BYTES,
    Limits,
    UploadError,
    clip_report,
    read_clip,
    read_form,
)
from rlir_ray.run.resolved import with_field_names
from rlir_ray.run.watchdog import bounded

if TYPE_CHECKING:
    from rlir_ray.rewards.combined import CombinedReward

ARGUMENTS = ("recipe", "overrides", "max_upload_bytes", "max_clip_frames")
SCORE_PATH = "/score"


def build(args: Json) -> serve.Application:
    """Build the application, for `import_path: actors.reward.service:build` in a Serve configuration.

    Args:
        args: `recipe`, a name or a YAML file; `overrides`, a list of KEY=VALUE; `max_upload_bytes` and
            `max_clip_frames`, the bounds of an upload.

    Raises:
        ValueError: an argument or key is unknown, or a value is out of range.
    """
    for name in args:
        require(name in ARGUMENTS, "args", f"must be out of {', '.join(ARGUMENTS)}", name, "correct or remove it")
    config = load_config(str(args.get("recipe", "")), [str(each) for each in args.get("overrides", [])])
    config = with_field_names(config, action_space(config))
    require(
        config.reward.balance == "none",
        "reward.balance",
        "must be none in a service, which knows no prompts",
        config.reward.balance,
        "set reward.balance=none",
    )
    require(
        config.reward.names == ("inverse",),
        "reward.terms",
        "must be the term inverse alone in a service, which takes clips by HTTP",
        ", ".join(config.reward.names),
        "leave reward.terms and reward.name out, or give each run a pool of its own",
    )
    # The configuration allows an empty path, for runs with a reward of their own.
    require(
        bool(config.models.reward_idm),
        "models.reward_idm",
        "must name a folder in a service",
        config.models.reward_idm,
        "set models.reward_idm=PATH",
    )
    limits = Limits(
        height=config.world.height,
        width=config.world.width,
        max_frames=_count(args, "max_clip_frames", config.reward.max_frames),
        max_bytes=_count(args, "max_upload_bytes", MAX_BYTES),
    )
    return serve.deployment(**serve_options(config.reward, config.train.wait_timeout_s))(RewardService).bind(
        config, limits
    )


def _count(args: Json, name: str, default: int) -> int:
    value: int = args.get(name, default)
    require(isinstance(value, int) and value >= 2, name, "must be a whole number, 2 or more", value, f"use {default}")
    return value


class RewardService(RewardReplica):
    """A reward replica that also scores uploads over HTTP, for users outside the cluster.

    Args:
        config: configuration of the reward; runs with another reward are rejected.
        limits: limits of an upload.
    """

    reward: CombinedReward

    def __init__(self, config: Config, limits: Limits) -> None:
        super().__init__(partial(build_reward, config, None), config.reward.max_frames, config.reward_timeout_s)
        self.limits, self._space = limits, action_space(config)
        self._fingerprint = reward_fingerprint(config)

    def fingerprint(self) -> dict[str, str]:
        """Return the fingerprint of the reward, which a run compares with its own."""
        return self._fingerprint

    async def __call__(self, request: Request) -> JSONResponse:
        """Answer `POST /score` with the agreement of a clip, and all other requests with an error and its remedy."""
        if request.url.path.removeprefix(request.scope.get("root_path", "")) != SCORE_PATH:
            return _reject(404, f"there is {SCORE_PATH} only, got {request.url.path[:80]!r}; try {CURL}")
        if request.method != "POST":
            return _reject(405, f"a clip must come by POST, got {request.method}; try {CURL}", Allow="POST")
        try:
            parts = await read_form(request, self.limits)
            return JSONResponse(await self.batches.run(partial(self._score_clip, parts)))
        except UploadError as error:
            return _reject(error.status, str(error))

    def _score_clip(self, parts: dict[str, bytes]) -> dict[str, object]:
        """Score an upload; this runs in the replica's thread, between the batches of the runs' groups."""
        with bounded(self.timeout_s):
            frames, actions = read_clip(parts, self.limits, self._space)
            return {"reward": self._fingerprint, **clip_report(self.reward.score_clip(frames, actions))}


def _reject(status: int, text: str, **headers: str) -> JSONResponse:
    return JSONResponse({"error": text}, status_code=status, headers=headers)
