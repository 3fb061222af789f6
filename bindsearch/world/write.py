"""A world as ordinary files: png, mp4, txt, wav, 16-bit png, csv, ply, and tables of what each scene holds."""

from __future__ import annotations

import contextlib
import io
import json
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bindsearch.errors import InputError, MismatchError, UnknownNameError
from bindsearch.world.address import LANGUAGES, split_of
from bindsearch.world.files import (
    COLDEST_C,
    HOTTEST_C,
    LANGUAGE_SUFFIXES,
    RATES,
    SUFFIXES,
    bytes_each,
    encode,
    render_values,
)
from bindsearch.world.scene import KINDS, VERSION, Scenes, sample

if TYPE_CHECKING:
    from concurrent.futures import ProcessPoolExecutor

ATTRIBUTES, FILES, RECORD = "attributes.parquet", "files.parquet", "world.json"
FORMAT = f"bindsearch-world/{VERSION}"
BLOCK_BYTES = 48 << 20
"""Rendered values that one process holds at a time."""
_SHORTEST_BLOCK, _LONGEST_BLOCK = 8, 512
LARGEST_PX = 4096
_PARENTS = (signal.SIGINT,)  # what the parent alone acts on


@dataclass(frozen=True)
class World:
    """What a folder holds.

    Attributes:
        n: how many scenes.
        seed: of the first one; scene i has the seed `seed + i`.
        size_px: side of pictures and frames.
        kind: see `scene.sample`.
        modalities: which files a scene has.
        languages: of its texts.
    """

    n: int
    seed: int
    size_px: int = 256
    kind: str = "full"
    modalities: tuple[str, ...] = tuple(SUFFIXES)
    languages: tuple[str, ...] = ("english",)

    def __post_init__(self) -> None:
        """Refuse values that cannot be meant.

        Raises:
            InputError: n, seed or size_px makes no sense.
            UnknownNameError: unknown kind, modality or language.
        """
        if self.n < 1 or self.seed < 0:
            raise InputError(f"write_world: expected n >= 1 and seed >= 0, got n = {self.n}, seed = {self.seed}.")
        if self.seed + self.n > 1 << 63:
            raise InputError(f"write_world: seeds up to 2^63 exist, got {self.seed} and {self.n} more.")
        if not 16 <= self.size_px <= LARGEST_PX or ("video" in self.modalities and self.size_px % 2):
            what = f"expected 16 to {LARGEST_PX}, and an even number for videos"
            raise InputError(f"size: {what}, got {self.size_px}.")
        if self.kind not in KINDS:
            raise UnknownNameError("kind of scene", self.kind, KINDS)
        for what, given, known in (("modality", self.modalities, SUFFIXES), ("language", self.languages, LANGUAGES)):
            for name in given:
                if name not in known:
                    raise UnknownNameError(f"{what} of a written world", name, known)

    def stem(self, number: int) -> str:
        """Name scene i: the number has five digits, and more where n needs them."""
        return f"scene-{number:0{max(5, len(str(self.n - 1)))}d}"

    def scenes(self, numbers: Sequence[int]) -> Scenes:
        """Draw some of its scenes, by number."""
        return sample(np.array([self.seed + number for number in numbers], dtype=np.uint64), self.kind)

    def files(self, number: int) -> Iterator[tuple[str, str, str]]:
        """Yield the files of a scene: modality, language and name."""
        for modality in self.modalities:
            for language in self.languages if modality == "text" else ("english",):
                ending = LANGUAGE_SUFFIXES[language] if modality == "text" else SUFFIXES[modality]
                yield modality, language, self.stem(number) + ending


