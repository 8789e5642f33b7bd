"""The evaluation actor without Ray: both prompt sets must fit their actions before anything is rewarded."""

from __future__ import annotations

import json
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import ray

from actors.cluster.placement import as_actor, stop_actors
from actors.evaluation import actor as evaluation
from actors.evaluation import client
from actors.evaluation.actor import EvaluationActor
from actors.evaluation.client import EvaluationClient
from actors.learner.command_queue import StepReport
from actors.rollout.prompt_actor import PromptActor
from rlir_ray.data.prompts import PromptSet
from rlir_ray.run.tracing import span_since
from rlir_ray.spaces.space import Actions
from rlir_ray.trajectory import Prompt
from tests.rewards.test_calibration import StripeReader, _clips
from tests.world import MakeConfig


def _prompt_set(seed: int, shift: int = 0) -> PromptSet:
    frames, actions = _clips(seed)
    moved = tuple(Actions(clip.space, np.roll(clip.values, shift, axis=0)) for clip in actions)
    prompts = tuple(
        Prompt(prompt_id=f"{index}", context=np.zeros((1, 12), np.uint16), actions=clip)
        for index, clip in enumerate(moved)
    )
    return PromptSet(prompts=prompts, frames=frames, recorded=moved)


def test_both_prompt_sets_must_fit_their_actions(make_config: MakeConfig, tmp_path: Path) -> None:
    actor = EvaluationActor(
        make_config("world.groups=[forward_back,jump]"), tmp_path, num_threads=1, audits_reward=False
    )
    actor.idms = {"reward": StripeReader(), "judge": StripeReader()}
    assert actor.calibrate(_prompt_set(0), _prompt_set(1)) == []
    found = json.loads((tmp_path / "calibration.json").read_text())
    assert {name: part["gate"]["exact"] for name, part in found.items()} == {"reward": 1.0, "judge": 1.0}
    with pytest.raises(ValueError, match=r"the training recordings .* a frame late \(.*at shift \+1"):
        actor.calibrate(_prompt_set(0), _prompt_set(1, shift=1))
    with pytest.raises(ValueError, match=r"the held-out recordings .* a frame early"):
        actor.calibrate(_prompt_set(0, shift=-1), _prompt_set(1))


def test_an_evaluation_judges_the_average_of_a_version_if_there_is_one() -> None:
    report = StepReport(version=1, metrics={}, weights_refs=[1], checksum="", span=span_since(0.0))  # type: ignore[list-item]  # no Ray
    assert report.judged_ref == 1 and replace(report, average_refs=[2]).judged_ref == 2  # type: ignore[list-item]


def test_part_of_a_prompt_set_is_one() -> None:
    part = _prompt_set(0)[:3]
    assert len(part) == len(part.frames) == len(part.recorded) == 3


def test_results_that_are_made_on_another_node_are_sent_to_the_runs_folder(
    make_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent = []

    def send(source: Path, node: str, target: Path) -> None:
        sent.append(([path.name for path in source.iterdir()], node, target))

    monkeypatch.setattr(evaluation, "node_id", lambda: "a node with a GPU")
    monkeypatch.setattr(evaluation, "send_folder", send)
    config = make_config("world.groups=[forward_back,jump]")
    for home in ("the driver's node", "a node with a GPU"):
        actor = EvaluationActor(config, tmp_path, num_threads=1, home=home, audits_reward=False)
        actor.idms = {"reward": StripeReader(), "judge": StripeReader()}
        actor.calibrate(_prompt_set(0), _prompt_set(1))
    assert sent == [(["calibration.json"], "the driver's node", tmp_path)]
    # The second actor was at home.
    assert [path.name for path in tmp_path.iterdir()] == ["calibration.json"]


def test_all_evaluations_read_the_heldout_clips_from_one_reference(
    ray_cluster: None, make_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Nothing is judged: an actor without models.
    monkeypatch.setattr(
        client, "EvaluationActor", type("NoModels", (), {"__init__": lambda self, *arguments, **options: None})
    )
    heldout = _prompt_set(0)
    prompts = as_actor(PromptActor).remote(lambda split: heldout)
    evaluation_client = EvaluationClient(make_config(), tmp_path, prompts, lambda line: None, threading.Event())
    try:
        ray.get(prompts.prepare.remote("heldout"), timeout=60)
        refs = [evaluation_client._heldout() for _ in range(3)]
        assert len(set(refs)) == 1
        assert len(ray.get(refs[0], timeout=60).frames) == len(heldout)
    finally:
        evaluation_client.stop()
        stop_actors([prompts])
