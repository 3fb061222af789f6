"""bindsearch train on stages: a whole space from nothing, stopped and resumed, refused where it cannot be meant."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from importlib import resources
from pathlib import Path

import pytest
import torch

from bindsearch.cli import run
from bindsearch.config import from_json_dict, to_json_dict
from bindsearch.errors import BindSearchError, InputError, MismatchError, UnsupportedError
from bindsearch.models.architecture import load_architecture
from bindsearch.models.spaces import load_space
from bindsearch.train.bind import RunOptions, run_bind
from bindsearch.train.bind_config import BindConfig, PairsConfig
from bindsearch.train.config import StageConfig, TrainConfig, holds_stages
from bindsearch.train.run_lock import lock_run
from bindsearch.train.whole import WholeOptions, check_whole, load_whole_config, run_whole

SCRIPT = Path(__file__).parent.parent / "tools" / "train_mini.py"
STEPS = 4
QUIET = WholeOptions(0, say=lambda line: None)


def patches(shape, kernel, width=16):
    return {
        "stem": {"kind": "patch", "shape": shape, "kernel": kernel, "stride": kernel, "norm": "layer"},
        "trunk": {"width": width, "blocks": 1, "heads": 2},
    }


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    """A configuration of four stages of a few steps, with an architecture of its own beside it."""
    folder = tmp_path_factory.mktemp("settings")
    levels = {"mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25]}
    architecture = {
        "name": "speck",
        "dim": 16,
        "towers": {
            "vision": patches([3, 2, 32, 32], [2, 16, 16]),
            "text": {
                "stem": {"kind": "text", "shape": [32], "vocabulary": 100},
                "trunk": {"width": 16, "blocks": 1, "heads": 2, "causal": True},
                "head": {"pool": "end"},
                "scale": {"initial": 10.0, "trained": True},
            },
            "audio": patches([1, 64, 204], [32, 51]),
            "depth": patches([1, 32, 32], [16, 16]),
            "thermal": patches([1, 32, 32], [16, 16]),
        },
    }
    architecture["towers"]["vision"]["stem"].pop("norm")
    numbers = {
        "image": {"size_px": 32, **levels},
        "video": {"size_px": 32, "clips": 1, "clip_s": 0.25, "frames": 2, "crops": 1, **levels},
        "text": {"context_length": 32},
        "audio": {"mels": 64, "frames": 204, "clips": 1},
        "depth": {"size_px": 32},
        "thermal": {"size_px": 32},
    }
    (folder / "speck.json").write_text(json.dumps({"architecture": architecture, "preprocess": numbers}))
    few = {"steps": STEPS, "batch": 12, "pool": 24, "warmup_steps": 1}
    first = {"modality": "text", "train_anchor": True, "naming": 0.5, "video_share": 0.25, "clips": 12}
    stages = [{"name": "image-text", **first, **few}]
    stages += [
        {"name": f"image-{modality}", "modality": modality, "temperature": 0.1, **few}
        for modality in ("audio", "depth", "thermal")
    ]
    whole = {"space": "speck.json", "seed": 3, "stages": stages, "validation": 12, "measure_every": 4, "log_every": 1}
    path = folder / "whole.json"
    path.write_text(json.dumps(whole))
    return path


def train(settings, folder, *more):
    return run(["train", str(settings), "-o", str(folder), "--workers", "0", *map(str, more)])


def space_bytes(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "README.md"}


@pytest.fixture(scope="module")
def done(settings, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "whole"
    assert train(settings, folder, "-q") == 0
    return folder


# ---- what a run gives ------------------------------------------------------------------------------------------------


def test_one_command_makes_a_space_that_answers(done, tmp_path, capsys):
    space = load_space(done / "space")
    assert space.name == "speck" and space.modalities == ("image", "video", "text", "audio", "depth", "thermal")
    assert run(["embed", "world:test:0..8", "-o", str(tmp_path / "e"), "--space", str(done / "space"), "-q"]) == 0
    assert run(["index", str(tmp_path / "e"), "-o", str(tmp_path / "index")]) == 0
    capsys.readouterr()
    assert run(["query", str(tmp_path / "index"), "--text", "a red fox", "-k", "3", "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)) == 3


def test_curves_log_settings_and_report_are_kept(done, settings):
    curves = json.loads((done / "curves.json").read_text())
    names = [stage["name"] for stage in json.loads(settings.read_text())["stages"]]
    assert list(curves["stages"]) == names
    assert [point["step"] for point in curves["stages"]["image-depth"]["curve"]] == [STEPS]
    assert (done / "curves.svg").read_bytes().rstrip().endswith(b"</svg>")
    log = (done / "train.log").read_text()
    assert "stage 1/4: image-text\n" in log and f"image-thermal: step {STEPS}/{STEPS} loss" in log
    assert "vocabulary 100; the world's words need" in log
    kept = json.loads((done / "train.json").read_text())
    assert from_json_dict(TrainConfig, kept["config"]) == load_whole_config(settings)
    report = json.loads((done / "report.json").read_text())
    assert [stage["name"] for stage in report["stages"]] == names
    assert report["stages"][1]["figures"]["audio->image subject"] >= 0
    assert report["space_id"] == load_space(done / "space").space_id
    assert not (done / "space" / "naming.safetensors").exists()


def test_stdout_is_the_report_and_stderr_the_talk(done, settings, capfd):
    before = space_bytes(done / "space")
    assert train(settings, done, "--json") == 0
    out, err = capfd.readouterr()
    assert json.loads(out) == json.loads((done / "report.json").read_text())
    assert err.count("done before") == 4 and "loss" not in err
    assert space_bytes(done / "space") == before
    assert train(settings, done) == 0
    assert f"Next: bindsearch embed SRC --space {done / 'space'}" in capfd.readouterr().out


def test_shards_are_told_of_on_stderr_and_name_and_seed_are_taken(settings, tmp_path, capfd):
    config = load_whole_config(settings)
    path, folder = tmp_path / "first.json", tmp_path / "run"
    path.write_text(json.dumps(to_json_dict(replace(config, stages=config.stages[:1]))))
    flags = ["--json", "--workers", "1", "--seed", "4", "--name", "mote"]
    assert run(["train", str(path), "-o", str(folder), *flags]) == 0
    out, err = capfd.readouterr()
    assert json.loads(out)["modalities"] == ["image", "video", "text"]
    assert "pool image: 1/1 shards" in err
    assert load_space(folder / "space").name == "mote"
    assert json.loads((folder / "space" / "space.json").read_text())["source"]["seed"] == 4


# ---- stopped and resumed ---------------------------------------------------------------------------------------------


class StoppedError(Exception):
    """Stands for a kill."""


@pytest.mark.parametrize("at", ["image-text: step 3/", "image-depth\n", "image-thermal: step 4/"])
def test_killed_and_resumed_is_undisturbed(done, settings, tmp_path, at):
    config = replace(load_whole_config(settings), checkpoint_every_s=1e-9)

    def say(line):
        if f"{line}\n".find(at) >= 0:
            raise StoppedError

    with pytest.raises(StoppedError):
        run_whole(config, tmp_path, WholeOptions(0, say=say))
    assert not (tmp_path / "space").exists()
    run_whole(config, tmp_path, QUIET)
    assert space_bytes(tmp_path / "space") == space_bytes(done / "space")
    assert list(json.loads((tmp_path / "curves.json").read_text())["stages"]) == [s.name for s in config.stages]


def test_notes_that_a_kill_left_out_come_from_the_checkpoint(done, settings, tmp_path):
    shutil.copytree(done, tmp_path / "run")
    (tmp_path / "run" / "image-audio.json").unlink()
    run_whole(load_whole_config(settings), tmp_path / "run", QUIET)
    found, wanted = (json.loads((each / "image-audio.json").read_text()) for each in (tmp_path / "run", done))
    assert found == wanted


def test_an_interrupt_ends_after_the_step_in_hand(done, settings, tmp_path):
    """Ctrl-C through the command line, in a process of its own: exit 130, the step kept, equal bytes after all."""
    code = (
        "import os, signal, sys\nimport torch\n"
        "from bindsearch.cli import run\n"
        "torch.set_num_threads(int(sys.argv[1]))\n"
        "import bindsearch.train.loop as loop\n"
        "take = loop.train_step\n"
        "def taken(stage, optimiser, step):\n"
        "    if (stage.config.name, step) == ('image-audio', 1):\n"
        "        os.kill(os.getpid(), signal.SIGINT)\n"
        "    return take(stage, optimiser, step)\n"
        "loop.train_step = taken\n"
        "sys.exit(run(sys.argv[2:]))\n"
    )
    command = ["train", str(settings), "-o", str(tmp_path / "run"), "--workers", "0"]
    threads = str(torch.get_num_threads())
    ended = subprocess.run(
        [sys.executable, "-c", code, threads, *command], capture_output=True, text=True, check=False, timeout=200
    )
    assert ended.returncode == 130, ended.stderr
    assert "finishing the step in hand" in ended.stderr and "Run the same command again" in ended.stderr
    assert not (tmp_path / "run" / "space").exists()
    said = []
    run_whole(load_whole_config(settings), tmp_path / "run", WholeOptions(0, say=said.append))
    assert f"image-audio: resumed at step 2 of {STEPS}" in said and "stage 1/4: image-text: done before" in said
    assert space_bytes(tmp_path / "run" / "space") == space_bytes(done / "space")


# ---- refused ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"stages": []}, "stages: there are none"),
        ({"sead": 1}, "unknown field 'sead'"),
        ({"validation": 1}, "needs validation >= 2"),
        ({"space": "spek.json"}, "Unknown architecture"),
        ({0: {"name": "a/b"}}, "stage a/b: names its files"),
        ({0: {"name": "curves"}}, "none of curves, report, train"),
        ({0: {"languages": ["germn"]}}, "Unknown language of stage image-text 'germn'. Did you mean 'german'"),
        ({0: {"modality": "audio", "naming": 0.0}}, "a stage of audio does not train the image tower"),
        ({1: {"name": "image-text"}}, "2 stages have this name"),
        ({1: {"modality": "smell"}}, "Unknown modality of stage image-audio 'smell'"),
        ({1: {"modality": "imu"}}, "stage image-audio: speck has no tower imu. It has vision, text, audio"),
        ({1: {"alike": ["subjet"]}}, "Did you mean 'subject'"),
        ({1: {"pool": 4}}, "needs steps >= 1, batch >= 2 and pool + clips >= batch"),
        ({1: {"learning_rate": 0}}, "stage image-audio: learning_rate is a number above 0, got 0"),
        ({1: {"temperature": 7}}, "stage image-audio: temperature lies between 0 and 1, got 7"),
        ({1: {"stepps": 1}}, "unknown field 'stepps'"),
    ],
)
def test_what_cannot_be_meant_is_refused_before_anything_is_begun(settings, tmp_path, capsys, changes, words):
    data = json.loads(settings.read_text())
    data["space"] = str(settings.parent / data["space"])
    for place, change in changes.items():
        if isinstance(place, int):
            data["stages"][place].update(change)
        else:
            data[place] = change
    (tmp_path / "whole.json").write_text(json.dumps(data))
    assert train(tmp_path / "whole.json", tmp_path / "run") == 2
    err = capsys.readouterr().err
    assert words in err and len(err.strip().splitlines()) == 1
    assert not (tmp_path / "run").exists()


def test_a_modality_comes_after_the_image_tower(settings):
    config = load_whole_config(settings)
    architecture = load_architecture(config.space)
    numbers = json.loads(Path(config.space).read_text())["preprocess"]
    check_whole(config, architecture, numbers)
    with pytest.raises(InputError, match="stage image-audio: no stage before it trains the image tower"):
        check_whole(replace(config, stages=config.stages[1:]), architecture, numbers)
    with pytest.raises(InputError, match="no preprocessing numbers of depth"):
        check_whole(config, architecture, {name: value for name, value in numbers.items() if name != "depth"})
    numbers["video"].pop("std")
    with pytest.raises(InputError, match=r"stage image-text: speck has no preprocessing numbers of video: std\."):
        check_whole(config, architecture, numbers)


def test_flags_of_one_tower_are_refused(settings, tmp_path, capsys):
    assert train(settings, tmp_path / "run", "--steps", 3) == 2
    assert "--steps is for a new tower on a frozen one" in capsys.readouterr().err
    assert train(settings, tmp_path / "run", "--pretrained") == 2
    assert not (tmp_path / "run").exists()


def test_another_run_s_folder_is_refused(done, settings, tmp_path, capsys):
    assert train(settings, done, "--seed", 9, "-q") == 5
    assert "was begun with seed = 3, this run has 9" in capsys.readouterr().err
    config = load_whole_config(settings)
    longer = replace(config, stages=(replace(config.stages[0], steps=9), *config.stages[1:]))
    with pytest.raises(MismatchError, match=r"image-text\.safetensors: .* stage\.steps is 4 there, 9 here"):
        run_whole(longer, done, QUIET)
    pairs = BindConfig(PairsConfig("world:train:0..20", anchor="image", modality="depth"), space="tiny:3")
    with pytest.raises(MismatchError, match="was begun with"):
        run_bind(pairs, done, RunOptions(0, say=lambda line: None))
    with lock_run(done), pytest.raises(BindSearchError, match="another run trains there"):
        run_whole(config, done, QUIET)


def test_one_process_trains_the_stages(settings, tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UnsupportedError, match="Start it without torchrun"):
        run_whole(load_whole_config(settings), tmp_path / "run")


def test_stages_are_known_by_their_file(tmp_path, settings):
    assert holds_stages(settings) and holds_stages(str(resources.files("bindsearch.train") / "mini.json"))
    (tmp_path / "broken.json").write_text("{")
    (tmp_path / "list.json").write_text("[]")
    assert not any(map(holds_stages, (tmp_path / "broken.json", tmp_path / "list.json", tmp_path / "none.json")))
    config = load_whole_config(resources.files("bindsearch.train") / "mini.json")
    assert config.space == "bindsearch-mini" and isinstance(config.stages[0], StageConfig)
    architecture = load_architecture(config.space)
    from bindsearch.train.stages import load_numbers

    check_whole(config, architecture, load_numbers(config.space))


# ---- lanes -----------------------------------------------------------------------------------------------------------


def test_lanes_give_the_bits_of_one_stage_after_another(settings, tmp_path):
    """Two processes of one thread each: those of --only with one thread, and no space but the parent's."""
    config = tmp_path / "whole.json"
    data = json.loads(settings.read_text())
    config.write_text(json.dumps({**data, "space": str(settings.parent / data["space"])}))

    def called(folder, *more):
        common = [str(folder), "--config", str(config), "--threads", "1", "--workers", "1"]
        ended = subprocess.run(
            [sys.executable, str(SCRIPT), *common, *more], capture_output=True, text=True, check=False, timeout=280
        )
        assert ended.returncode == 0, ended.stderr
        return ended.stdout

    said = called(tmp_path / "lanes", "--lanes", "--output", str(tmp_path / "lanes-space"))
    assert said.count("stage 2/4: image-audio\n") == said.count("stage 4/4: image-thermal\n") == 1
    called(tmp_path / "plain", "--output", str(tmp_path / "plain-space"))
    found, wanted = space_bytes(tmp_path / "lanes-space"), space_bytes(tmp_path / "plain-space")
    assert found == wanted
    curves = [json.loads((tmp_path / name / "mini_training.json").read_text()) for name in ("lanes", "plain")]
    assert [list(each["stages"]) for each in curves] == [[stage["name"] for stage in data["stages"]]] * 2
