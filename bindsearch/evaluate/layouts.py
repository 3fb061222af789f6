"""Data sets as they are distributed: each reader turns a folder into manifest rows for the embedder.

A row has key, modality, path or text, and `label` (with `fold`), or `pair`: texts and media of one value belong
together. Readers that must cut or convert (boxes out of pictures, depth out of a Matlab file) write under `prepared`;
what is there already, made of the same, is kept: each PNG says in a text chunk what it was made of.
"""

from __future__ import annotations

import csv
import os
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bindsearch.config import content_hash
from bindsearch.errors import InputError, MissingExtraError, MissingInputError
from bindsearch.evaluate.recipe import Recipe
from bindsearch.listing.folders import file_facts

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from PIL.Image import Image as Picture

Row = dict[str, Any]

AUDIO_SUFFIXES = (".wav", ".flac", ".mp3", ".m4a", ".ogg", ".opus", ".webm", ".mp4")
AUDIOCAPS_NAMES = ("{youtube_id}_{start_time}", "{youtube_id}", "Y{youtube_id}", "{audiocap_id}")
"""YouTube clips are not distributed; these are the names that the usual download scripts give."""

SUN_PREFIX = "/n/fs/sun3d/data/"
"""What the paths in allsplit.mat begin with."""
SUN_BASELINES_M = {"kv1": 0.075, "kv2": 0.075, "realsense": 0.095, "xtion": 0.095}
KINECT_BASELINE_M, KINECT_FOCAL_PX = 0.075, 518.857901
"""What the depth presets turn metres into disparity with."""

_BOX_TRIES = 200
_STAMP, _CONVERTER = "bindsearch made of", 1
"""Text chunk of a prepared picture; and a number to raise when pictures come out otherwise of the same sources."""


def list_items(recipe: Recipe, data: Path, prepared: Path) -> list[Row]:
    """List what a benchmark embeds.

    Args:
        recipe: names the layout.
        data: the data set's folder, checked by `Recipe.check`.
        prepared: folder for what must be cut or converted.

    Raises:
        InputError: no such layout, or a file of the data set cannot be read as what it should be.
        MissingInputError: media that the data set lists are not there.
    """
    if recipe.layout not in LAYOUTS:
        raise InputError(f"recipe {recipe.name}: unknown layout {recipe.layout!r}. Known: {', '.join(LAYOUTS)}.")
    rows = LAYOUTS[recipe.layout](recipe, data.absolute(), prepared.absolute())
    if not rows:
        raise MissingInputError(f"{data}: nothing of {recipe.title} was found in it.")
    return rows


def _esc50(recipe: Recipe, data: Path, prepared: Path) -> list[Row]:  # noqa: ARG001
    """meta/esc50.csv (filename, fold, target, category, ...) and audio/."""
    table, folder = recipe.find(data, 0), recipe.find(data, 1)
    rows = [
        {
            "key": row["filename"],
            "modality": "audio",
            "path": str(folder / row["filename"]),
            "label": row["category"],
            "fold": row["fold"],
        }
        for row in _read_csv(table, ("filename", "fold", "category"))
    ]
    _check_media(recipe, rows, folder)
    return rows


def _audiocaps(recipe: Recipe, data: Path, prepared: Path) -> list[Row]:  # noqa: ARG001
    """test.csv (audiocap_id, youtube_id, start_time, caption) and audio/, clips that YouTube lost left out."""
    table, folder = recipe.find(data, 0), recipe.find(data, 1)
    there = {path.stem: path for path in sorted(folder.iterdir()) if path.suffix.lower() in AUDIO_SUFFIXES}
    captions = list(_read_csv(table, ("audiocap_id", "youtube_id", "start_time", "caption")))
    clips: dict[str, Path] = {}
    for row in captions:
        wanted = (each.format(**row) for each in AUDIOCAPS_NAMES)
        found = next((there[name] for name in wanted if name in there), None)
        if found is not None:
            clips.setdefault(f"{row['youtube_id']}_{row['start_time']}", found)
    if not clips:
        names = ", ".join(AUDIOCAPS_NAMES)
        raise MissingInputError(
            f"{folder}: no clip of {table.name} is there. AudioCaps distributes captions alone: download the clips of "
            f"AudioSet that it names (YouTube id, 10 s from start_time) and name them {names} with one of the suffixes "
            f"{', '.join(AUDIO_SUFFIXES)}."
        )
    media = [_medium(f"audio/{clip}", "audio", path, clip) for clip, path in clips.items()]
    clip_of = {row["audiocap_id"]: f"{row['youtube_id']}_{row['start_time']}" for row in captions}
    kept = [row for row in captions if clip_of[row["audiocap_id"]] in clips]
    return media + [_caption(f"text/{row['audiocap_id']}", row["caption"], clip_of[row["audiocap_id"]]) for row in kept]


