"""The reward service on its own: several pools share it, and single clips come over HTTP."""

import asyncio
import json
import socket
from pathlib import Path

import numpy as np
import pytest
import ray
import requests
import yaml
from ray import serve
from ray.serve.schema import ServeDeploySchema

from actors.pipeline import Pipeline
from actors.reward.calls import HandleCalls, ReplicaLost
from actors.reward.pool import RewardPool
from actors.reward.replica import build_reward
from actors.reward.service import RewardService, build
from actors.rollout.actor import build_sampler
from rlir_ray.data.vpt.pairs import write_recording
from rlir_ray.rewards.uploads import Limits
from tests.data.videos import event
from tests.fakes import HEIGHT, WIDTH, tiny_prompts
from tests.world import tiny_config, tiny_prompt_set

TIMEOUT_S = 250
ADDRESS = "serve://rlir_reward"
DEPLOYED = Path(__file__).parents[2] / "deploy" / "serve_reward.yaml"


@pytest.fixture(scope="module")
def service(ray_cluster, checkpoints, tmp_path_factory):
    """The service of the tiny world, with its HTTP route; gives the route's URL."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # Pools of other tests started Serve without HTTP.
    serve.shutdown()
    serve.start(http_options={"host": "127.0.0.1", "port": port}, logging_config={"log_level": "ERROR"})
    config = tiny_config(checkpoints, tmp_path_factory.mktemp("runs"))
    overrides = [f"models.{name}={getattr(config.models, name)}" for name in ("tokenizer", "reward_idm", "policy")]
    overrides += [f"world.height={HEIGHT}", f"world.width={WIDTH}", "world.num_frames=3", "train.group_size=4"]
    application = build({"overrides": overrides, "max_upload_bytes": 200_000, "max_clip_frames": 20})
    serve.run(application, name="rlir_reward", route_prefix="/reward")
    yield f"http://127.0.0.1:{port}/reward"
    serve.shutdown()


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    stem = tmp_path_factory.mktemp("clips") / "clip"
    frames = np.random.default_rng(0).integers(0, 256, (6, HEIGHT, WIDTH, 3), dtype=np.uint8)
    write_recording(stem, frames, [event(keys=["w"] if number % 2 else []) for number in range(6)])
    return {"video": stem.with_suffix(".mp4").read_bytes(), "events": stem.with_suffix(".jsonl").read_bytes()}


def post(url, clip, **changed):
    files = {name: (f"{name}.bin", content) for name, content in (clip | changed).items() if content is not None}
    return requests.post(f"{url}/score", files=files, timeout=TIMEOUT_S)


def test_pools_of_two_runs_share_the_service_and_get_the_scores_of_their_own_pools(service, make_config):
    config = make_config(f"reward.address={ADDRESS}")
    sampler = build_sampler(config)
    # Both runs have groups 0, 1 and 2, and they are not the same.
    runs = [
        [video for _, video in sampler.sample(tiny_prompts(3, num_frames=3, seed=seed), [0, 1, 2], [seed] * 3, 4)]
        for seed in (1, 2)
    ]
    shared = [RewardPool.from_config(config), RewardPool.from_config(config)]
    for pool in shared:
        pool.start()
    futures = [
        (run, pool.score(ray.put(video)))
        for videos in zip(*runs, strict=True)
        for run, (pool, video) in enumerate(zip(shared, videos, strict=True))
    ]
    found = [[future.result(TIMEOUT_S).scores for run, future in futures if run == which] for which in (0, 1)]
    with pytest.raises(ValueError, match=f"^only a pool of the run's own can be scaled, got reward.address={ADDRESS}"):
        shared[0].scale(2)
    for pool in shared:
        pool.stop()
    # The service outlives its users.
    assert serve.status().applications["rlir_reward"].status == "RUNNING"
    # What a pool of their own gives too (test_reward_pool.py).
    own = build_reward(make_config(), None)
    for videos, scores in zip(runs, found, strict=True):
        for expected, score in zip(own.score(videos), scores, strict=True):
            assert score.group_id == expected.group_id
            np.testing.assert_allclose(score.frame_rewards, expected.frame_rewards, atol=1e-6)
    assert not np.allclose(found[0][0].frame_rewards, found[1][0].frame_rewards)


@pytest.mark.slow
def test_a_run_trains_with_the_service_and_needs_no_room_for_replicas(service, make_config):
    config = make_config(f"reward.address={ADDRESS}", "reward.num_cpus=100", "train.num_steps=1")
    result = Pipeline(config, prompts=tiny_prompt_set).train(calibrate=False, evaluate=False)
    assert result.groups["trained"] == 4 and result.groups["failed"] == 0


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["reward.match=exact"], "must give the run's reward, got reward.match soft there and exact here; choose"),
        (["world.groups=[jump]"], "must give the run's reward, got world.groups forward_back,use_attack,jump,yaw"),
        (["reward.address=serve://elsewhere"], "must name a Serve application that runs, got serve://elsewhere where "),
    ],
)
def test_a_run_that_wants_another_reward_is_refused_in_one_line(service, make_config, overrides, message):
    pool = RewardPool.from_config(make_config(f"reward.address={ADDRESS}", *overrides))
    with pytest.raises(ValueError, match=message) as refused:
        pool.start()
    assert "\n" not in str(refused.value)


def test_the_service_and_its_callers_are_bounded_by_reward_timeout_s(make_config):
    class SilentHandle:
        def __init__(self):
            self.score = self

        def remote(self, video_refs, is_alone):
            return asyncio.get_running_loop().create_future()

    with pytest.raises(ReplicaLost, match=r"^no answer within 0.05 s$"):
        asyncio.run(asyncio.wait_for(HandleCalls(SilentHandle(), timeout_s=0.05).score("video"), TIMEOUT_S))
    config = make_config("reward.timeout_s=7")
    service = RewardService(config, Limits(height=HEIGHT, width=WIDTH, max_frames=20, max_bytes=1000))
    assert service.timeout_s == 7


def test_a_run_bounds_the_answers_of_a_service_by_its_own_timeout(service, make_config):
    pool = RewardPool.from_config(make_config(f"reward.address={ADDRESS}", "reward.timeout_s=7"))
    pool.start()
    assert pool.deployment.timeout_s == 7
    pool.stop()


def test_a_reward_of_ones_own_cannot_be_anothers_service(make_config):
    with pytest.raises(ValueError, match=r"make_reward needs a pool of the run's own, got reward.address=serve"):
        RewardPool.from_config(make_config(f"reward.address={ADDRESS}"), make_reward=object)


def test_a_clip_is_scored_over_http_frame_by_frame(service, clip):
    response = post(service, clip)
    assert (response.status_code, response.headers["content-type"]) == (200, "application/json")
    found = response.json()
    assert found["frames"] == 6
    assert [each["frame"] for each in found["per_frame"]] == [1, 2, 3, 4, 5]
    commands = [each["groups"]["forward_back"]["commanded"] for each in found["per_frame"]]
    assert commands == ["forward", "none", "forward", "none", "forward"]
    means = [each["agreement"] for each in found["per_frame"]]
    assert found["agreement"] == pytest.approx(np.mean(means), abs=1e-3)
    for each in found["per_frame"]:
        assert set(each["groups"]) == {"forward_back", "use_attack", "jump", "yaw"}
        held = [group["agreement"] for group in each["groups"].values()]
        assert each["agreement"] == pytest.approx(np.mean(held), abs=1e-3)


def frames_of(height, width, number, folder):
    write_recording(folder / "other", np.zeros((number, height, width, 3), np.uint8), [event()] * number)
    return {"video": (folder / "other.mp4").read_bytes(), "events": (folder / "other.jsonl").read_bytes()}


def test_a_bad_upload_gets_a_4xx_that_says_why(service, clip, tmp_path):
    refusals = [
        (post(service, clip, video=b"no video at all"), 400, "video must be an mp4, got another format"),
        (post(service, clip, video=clip["video"][:-200]), 400, "upload.mp4: no readable video"),
        (post(service, clip, events=b"{}\n{\n" * 3), 400, "upload.jsonl, line 2: no JSON"),
        (post(service, clip, events=b"{}\n" * 5), 422, "5 events for the 6 frames"),
        (post(service, clip, events=None), 400, "must have the parts video and events, got no events"),
        (post(service, frames_of(48, 64, 6, tmp_path)), 422, "frames must be 24x32 (height x width), got 48x64"),
        (post(service, frames_of(HEIGHT, WIDTH, 21, tmp_path)), 413, "at most 20 lines, got 21"),
        (post(service, clip, events=b"{}\n" * 100_000), 413, "must have at most 200000 bytes, got 3"),
        (requests.post(f"{service}/score", data=b"{}", timeout=TIMEOUT_S), 415, "must be multipart/form-data"),
        (requests.get(f"{service}/score", timeout=TIMEOUT_S), 405, "a clip must come by POST, got GET"),
        (requests.post(f"{service}/else", timeout=TIMEOUT_S), 404, "there is /score only"),
    ]
    for response, status, text in refusals:
        assert response.status_code == status, response.text
        assert text in json.loads(response.text)["error"] and "\n" not in response.json()["error"]
    # The service survives all of them.
    assert post(service, clip).status_code == 200


def test_serve_accepts_the_shipped_configuration_which_binds_to_this_machine_only():
    config = yaml.safe_load(DEPLOYED.read_text())
    schema = ServeDeploySchema.model_validate(config)
    assert schema.http_options.host == "127.0.0.1"
    (application,) = schema.applications
    assert (application.name, application.import_path) == ("rlir_reward", "actors.reward.service:build")
    deployment = build(application.args)._bound_deployment
    scaling = deployment._deployment_config.autoscaling_config
    assert (scaling.min_replicas, scaling.max_replicas, scaling.target_ongoing_requests) == (1, 4, 8)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({"recipee": "doom_tiny_ar"}, "args must be out of recipe, overrides, .* got 'recipee'"),
        ({"recipe": "doom_tiny"}, "a recipe must be a shipped name"),
        ({"max_clip_frames": 1}, "max_clip_frames must be a whole number, 2 or more, got 1; use 576"),
        ({"overrides": ["reward.balance=class"]}, "reward.balance must be none in a service"),
        ({"overrides": ["models.reward_idm="]}, "models.reward_idm must name a folder in a service"),
        ({"overrides": ["reward.min_replicas=3"]}, "reward.num_replicas must lie between reward.min_replicas=3"),
    ],
)
def test_an_invalid_service_configuration_is_rejected_in_one_line(args, message):
    with pytest.raises(ValueError, match=message) as refused:
        build(args)
    assert "\n" not in str(refused.value)