def write_world(
    n: int,
    out_dir: str | Path,
    seed: int = 0,
    size_px: int = 256,
    kind: str = "full",
    modalities: Sequence[str] = tuple(SUFFIXES),
    language: str = "english",
    workers: int = 0,
    progress: bool = False,
) -> Path:
    """Write n scenes; scene i has the seed `seed + i`. A file that is there is kept, so that a stopped call goes on.

    The same call writes the same bytes, but for mp4, whose encoder may give others for the same frames.

    Args:
        n: how many.
        out_dir: folder; made where it is missing.
        seed: of the first scene; see `scene.split_seeds` for seeds that training never meets.
        size_px: side of pictures and frames.
        kind: full, subject, setting or mixed; see `scene.sample`.
        modalities: which files a scene gets, all with the stem `scene-<number>`.
        language: english (.txt), german (.de.txt) or both.
        workers: processes that render; 0 does it in this one.
        progress: draw a bar on stderr.

    Returns:
        Path of attributes.parquet: one row a scene, with its stem, seed, split, attributes by name, positions and
        captions. Beside it: files.parquet, a manifest for `bindsearch embed` with one row a file, and world.json.

    Raises:
        InputError: n, seed or size_px makes no sense.
        UnknownNameError: unknown kind, modality or language.
        MismatchError: the folder holds another world.
        BindSearchError: the disk is full; what is written stays.
    """
    from bindsearch.store.files import full_disk_said

    if language not in LANGUAGES:
        raise UnknownNameError("language of a written world", language, LANGUAGES)
    languages = tuple(LANGUAGE_SUFFIXES) if language == "both" else (language,)
    world = World(n, seed, size_px, kind, tuple(dict.fromkeys(modalities)), languages)
    folder = Path(out_dir)
    folder.mkdir(parents=True, exist_ok=True)
    with full_disk_said(folder):
        whole = _joined(world, folder)
        _put(folder / RECORD, _record(whole))
        todo = [numbers for numbers in _blocks(world, max(1, workers)) if _missing(world, folder, numbers)]
        _write_blocks(replace(world, n=whole.n), folder, todo, workers, progress)
        return write_tables(whole, folder)


def read_world(folder: Path) -> World | None:
    """Read what a folder says that it holds; None where it says nothing.

    Raises:
        InputError: its world.json cannot be read.
    """
    record = _read_record(folder)
    return None if record is None else record[0]


def _read_record(folder: Path) -> tuple[World, str] | None:
    """Read a folder's record and its format."""
    path = folder / RECORD
    if not path.is_file():
        return None
    try:
        facts: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        lists = [tuple(facts[name]) for name in ("modalities", "languages")]
        return World(*(facts[name] for name in ("n", "seed", "size_px", "kind")), *lists), str(facts["format"])
    except (ValueError, KeyError, TypeError) as error:
        what = f"not the record of a world: {type(error).__name__}: {error}"
        raise InputError(f"{path}: {what}. Delete it, or write to another folder.") from error


def _joined(world: World, folder: Path) -> World:
    """Join a world with what the folder holds already."""
    record = _read_record(folder)
    if record is None:
        return world
    there, drawn_as = record
    if drawn_as != FORMAT:
        raise MismatchError(
            f"{folder}: holds scenes drawn as {drawn_as}, this version draws {FORMAT}: the same seeds look otherwise. "
            "Write to another folder, or delete this one."
        )
    for name in ("seed", "size_px", "kind"):
        if getattr(there, name) != getattr(world, name):
            raise MismatchError(
                f"{folder}: holds a world with {name} {getattr(there, name)}, asked for {getattr(world, name)}. "
                "Write to another folder, or delete this one."
            )
    n = max(there.n, world.n)
    if world.stem(0) != there.stem(0):
        raise MismatchError(
            f"{folder}: holds {there.n} scenes named like {there.stem(0)}; {world.n} are named like {world.stem(0)}. "
            "Write to another folder."
        )
    modalities = tuple(name for name in SUFFIXES if name in {*there.modalities, *world.modalities})
    languages = tuple(name for name in LANGUAGE_SUFFIXES if name in {*there.languages, *world.languages})
    return replace(world, n=n, modalities=modalities, languages=languages)


def _record(world: World) -> bytes:
    facts = {
        "format": FORMAT,
        **asdict(world),
        "rates_hz": RATES,
        "depth_unit": "mm",
        "thermal_levels_c": {"0": COLDEST_C, "65535": HOTTEST_C},
    }
    return (json.dumps(facts, indent=2) + "\n").encode("ascii")


# ---- files -----------------------------------------------------------------------------------------------------------