def _clotho(recipe: Recipe, data: Path, prepared: Path) -> list[Row]:  # noqa: ARG001
    """clotho_captions_evaluation.csv (file_name, caption_1 .. caption_5) and evaluation/: each caption is a query."""
    table, folder = recipe.find(data, 0), recipe.find(data, 1)
    captions = [f"caption_{number}" for number in range(1, 6)]
    media, texts = [], []
    for row in _read_csv(table, ("file_name", *captions)):
        name = row["file_name"]
        media.append(_medium(f"audio/{name}", "audio", folder / name, name))
        texts += [_caption(f"text/{name}/{each}", row[each], name) for each in captions if row[each].strip()]
    _check_media(recipe, media, folder)
    return media + texts


def _msrvtt(recipe: Recipe, data: Path, prepared: Path) -> list[Row]:  # noqa: ARG001
    """MSRVTT_JSFUSION_test.csv (key, vid_key, video_id, sentence) and the videos, each as pictures and as sound."""
    table, folder = recipe.find(data, 0), recipe.find(data, 1)
    media, texts = [], []
    for row in _read_csv(table, ("video_id", "sentence")):
        name = row["video_id"]
        path = next((folder / f"{name}{suffix}" for suffix in (".mp4", ".webm", ".avi", ".mkv")
                     if (folder / f"{name}{suffix}").is_file()), folder / f"{name}.mp4")  # fmt: skip
        media += [_medium(f"{kind}/{name}", kind, path, name) for kind in recipe.modalities]
        texts.append(_caption(f"text/{row.get('key') or name}", row["sentence"], name))
    _check_media(recipe, media, folder)
    return media + texts


def _nyu(recipe: Recipe, data: Path, prepared: Path) -> list[Row]:
    """nyu_depth_v2_labeled.mat (in-filled depth, scene types) and splits.mat (testNdxs): PNGs in millimetres."""
    import h5py

    labelled, splits = recipe.find(data, 0), recipe.find(data, 1)
    numbers = _read_mat(splits, "testNdxs").reshape(-1).astype(int)
    names = {name: each.label for each in recipe.classes for name in (*each.names, each.label)}
    rows = []
    with h5py.File(labelled, "r") as file:
        for name in ("depths", "sceneTypes"):
            if name not in file:
                raise InputError(f"{labelled}: holds no {name!r}; expected NYU Depth V2's labelled set.")
        types = file["sceneTypes"][()].reshape(-1)
        for number in numbers.tolist():
            scene = "".join(chr(code) for code in file[types[number - 1]][()].reshape(-1)).strip()
            path = prepared / f"{number:04d}.png"
            made_of = [str(labelled), *file_facts(labelled), number]
            _prepare(path, made_of, lambda number=number: _millimetres(file["depths"][number - 1].T))  # type: ignore[misc]
            label = names.get(scene.replace("_", " ").replace("excercise", "exercise"), scene)  # as spelt in the file
            rows.append(
                {"key": f"{number:04d}", "modality": "depth", "path": str(path), "label": label, "scene": scene}
            )
    return rows


