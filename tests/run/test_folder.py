"""The run folder: what it keeps and what it refuses."""

import json
import math
import re
import shutil
from pathlib import Path

import pytest
from omegaconf import OmegaConf
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from actors.cluster.start import SYSTEM_CONFIG
from rlir_ray.config.load import keys, load_config
from rlir_ray.config.old_keys import MOVED, upgraded
from rlir_ray.data.files import replace_folder, write_json
from rlir_ray.run.folder import JOB_VARIABLE, RESUME_OVERRIDABLE, RunFolder, runs_folder


def _config(tmp_path, *overrides):
    return load_config("doom_tiny_ar", [f"run.dir={tmp_path}", "run.name=first", *overrides])


def test_folder_keeps_config_versions_and_steps(tmp_path):
    folder = RunFolder(_config(tmp_path)).begin()
    folder.log_step({"step": 1, "reward/mean": 0.5})
    folder.log_step({"step": 2, "reward/mean": 0.6})
    folder.close()
    steps = [json.loads(line) for line in (folder.path / "metrics.jsonl").read_text().splitlines()]
    assert [step["reward/mean"] for step in steps] == [0.5, 0.6]
    assert json.loads((folder.path / "versions.json").read_text())["torch"]
    assert load_config(str(folder.path / "config.yaml")).recipe == "doom_tiny_ar"
    assert list((folder.path / "tensorboard").iterdir())


def test_a_name_with_another_config_is_refused(tmp_path):
    RunFolder(_config(tmp_path)).begin().log_step({"step": 1})
    with pytest.raises(ValueError, match=r"exists with another config \(train.group_size differs\)"):
        RunFolder(_config(tmp_path, "train.group_size=4"))


def test_where_and_how_much_a_run_runs_may_differ(tmp_path):
    RunFolder(_config(tmp_path, "rollout.resources={a_node: 0.1}")).begin().log_step({"step": 1})
    more = ["train.num_steps=3", "learner.num_workers=2", "rollout.resources={a_node: 0.5}", "evaluation.every=1"]
    RunFolder(_config(tmp_path, *more, "checkpoint.keep=3", "reward.num_replicas=2", "learner.zero_stage=3"))
    # What an error message advises must not be refused.
    waits = ["train.wait_timeout_s=900", "rollout.timeout_s=60", "reward.timeout_s=60", "train.max_failed_fraction=0.5"]
    RunFolder(_config(tmp_path, *waits, "weights.transfer=store", "weights.bucket_bytes=1048576"))
    for other in ("rollout.temperature=0.5", "learner.precision=bf16", "reward.rule=joint", "seed=3"):
        with pytest.raises(ValueError, match=f"{other.split('=')[0]} differs"):
            RunFolder(_config(tmp_path, other))


def test_a_run_that_was_started_with_a_backend_of_the_reward_pool_goes_on_and_says_that_the_key_is_gone(
    tmp_path, caplog
):
    folder = RunFolder(_config(tmp_path)).begin()
    folder.log_step({"step": 1})
    stored = json.loads((folder.path / "config.json").read_text())
    stored["reward"]["backend"] = "actors"
    write_json(folder.path / "config.json", stored)
    caplog.clear()
    assert RunFolder(_config(tmp_path)).begin(step=1).metrics(1) == [{"step": 1}]
    line = "reward.backend=actors is not read any more: the reward pool always uses Ray Serve; the run resumes with it"
    assert [record.getMessage() for record in caplog.records] == [line]
    # It is not kept either.
    assert "backend" not in json.loads((folder.path / "config.json").read_text())["reward"]


def saved_by_the_version_before(folder):
    """Write the folder's configuration under the keys that have moved since."""
    stored = json.loads((folder.path / "config.json").read_text())
    for old, new in MOVED.items():
        section, _, name = old.partition(".")
        *sections, last = new.split(".")
        part = stored
        for each in sections:
            part = part[each]
        stored[section][name] = part.pop(last)
    # That version did not know the keys that are left.
    later = {name: stored["train"].pop(name) for name in ("grpo", "nft", "off_policy")}
    found = upgraded(stored)
    for name, keys_of_later in later.items():
        found["train"][name] |= keys_of_later
    assert found == json.loads((folder.path / "config.json").read_text())
    write_json(folder.path / "config.json", stored)
    OmegaConf.save(OmegaConf.create(stored), folder.path / "config.yaml")


def test_a_run_that_was_saved_under_keys_that_have_moved_resumes_and_is_compared_under_the_new_ones(tmp_path):
    own = ["train.grpo.clip_low=0.1", "train.nft.max_decay=0.3", "train.off_policy.importance=none"]
    folder = RunFolder(_config(tmp_path, *own)).begin()
    folder.log_step({"step": 1})
    saved_by_the_version_before(folder)
    for other in ("train.grpo.clip_high=0.1", "train.nft.num_levels=3", "train.off_policy.max_weight=7"):
        with pytest.raises(ValueError, match=rf"exists with another config \({other.split('=')[0]} differs\)"):
            RunFolder(_config(tmp_path, *own, other))
    # The saved configuration is a recipe still, as `eval` reads it.
    assert load_config(str(folder.path / "config.yaml")).train == _config(tmp_path, *own).train
    assert RunFolder(_config(tmp_path, *own)).begin(step=1).metrics(1) == [{"step": 1}]
    assert json.loads((folder.path / "config.json").read_text())["train"]["grpo"]["clip_low"] == 0.1


