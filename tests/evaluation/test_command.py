"""`eval`: recordings in, MineWorld's row out."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from rlir_ray.cli.commands import main
from rlir_ray.config import DataConfig, WorldConfig
from rlir_ray.data.recorded_clips import round_robin_clips
from rlir_ray.data.vpt.index import find_recordings
from rlir_ray.data.vpt.pairs import write_recording
from rlir_ray.evaluation.columns import NO_WEIGHTS
from rlir_ray.evaluation.command import EvaluationRequest, evaluate
from rlir_ray.evaluation.policy_config import find_recipe, policy_config
from rlir_ray.evaluation.policy_row import evaluate_row
from rlir_ray.families import open_policy
from rlir_ray.idm.base import load_inverse_dynamics
from rlir_ray.models.adapters import save_policy
from rlir_ray.run.folder import RunFolder
from rlir_ray.samplers.torch_sampler import TorchSampler
from rlir_ray.spaces.vpt import BUTTON_INDEX, BUTTONS, VPT_SPACE, events_from_actions
from tests.fakes import HEIGHT, WIDTH, tiny_actions, tiny_tokenizer, tiny_world_model
from tests.world import MakeConfig, tiny_config

WORLD = WorldConfig(height=HEIGHT, width=WIDTH, num_frames=3, groups=("forward_back", "jump", "yaw"))


@pytest.fixture(scope="module")
def recordings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """clip_2, clip_10 and clip_9 of nine frames, so of two clips each."""
    folder = tmp_path_factory.mktemp("recordings")
    for number in (2, 9, 10):
        random = np.random.default_rng(number)
        frames = random.integers(0, 256, (9, HEIGHT, WIDTH, 3), dtype=np.uint8)
        write_recording(folder / f"clip_{number}", frames, events_from_actions(tiny_actions(9, number)))
    return folder


def test_every_recording_gives_a_clip_before_one_gives_two(recordings: Path) -> None:
    clips = list(round_robin_clips(find_recordings(recordings), 5, WORLD, DataConfig()))
    assert [clip.address.prompt_id for clip in clips] == ["clip_2:0", "clip_9:0", "clip_10:0", "clip_2:4", "clip_9:4"]
    assert len(list(round_robin_clips(find_recordings(recordings), 99, WORLD, DataConfig()))) == 6


def test_a_broken_recording_is_named_and_the_others_give_more(recordings: Path, tmp_path: Path) -> None:
    shutil.copytree(recordings, tmp_path / "mine")
    (tmp_path / "mine" / "clip_9.jsonl").write_text("{}\n{\n")
    source, left_out = find_recordings(tmp_path / "mine"), list[str]()
    clips = list(round_robin_clips(source, 3, WORLD, DataConfig(), left_out))
    assert [clip.address.prompt_id for clip in clips] == ["clip_2:0", "clip_10:0", "clip_2:4"]
    assert len(left_out) == 1 and "clip_9.jsonl, line 2" in left_out[0]
    with pytest.raises(ValueError, match=r"clip_9\.jsonl, line 2"):
        list(round_robin_clips(source, 3, WORLD, DataConfig(strict=True)))


@pytest.fixture
def run_folder(make_config: MakeConfig, checkpoints: Path, tmp_path: Path) -> Path:
    """A run as `train` leaves it: config.yaml beside policy/."""
    from rlir_ray.run.folder import RunFolder

    folder = RunFolder(make_config("evaluation.top_p=0.9")).begin().path
    shutil.copytree(checkpoints / "policy", folder / "policy")
    return folder


def test_the_command_prints_the_published_columns_and_writes_them(
    run_folder: Path, recordings: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "rows" / "row.json"
    command = ["eval", "--policy", str(run_folder / "policy"), "--data", str(recordings), "--out", str(out)]
    main([*command, "evaluation.judge_context=false"])
    printed = capsys.readouterr().out
    header, row = printed.splitlines()[-5:-3]
    assert header.split() == ["FPS", "P", "R", "F1", "camera", "PSNR", "SSIM", "LPIPS", "FVD"]
    assert row.count(NO_WEIGHTS) == 2
    assert "6 clips of 1 context + 3 generated frames, 24x32, temperature 1, top-p 0.9" in printed
    content = json.loads(out.read_text())
    assert content["row"]["num_clips"] == 6 and content["row"]["lpips"] is None
    assert f"{content['row']['following']['mean']['f1_macro']:.3f}" == row.split()[3]
    assert content["config"]["evaluation"]["judge_context"] is False


def test_rlvr_worlds_columns_take_the_place_of_mineworlds(
    run_folder: Path, recordings: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "row.json"
    command = ["eval", "--policy", str(run_folder / "policy"), "--data", str(recordings), "--num-clips", "2", "--rlvr"]
    main([*command, "--out", str(out)])
    printed = capsys.readouterr().out
    row = json.loads(out.read_text())["row"]
    assert "actions over the tasks in use" in printed and "MineWorld" not in printed
    header, figures = printed.splitlines()[-5:-3]
    assert header.split(maxsplit=4) == ["MSE", "PSNR", "SSIM", "LPIPS", "repeated %"]
    assert figures.split()[0] == f"{row['rlvr']['mse']:.3f}" and NO_WEIGHTS in figures
    # An untrained policy draws other tokens in every frame.
    assert row["rlvr"]["repeated_frames"] == 0 and row["rlvr"]["ssim"] == pytest.approx(100 * row["ssim"])
    with pytest.raises(SystemExit):
        main([*command, "--fvd", "i3d.pt"])
    assert "--rlvr must stand without --fvd" in capsys.readouterr().err


def test_the_policy_of_a_moved_run_finds_its_projects_folders(
    checkpoints: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("policy", "tokenizer", "reward_idm", "judge_idm"):
        shutil.copytree(checkpoints / name, tmp_path / "here" / "models" / name)
    monkeypatch.chdir(tmp_path / "here")
    folder = RunFolder(tiny_config(Path("models"), Path("runs"))).begin().path
    shutil.copytree("models/policy", folder / "policy")
    (tmp_path / "here").rename(tmp_path / "there")
    monkeypatch.chdir(tmp_path)
    config = policy_config("there/runs/tiny/policy")
    for name in ("tokenizer", "judge_idm"):
        assert Path(getattr(config.models, name)) == tmp_path / "there" / "models" / name


def test_the_figures_do_not_depend_on_the_clips_taken_at_once(run_folder: Path, recordings: Path) -> None:
    request = EvaluationRequest(policy=str(run_folder / "policy"), data=str(recordings), num_clips=5)
    rows = [dataclasses.replace(evaluate(request, chunk=chunk), fps=0.0) for chunk in (2, 64)]
    assert rows[0].following == rows[1].following
    assert rows[0].psnr == pytest.approx(rows[1].psnr, abs=1e-3)
    assert rows[0].ssim == pytest.approx(rows[1].ssim, abs=1e-3)


def test_clips_that_are_what_was_recorded_have_full_marks(checkpoints: Path, recordings: Path) -> None:
    """The policy's place is taken by one that repeats the recording's own tokens."""
    clips = list(round_robin_clips(find_recordings(recordings), 4, WORLD, DataConfig()))
    tokenizer = tiny_tokenizer()
    decoded = [
        dataclasses.replace(
            clip, frames=tokenizer.decode(tokenizer.encode(torch.from_numpy(np.array(clip.frames)))).numpy()
        )
        for clip in clips
    ]

    class Recorder:
        policy_version = 0

        def sample(self, prompts, group_ids, seeds, group_size):  # type: ignore[no-untyped-def]
            drawn = TorchSampler(tiny_world_model(), temperature=1.0).sample(prompts, group_ids, seeds, group_size)
            real = [tokenizer.encode(torch.from_numpy(np.array(clips[index].frames))) for index in group_ids]
            return [
                (group, dataclasses.replace(video, codes=codes[None].numpy().astype(np.uint16)))
                for (group, video), codes in zip(drawn, real, strict=True)
            ]

    row = evaluate_row(
        decoded,
        Recorder(),
        tokenizer,
        WORLD,
        seed=0,
        chunk=3,  # type: ignore[arg-type]
        idm=load_inverse_dynamics(checkpoints / "reward_idm"),
        lpips=lambda one, other: (one != other).float().mean((1, 2, 3)),  # type: ignore[arg-type]
        rlvr=True,
    )
    assert row.rlvr is not None and (row.rlvr.mse, row.rlvr.lpips) == (0, 0)
    assert row.rlvr.psnr == pytest.approx(80) and row.rlvr.ssim == pytest.approx(100)
    assert row.num_clips == 4 and row.psnr == 100 and row.ssim == pytest.approx(1)
    assert row.lpips == 0 and row.fvd is None
    assert row.following is not None and set(row.following["per_task"]["jump"]) > {"f1_macro"}


def test_contradictions_are_taken_as_they_come_on_both_sides(tmp_path: Path) -> None:
    """Frame 2 was recorded with attack and use, frame 3 with jump and sneak; read are attack and use, then jump."""
    events = [dict.fromkeys(BUTTONS, 0) | {"camera": [0, 0]} for _ in range(4)]
    events[2] |= {"attack": 1, "use": 1}
    events[3] |= {"jump": 1, "sneak": 1}
    frames = np.zeros((4, HEIGHT, WIDTH, 3), np.uint8)
    write_recording(tmp_path / "clip", frames, events)

    class Reader:
        space = VPT_SPACE

        def logits(self, frames: torch.Tensor) -> dict[str, torch.Tensor]:
            buttons = torch.zeros(len(frames), 4, 20, 2)
            buttons[..., 0] = 1
            for frame, name in ((2, "attack"), (2, "use"), (3, "jump")):
                buttons[:, frame, BUTTON_INDEX[name], 1] = 2
            return {"buttons": buttons, "camera": torch.eye(11)[[5, 5]].expand(len(frames), 4, 2, 11)}

    class Listening(TorchSampler):
        def sample(self, prompts, group_ids, seeds, group_size):  # type: ignore[no-untyped-def]
            self.commanded = prompts[0].actions
            return super().sample(prompts, group_ids, seeds, group_size)

    sampler = Listening(tiny_world_model(), temperature=1.0)
    row = evaluate_row(
        round_robin_clips(find_recordings(tmp_path), 1, WORLD, DataConfig()),
        sampler,
        tiny_tokenizer(),
        WORLD,
        seed=0,
        chunk=1,
        idm=Reader(),  # type: ignore[arg-type]
        judge_context=True,
    )
    assert row.following is not None and row.following_in_use is not None and row.game_world_score is not None
    accuracies = {task: figures["f1_micro"] for task, figures in row.following["per_task"].items()}
    # Sneak alone was missed, in one of three frames. If the recorded buttons cancelled, use, attack and jump would each
    # have a false alarm, and sneak no error.
    assert accuracies.pop("sneak/sprint") == pytest.approx(2 / 3) and set(accuracies.values()) == {1}
    assert row.following_in_use["tasks"] == ["sneak/sprint", "use", "attack", "jump"]
    assert row.game_world_score["keyboard"] == 1
    # The policy is commanded neither: its tokens hold no contradictions.
    assert sampler.commanded.equals(VPT_SPACE.nothing(3))


def test_without_an_inverse_dynamics_model_its_columns_say_so(
    make_config: MakeConfig, checkpoints: Path, recordings: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mine.yaml").write_text(
        f"world: {{height: {HEIGHT}, width: {WIDTH}, num_frames: 3}}\n"
        f"models: {{judge_idm: models/absent, tokenizer: {checkpoints / 'tokenizer'}}}\n"
    )
    policy, recipe = str(checkpoints / "policy"), str(tmp_path / "mine.yaml")
    main(["eval", "--policy", policy, "--data", str(recordings), "--recipe", recipe, "--num-clips", "2"])
    assert capsys.readouterr().out.count(NO_WEIGHTS) == 6


def test_a_policy_finds_its_recipe_by_its_run_its_folder_or_its_size(run_folder: Path, tmp_path: Path) -> None:
    assert find_recipe(run_folder / "policy") == str(run_folder / "config.yaml")
    assert policy_config("asset:doom/world_model").recipe == "doom_tiny_ar"
    settings = {
        "vocab_size": 8262,
        "tokens_per_frame": 336,
        "hidden_size": 2048,
        "intermediate_size": 4096,
        "num_hidden_layers": 20,
        "num_attention_heads": 32,
        "num_key_value_heads": 4,
        "max_position_embeddings": 5552,
    }
    (tmp_path / "converted").mkdir()
    (tmp_path / "converted" / "config.json").write_text(json.dumps(settings))
    assert find_recipe(tmp_path / "converted") == "mineworld_700m"
    flow = {
        "_class_name": "FlowWorldModel",
        "latent_channels": 16,
        "latent_height": 28,
        "latent_width": 48,
        "patch_size": 2,
        "hidden_size": 1536,
        "num_layers": 18,
        "num_heads": 24,
        "mlp_ratio": 4.0,
    }
    (tmp_path / "converted" / "config.json").write_text(json.dumps(flow))
    assert find_recipe(tmp_path / "converted") == "nfd_774m"
    (tmp_path / "converted" / "config.json").write_text(json.dumps(settings | {"hidden_size": 64}))
    with pytest.raises(ValueError, match="needs --recipe"):
        find_recipe(tmp_path / "converted")
    with pytest.raises(ValueError, match="must be a world model's folder"):
        find_recipe(tmp_path)


def test_adapter_of_a_run_is_evaluated_on_the_runs_own_policy(
    make_config: MakeConfig, recordings: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = make_config("lora.rank=2")
    run = RunFolder(config).begin()
    save_policy(open_policy(config), run.path / "policy")
    run.close()
    main(["eval", "--policy", str(run.path / "policy"), "--data", str(recordings), "--num-clips", "2"])
    assert "2 clips of 1 context + 3 generated frames" in capsys.readouterr().out
    (run.path / "config.yaml").unlink()
    with pytest.raises(ValueError, match="an adapter outside a run's folder needs --recipe"):
        find_recipe(run.path / "policy")


def test_a_converted_mineworld_checkpoint_is_evaluated_by_its_validation_clips(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The small golden checkpoints, and actions in the form that MineWorld's validation set has."""
    golden = Path(__file__).parents[1] / "golden"
    state = torch.load(golden / "mineworld_lm_small.ckpt", weights_only=True)["state_dict"]
    tokenizer = torch.load(golden / "mineworld_vq_small.ckpt", weights_only=True)["state_dict"]
    torch.save({"state_dict": state | {f"tokenizer.{k}": v for k, v in tokenizer.items()}}, tmp_path / "both.ckpt")
    # Frames of 8 x 12 pixels, so 24 tokens and three frames within the golden 128 positions.
    config = json.loads((golden / "mineworld_lm_small.config.json").read_text()) | {"image_num": 24}
    (tmp_path / "config.json").write_text(json.dumps(config))
    main(
        [
            "convert",
            "mineworld",
            "--checkpoint",
            str(tmp_path / "both.ckpt"),
            "--config",
            str(tmp_path / "config.json"),
            "--tokenizer-config",
            str(golden / "mineworld_vq_small_cfg" / "config.json"),
            "--out",
            str(tmp_path / "small"),
        ]
    )
    main(
        [
            "convert",
            "vpt-idm",
            "--config",
            str(golden / "vpt_idm_small.config.json"),
            "--weights",
            str(golden / "vpt_idm_small.weights.safetensors"),
            "--out",
            str(tmp_path / "idm"),
        ]
    )
    random = np.random.default_rng(0)
    for number in range(3):
        frames = random.integers(0, 256, (16, 8, 12, 3), dtype=np.uint8)
        actions = [
            {**{name: int(random.random() < 0.1) for name in BUTTONS}, "camera": random.integers(-9, 9, 2).tolist()}
            for _ in range(16)
        ]
        write_recording(tmp_path / "validation" / f"clip_{number}", frames, actions)
    (tmp_path / "mine.yaml").write_text(
        "base: mineworld_300m\nworld: {height: 8, width: 12, num_frames: 2}\narchitecture:\n"
        + "".join(f"  {entry}: 0\n" for entry in load_architecture_fields())
    )
    capsys.readouterr()
    main(
        [
            "eval",
            "--policy",
            str(tmp_path / "small"),
            "--data",
            str(tmp_path / "validation"),
            "--idm",
            str(tmp_path / "idm"),
            "--recipe",
            str(tmp_path / "mine.yaml"),
            "--num-clips",
            "4",
        ]
    )
    printed = capsys.readouterr().out
    assert "4 clips of 1 context + 2 generated frames, 8x12, temperature 1, top-p 0.8" in printed
    assert printed.splitlines()[-2].count(NO_WEIGHTS) == 2


def load_architecture_fields() -> list[str]:
    from rlir_ray.config import ArchitectureConfig

    return [entry.name for entry in dataclasses.fields(ArchitectureConfig)]
