"""The run folder: what it keeps and what it refuses."""

import json
from pathlib import Path

import pytest

from rlir_ray.config_files import load_config
from rlir_ray.run import JOB_VARIABLE, RunFolder, replace_folder, runs_folder, write_json


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
    with pytest.raises(ValueError, match=r"exists with another config \(train.num_steps differs\)"):
        RunFolder(_config(tmp_path, "train.num_steps=3"))


def test_a_finished_run_is_not_overwritten(tmp_path):
    folder = RunFolder(_config(tmp_path)).begin()
    (folder.path / "policy").mkdir()
    with pytest.raises(ValueError, match=r"has saved its policy; choose another run\.name"):
        RunFolder(_config(tmp_path))


def test_what_ended_before_its_first_step_gives_its_name_free(tmp_path):
    RunFolder(_config(tmp_path)).begin()
    folder = RunFolder(_config(tmp_path, "rollout.num_actors=2")).begin()
    assert load_config(str(folder.path / "config.yaml")).rollout.num_actors == 2


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
