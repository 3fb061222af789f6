"""bindsearch train: a user's pairs, a tower that joins a frozen space, stopped and resumed, used by index and query."""

from __future__ import annotations

import csv
import errno
import io
import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from bindsearch.cli import run
from bindsearch.config import from_json_dict, to_json_dict
from bindsearch.errors import (
    BindSearchError,
    DecodeError,
    InputError,
    MismatchError,
    MissingInputError,
    TooManyBadError,
    UnknownNameError,
    UnsupportedError,
    WeightsError,
)
from bindsearch.models.architecture import ArchitectureConfig, StemConfig, TowerConfig, TrunkConfig
from bindsearch.models.bind import build_tower
from bindsearch.models.manifest import FILE
from bindsearch.models.spaces import drawn_tower, load_space, tiny_manifest
from bindsearch.models.weights import getters, save_space, verify
from bindsearch.registry import MODALITIES
from bindsearch.row_table import load_row_table
from bindsearch.sources import Source
from bindsearch.train.augment import vary
from bindsearch.train.bind import BindReport, RunOptions, _brief, run_bind
from bindsearch.train.bind_config import BindConfig, NewTowerConfig, PairsConfig, ScheduleConfig, load_bind_config
from bindsearch.train.bind_stage import BoundPairs, Kinship, draw_rows
from bindsearch.train.new_tower import plan_tower
from bindsearch.train.pair_files import components, hold_out, read_pairs
from bindsearch.train.prepared import prepare_inputs
from bindsearch.train.recall import recall_figures
from bindsearch.types import Item

COUNT, WIDTH, SPACE = 160, 24, "tiny:3"
QUIET = RunOptions(0, say=lambda line: None)


def write_table(path, header, rows):
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(header)
        writer.writerows(rows)
    return path


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Pictures, depth of the same shapes, and features that are a noisy linear image of the pictures' embeddings."""
    folder = tmp_path_factory.mktemp("world")
    rng = np.random.default_rng(5)
    y, x = np.mgrid[0:32, 0:32] / 32
    names, labels = [f"{number:03d}" for number in range(COUNT)], []
    for number, name in enumerate(names):
        colour, (cx, cy), size = rng.uniform(0, 255, (2, 3)), rng.uniform(0.2, 0.8, 2), rng.uniform(0.1, 0.5)
        inside = ((x - cx) ** 2 + (y - cy) ** 2 < size**2)[..., None]
        Image.fromarray(np.where(inside, colour[0], colour[1]).astype(np.uint8)).save(folder / f"{name}.png")
        np.save(folder / f"{name}.depth.npy", np.where(inside[..., 0], 2.0, 8.0).astype(np.float32))
        labels.append(f"kind {number % 40}")
    rows = load_space(SPACE).embed("image", [folder / f"{name}.png" for name in names])
    mix = rng.standard_normal((rows.shape[1], WIDTH)).astype(np.float32)
    features = (rows @ mix) * 50 + 300 + rng.standard_normal((COUNT, WIDTH)).astype(np.float32) * 0.05
    np.savez(folder / "feats.npz", **dict(zip([f"{name}.wav" for name in names], features, strict=True)))
    pairs = [(f"{name}.png", f"{name}.wav", label) for name, label in zip(names, labels, strict=True)]
    write_table(folder / "pairs.csv", ("path_a", "path_b", "label"), pairs)
    write_table(folder / "depth.csv", ("path_a", "path_b"), [(f"{n}.png", f"{n}.depth.npy") for n in names])
    return folder


def projector(world, **schedule):
    values = {"steps": 150, "batch": 64, "learning_rate": 0.01, "warmup_steps": 10, "measure_every": 150, **schedule}
    return BindConfig(
        PairsConfig(str(world / "pairs.csv"), features=str(world / "feats.npz"), held_out=0.25),
        space=SPACE,
        tower=NewTowerConfig("projector"),
        schedule=ScheduleConfig(**values),
    )


def depth_tower(world, **schedule):
    values = {"steps": 12, "batch": 16, "learning_rate": 0.003, "warmup_steps": 2, "measure_every": 6, **schedule}
    return BindConfig(
        PairsConfig(str(world / "depth.csv"), held_out=0.2),
        space=SPACE,
        tower=NewTowerConfig("own", architecture="tiny", drop_path=0.1),
        schedule=ScheduleConfig(**values),
    )