def _sun(recipe: Recipe, data: Path, prepared: Path) -> list[Row]:
    """SUNRGBD/.../(scene.txt, depth_bfx/, intrinsics.txt) and allsplit.mat (alltest).

    Depth is written as the depth at which a Kinect v1 would have the same disparity: depth × (0.075 m × 519 px) / (the
    sensor's baseline × its focal length), so that one preset serves all four sensors.
    """
    from bindsearch.registry import MODALITIES

    splits = recipe.find(data, 0)
    depth = MODALITIES["depth"]
    config = depth.config("sunrgbd")
    classes = {each.label for each in recipe.classes}
    rows, gone = [], []
    for cell in _read_mat(splits, "alltest").reshape(-1):
        name = str(np.asarray(cell).reshape(-1)[0]).replace("//", "/").removeprefix(SUN_PREFIX).strip("/")
        folder = data / name
        if not (folder / "scene.txt").is_file():
            gone.append(name)
            continue
        scene = (folder / "scene.txt").read_text(encoding="utf-8", errors="replace").strip()
        if scene not in classes:
            continue
        path = prepared / f"{name.replace('/', '-')}.png"
        file, ratio = _only_file(folder / "depth_bfx", ".png"), _kinect_ratio(name, folder / "intrinsics.txt")

        def draw(file: Path = file, ratio: float = ratio) -> Picture:
            return _millimetres(depth.decode(depth.source_of(str(file)), config).array * ratio)

        _prepare(path, [str(file), *file_facts(file), ratio, config.id], draw)
        rows.append({"key": name, "modality": "depth", "path": str(path), "label": scene})
    if gone:
        raise MissingInputError(
            f"{data}: {len(gone)} of the test folders in {splits.name} are not there, the first: {gone[0]}. "
            f"{recipe.needs[1].what}: {recipe.needs[1].where}"
        )
    return rows


def _kinect_ratio(name: str, intrinsics: Path) -> float:
    """Give the factor from a sensor's depth to the depth at which a Kinect v1 has the same disparity."""
    sensor = next((part for part in name.split("/") if part in SUN_BASELINES_M), None)
    if sensor is None:
        raise InputError(f"{name}: names none of the sensors {', '.join(SUN_BASELINES_M)}.")
    try:
        focal_px = float(intrinsics.read_text(encoding="ascii").split()[0])
    except (OSError, ValueError, IndexError) as error:
        raise InputError(f"{intrinsics}: expected the nine numbers of a camera matrix ({error}).") from error
    return KINECT_BASELINE_M * KINECT_FOCAL_PX / (SUN_BASELINES_M[sensor] * focal_px)


def _llvip(recipe: Recipe, data: Path, prepared: Path) -> list[Row]:
    """infrared/test/*.jpg and Annotations/*.xml: each person's box, and a random box of its shape without a person."""
    from PIL import Image

    pictures, notes = recipe.find(data, 0), recipe.find(data, 1)
    rows: list[Row] = []
    for path in sorted(pictures.glob("*.jpg")):
        boxes = _person_boxes(notes / f"{path.stem}.xml")
        rng = np.random.default_rng([int(recipe.options["seed"]), zlib.crc32(path.stem.encode())])
        with Image.open(path) as picture:
            empty = [_box_beside(box, boxes, picture.size, rng) for box in boxes]
            for label, kind in (("person", boxes), ("background", empty)):
                for number, box in enumerate(kind):
                    if box is None:
                        continue
                    name = f"{path.stem}-{label}-{number}"
                    crop = prepared / f"{name}.png"
                    _prepare(crop, [str(path), *file_facts(path), box], lambda box=box: picture.convert("L").crop(box))  # type: ignore[misc]
                    rows.append({"key": name, "modality": "thermal", "path": str(crop), "label": label})
    return rows


Box = tuple[int, int, int, int]


def _person_boxes(path: Path) -> list[Box]:
    """Read the boxes of a VOC annotation: (left, top, right, bottom) in pixels."""
    from xml.etree import ElementTree as Tree

    try:
        root = Tree.fromstring(path.read_text(encoding="utf-8"))  # noqa: S314  # no entities are expanded by expat here
        edges = ("xmin", "ymin", "xmax", "ymax")
        found = [tuple(int(float(str(box.findtext(edge)))) for edge in edges) for box in root.iter("bndbox")]
    except (OSError, ValueError, Tree.ParseError) as error:
        raise InputError(f"{path}: not a VOC annotation ({error}).") from error
    return [(left, top, right, bottom) for left, top, right, bottom in found if left < right and top < bottom]


def _box_beside(box: Box, taken: Sequence[Box], size: tuple[int, int], rng: np.random.Generator) -> Box | None:
    """Draw a box of the same shape that meets no person; None where none was found."""
    width, height = box[2] - box[0], box[3] - box[1]
    for _ in range(_BOX_TRIES):
        left = int(rng.integers(0, max(1, size[0] - width + 1)))
        top = int(rng.integers(0, max(1, size[1] - height + 1)))
        drawn = (left, top, left + width, top + height)
        if all(drawn[2] <= a or c <= drawn[0] or drawn[3] <= b or d <= drawn[1] for a, b, c, d in taken):
            return drawn
    return None