def test_every_key_that_may_differ_is_one(tmp_path):
    assert set(keys()) >= RESUME_OVERRIDABLE


def test_going_on_after_a_step_forgets_the_later_ones(tmp_path):
    folder = RunFolder(_config(tmp_path)).begin()
    for step in (1, 2, 3):
        folder.log_step({"step": step, "reward/mean": step / 10})
    folder.close()
    with (folder.path / "metrics.jsonl").open("a") as log:
        log.write('{"step": 4, "rew')
    folder = RunFolder(_config(tmp_path)).begin(step=2)
    assert [metrics["step"] for metrics in folder.metrics(9)] == [1, 2]
    folder.log_step({"step": 3, "reward/mean": 0.5})
    folder.close()
    events = EventAccumulator(str(folder.path / "tensorboard"))
    events.Reload()
    found = [(event.step, round(event.value, 3)) for event in events.Scalars("reward/mean")]
    assert found == [(1, 0.1), (2, 0.2), (3, 0.5)]


def test_two_processes_do_not_train_in_one_folder(tmp_path):
    again = pytest.raises(ValueError, match=r"one that trains in .*; wait for it, stop it")
    with RunFolder(_config(tmp_path)).locked(), again, RunFolder(_config(tmp_path)).locked():
        pass
    with RunFolder(_config(tmp_path)).locked():
        pass


def test_a_finished_run_is_not_overwritten(tmp_path):
    folder = RunFolder(_config(tmp_path)).begin()
    (folder.path / "policy").mkdir()
    said = r"run\.name=first must be new .* saved policy without a checkpoint; move .*/first away or .*run\.name"
    with pytest.raises(ValueError, match=said):
        RunFolder(_config(tmp_path))
    with pytest.raises(ValueError, match=said):
        folder.begin()


def test_what_ended_before_its_first_step_gives_its_name_free(tmp_path):
    RunFolder(_config(tmp_path)).begin()
    folder = RunFolder(_config(tmp_path, "rollout.num_actors=2")).begin()
    assert load_config(str(folder.path / "config.yaml")).rollout.num_actors == 2


def test_a_start_from_the_beginning_removes_half_written_checkpoints_and_no_others(tmp_path):
    folder = RunFolder(_config(tmp_path)).begin()
    checkpoints = folder.path / "checkpoints"
    for name in (".step_00000010.partial", "step_00000010.old"):
        (checkpoints / name).mkdir(parents=True)
    RunFolder(_config(tmp_path)).begin()
    assert not checkpoints.exists()
    folder.log_step({"step": 1})
    for name in ("step_00000010", "step_00000020"):
        (checkpoints / name).mkdir(parents=True)
    with pytest.raises(ValueError, match=r"got step_00000020, from which .*; move .*/first away or choose"):
        RunFolder(_config(tmp_path)).begin()
    assert len(list(checkpoints.iterdir())) == 2 and [each["step"] for each in folder.metrics(9)] == [1]


def test_a_policy_with_half_written_checkpoints_alone_is_not_overwritten(tmp_path):
    folder = RunFolder(_config(tmp_path)).begin()
    for name in ("policy", "checkpoints/.step_00000010.partial"):
        (folder.path / name).mkdir(parents=True)
    with pytest.raises(ValueError, match="got a saved policy without a checkpoint"):
        RunFolder(_config(tmp_path))
    assert (folder.path / "policy").is_dir()


def test_a_folder_that_cannot_be_written_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"run\.dir must be writable"):
        RunFolder(_config(tmp_path / "file"))