@pytest.fixture(scope="module")
def trained(world, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    return folder, run_bind(projector(world), folder, QUIET)


# ---- what a run gives ------------------------------------------------------------------------------------------------


def test_a_projector_finds_held_out_pairs(trained):
    folder, report = trained
    assert report.pairs == {"train": 120, "held_out": 40, "bad": 0}
    assert report.figures["b->a recall_at_1"] >= 0.9, report.figures
    assert report.figures["a->b recall_at_1"] >= 0.9, report.figures
    curve = json.loads((folder / "curves.json").read_text())["curve"]
    assert [point["step"] for point in curve] == [150]
    assert b"<svg" in (folder / "curves.svg").read_bytes()
    assert json.loads((folder / "report.json").read_text()) == report.to_json()


def test_the_space_is_the_parent_s_with_one_tower_more(trained, world):
    folder, report = trained
    parent, space = load_space(SPACE), load_space(folder / "space")
    assert space.space_id == parent.space_id == report.space_id
    assert space.modalities == (*parent.modalities, "features")
    assert space.tower_id("image") == parent.tower_id("image")
    assert space.tower_id("features") == report.tower_id
    assert report.tower_id.endswith(f"@{parent.space_id}")
    picture = world / "000.png"
    assert np.array_equal(space.embed("image", [picture]), parent.embed("image", [picture]))
    own = space.embed("features", [load_row_table(world / "feats.npz").row("007.wav")])
    scores = space.embed("image", [world / f"{number:03d}.png" for number in range(COUNT)]) @ own[0]
    assert int(scores.argmax()) == 7
    assert verify(folder / "space")["features"].endswith(report.tower_id)


def test_inputs_are_stacked_for_a_projector_alone(world, tmp_path, monkeypatch):
    """Another tower takes no statistics of them, and pictures of a whole set are more than memory holds."""
    asked = []
    stacked = BoundPairs.statistics_rows
    monkeypatch.setattr(BoundPairs, "statistics_rows", lambda bound: asked.append(1) or stacked(bound))
    run_bind(depth_tower(world, steps=1), tmp_path / "depth", QUIET)
    assert not asked
    run_bind(projector(world, steps=1), tmp_path / "projector", QUIET)
    assert asked


def test_embed_index_and_query_take_it(trained, world, tmp_path, capsys):
    folder, _ = trained
    space, table = str(folder / "space"), str(world / "feats.npz")
    pictures = [str(world / f"{number:03d}.png") for number in range(20)]
    assert run(["embed", *pictures, "-o", str(tmp_path / "pictures"), "--space", SPACE, "--workers", "0", "-q"]) == 0
    assert run(["index", str(tmp_path / "pictures"), "-o", str(tmp_path / "index")]) == 0
    out = str(tmp_path / "features")
    assert run(["embed", table, "--modality", "features", "-o", out, "--space", space, "--workers", "0", "-q"]) == 0
    capsys.readouterr()
    asked = f"row://{table}!/007.wav"
    assert run(["query", str(tmp_path / "index"), "--features", asked, "-k", "1", "--space", space, "--json"]) == 0
    hits = json.loads(capsys.readouterr().out)
    assert "007.png" in json.dumps(hits)  # an index of the parent answers features of the space that joined it
    assert run(["index", "add", str(tmp_path / "index"), out]) == 0
    capsys.readouterr()
    assert run(["query", str(tmp_path / "index"), "--image", pictures[3], "-k", "1", "--only", "features"]) == 0
    assert "003.wav" in capsys.readouterr().out
    assert run(["query", str(tmp_path / "index"), "--features", asked, "-k", "1"]) == 2
    assert "--space RUN/space" in capsys.readouterr().err


def test_another_parent_is_refused(trained, tmp_path):
    folder, _ = trained
    copy = tmp_path / "space"
    copy.mkdir()
    (copy / "features.safetensors").write_bytes((folder / "space" / "features.safetensors").read_bytes())
    manifest = json.loads((folder / "space" / FILE).read_text())
    manifest["parent"]["location"] = "tiny:4"
    (copy / FILE).write_text(json.dumps(manifest))
    with pytest.raises(MismatchError, match=r"were bound to tiny:3@\w+, tiny:4 is tiny:4@\w+ now"):
        load_space(copy)
    manifest["parent"]["location"] = "../nowhere"
    (copy / FILE).write_text(json.dumps(manifest))
    with pytest.raises(WeightsError, match=r"\.\./nowhere .* is not at hand"):
        load_space(copy)


def test_onto_an_open_clip_space(world, tmp_path):
    rows = [(f"{number:03d}.png", f"{number:03d}.wav") for number in range(16)]
    path = write_table(world / "few.csv", ("path_a", "path_b"), rows)
    config = projector(world, steps=2, batch=8, measure_every=2)
    config = replace(config, space="open_clip:ViT-S-32-alt/random:3", pairs=replace(config.pairs, manifest=str(path)))
    report = run_bind(config, tmp_path / "run", QUIET)
    space = load_space(report.space)
    assert space.modalities == ("image", "text", "features")
    assert report.tower_id.endswith(f"@{load_space(config.space).space_id}")
    row = space.embed("features", [load_row_table(world / "feats.npz").row("000.wav")])
    assert row.shape == (1, space.dim)
    assert space.logit_scale("features") == pytest.approx(1 / 0.07, rel=1e-5)


def test_onto_a_folder_that_moves_with_it(world, tmp_path):
    manifest = tiny_manifest(3)
    towers = {name: getters(drawn_tower(manifest, 3, name)) for name in ("vision", "text")}
    held = {name: record for name, record in manifest.towers.items() if name in towers}
    save_space(tmp_path / "here" / "parent", replace(manifest, towers=held, modalities=("image", "text")), towers)
    config = replace(projector(world, steps=2), space=str(tmp_path / "here" / "parent"))
    report = run_bind(config, tmp_path / "here" / "run", QUIET)
    (tmp_path / "here").rename(tmp_path / "there")
    space = load_space(tmp_path / "there" / "run" / "space")
    assert space.tower_id("features") == report.tower_id
    assert space.embed("image", [world / "000.png"]).shape == (1, 32)


def test_a_replaced_tower_is_another_one(world, tmp_path):
    report = run_bind(depth_tower(world, steps=2), tmp_path / "run", QUIET)
    space, parent = load_space(report.space), load_space(SPACE)
    assert space.space_id == parent.space_id
    assert space.tower_id("depth") == report.tower_id != parent.tower_id("depth")
    assert space.modalities == parent.modalities
    depth = [world / "000.depth.npy"]
    assert not np.allclose(space.embed("depth", depth), parent.embed("depth", depth), atol=0.05)


# ---- stopped and resumed ---------------------------------------------------------------------------------------------

KILLER = """
import json, os, signal, sys
import torch
from bindsearch.config import from_json_dict
from bindsearch.train.bind import RunOptions, run_bind
from bindsearch.train.bind_config import BindConfig
config, folder, at, threads = json.loads(sys.argv[1])
torch.set_num_threads(threads)
seen = 0
def say(line):
    global seen
    seen += 1
    if seen == at:
        os.kill(os.getpid(), signal.SIGKILL)
run_bind(from_json_dict(BindConfig, config), folder, RunOptions(0, say=say))
"""


def killed_run(config, folder, at):
    """Run in a process of its own, killed as it says its `at`-th line."""
    order = json.dumps([to_json_dict(config), str(folder), at, torch.get_num_threads()])
    return subprocess.run(
        [sys.executable, "-c", KILLER, order], capture_output=True, check=False, timeout=120
    ).returncode


@pytest.mark.parametrize("make", [projector, depth_tower])
def test_killed_and_resumed_is_undisturbed(world, tmp_path, make):
    config = make(world, steps=12, measure_every=6, log_every=1, checkpoint_every_s=1e-9)
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    run_bind(config, whole, QUIET)
    for at in (1, 5):  # before the anchors are embedded; between a step and its checkpoint
        assert killed_run(config, cut, at) == -signal.SIGKILL
        assert not (cut / "space" / FILE).exists()
    said = []
    run_bind(config, cut, replace(QUIET, say=said.append))
    assert any(line.startswith("bind: resumed at step 3 of 12") for line in said), said
    names = sorted(path.name for path in (whole / "space").iterdir())
    assert len(names) == 2
    for name in names:
        assert (cut / "space" / name).read_bytes() == (whole / "space" / name).read_bytes(), name
    figures = [json.loads((each / "report.json").read_text())["figures"] for each in (whole, cut)]
    assert figures[0] == figures[1]


def test_an_interrupt_keeps_every_step(world, tmp_path):
    config = projector(world, steps=40, log_every=1, checkpoint_every_s=500)

    def say(line):
        if "step 7/" in line:
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        run_bind(config, tmp_path / "run", replace(QUIET, say=say))
    said = []
    run_bind(config, tmp_path / "run", replace(QUIET, say=said.append))
    assert "bind: resumed at step 7 of 40" in said
    figures = said[-1]
    assert figures.startswith("bind: step 40, loss ") and ", b->a recall_at_1 " in figures and "{" not in figures
    run_bind(config, tmp_path / "whole", QUIET)
    name = "space/features.safetensors"
    assert (tmp_path / "run" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_two_runs_never_train_in_one_folder(world, tmp_path):
    """Both would write one checkpoint, half of it each."""
    config, refused = projector(world, steps=3, log_every=1), []

    def say(line):
        if line.startswith("bind: step 2/"):
            with pytest.raises(BindSearchError, match="another run trains there") as caught:
                run_bind(config, tmp_path / "run", QUIET)
            refused.append(str(caught.value))

    run_bind(config, tmp_path / "run", replace(QUIET, say=say))
    assert len(refused) == 1 and str(tmp_path / "run") in refused[0]
    assert run_bind(config, tmp_path / "run", QUIET).steps == 3


class Terminal(io.StringIO):
    """Stands for a terminal: bars are drawn there."""

    def isatty(self):
        return True


def test_the_bar_of_a_resumed_run_begins_where_it_was_stopped(world, tmp_path, monkeypatch):
    config = projector(world, steps=6)
    run_bind(config, tmp_path / "run", replace(QUIET, stop_after=4))
    monkeypatch.setattr(sys, "stderr", Terminal())
    run_bind(config, tmp_path / "run", replace(QUIET, progress=True))
    shown = [part for part in sys.stderr.getvalue().split("\r") if part.startswith("train:")]
    assert "| 4/6 [" in shown[0] and "| 6/6 [" in shown[-1], shown
    assert re.search(r"loss=?\s?\d+\.\d{4}\]", shown[-1]), shown


def test_curves_are_there_from_the_first_measurement_on(world, tmp_path):
    config, seen = projector(world, steps=6, measure_every=2, log_every=1), []
    curves = tmp_path / "run" / "curves.json"

    def say(line):
        if line.startswith("bind: step ") and "/6" in line and curves.is_file():
            seen.append([point["step"] for point in json.loads(curves.read_text())["curve"]])
            assert (tmp_path / "run" / "curves.svg").read_bytes().rstrip().endswith(b"</svg>")

    run_bind(config, tmp_path / "run", replace(QUIET, say=say))
    assert seen == [[2], [2], [2, 4], [2, 4]]
    assert [point["step"] for point in json.loads(curves.read_text())["curve"]] == [2, 4, 6]


def test_slow_steps_are_logged_by_the_clock(world, tmp_path, monkeypatch):
    config, said = projector(world, steps=4), []
    monkeypatch.setattr("bindsearch.train.steps.SAY_S", 0.0)
    run_bind(config, tmp_path / "run", replace(QUIET, say=said.append))
    assert [line.split(" loss")[0] for line in said if "/4 " in line] == [f"bind: step {n}/4" for n in (1, 2, 3, 4)]


def test_stop_after_leaves_no_space_and_goes_on(world, tmp_path):
    config = projector(world, steps=6)
    report = run_bind(config, tmp_path / "run", replace(QUIET, stop_after=3))
    assert (report.steps, report.space) == (3, "")
    assert run_bind(config, tmp_path / "run", QUIET).steps == 6


def test_a_folder_of_another_run_is_refused(world, trained):
    folder, _ = trained
    with pytest.raises(MismatchError, match=r"begun with config\.schedule\.steps = 150, this run has 9"):
        run_bind(projector(world, steps=9), folder, QUIET)


def test_a_run_that_was_refused_leaves_its_folder_free(world, tmp_path):
    for name in ("depth.csv", *(f"{n:03d}{end}" for n in range(COUNT) for end in (".png", ".depth.npy"))):
        shutil.copy(world / name, tmp_path / name)
    config, folder = depth_tower(tmp_path, steps=2), tmp_path / "run"
    away = tmp_path / "away"
    away.mkdir()
    for number in range(20):
        for end in (".png", ".depth.npy"):
            (tmp_path / f"{number:03d}{end}").rename(away / f"{number:03d}{end}")
    with pytest.raises(TooManyBadError, match="20 of 160 pairs are broken"):
        run_bind(config, folder, QUIET)
    for path in away.iterdir():
        path.rename(tmp_path / path.name)
    with pytest.raises(InputError, match=r"no two of them can be held out .*raise --held-out"):
        run_bind(replace(config, pairs=replace(config.pairs, held_out=0.001)), folder, QUIET)
    with pytest.raises(InputError, match=r"holds all of them out.*lower --held-out"):
        run_bind(replace(config, pairs=replace(config.pairs, held_out=0.999)), folder, QUIET)
    other = tmp_path / "000.depth.npy"
    other.write_bytes((tmp_path / "001.depth.npy").read_bytes())  # as long, and still no other run's
    changed = replace(config, space="tiny:4", seed=5)
    report = run_bind(changed, folder, QUIET)
    assert report.pairs == {"train": 128, "held_out": 32, "bad": 0}
    clean = run_bind(changed, tmp_path / "clean", QUIET)
    assert (folder / "space" / "depth.safetensors").read_bytes() == (
        tmp_path / "clean" / "space" / "depth.safetensors"
    ).read_bytes()
    assert report.figures == clean.figures
    with pytest.raises(MismatchError, match="was begun with"):
        run_bind(config, folder, QUIET)


def test_files_of_other_contents_are_refused_whatever_their_size(world, tmp_path):
    for name in ("depth.csv", *(f"{n:03d}{end}" for n in range(COUNT) for end in (".png", ".depth.npy"))):
        shutil.copy(world / name, tmp_path / name)
    config = depth_tower(tmp_path, steps=2)
    run_bind(config, tmp_path / "run", replace(QUIET, stop_after=1))
    touched, changed = tmp_path / "007.png", tmp_path / "004.depth.npy"
    touched.write_bytes(touched.read_bytes())
    os.utime(touched, (1e9, 1e9))
    assert run_bind(config, tmp_path / "run", QUIET).steps == 2  # another time alone is no other file
    whole = changed.read_bytes()
    changed.write_bytes(whole[:-4] + np.float32(3.5).tobytes())
    os.utime(changed, (1e9, 1e9))
    with pytest.raises(MismatchError, match=r"was begun with another .*004\.depth\.npy: SHA-256 \w{12}, now \w{12}"):
        run_bind(config, tmp_path / "run", QUIET)
    changed.write_bytes(whole)
    assert run_bind(config, tmp_path / "run", QUIET).steps == 2


def test_two_processes_train_as_one(world, tmp_path):
    """Two processes give the weights of one, to the rounding of sums in another order."""
    config = tmp_path / "train.json"
    config.write_text(json.dumps(to_json_dict(projector(world, steps=8))))
    common = ["-m", "bindsearch", "train", str(config), "--workers", "0", "-q"]
    alone = [sys.executable, *common, "-o", str(tmp_path / "one")]
    two = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    for command in (alone, [*two, *common, "-o", str(tmp_path / "two")]):
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=200)
        assert done.returncode == 0, done.stderr
    from safetensors.torch import load_file

    start = build_tower(ArchitectureConfig("x", 32, {"features": projected(WIDTH)}), "features", seed=0)
    one, both = (load_file(tmp_path / name / "space" / "features.safetensors") for name in ("one", "two"))
    for key, value in start.state_dict().items():
        moved = float((one[key] - value).norm())
        assert moved > 0, key
        assert float((both[key] - one[key]).norm()) <= 0.02 * moved, key  # sums in another order, in bfloat16


def projected(width, **stem):
    return TowerConfig(StemConfig("features", (width,), **stem), TrunkConfig(width, blocks=0, heads=1))


# ---- manifests -------------------------------------------------------------------------------------------------------


def test_broken_files_are_in_the_ledger_and_skipped(world, tmp_path):
    rows = [[str(world / f"{number:03d}.png"), str(world / f"{number:03d}.depth.npy")] for number in range(40)]
    (tmp_path / "cut.png").write_bytes((world / "000.png").read_bytes()[:40])
    (tmp_path / "bad.depth.npy").write_bytes(b"no array")
    rows += [["cut.png", rows[0][1]], [rows[0][0], "bad.depth.npy"], ["", rows[1][1]], ["missing.png", rows[2][1]]]
    path = write_table(tmp_path / "pairs.csv", ("path_a", "path_b"), rows)
    config = depth_tower(world, steps=2)
    config = replace(config, pairs=replace(config.pairs, manifest=str(path)))
    report = run_bind(config, tmp_path / "run", QUIET)
    assert report.pairs == {"train": 32, "held_out": 8, "bad": 4}
    lines = [json.loads(line) for line in Path(report.ledger).read_text().splitlines()]
    assert {(line["side"], line["key"].rsplit("/", 1)[-1]) for line in lines} == {
        ("a", "cut.png"),
        ("b", "bad.depth.npy"),
        ("a", "pairs.csv, row 42"),
        ("a", "missing.png"),
    }
    assert all(line["reason"] for line in lines)
    with pytest.raises(TooManyBadError, match=r"4 of 44 pairs are broken \(9\.1%\), over --max-bad 0\.05"):
        run_bind(replace(config, pairs=replace(config.pairs, max_bad=0.05)), tmp_path / "run", QUIET)


@pytest.fixture
def few_files():
    """Let this process open few files more than it has open; the hard limit stays."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (len(list(Path("/proc/self/fd").iterdir())) + 20, hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def words_prepared(folder):
    items = [Item(f"{number}", "text", f"{number}", literal=f"number {number}") for number in range(60)]
    return prepare_inputs(items, MODALITIES["text"].config("default"), folder, 0, lambda done: None)


def test_more_shards_than_files_may_be_open(tmp_path, monkeypatch, few_files):
    monkeypatch.setattr("bindsearch.train.prepared.SHARD_ITEMS", 1)
    found = words_prepared(tmp_path)
    assert len(found.shards) == 60 and not found.bad


def test_what_stops_the_system_from_reading_a_shard_is_no_damage(tmp_path, monkeypatch):
    """Else the user would be told to remove whole days of work."""
    words_prepared(tmp_path)

    def refused(path, **_options):
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE), str(path))

    with monkeypatch.context() as patch, pytest.raises(OSError, match="Too many open files"):
        patch.setattr(np, "load", refused)
        words_prepared(tmp_path)
    for damage in (b"", b"\x93NUMPY"):
        next(tmp_path.glob("*.npy")).write_bytes(damage)
        with pytest.raises(BindSearchError, match=r"damaged .*Remove"):
            words_prepared(tmp_path)


def test_pairs_of_words(world, tmp_path):
    rows = [[f"a shape, number {number % 50}", str(world / f"{number:03d}.png")] for number in range(100)]
    path = write_table(tmp_path / "captions.csv", ("text_a", "path_b"), rows)
    pairs = read_pairs(PairsConfig(str(path)))
    assert (pairs.anchor, pairs.modality, len(pairs.anchors), len(pairs.others)) == ("text", "image", 50, 100)
    config = BindConfig(
        PairsConfig(str(path), held_out=0.3),
        space=SPACE,
        tower=NewTowerConfig("timm", backbone="test_resnet", size_px=32),
        schedule=ScheduleConfig(steps=2, batch=16, measure_every=2),
    )
    report = run_bind(config, tmp_path / "run", QUIET)
    space = load_space(report.space)
    assert space.tower_id("image") == report.tower_id
    assert space.tower_id("video") == load_space(SPACE).tower_id("video")  # the other tower of the parent stays
    row = space.embed("image", [world / "000.png"])
    assert np.linalg.norm(row) == pytest.approx(1, abs=1e-5)
    assert np.array_equal(load_space(report.space).embed("image", [world / "000.png"]), row)


def test_a_caption_that_cannot_be_a_key_is_in_the_ledger(world, tmp_path):
    rows = [{"text_a": f"number {n}", "path_b": str(world / f"{n:03d}.png")} for n in range(30)]
    rows[7]["text_a"] = "\0seven"
    (tmp_path / "captions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = BindConfig(
        PairsConfig(str(tmp_path / "captions.jsonl"), held_out=0.3),
        space=SPACE,
        tower=NewTowerConfig("own", architecture="tiny"),
        schedule=ScheduleConfig(steps=1, batch=8),
    )
    report = run_bind(config, tmp_path / "run", QUIET)
    assert sum(report.pairs.values()) == 30 and report.pairs["bad"] == 1
    (line,) = (json.loads(line) for line in Path(report.ledger).read_text().splitlines())
    assert (line["key"], line["side"]) == ("text:\0seven", "a") and "NUL" in line["reason"]


def test_pairs_of_the_world_need_no_files(tmp_path, capsys):
    command = ["train", "world:train:0..60", "-o", str(tmp_path / "run"), "--space", SPACE, "--workers", "0"]
    command += ["--anchor", "image", "--modality", "depth", "--tower", "own:tiny", "--steps", "2", "--batch", "16"]
    assert run([*command, "--json", "-q"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["pairs"] == {"train": 54, "held_out": 6, "bad": 0}
    assert set(report["figures"]) >= {"b->a recall_at_1", "b->a label"}
    pairs = read_pairs(PairsConfig("world:train:0..3", anchor="text", modality="image", label="subject,setting"))
    assert [row[:2] for row in pairs.rows] == [(f"world:{n}#text", f"world:{n}#image") for n in range(3)]
    assert all(row[2] and "/" in row[2] for row in pairs.rows)
    with pytest.raises(InputError, match="say which two modalities to pair"):
        read_pairs(PairsConfig("world:train:0..3"))


@pytest.mark.parametrize(
    ("header", "rows", "words"),
    [
        (("image", "audio"), [("a.png", "b.wav")], r"expected a column 'path_a' or 'text_a', got image, audio"),
        (("path_a", "path_b"), [("a.png", "b.xyz")], r"'b\.xyz' does not say its modality.*--modality NAME"),
        (("path_a", "path_b"), [], r"no pair in it"),
        (("path_a", "path_b"), [("", "b.wav")], r"does not say its modality by its suffix. Say it: --anchor NAME"),
    ],
)
def test_manifests_that_cannot_be_meant(tmp_path, header, rows, words):
    path = write_table(tmp_path / "pairs.csv", header, rows)
    with pytest.raises(InputError, match=words):
        read_pairs(PairsConfig(str(path)))


def test_a_manifest_that_is_not_there(tmp_path, capsys):
    assert run(["train", str(tmp_path / "no.csv"), "-o", str(tmp_path / "run")]) == 3
    assert "no such configuration or manifest of pairs" in capsys.readouterr().err
    with pytest.raises(MissingInputError, match="no such manifest"):
        read_pairs(PairsConfig(str(tmp_path / "no.csv")))


def test_a_column_of_labels_that_is_not_there_is_refused(tmp_path):
    path = tmp_path / "pairs.jsonl"
    path.write_text(
        '{"path_a": "a.png", "path_b": "b.png"}\n{"path_a": "c.png", "path_b": "d.png", "subject": "dog"}\n'
    )
    assert [row[2] for row in read_pairs(PairsConfig(str(path))).rows] == [None, None]  # the usual one may be missing
    assert [row[2] for row in read_pairs(PairsConfig(str(path), label="subject")).rows] == [None, "dog"]
    for label in ("subjct", "subject, settng"):
        with pytest.raises(UnknownNameError, match=r"column of labels in .*pairs\.jsonl '(subjct|settng)'"):
            read_pairs(PairsConfig(str(path), label=label))
    with pytest.raises(UnknownNameError, match=r"column of labels in world:train:0\.\.3 'subjet'.*'subject'"):
        read_pairs(PairsConfig("world:train:0..3", anchor="text", modality="image", label="subjet"))


def test_cells_without_a_value_are_no_label_no_file_and_no_words(world, tmp_path):
    nan = float("nan")
    rows = [{"path_a": "000.png", "path_b": "000.wav", "label": value} for value in (nan, 1, 1.0, "")]
    for number, row in enumerate(rows):
        row["path_b"] = f"00{number}.wav"
    rows.append({"path_a": "000.png", "path_b": nan, "label": "x"})
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    pairs = read_pairs(PairsConfig(str(path), features=str(world / "feats.npz")))
    assert [row[2] for row in pairs.rows] == [None, "1", "1", None]
    assert [line["reason"] for line in pairs.bad] == ["no path_b"]
    path.write_text("".join(json.dumps({"text_a": words, "path_b": "000.wav"}) + "\n" for words in ("rain", nan)))
    pairs = read_pairs(PairsConfig(str(path), features=str(world / "feats.npz")))
    assert [row[0] for row in pairs.rows] == ["text:rain"] and [line["side"] for line in pairs.bad] == ["a"]


def test_a_file_written_in_several_ways_is_one(world, tmp_path):
    (tmp_path / "sub").mkdir()
    ways = ["{}", str(tmp_path / "{}"), "sub/../{}", "./{}", "sub//..//{}"]
    rows = []
    for number in range(20):
        for way in ways:
            rows.append((way.format(f"{number:03d}.png"), way.format(f"{number:03d}.depth.npy")))
            rows.append((way.format(f"{number:03d}.png"), f"x{number}.depth.npy"))
    pairs = read_pairs(PairsConfig(str(write_table(tmp_path / "pairs.csv", ("path_a", "path_b"), rows))))
    assert list(pairs.anchors) == [f"{number:03d}.png" for number in range(20)]
    assert len(pairs.others) == 40 and len(pairs.rows) == 40
    out = hold_out(pairs.rows, 0.2, 1000)
    held, kept = ({row[0] for row, each in zip(pairs.rows, out, strict=True) if each == side} for side in (True, False))
    assert len(held) == 4 and not held & kept
    words = [("rain", "000.png"), ("snow", "001.png")]  # texts of one manifest lie in one file
    pairs = read_pairs(PairsConfig(str(write_table(tmp_path / "words.csv", ("text_a", "path_b"), words))))
    assert len(pairs.anchors) == 2


def test_no_file_is_on_both_sides_of_the_cut():
    rng = np.random.default_rng(2)
    rows = [(f"a{rng.integers(300)}", f"b{rng.integers(300)}", None) for _ in range(200)]
    out = hold_out(rows, 0.2, 1000)
    assert 20 <= out.sum() <= 40
    for side in (0, 1):
        inside, outside = (
            {row[side] for row, held in zip(rows, out, strict=True) if held is flag} for flag in (True, False)
        )
        assert not inside & outside
    assert np.array_equal(hold_out(rows, 0.2, 1000), out)
    assert hold_out(rows, 0.2, 7).sum() <= 7


def test_one_picture_with_all_sounds_is_held_out_by_sound():
    rows = [("a", f"b{number}", None) for number in range(50)]
    assert hold_out(rows, 0.2, 1000).sum() == 10
    with pytest.raises(InputError, match="no two of them can be held out"):
        hold_out([("a", "b", None)] * 3, 0.2, 1000)


def test_components_join_through_others():
    rows = [("a", "x", None), ("b", "y", None), ("b", "x", None), ("c", "z", None), ("text:t", "z", None)]
    numbers = components(rows).tolist()
    assert numbers == [0, 0, 0, 1, 1]
    words = components([("text:t", "x", None), ("text:t", "y", None)]).tolist()
    assert words[0] != words[1]  # words that stand in a manifest are no file


# ---- batches, figures, inputs ----------------------------------------------------------------------------------------


def test_batches_hold_no_row_twice_and_hard_ones_lie_near():
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((500, 16)).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    easy, hard = (draw_rows(rows, 64, share, np.random.default_rng(1)) for share in (0.0, 1.0))
    near = []
    for chosen in (easy, hard):
        assert len(set(chosen.tolist())) == 64
        near.append(np.sort(rows[chosen] @ rows[chosen].T, axis=1)[:, -4].mean())
    assert near[1] > near[0] + 0.1
    assert np.array_equal(
        draw_rows(rows, 64, 0.5, np.random.default_rng(3)), draw_rows(rows, 64, 0.5, np.random.default_rng(3))
    )


def test_pairs_fit_by_file_caption_and_label():
    same = np.eye(5, dtype=np.float32)
    anchors = same[[0, 0, 1, 2, 3]]
    rows = [("a", "p", "x"), ("b", "q", None), ("c", "p", None), ("d", "r", "x"), ("e", "s", None)]
    fits = Kinship(rows, anchors).among(np.arange(5))
    wanted = np.eye(5, dtype=bool)
    for i, j in ((0, 1), (0, 2), (0, 3)):  # equal captions, the same file, the same label
        wanted[i, j] = wanted[j, i] = True
    assert np.array_equal(fits, wanted)
    wanted[0, 3] = wanted[3, 0] = False
    assert np.array_equal(Kinship(rows, anchors).among(np.arange(5), labels=False), wanted)


def test_recall_counts_ties_against_itself():
    eye = np.eye(4, dtype=np.float32)
    fits = np.eye(4, dtype=bool)
    assert recall_figures(eye, eye, fits)["b->a recall_at_1"] == 1.0
    flat = np.full((4, 4), 0.5, dtype=np.float32)
    figures = recall_figures(flat, flat, fits, ["x", "x", None, "y"])
    assert figures["b->a recall_at_1"] == 0.0
    assert not any(name.endswith(("at_5", "at_10")) for name in figures)  # five of four are all: no figure
    assert figures["b->a label"] == pytest.approx(2 / 3, abs=1e-4)
    other = eye[[1, 0, 2, 3]]
    assert recall_figures(other, eye, fits)["a->b recall_at_1"] == 0.5
    wide = np.eye(6, dtype=np.float32)
    assert recall_figures(wide[[1, 0, 2, 3, 4, 5]], wide, wide > 0)["a->b recall_at_5"] == round(4 / 6, 4)


def test_a_report_says_what_chance_would_give_and_what_to_type_for_features():
    report = BindReport("run", space="run/space", modality="features", pairs={"train": 5, "held_out": 4, "bad": 0})
    report.seconds, report.figures = {"prepare": 1.0, "train": 1.0}, {"b->a recall_at_1": 0.5}
    assert "by chance: recall_at_1 of about 0.250" in report.to_text()
    assert "Next: bindsearch embed SRC --modality features --space run/space" in report.to_text()
    report.modality = "audio"
    assert "Next: bindsearch embed SRC --space run/space" in report.to_text()


def test_broken_pairs_are_counted_by_what_is_wrong():
    lines = [
        {"key": key, "side": "b", "stage": "list", "reason": reason.format(key)}
        for key, reason in (("a/1.wav", "{}: no such file"), ("b/2.wav", "no such file"), ("3.wav", "{}: no such file"))
    ]
    assert {_brief(line) for line in lines} == {"x side b: no such file"}


def test_rows_that_are_no_numbers_are_misses():
    eye, fits, labels = np.eye(12, dtype=np.float32), np.eye(12, dtype=bool), list("aabbccddeeff")
    nothing = recall_figures(np.full_like(eye, np.nan), eye, fits, labels)
    assert set(nothing.values()) == {0.0}
    small = recall_figures(np.full((2, 2), np.nan, np.float32), eye[:2, :2], fits[:2, :2], ["a", "a"])
    assert set(small.values()) == {0.0}  # however few there are
    one = eye.copy()
    one[3] = np.nan
    figures = recall_figures(one, eye, fits, labels)
    assert figures["b->a recall_at_1"] == figures["b->a label"] == round(11 / 12, 4)
    assert (figures["a->b recall_at_1"], figures["a->b recall_at_5"]) == (0.0, round(11 / 12, 4))
    assert figures["a->b label"] == 0.0


@pytest.mark.parametrize(
    ("modality", "shape"),
    [
        ("image", (6, 3, 16, 16)),
        ("video", (6, 3, 2, 16, 16)),
        ("depth", (6, 1, 16, 16)),
        ("audio", (6, 1, 16, 24)),
        ("imu", (6, 6, 20)),
    ],
)
def test_inputs_vary_by_the_step_alone(modality, shape):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(4))
    before = x.clone()
    first, again, other = (vary(modality, x, np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert first.shape == x.shape
    assert torch.equal(x, before)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert not torch.equal(first, x)
    parts = [vary(modality, x[rows], np.random.default_rng(1), 6, rows) for rows in (slice(0, 4), slice(4, 6))]
    assert torch.equal(first, torch.cat(parts))  # whoever prepares them


def test_words_and_features_are_left_alone():
    ids = torch.arange(12).reshape(3, 4)
    assert vary("text", ids, np.random.default_rng(0)) is ids
    assert vary("features", ids, np.random.default_rng(0)) is ids


# ---- tables of features ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["npz", "pair", "npy", "parquet", "export"])
def test_tables_of_features_read_alike(tmp_path, kind):
    import pyarrow as pa
    import pyarrow.parquet as pq

    keys = ["b/ü.wav", "a.wav", "c.wav"]
    rows = np.random.default_rng(0).standard_normal((3, 8)).astype(np.float32)
    path = tmp_path / f"feats.{ {'pair': 'npz', 'export': 'parquet'}.get(kind, kind) }"
    if kind == "npz":
        np.savez(path, **dict(zip(keys, rows, strict=True)))
    elif kind == "pair":
        np.savez(path, keys=np.array(keys), features=rows)
    elif kind == "npy":
        np.save(path, rows)
        (tmp_path / "feats.keys.txt").write_text("\n".join(keys) + "\n", encoding="utf-8")
    elif kind == "parquet":
        pq.write_table(pa.table({"path": keys, "vector": [row.tolist() for row in rows]}), path)
    else:
        half = pa.FixedSizeListArray.from_arrays(pa.array(rows.astype(np.float16).ravel(), pa.float16()), 8)
        pq.write_table(pa.table({"key": keys, "size": [1, 2, 3], "embedding": half}), path)
    table = load_row_table(path)
    for key, row in zip(keys, rows, strict=True):
        assert np.allclose(table.row(key), row, atol=2e-3 if kind == "export" else 0)
        assert Source.of(f"row://{path}!/{key}").read_bytes()
    with pytest.raises(DecodeError, match=r"d\.wav: no row of that key in .*feats.* such as 'b/ü\.wav'"):
        table.row("d.wav")


def test_tables_that_cannot_be_meant(tmp_path):
    np.save(tmp_path / "bare.npy", np.zeros((2, 3)))
    with pytest.raises(InputError, match=r"whose vectors are these\? Write one key a line to .*bare\.keys\.txt"):
        load_row_table(tmp_path / "bare.npy")
    np.savez(tmp_path / "uneven.npz", a=np.zeros(3), b=np.zeros(4))
    with pytest.raises(InputError, match="different lengths, 3 to 4"):
        load_row_table(tmp_path / "uneven.npz")
    np.savez(tmp_path / "nan.npz", a=np.full(3, np.nan), b=np.zeros(3))
    with pytest.raises(InputError, match="the vector of 'a' is not finite"):
        load_row_table(tmp_path / "nan.npz")
    np.savez(tmp_path / "objects.npz", a=np.array([{}, {}], dtype=object))
    with pytest.raises(InputError, match="cannot be read as a table of vectors"):
        load_row_table(tmp_path / "objects.npz")
    (tmp_path / "cut.npz").write_bytes(b"PK\x03\x04 and no more")
    with pytest.raises(InputError, match="cannot be read as a table of vectors"):
        load_row_table(tmp_path / "cut.npz")
    with pytest.raises(MissingInputError, match="no such table"):
        load_row_table(tmp_path / "none.npz")


@pytest.mark.parametrize(
    ("at", "data"), [(42, b"\xff" * 60), (6, b"\x01"), (8, b"\x63")], ids=["damaged", "locked", "unknown"]
)
def test_a_damaged_or_odd_archive_is_no_table(at, data, tmp_path):
    """Its compressed bytes, a password, a compression that nobody knows: each raises something else below."""
    np.savez_compressed(tmp_path / "v.npz", a=np.arange(500.0))
    whole = bytearray((tmp_path / "v.npz").read_bytes())
    starts = [0] if at == 42 else [0, whole.index(b"PK\x01\x02") + 2]  # the same fields stand in the list at the end
    for start in starts:
        whole[start + at : start + at + len(data)] = data
    (tmp_path / "v.npz").write_bytes(whole)
    with pytest.raises(InputError, match=r"v\.npz: cannot be read as a table of vectors"):
        load_row_table(tmp_path / "v.npz")


def test_a_store_is_a_table_of_features(world, tmp_path):
    pictures = [str(world / f"{number:03d}.png") for number in range(5)]
    assert run(["embed", *pictures, "-o", str(tmp_path / "e"), "--space", SPACE, "--workers", "0", "-q"]) == 0
    table = load_row_table(tmp_path / "e")
    assert table.width == 32
    assert np.allclose(table.row(pictures[2]), load_space(SPACE).embed("image", [pictures[2]])[0], atol=1e-3)


# ---- configurations --------------------------------------------------------------------------------------------------


def test_a_configuration_is_data(world, tmp_path):
    config = projector(world)
    path = tmp_path / "train.json"
    path.write_text(json.dumps(to_json_dict(config)))
    assert load_bind_config(path) == config
    assert from_json_dict(BindConfig, to_json_dict(config)) == config
    plain = load_bind_config(world / "pairs.csv")
    assert plain == BindConfig(PairsConfig(str(world / "pairs.csv")))
    (tmp_path / "near.json").write_text('{"pairs": {"manifest": "pairs.csv", "features": "f.npz"}}')
    assert load_bind_config(tmp_path / "near.json").pairs.manifest == str(tmp_path / "pairs.csv")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[]", 'expected an object with "pairs"'),
        ('{"space": "x", "stages": []}', r"bindsearch train \S+train\.json -o RUN"),
        ('{"pairs": {"manifest": "p.csv"}, "stepps": 3}', "unknown field 'stepps'"),
        ('{"pairs": {"manifest": "p.csv", "held_out": 1.5}}', "held_out: expected a share"),
        ('{"pairs": {"manifest": "p.csv"}, "schedule": {"checkpoint_every_s": 900}}', "at most 600"),
        ('{"pairs": {"manifest": "p.csv"}, "tower": {"kind": "timm"}}', "names a timm model"),
        ('{"pairs": {"manifest": "p.csv"}, "tower": {"kind": "tim"}}', "Did you mean 'timm'"),
        ('{"pairs": {"manifest": "p.csv"}, "seed": 9223372036854775808}', "from 0 to 9223372036854775807"),
        ('{"pairs": {"manifest": "p.csv", "max_bad": -1}}', "max_bad: expected a share from 0 to 1, got -1"),
        ('{"pairs": {"manifest": "p.csv"}, "tower": {"dropout": 5}}', "dropout is a chance .* got 5"),
        ('{"pairs": {"manifest": "p.csv"}, "tower": {"drop_path": 1}}', "drop_path is a chance .* got 1"),
        ('{"pairs": {"manifest": "p.csv"}, "tower": {"hidden": -4}}', "hidden: expected a number from 1 on, got -4"),
        ('{"pairs": {"manifest": "p.csv"}, "tower": {"size_px": 0}}', "size_px: expected a number from 16 on, got 0"),
        ('{"pairs": {"manifest": "p.csv"}, "tower": {"pretrained": true}}', "pretrained starts a timm model"),
        ('{"pairs": {"manifest": "p.csv"}, "tower": {"kind": "projector", "pretrained": true}}', "pretrained starts"),
        ('{"pairs": {"manifest": "p.csv"}, "tower": {"kind": "projector", "size_px": 64}}', "Leave size_px 64 away"),
        ('{"pairs": {"manifest": "p.csv"}, "tower": {"kind": "projector", "drop_path": 0.1}}', "of an own tower, not"),
        ('{"pairs": {"manifest": "p.csv"}, "schedule": {"learning_rate": -1}}', "learning_rate is .* above 0, got -1"),
        ('{"pairs": {"manifest": "p.csv"}, "schedule": {"learning_rate": Infinity}}', "learning_rate is .* got inf"),
        ('{"pairs": {"manifest": "p.csv"}, "schedule": {"weight_decay": -1}}', "weight_decay: .* from 0 on, got -1"),
        ('{"pairs": {"manifest": "p.csv"}, "schedule": {"warmup_steps": -5}}', "warmup_steps: .* from 0 on, got -5"),
        ('{"pairs": {"manifest": "p.csv"}, "schedule": {"chunk": 0}}', "chunk: expected a number from 1 on, got 0"),
        ('{"pairs": {"manifest": "p.csv"}, "schedule": {"false_negatives": "msk"}}', "Did you mean 'mask'"),
        ('{"pairs": {"manifest": "p.csv"}, "seed": -1}', "seed: expected .* got -1"),
        ("{", "neither JSON nor a manifest"),
    ],
)
def test_configurations_that_cannot_be_meant(tmp_path, text, words):
    (tmp_path / "train.json").write_text(text)
    with pytest.raises(InputError, match=words):
        load_bind_config(tmp_path / "train.json")


def test_towers_that_cannot_be_meant(world):
    space, config = load_space(SPACE), depth_tower(world)
    with pytest.raises(InputError, match="a projector goes from features"):
        plan_tower(replace(config, tower=NewTowerConfig("projector")), "depth", space)
    with pytest.raises(InputError, match="a projector goes from features"):
        plan_tower(config, "features", space)
    with pytest.raises(UnknownNameError, match="Did you mean 'resnet18'"):
        plan_tower(replace(config, tower=NewTowerConfig("timm", backbone="resnett18")), "image", space)
    with pytest.raises(UnsupportedError, match="not text"):
        plan_tower(replace(config, tower=NewTowerConfig("timm", backbone="resnet18")), "text", space)
    with pytest.raises(InputError, match="does not take inputs"):
        plan_tower(replace(config, tower=NewTowerConfig("timm", backbone="vgg11", size_px=16)), "image", space)


def test_flags_replace_the_configuration(world, tmp_path, capsys):
    config = tmp_path / "train.json"
    config.write_text(json.dumps(to_json_dict(projector(world, steps=500))))
    out = tmp_path / "run"
    command = [
        "train",
        str(config),
        "-o",
        str(out),
        "--steps",
        "3",
        "--temperature",
        "0",
        "--seed",
        "7",
        "--hidden",
        "8",
    ]
    assert run([*command, "--name", "mine", "--json", "-q"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["steps"], report["modality"]) == (3, "features")
    kept = json.loads((out / "train.json").read_text())["config"]
    assert (kept["seed"], kept["schedule"]["temperature"], kept["tower"]["hidden"]) == (7, None, 8)
    space = load_space(out / "space")
    assert space.name == "mine"
    assert space.logit_scale("features") != pytest.approx(1 / 0.07, abs=1e-6)  # it was learned


def test_an_anchor_that_the_space_lacks(world, tmp_path):
    config = replace(depth_tower(world), space="bindsearch-mini")
    config = replace(config, pairs=replace(config.pairs, anchor="imu"))
    if "imu" not in load_space("bindsearch-mini").modalities:
        with pytest.raises(InputError, match="bindsearch-mini: does not encode imu, side a of"):
            run_bind(config, tmp_path / "run", QUIET)


# ---- stems -----------------------------------------------------------------------------------------------------------


def test_a_projector_standardises_what_it_was_trained_on():
    tower = build_tower(ArchitectureConfig("x", 8, {"features": projected(5)}), "features", seed=1)
    rows = torch.randn(200, 5, generator=torch.Generator().manual_seed(0)) * torch.tensor([1.0, 5, 0, 100, 2]) + 7
    tower.stem.set_statistics(rows)
    seen = tower.stem(rows)[:, 0]
    assert torch.allclose(seen.mean(dim=0), torch.zeros(5), atol=1e-4)
    assert torch.allclose(seen.std(dim=0, correction=0), torch.tensor([1.0, 1, 0, 1, 1]), atol=1e-3)
    assert {"stem.mean", "stem.deviation"} <= set(tower.state_dict())


def test_a_timm_tower_is_timm_s_own_model():
    import timm

    stem = StemConfig("timm", (3, 1, 32, 32), backbone="test_resnet")
    width = timm.create_model("test_resnet", pretrained=False, num_classes=0).num_features
    config = TowerConfig(stem, TrunkConfig(width, blocks=0, heads=1))
    towers = [
        build_tower(ArchitectureConfig("x", 8, {"image": config}), "image", seed=seed).eval() for seed in (1, 1, 2)
    ]
    own = timm.create_model("test_resnet", pretrained=False, num_classes=0).eval()
    own.load_state_dict(towers[0].stem.backbone.state_dict())
    x = torch.randn(2, 3, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.allclose(towers[0].stem(x)[:, 0], own(x[:, :, 0]), atol=1e-6)
        assert torch.equal(towers[0](x), towers[1](x))
        assert not torch.allclose(towers[0](x), towers[2](x), atol=1e-3)


def test_frames_go_through_a_timm_tower_one_by_one():
    stem = StemConfig("timm", (3, 2, 32, 32), backbone="test_resnet")
    import timm

    width = timm.create_model("test_resnet", pretrained=False, num_classes=0).num_features
    architecture = ArchitectureConfig("x", 8, {"video": TowerConfig(stem, TrunkConfig(width, blocks=0, heads=1))})
    tower = build_tower(architecture, "video", seed=1).eval()
    x = torch.randn(2, 3, 2, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        frames = [tower.stem.backbone(x[:, :, frame]) for frame in (0, 1)]
        assert torch.allclose(tower.stem(x)[:, 0], (frames[0] + frames[1]) / 2, atol=1e-5)