# ---- what readers share ----------------------------------------------------------------------------------------------


def _medium(key: str, modality: str, path: Path, pair: str) -> Row:
    return {"key": key, "modality": modality, "path": str(path), "pair": pair}


def _caption(key: str, text: str, pair: str) -> Row:
    return {"key": key, "modality": "text", "text": text.strip(), "pair": pair}


def _read_csv(path: Path, columns: Iterable[str]) -> Iterator[Mapping[str, str]]:
    """Read a table, refusing one that lacks a column."""
    with path.open(encoding="utf-8-sig", errors="replace", newline="") as file:
        reader = csv.DictReader(file)
        missing = [name for name in columns if name not in (reader.fieldnames or ())]
        if missing:
            got = ", ".join(reader.fieldnames or ()) or "none"
            raise InputError(f"{path}: expected a column {missing[0]!r}, got {got}. Is it the official file?")
        yield from reader


def _check_media(recipe: Recipe, rows: Sequence[Row], folder: Path) -> None:
    """Refuse a data set that lacks media which its table lists."""
    gone = sorted({row["path"] for row in rows if not Path(row["path"]).is_file()})
    if gone:
        need = recipe.needs[1]
        raise MissingInputError(
            f"{folder}: {len(gone)} of {len({row['path'] for row in rows})} files that {recipe.title} lists are not "
            f"there, the first: {Path(gone[0]).name}. {need.what}: {need.where}"
        )


def _read_mat(path: Path, name: str) -> NDArray[Any]:
    """Read a variable of a Matlab file older than 7.3.

    Raises:
        MissingExtraError: SciPy is not installed.
        InputError: no such variable, or no such file format.
    """
    try:
        from scipy.io import loadmat
    except ImportError as error:
        raise MissingExtraError("scipy", "evaluate", f"reading {path.name}") from error
    try:
        found = loadmat(path)
    except (OSError, ValueError, NotImplementedError) as error:
        raise InputError(f"{path}: cannot be read as a Matlab file ({error}).") from error
    if name not in found:
        known = ", ".join(sorted(key for key in found if not key.startswith("__")))
        raise InputError(f"{path}: holds no {name!r}; it has {known or 'nothing'}.")
    return np.asarray(found[name])


def _only_file(folder: Path, suffix: str) -> Path:
    found = sorted(folder.glob(f"*{suffix}"))
    if len(found) != 1:
        raise InputError(f"{folder}: expected one {suffix} file, found {len(found)}.")
    return found[0]


def _millimetres(metres: NDArray[Any]) -> Picture:
    """Turn (H, W) metres into a 16-bit picture in millimetres; 0 where there is none."""
    from PIL import Image

    millimetres = np.rint(np.clip(np.nan_to_num(metres.astype(np.float64)), 0, 65.535) * 1000).astype(np.uint16)
    return Image.fromarray(np.ascontiguousarray(millimetres))


def _prepare(path: Path, made_of: Sequence[Any], draw: Callable[[], Picture]) -> None:
    """Write a picture as PNG, unless the one that is there was made of the same.

    Args:
        path: replaced only when the new one is whole, so that a killed run leaves no half of one.
        made_of: facts of the source and all numbers that the picture depends on, as JSON has them.
        draw: makes the picture.
    """
    from PIL import Image, PngImagePlugin

    stamp = content_hash({"converter": _CONVERTER, "of": list(made_of)})
    try:
        with Image.open(path) as there:  # reads the chunks before the pixels
            if there.info.get(_STAMP) == stamp:
                return
    except OSError:  # none there, or damaged
        pass
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    words = PngImagePlugin.PngInfo()
    words.add_text(_STAMP, stamp)
    draw().save(temporary, format="PNG", compress_level=3, pnginfo=words)
    temporary.replace(path)


LAYOUTS: dict[str, Callable[[Recipe, Path, Path], list[Row]]] = {
    "esc50": _esc50,
    "audiocaps": _audiocaps,
    "clotho": _clotho,
    "msrvtt": _msrvtt,
    "nyu": _nyu,
    "sun": _sun,
    "llvip": _llvip,
}