def test_json_is_whole_or_absent(tmp_path):
    write_json(tmp_path / "a.json", {"x": 1})
    with pytest.raises(TypeError):
        write_json(tmp_path / "a.json", {"x": object()})
    assert json.loads((tmp_path / "a.json").read_text()) == {"x": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


def test_saving_where_no_folder_is_says_so_in_one_line(tmp_path):
    with pytest.raises(ValueError, match=r"could not save .*; free some space"):
        write_json(tmp_path / "missing" / "a.json", {})


def test_a_replaced_folder_holds_the_new_files_only(tmp_path):
    for name in ("policy", "policy.part"):
        (tmp_path / name).mkdir()
        (tmp_path / name / name).write_text("")
    replace_folder(tmp_path / "policy.part", tmp_path / "policy")
    assert [path.name for path in tmp_path.rglob("*")] == ["policy", "policy.part"]
    assert (tmp_path / "policy" / "policy.part").is_file()


def test_a_submitted_job_keeps_its_runs_out_of_the_folder_that_is_removed_with_it(tmp_path, monkeypatch):
    monkeypatch.delenv(JOB_VARIABLE, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert runs_folder("runs") == tmp_path / "runs"
    monkeypatch.setenv(JOB_VARIABLE, "{}")
    assert runs_folder("runs") == tmp_path / "rlir_ray" / "runs"
    assert runs_folder("/data/runs") == Path("/data/runs")


def test_whatever_starts_ray_keeps_the_same_results_in_the_object_store():
    files = [path for path in (Path(__file__).parents[2] / "deploy").rglob("*") if path.is_file()]
    found = {path.name: re.findall(r'max_direct_call_object_size[=:] ?"?(\d+)', path.read_text()) for path in files}
    limits = {name: sizes for name, sizes in found.items() if sizes}
    assert "rlir.sbatch" in limits and "runtime_env.yaml" in limits
    assert all(sizes == [str(SYSTEM_CONFIG["max_direct_call_object_size"])] for sizes in limits.values()), limits


def test_files_are_strict_json_where_a_number_is_not_finite_and_read_back_as_nan(tmp_path):
    def refuse(word):
        raise AssertionError(f"{word} is no JSON")

    folder = RunFolder(_config(tmp_path)).begin()
    folder.log_step({"step": 1.0, "grad_norm": math.inf, "reward/mean": 0.5})
    write_json(folder.path / "evaluation.json", {"clips": [[math.nan, 1.0], (-math.inf,)], "name": "a"})
    line = (folder.path / "metrics.jsonl").read_text()
    assert json.loads(line, parse_constant=refuse) == {"step": 1.0, "grad_norm": None, "reward/mean": 0.5}
    text = (folder.path / "evaluation.json").read_text()
    assert json.loads(text, parse_constant=refuse) == {"clips": [[None, 1.0], [None]], "name": "a"}
    (metrics,) = folder.metrics(1)
    assert math.isnan(metrics["grad_norm"]) and metrics["reward/mean"] == 0.5
    folder.cut(1)
    json.loads((folder.path / "metrics.jsonl").read_text(), parse_constant=refuse)


def project(folder, checkpoints):
    """A project with a policy and recordings of its own, named by relative paths."""
    shutil.copytree(checkpoints / "policy", folder / "models" / "policy")
    for split in ("train", "heldout"):
        (folder / split).mkdir()
        for half in ("clip.mp4", "clip.jsonl"):
            (folder / split / half).write_text(split)
    return folder


PROJECT = [
    "run.name=first",
    "models.policy=models/policy",
    "prompts.source=recordings",
    "prompts.path=train",
    "prompts.heldout_path=heldout",
]


def begin(overrides):
    folder = RunFolder(load_config("doom_tiny_ar", overrides)).begin()
    folder.log_step({"step": 1})
    folder.close()
    return folder


def test_a_project_that_was_moved_goes_on(checkpoints, tmp_path, monkeypatch):
    monkeypatch.chdir(project(tmp_path / "here", checkpoints))
    begin(PROJECT)
    (tmp_path / "here").rename(tmp_path / "there")
    monkeypatch.chdir(tmp_path / "there")
    again = RunFolder(load_config("doom_tiny_ar", PROJECT)).begin(step=1)
    assert again.metrics(9) == [{"step": 1}]
    # The same weights under another path are the same, too.
    RunFolder(load_config("doom_tiny_ar", [*PROJECT, f"models.policy={tmp_path}/there/models/policy"]))
    settings = load_config(str(again.path / "config.yaml"))
    assert (settings.models.policy, settings.prompts.path) == ("models/policy", "train")


@pytest.mark.parametrize(
    ("file", "key"),
    [("models/policy/model.safetensors", "models.policy"), ("heldout/clip.mp4", "prompts.heldout_path")],
)
def test_other_content_under_the_same_path_is_another_config(file, key, checkpoints, tmp_path, monkeypatch):
    monkeypatch.chdir(project(tmp_path / "here", checkpoints))
    begin(PROJECT)
    Path(file).write_bytes(Path(file).read_bytes() + b" ")
    with pytest.raises(ValueError, match=rf"exists with another config \({key} differs\)"):
        RunFolder(load_config("doom_tiny_ar", PROJECT))


def test_a_run_of_an_earlier_version_goes_on_where_it_lies(checkpoints, tmp_path, monkeypatch):
    """It kept absolute paths, and no digests."""
    monkeypatch.chdir(project(tmp_path / "here", checkpoints))
    absolute = [each.replace("=models", f"={Path.cwd()}/models") for each in PROJECT]
    folder = begin(absolute)
    (folder.path / "content.json").unlink()
    RunFolder(load_config("doom_tiny_ar", PROJECT))
    with pytest.raises(ValueError, match=r"models\.policy differs"):
        RunFolder(load_config("doom_tiny_ar", [*PROJECT, f"models.policy={checkpoints}/policy"]))
