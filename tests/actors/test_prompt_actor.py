"""The prompt actor reports its progress while it works."""

import time

import actors.rollout.prompt_actor
from actors.cluster.placement import as_actor, stop_actors
from actors.cluster.waiting import wait_all
from actors.rollout.prompt_actor import WATCHING, PromptActor, PromptProgress
from tests.world import tiny_prompt_set


class Slow:
    """Is done as soon as somebody has heard how far it is."""

    def __init__(self, heard):
        self.heard, self.activity = heard, ""

    def __call__(self, split):
        self.activity = f"7 of 9 {split} clips"
        while not self.heard.exists():
            time.sleep(0.05)
        return tiny_prompt_set(split)


def test_making_prompts_reports_its_progress(ray_cluster, tmp_path, monkeypatch):
    monkeypatch.setattr(actors.rollout.prompt_actor, "REPORT_EVERY_S", 0.1)
    heard, lines = tmp_path / "heard", []

    def say(line):
        lines.append(line)
        if "clips" in line:
            heard.touch()

    actor = as_actor(PromptActor, concurrency_groups={WATCHING: 1}).remote(Slow(heard))
    ids = wait_all([actor.prepare.remote("train")], 60, "the prompts", meanwhile=PromptProgress(actor, say))[0]
    stop_actors([actor])
    assert len(ids) == 12
    assert lines[-1].startswith("making prompts for ") and lines[-1].endswith("s: 7 of 9 train clips")
