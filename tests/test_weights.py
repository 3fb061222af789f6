"""Weights on disk: conversion without running a pickle, ids, verification, memory maps, lazy towers."""

from __future__ import annotations

import importlib.util
import json
import os
import resource
import shutil
import subprocess
import sys
import threading
import zipfile
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import golden_towers as golden
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from bindsearch.errors import InputError, MissingInputError, WeightsError
from bindsearch.llm.checkpoints import read_torch
from bindsearch.models import tower_file, weights
from bindsearch.models.bind import build_tower
from bindsearch.models.keys import DERIVED, checkpoint_key, tower_key
from bindsearch.models.manifest import FILE, Parent, load_manifest
from bindsearch.models.recipe import Recipe
from bindsearch.models.releases import releases
from bindsearch.models.spaces import bundled_folder, load_space

ROOT = Path(__file__).parent.parent
SCALES = {"text": 100.0, "audio": 20.0, "depth": 5.0, "thermal": 10.0, "imu": 5.0}


@pytest.fixture(scope="module")
def writer() -> ModuleType:
    """The maintainer's tool that writes checkpoints in torch's own layout."""
    spec = importlib.util.spec_from_file_location("write_huge_checkpoint", ROOT / "tools" / "write_huge_checkpoint.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def checkpoint(writer: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("checkpoint") / "imagebind_tiny.pth"
    writer.write(path, "tiny", Recipe(7, 2.0, logit_scales=SCALES))
    return path


@pytest.fixture
def folder(checkpoint: Path, tmp_path: Path) -> Path:
    weights.convert(checkpoint, tmp_path / "space", architecture="tiny")
    return tmp_path / "space"


def changed(checkpoint: Path, path: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> Path:
    state = torch.load(checkpoint, weights_only=True)
    change(state)
    torch.save(state, path)
    return path


def ids(folder: Path) -> list[str]:
    manifest = load_manifest(folder)
    return [manifest.space_id, *(manifest.tower_id(name) for name in sorted(manifest.towers))]


def inputs(count: int = 3) -> dict[str, np.ndarray]:
    g = np.random.default_rng(5)
    space = load_space("tiny:0")
    made = {m: g.standard_normal((count, 1, *space.card.clip_shapes[m])).astype(np.float32) for m in space.modalities}
    made["text"] = g.integers(1, 49000, (count, 1, 77))
    made["text"][:, 0, 9] = 49407
    return made


# conversion


def test_a_converted_checkpoint_encodes_as_its_tensors_do(checkpoint: Path, folder: Path) -> None:
    state = torch.load(checkpoint, weights_only=True)
    towers: dict[str, dict[str, torch.Tensor]] = {}
    for key, value in state.items():
        tower, ours = tower_key(key)
        if ours not in DERIVED:
            towers.setdefault(tower, {})[ours] = value
    space = load_space(folder)
    for tower, tensors in towers.items():
        on_disk = load_file(folder / f"{tower}.safetensors")
        assert on_disk.keys() == tensors.keys()
        assert all(torch.equal(on_disk[key], tensors[key]) for key in tensors)
    for modality, x in inputs().items():
        assert np.linalg.norm(space.encode(modality, x), axis=1) == pytest.approx(1.0, abs=1e-6)
    assert space.logit_scale("text") == pytest.approx(100.0)
    assert space.logit_scale("thermal") == pytest.approx(10.0)
    assert space.logit_scale("image") == 1.0


def test_the_manifest_says_where_the_weights_came_from(checkpoint: Path, folder: Path) -> None:
    manifest = load_manifest(folder)
    assert manifest.source["file"] == "imagebind_tiny.pth"
    assert manifest.source["size_bytes"] == checkpoint.stat().st_size
    assert manifest.source["sha256"] == weights.sha256_of(checkpoint)
    assert sorted(p.name for p in folder.iterdir()) == sorted([FILE, *(f"{t}.safetensors" for t in manifest.towers)])


def test_bfloat16_halves_the_files_and_keeps_the_ids(checkpoint: Path, folder: Path, tmp_path: Path) -> None:
    weights.convert(checkpoint, tmp_path / "half", dtype="bfloat16", architecture="tiny")
    full, half = load_manifest(folder), load_manifest(tmp_path / "half")
    assert ids(folder) == ids(tmp_path / "half")
    assert half.towers["text"].size_bytes < 0.51 * full.towers["text"].size_bytes
    assert weights.verify(tmp_path / "half")["dtype"] == "bfloat16"
    one, other = load_space(folder), load_space(tmp_path / "half")
    assert one.logit_scale("text") == other.logit_scale("text")
    for modality, x in inputs().items():
        cosines = (one.encode(modality, x) * other.encode(modality, x)).sum(1)
        assert cosines.min() > 0.999, modality
        assert not np.array_equal(one.encode(modality, x), other.encode(modality, x))


def test_a_space_is_recast_without_its_checkpoint(checkpoint: Path, folder: Path, tmp_path: Path) -> None:
    weights.convert(checkpoint, tmp_path / "half", dtype="bfloat16", architecture="tiny")
    weights.convert(folder, tmp_path / "recast", dtype="bfloat16")
    for path in (tmp_path / "half").glob("*.safetensors"):
        assert path.read_bytes() == (tmp_path / "recast" / path.name).read_bytes()
    assert load_manifest(tmp_path / "half") == load_manifest(tmp_path / "recast")
    with pytest.raises(InputError, match="Name another folder"):
        weights.convert(folder, folder)
    with pytest.raises(InputError, match="larger and no better"):
        weights.convert(tmp_path / "half", tmp_path / "full")


def test_unknown_dtypes_and_missing_files_are_refused(checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"unknown dtype 'int8'.*float32, bfloat16"):
        weights.convert(checkpoint, tmp_path / "x", dtype="int8", architecture="tiny")
    with pytest.raises(MissingInputError, match="no such file"):
        weights.convert(tmp_path / "none.pth", tmp_path / "x")


def test_missing_unexpected_and_misshapen_keys_are_listed(checkpoint: Path, tmp_path: Path) -> None:
    def change(state: dict[str, torch.Tensor]) -> None:
        del state["modality_heads.imu.3.weight"]
        state["modality_heads.points.0.weight"] = torch.zeros(2)
        state["modality_heads.text.proj.1.weight"] = torch.zeros(3, 4)

    path = changed(checkpoint, tmp_path / "other.pth", change)
    with pytest.raises(WeightsError) as caught:
        weights.convert(path, tmp_path / "space", architecture="tiny")
    text = str(caught.value)
    assert "211 keys wanted, 211 found" in text
    assert "1 missing: modality_heads.imu.3.weight" in text
    assert "1 unexpected: modality_heads.points.0.weight" in text
    assert "modality_heads.text.proj.1.weight (expected (32, 16), got (3, 4))" in text
    assert not (tmp_path / "space").exists()


def test_a_small_checkpoint_is_no_released_one(checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="1311 keys wanted, 211 found"):
        weights.convert(checkpoint, tmp_path / "space")


def test_another_mask_and_numbers_that_are_not_finite_are_refused(checkpoint: Path, tmp_path: Path) -> None:
    mask = "modality_preprocessors.text.mask"
    path = changed(checkpoint, tmp_path / "mask.pth", lambda state: state.update({mask: torch.zeros(77, 77)}))
    with pytest.raises(WeightsError, match="causal mask"):
        weights.convert(path, tmp_path / "space", architecture="tiny")
    key = checkpoint_key("imu", "trunk.blocks.1.mlp.fc1.bias")
    path = changed(checkpoint, tmp_path / "nan.pth", lambda state: state[key].fill_(float("nan")))
    with pytest.raises(WeightsError, match=r"trunk.blocks.1.mlp.fc1.bias holds values that are not finite"):
        weights.convert(path, tmp_path / "space", architecture="tiny")
    assert not (tmp_path / "space").exists(), "nothing was written"


class Bomb:
    """Pickles to a call that writes a file."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (f"touch '{self.marker}'",)


def test_a_checkpoint_that_would_run_code_is_refused_and_runs_nothing(tmp_path: Path) -> None:
    marker, path = tmp_path / "ran", tmp_path / "evil.pth"
    torch.save({"modality_heads.imu.3.weight": Bomb(marker)}, path)
    assert zipfile.is_zipfile(path)
    with pytest.raises(WeightsError, match=r"evil.pth: refused or damaged"):
        weights.convert(path, tmp_path / "space", architecture="tiny")
    assert not marker.exists()
    torch.load(path, weights_only=False)  # the bomb is a real one
    assert marker.exists()


@pytest.mark.parametrize(("kept", "said"), [(0, "EOFError"), (2, "."), (60, ".")])
def test_a_torn_checkpoint_is_refused_though_its_error_has_no_words(tmp_path: Path, kept: int, said: str) -> None:
    torch.save({"a": torch.ones(3)}, tmp_path / "whole.pth")
    with zipfile.ZipFile(tmp_path / "whole.pth") as whole, zipfile.ZipFile(tmp_path / "torn.pth", "w") as torn:
        for name in whole.namelist():
            data = whole.read(name)
            torn.writestr(name, data[:kept] if name.endswith("data.pkl") else data)
    for read in (weights.read_checkpoint, read_torch):
        with pytest.raises(WeightsError, match=rf"torn.pth: refused or damaged: {said}"):
            read(tmp_path / "torn.pth")


@pytest.mark.parametrize("kind", ["empty", "text", "cut", "foreign zip", "list", "legacy"])
def test_files_that_are_no_checkpoint_are_refused(checkpoint: Path, tmp_path: Path, kind: str) -> None:
    path = tmp_path / "it.pth"
    if kind == "empty":
        path.write_bytes(b"")
    elif kind == "text":
        path.write_text("<html>404 not found</html>")
    elif kind == "cut":
        path.write_bytes(checkpoint.read_bytes()[:-5000])
    elif kind == "foreign zip":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("readme.txt", "hello")
    elif kind == "list":
        torch.save([torch.zeros(2)], path)
    else:
        torch.save({"a": torch.zeros(2)}, path, _use_new_zipfile_serialization=False)
    with pytest.raises(WeightsError, match=r"it.pth: "):
        weights.convert(path, tmp_path / "space", architecture="tiny")


def test_a_conversion_that_breaks_off_leaves_no_space(
    checkpoint: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = weights.write_tower

    def breaks(path: Path, *arguments: object) -> object:
        if path.name == "text.safetensors":
            raise KeyboardInterrupt
        return real(path, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(weights, "write_tower", breaks)
    with pytest.raises(KeyboardInterrupt):
        weights.convert(checkpoint, folder, dtype="bfloat16", architecture="tiny")
    with pytest.raises(WeightsError, match=r"no space.json"):
        load_space(folder)
    monkeypatch.undo()
    weights.convert(checkpoint, folder, dtype="bfloat16", architecture="tiny")
    weights.verify(folder)


@pytest.mark.parametrize("way", ["save_space", "recast"])
def test_a_space_replaced_halfway_is_no_space(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    """A tower of the same size under the old record would pass as the old weights."""
    other = tmp_path / "other"
    shutil.copytree(folder, other)
    manifest = load_manifest(folder)
    towers = {
        name: weights.getters(weights.load_tower(folder, manifest, name, torch.float32, torch.device("cpu")))
        for name in ("audio", "text")
    }

    def write(dtype: str = "float32") -> None:
        if way == "recast":
            weights.recast(folder, other, dtype)
        else:
            weights.save_space(other, manifest, towers, dtype)

    with pytest.raises(InputError, match="unknown dtype"):
        write("float99")
    assert load_manifest(other) == manifest  # refused before anything was replaced
    real = weights.save_manifest
    monkeypatch.setattr(weights, "save_manifest", _interrupted)
    with pytest.raises(KeyboardInterrupt):
        write()
    with pytest.raises(WeightsError, match=r"no space.json"):
        load_space(other)
    monkeypatch.setattr(weights, "save_manifest", real)
    write()
    weights.verify(other)


def test_a_refused_conversion_leaves_the_space_that_was_there(checkpoint: Path, folder: Path, tmp_path: Path) -> None:
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    key = checkpoint_key("vision", "head.proj.weight")  # of the tower that is written last
    nan = changed(checkpoint, tmp_path / "nan.pth", lambda state: state[key][0].fill_(float("nan")))
    whole = changed(checkpoint, tmp_path / "whole.pth", lambda state: state.update({key: state[key].int()}))
    for path, dtype, kind, message in (
        (checkpoint, "fp16", InputError, "unknown dtype 'fp16' .* Known: float32, bfloat16"),
        (checkpoint, "float16", InputError, "unknown dtype 'float16'"),  # would change the ids
        (nan, "bfloat16", WeightsError, "vision: head.proj.weight holds values that are not finite"),
        (whole, "bfloat16", WeightsError, rf"{key}: expected floating-point numbers, got torch.int32"),
    ):
        with pytest.raises(kind, match=message):
            weights.convert(path, folder, dtype=dtype, architecture="tiny")
    with pytest.raises(InputError, match=r"holds the space 'tiny', which 'imagebind-huge' would replace"):
        weights.check_target(folder, "imagebind-huge")
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_a_full_disk_leaves_the_space_that_was_there(checkpoint: Path, folder: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        with pytest.raises(WeightsError, match=r"audio.safetensors: cannot be written: File too large"):
            weights.convert(checkpoint, folder, dtype="bfloat16", architecture="tiny")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert weights.verify(folder)["dtype"] == "float32"
    assert not list(folder.glob("*.tmp"))


def test_a_space_is_recast_to_what_keeps_its_ids(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"unknown dtype 'float16' for converted weights. Known: float32, bfloat16"):
        weights.recast(folder, tmp_path / "other", "float16")
    assert not (tmp_path / "other").exists()
    mini = bundled_folder("bindsearch-mini")  # kept in float16, which its ids hash
    assert load_manifest(mini).dtype == "float16"
    for dtype in ("float16", "bfloat16"):
        weights.recast(mini, tmp_path / dtype, dtype)
        assert ids(tmp_path / dtype) == ids(mini)
    with pytest.raises(InputError, match=r"holds the space 'bindsearch-mini', which 'tiny' would replace"):
        weights.recast(folder, tmp_path / "bfloat16", "bfloat16")
    assert load_manifest(tmp_path / "bfloat16").name == "bindsearch-mini"


def test_a_joined_space_is_recast_beside_its_parent(folder: Path, tmp_path: Path) -> None:
    manifest = load_manifest(folder)
    tower = weights.load_tower(folder, manifest, "depth", torch.float32, torch.device("cpu"))
    bound = replace(
        manifest,
        name="mine",
        architecture=replace(manifest.architecture, towers={"depth": manifest.architecture.tower("depth")}),
        towers={},
        parent=Parent("../space", manifest.space_id, "image", manifest.tower_id("vision")),
    )
    weights.save_space(tmp_path / "joined", bound, {"depth": weights.getters(tower)})
    weights.recast(tmp_path / "joined", tmp_path / "far" / "away" / "half", "bfloat16")
    one, other = load_space(tmp_path / "joined"), load_space(tmp_path / "far" / "away" / "half")
    assert (one.space_id, one.modalities) == (other.space_id, other.modalities)
    assert one.tower_id("depth") == other.tower_id("depth")


def test_what_killed_conversions_left_is_removed(checkpoint: Path, folder: Path) -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    audio = folder / "audio.safetensors"
    dead, alive = (tower_file._temporary(audio, pid) for pid in (gone.pid, os.getppid()))
    elsewhere = folder / f"audio.safetensors.another-host.{gone.pid}.tmp"
    for path in (dead, alive, elsewhere):
        path.write_bytes(b"half")
    weights.convert(checkpoint, folder, architecture="tiny")
    assert [path for path in (dead, alive, elsewhere) if path.exists()] == [alive, elsewhere]


def _interrupted(*_: object) -> None:
    raise KeyboardInterrupt


# ids


def test_ids_of_the_public_tiny_space_never_change() -> None:
    """Ids are stored in artefacts: another value here means that every user embeds again."""
    space = load_space("tiny:0")
    assert space.space_id == "tiny:0@5f5d444ec7c4"
    assert space.tower_id("audio") == "audio:01c74d689980@tiny:0@5f5d444ec7c4"
    assert space.tower_id("image") == space.tower_id("video")


def test_content_ids_are_the_same_for_both_types_and_see_every_value() -> None:
    g = torch.Generator().manual_seed(1)
    tensors = [("a", torch.randn(5, 7, generator=g)), ("b", torch.randn(3, generator=g)), ("n", torch.tensor(4))]
    first = tower_file.content_id(tensors)
    assert first == tower_file.content_id([(k, t.bfloat16() if t.is_floating_point() else t) for k, t in tensors])
    for number in range(3):
        other = [(k, t.clone()) for k, t in tensors]
        other[number][1].view(-1)[-1] += 1
        assert tower_file.content_id(other) != first
    assert tower_file.content_id([(k, t.reshape(-1)) for k, t in tensors]) != first


def test_a_new_tower_changes_its_own_id_alone(folder: Path, checkpoint: Path, tmp_path: Path) -> None:
    key = checkpoint_key("audio", "head.proj.weight")
    path = changed(checkpoint, tmp_path / "b.pth", lambda state: state[key].mul_(1.01))
    weights.convert(path, tmp_path / "other", architecture="tiny")
    one, other = load_manifest(folder), load_manifest(tmp_path / "other")
    assert one.space_id == other.space_id
    assert [name for name in one.towers if one.tower_id(name) != other.tower_id(name)] == ["audio"]


def test_a_new_anchor_changes_every_id_and_a_new_scale_none(folder: Path, checkpoint: Path, tmp_path: Path) -> None:
    key = checkpoint_key("vision", "head.proj.weight")
    path = changed(checkpoint, tmp_path / "b.pth", lambda state: state[key].mul_(1.01))
    weights.convert(path, tmp_path / "other", architecture="tiny")
    assert not set(ids(folder)) & set(ids(tmp_path / "other"))
    scale = checkpoint_key("text", "scale.log_logit_scale")
    path = changed(checkpoint, tmp_path / "c.pth", lambda state: state[scale].fill_(1.0))
    weights.convert(path, tmp_path / "scaled", architecture="tiny")
    assert ids(folder) == ids(tmp_path / "scaled")
    assert load_space(tmp_path / "scaled").logit_scale("text") == pytest.approx(np.e)


# verify


def test_verify_passes_and_reports_each_tower(folder: Path) -> None:
    told: list[str] = []
    facts = weights.verify(folder, told.append)
    assert len(told) == 6
    assert facts["space_id"] == load_manifest(folder).space_id
    assert facts["audio"].startswith("ok ")


def test_verify_finds_one_changed_byte(folder: Path) -> None:
    path = folder / "depth.safetensors"
    data = bytearray(path.read_bytes())
    data[-100] ^= 1
    path.write_bytes(data)
    with pytest.raises(WeightsError, match=r"depth.safetensors: expected sha256 [0-9a-f]{64}, got [0-9a-f]{64}"):
        weights.verify(folder)


def test_a_cut_or_missing_file_is_found_at_load_and_by_verify(folder: Path) -> None:
    path = folder / "depth.safetensors"
    path.write_bytes(path.read_bytes()[:-4])
    size = path.stat().st_size
    for check in (lambda: weights.verify(folder), lambda: load_space(folder).encode("depth", inputs()["depth"])):
        with pytest.raises(WeightsError, match=rf"expected {size + 4} bytes, got {size}"):
            check()
    path.unlink()
    with pytest.raises(WeightsError, match=r"depth.safetensors: missing"):
        load_space(folder).encode("depth", inputs()["depth"])
    space = load_space(folder)
    space.encode("imu", inputs()["imu"])  # the others still work


def test_verify_knows_a_file_that_was_swapped_together_with_its_checksum(folder: Path) -> None:
    state = load_file(folder / "depth.safetensors")
    state["head.proj.weight"][0, 0] += 1.0
    save_file(state, folder / "depth.safetensors")
    data = json.loads((folder / FILE).read_text())
    data["towers"]["depth"]["sha256"] = weights.sha256_of(folder / "depth.safetensors")
    data["towers"]["depth"]["size_bytes"] = (folder / "depth.safetensors").stat().st_size
    (folder / FILE).write_text(json.dumps(data))
    with pytest.raises(WeightsError, match=r"expected weights [0-9a-f]{64}, got [0-9a-f]{64}: space.json"):
        weights.verify(folder)


def test_a_tower_of_another_size_or_a_damaged_header_is_refused(folder: Path) -> None:
    data = json.loads((folder / FILE).read_text())
    depth = folder / "depth.safetensors"
    depth.write_bytes((folder / "thermal.safetensors").read_bytes())
    data["towers"]["depth"]["size_bytes"] = depth.stat().st_size
    (folder / FILE).write_text(json.dumps(data))
    with pytest.raises(WeightsError, match=r"of another shape: .*expected \(1, 1, 16\), got \(1, 1, 24\)"):
        load_space(folder).encode("depth", inputs()["depth"])
    depth.write_bytes(b"\xff" * depth.stat().st_size)
    with pytest.raises(WeightsError, match="cannot be read as safetensors"):
        load_space(folder).encode("depth", inputs()["depth"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not valid JSON"),
        ("[]", "expected format 'bindsearch-space/1', got 'list'"),
        ('{"format": "bindsearch-space/9"}', "expected format 'bindsearch-space/1', got 'bindsearch-space/9'"),
        ('{"format": "bindsearch-space/1", "nam": 1}', "unknown field 'nam'"),
        ('{"format": "bindsearch-space/1"}', "missing"),
    ],
)
def test_damaged_manifests_are_refused(folder: Path, text: str, message: str) -> None:
    (folder / FILE).write_text(text)
    with pytest.raises(WeightsError, match=message):
        load_space(folder)


# loading


def test_towers_load_one_by_one_and_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loads: Counter[str] = Counter()
    real = weights.load_tower

    def counting(*arguments: object) -> object:
        loads[str(arguments[2])] += 1
        return real(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(weights, "load_tower", counting)
    space, given = load_space(folder), inputs()
    assert space.loaded == ()
    assert space.tower_id("audio").startswith("audio:")
    assert space.logit_scale("audio") == pytest.approx(20.0)
    assert loads == {}
    results: list[np.ndarray] = []
    start = threading.Barrier(8)

    def ask() -> None:
        start.wait()
        results.append(space.encode("text", given["text"]))

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert loads == {"text": 1}
    assert space.loaded == ("text",)
    assert len(results) == 8
    assert all(np.array_equal(rows, results[0]) for rows in results)
    space.encode("image", given["image"])
    space.encode("video", given["video"])
    assert loads == {"text": 1, "vision": 1}


def test_no_initialiser_runs_at_load(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*arguments: object, **named: object) -> None:
        raise AssertionError("an initialiser ran")

    for name in [n for n in dir(torch.nn.init) if n.endswith("_") and not n.startswith("_")]:
        monkeypatch.setattr(torch.nn.init, name, never)
    space = load_space(folder)
    for modality, x in inputs().items():
        space.encode(modality, x)


def test_parameters_are_views_of_the_file(folder: Path) -> None:
    """A table of 100 MB whose rows are hardly used must not enter memory: measured in a process of its own."""
    data = json.loads((folder / FILE).read_text())
    text = data["architecture"]["towers"]["text"]
    text["trunk"] = {"width": 512, "blocks": 1, "heads": 8, "causal": True}
    (folder / FILE).write_text(json.dumps(data))
    manifest = load_manifest(folder)
    shapes = build_tower(manifest.architecture, "text").state_dict()
    drawn = {key: torch.full(tuple(value.shape), 0.01) for key, value in shapes.items()}
    weights.save_space(folder, manifest, {"text": {key: drawn[key].clone for key in drawn}})
    code = """
import sys
import numpy as np, psutil
from bindsearch.models.spaces import load_space
x = np.full((1, 1, 77), 5)
x[0, 0, 4] = 49407
load_space("tiny:0").encode("text", x)
before = psutil.Process().memory_info().rss
load_space(sys.argv[1]).encode("text", x)
print((psutil.Process().memory_info().rss - before) / 1e6)
"""
    size = (folder / "text.safetensors").stat().st_size / 1e6
    assert size > 110
    run = [sys.executable, "-c", code, str(folder)]
    grown = float(subprocess.run(run, check=True, capture_output=True, text=True, cwd=ROOT).stdout)
    assert grown < size - 70, f"{grown:.0f} MB for a file of {size:.0f} MB"


def test_towers_in_bfloat16_and_float64(folder: Path) -> None:
    given = inputs()
    single, double, half = (load_space(folder, dtype=d) for d in ("float32", "float64", "bf16"))
    assert half.dtype == "bfloat16"
    assert single.space_id == double.space_id == half.space_id
    for modality, x in given.items():
        want = double.encode(modality, x)
        assert np.abs(single.encode(modality, x) - want).max() < 2e-6
        assert (half.encode(modality, x) * want).sum(1).min() > 0.99  # the goldens hold the tight bound
        assert not np.array_equal(half.encode(modality, x), want)
        assert want.dtype == np.float32


TEXT_QUERY = """
import json, re, sys
from pathlib import Path
import numpy as np
from bindsearch.models.spaces import load_space
space = load_space(sys.argv[1])
rows = space.embed("text", ["a dog barking in the street"])
tokens = np.array(json.loads(sys.stdin.read()))[:, None]
# not ru_maxrss: that starts from the parent's
peak = int(re.search(r"VmHWM:\\s*(\\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024
assert space.loaded == ("text",) and rows.shape == (1, 1024)
print(json.dumps({"peak": peak, "rows": space.encode("text", tokens).tolist()}))
"""


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_a_checkpoint_of_the_released_size(writer: ModuleType, tmp_path: Path) -> None:
    """4.8 GB written, converted and verified; a text query then takes the text tower's memory and little more."""
    free = shutil.disk_usage(tmp_path).free
    assert free > 11e9, f"this test needs 11 GB in {tmp_path}, {free / 1e9:.1f} are free"
    checkpoint, folder = tmp_path / "imagebind_huge.pth", tmp_path / "space"
    facts = golden.read("huge_random/config.json")
    size = writer.write(checkpoint, "imagebind-huge", Recipe(facts["seed"], logit_scales=facts["logit_scales"]))
    assert abs(size - releases()["imagebind-huge"].size_bytes) < 100_000
    weights.convert(checkpoint, folder)
    checkpoint.unlink()
    weights.verify(folder)
    tokens = [golden.read("tiny_a/inputs.json")["text_tokens"][number] for number in (0, 2)]
    run = [sys.executable, "-c", TEXT_QUERY, str(folder)]
    done = subprocess.run(run, input=json.dumps(tokens), check=True, capture_output=True, text=True, cwd=ROOT)
    told = json.loads(done.stdout)
    text = (folder / "text.safetensors").stat().st_size
    assert told["peak"] < 1.2 * text + 600e6, f"{told['peak'] / 1e6:.0f} MB for a text tower of {text / 1e6:.0f} MB"
    want = golden.outputs("huge_random")["out64/text"]
    want = want / np.linalg.norm(want, axis=1, keepdims=True)
    assert golden.error(np.array(told["rows"]), want) <= 5e-6