def _blocks(world: World, workers: int) -> Iterator[range]:
    """Cut the scenes in blocks: small enough for memory and for every worker to have some."""
    largest = max(bytes_each(modality, world.size_px) for modality in world.modalities)
    room = max(BLOCK_BYTES // largest, min(_SHORTEST_BLOCK, _SHORTEST_BLOCK * BLOCK_BYTES // largest), 1)
    length = min(_LONGEST_BLOCK, room, max(1, -(-world.n // (2 * workers))))
    for start in range(0, world.n, length):
        yield range(start, min(start + length, world.n))


def _missing(world: World, folder: Path, numbers: Sequence[int]) -> bool:
    return any(not (folder / name).is_file() for number in numbers for _, _, name in world.files(number))


def _write_blocks(world: World, folder: Path, todo: Sequence[range], workers: int, progress: bool) -> None:
    from tqdm import tqdm

    total = sum(len(numbers) for numbers in todo)
    with tqdm(total=total, unit="scene", disable=None if progress else True) as bar:
        if workers == 0 or len(todo) < 2:
            for numbers in todo:
                write_block(world, folder, numbers)
                bar.update(len(numbers))
            return
        _in_processes(world, folder, todo, workers, bar.update)


def _in_processes(world: World, folder: Path, todo: Sequence[range], workers: int, tell: Callable[[int], Any]) -> None:
    import multiprocessing
    from concurrent.futures import ProcessPoolExecutor, as_completed

    from bindsearch.embed.workers import blocked

    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(min(workers, len(todo)), context, initializer=_be_worker)
    try:
        with blocked(_PARENTS):  # inherited: `_be_worker` ignores them, but imports come before it
            futures = {pool.submit(write_block, world, folder, numbers): len(numbers) for numbers in todo}
        for future in as_completed(futures):
            future.result()
            tell(futures[future])
        pool.shutdown()
    except BaseException:
        with _deaf():
            _end(pool, folder)
        raise


@contextlib.contextmanager
def _deaf() -> Iterator[None]:
    """Pass over further interrupts: one while the workers are ended would leave the process waiting for them."""
    if threading.current_thread() is not threading.main_thread():  # interrupts are the main thread's alone
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _end(pool: ProcessPoolExecutor, folder: Path) -> None:
    """Kill a pool's workers, and delete the files that they had begun."""
    processes = list((pool._processes or {}).values())  # `shutdown` forgets them
    pool.shutdown(wait=False, cancel_futures=True)
    for process in processes:
        process.kill()
    for process in processes:
        process.join()
        for begun in folder.glob(f".*.{process.pid}.tmp"):
            begun.unlink(missing_ok=True)


def _be_worker() -> None:
    """Leave interrupts to the parent, and its other CPUs to its other workers."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _PARENTS)
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[name] = "1"


def write_block(world: World, folder: Path, numbers: Sequence[int]) -> None:
    """Write the files of some scenes that are not there; each appears under its name when it is whole."""
    wanted: dict[tuple[str, str], list[tuple[int, Path]]] = {}
    for row, number in enumerate(numbers):
        for modality, language, name in world.files(number):
            if not (folder / name).is_file():
                wanted.setdefault((modality, language), []).append((row, folder / name))
    if not wanted:
        return
    scenes = world.scenes(numbers)
    for (modality, language), missing in wanted.items():
        some = scenes.rows(np.array([row for row, _ in missing]))
        for (_, path), value in zip(missing, render_values(some, modality, world.size_px, language), strict=True):
            _put(path, encode(value, modality))


def _put(path: Path, data: bytes) -> None:
    """Write a file under a hidden name and then give it its own."""
    temp = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temp.write_bytes(data)
        temp.replace(path)
    except BaseException:  # Ctrl-C as well
        temp.unlink(missing_ok=True)
        raise


# ---- tables ----------------------------------------------------------------------------------------------------------


def write_tables(world: World, folder: Path) -> Path:
    """Write attributes.parquet, a row a scene, and files.parquet, a manifest of the files that can be embedded."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from bindsearch.registry import MODALITIES

    there = {path.name for path in folder.iterdir()}  # calls for other modalities or fewer scenes leave some unwritten
    rows: list[dict[str, Any]] = []
    files: list[dict[str, Any]] = []
    for start in range(0, world.n, _LONGEST_BLOCK * 8):
        numbers = range(start, min(start + _LONGEST_BLOCK * 8, world.n))
        for number, row in zip(numbers, scene_rows(world.scenes(numbers), world.languages), strict=True):
            stem = world.stem(number)
            rows.append({"stem": stem, **row})
            captions = {language: row.pop(caption_column(language)) for language in world.languages}
            for modality, language, name in world.files(number):
                if modality in MODALITIES.built_in and name in there:
                    caption = captions[language if modality == "text" else world.languages[0]]
                    said = {"language": language if modality == "text" else None, "caption": caption, "group": stem}
                    files.append({"path": name, "modality": modality, **said, **row})
    for name, table in ((ATTRIBUTES, rows), (FILES, files)):
        if table:
            stream = io.BytesIO()
            pq.write_table(pa.Table.from_pylist(table), stream)
            _put(folder / name, stream.getvalue())
    return folder / ATTRIBUTES


def scene_rows(scenes: Scenes, languages: Sequence[str]) -> list[dict[str, Any]]:
    """Say of each scene its split, its attributes by name, its positions and its caption in each language."""
    labels = [{"split": split_of(int(label["seed"])), **label} for label in scenes.labels()]
    for language in languages:
        for label, text in zip(labels, render_values(scenes, "text", 0, language), strict=True):
            label[caption_column(language)] = text
    return labels


def caption_column(language: str) -> str:
    """Name the column of captions in a language."""
    return "caption" if language == "english" else f"caption_{language}"
