"""What the visual cache does to answers about sound, depth, heat and motion: the paper's claim, measured.

python -m benchmarks.bench_answers --pairs runs/pair-0/pair runs/pair-1/pair runs/pair-2/pair \
    --caches runs/cache/10000/cache runs/cache/100000/cache   # bench_cache --keep N; results/answers.json, .svg

A pair was trained on images and text alone. It is asked one question of each kind about each of 1,000 unseen scenes
(split test), given as image, video, audio, depth, thermal or IMU; an answer is right when it names the scene's value
and no other. Cache size k, inverse temperature and weight are chosen for each modality and cache on 300 other scenes
(validation) with the first pair, then swept one at a time on the test scenes around the choice, with the largest cache.
Beside every figure: the majority answer's rate, the same pairs reading zeros, and reading another scene's embedding
(with a cache: the first pair).

Intervals of 95 % are bootstrapped over scenes, of the mean over pairs; pairs (seeds) are given one by one as well. What
was answered is kept in --folder: a run that is stopped goes on. Two processes may share the work: give each --threads 1
and its own --modalities; such a run answers and writes nothing, the last run without --modalities reads what they kept.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import itertools
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.record import write_result, write_score
from bindsearch.cache import VisualCache, mix
from bindsearch.config import content_hash
from bindsearch.llm.conversations import Chat
from bindsearch.llm.pair import Pair, load_pair
from bindsearch.models.spaces import load_space
from bindsearch.train.answer_measure import answer_all, ask_about
from bindsearch.train.picture_rows import embed_scenes
from bindsearch.world.instructions import ATTRIBUTES, CLOSED, ask, read_answer
from bindsearch.world.scene import ABSENT, Scenes, sample, split_seeds

COMMAND = "python -m benchmarks.bench_answers --pairs ... --caches ..."
MODALITIES = ("image", "video", "audio", "depth", "thermal", "imu")
KINDS = (*ATTRIBUTES, *CLOSED)
CHOSEN_ON = {
    "image": ("subject", "colour", "setting"),
    "video": ("subject", "colour", "motion"),
    "audio": ("subject", "setting"),
    "depth": ("subject", "setting", "motion"),
    "thermal": ("subject", "setting", "motion"),
    "imu": ("motion",),
}
"""What each modality carries, and its settings are chosen by."""
GRID = tuple(itertools.product((1, 10, 50), (5.0, 20.0, 50.0), (0.25, 0.5, 0.75, 1.0)))
SWEPT = {"k": (1, 3, 10, 30, 100), "t": (0.0, 5.0, 20.0, 50.0, 100.0), "w": (0.0, 0.25, 0.5, 0.75, 1.0)}
AXES = ("k", "t", "w")
PICTURE_PX, BLUR_PX = 64, 4
DRAWS = 2000


@dataclass(frozen=True)
class Blend:
    """A cache with its numbers; no cache where the name is empty."""

    name: str = ""
    k: int = 10
    t: float = 20.0
    w: float = 0.5


@dataclass(frozen=True)
class Asked:
    """Scenes and their embeddings by modality."""

    split: str
    scenes: Scenes
    rows: dict[str, np.ndarray]


class Answers:
    """Asks, and keeps whether answers were right: one file a pair, rows, blend and kind.

    Attributes:
        pairs: by number.
        caches: by name.
    """

    def __init__(self, pairs: list[Pair], caches: dict[str, VisualCache], folder: Path) -> None:
        self.pairs, self.caches, self.folder = pairs, caches, folder
        self.asked = 0
        folder.mkdir(parents=True, exist_ok=True)

    def right(self, pair: int, asked: Asked, modality: str, kind: str, blend: Blend, how: str = "") -> np.ndarray:
        """Say which answers are right: (n,) int8 of 1 and 0, -1 where the scene has no such attribute."""
        read = "" if how == "zeroed" else modality
        facts = [self.pairs[pair].manifest.files, asked.split, len(asked.scenes), read, kind, vars(blend), how]
        if blend.name:
            facts.append(len(self.caches[blend.name]))
        path = self.folder / f"{content_hash(facts, 20)}.npy"
        if path.is_file():
            found: np.ndarray = np.load(path, allow_pickle=False)
            return found
        rows = self.moved(asked.rows[modality], blend, how)
        model = self.pairs[pair].model
        chat = Chat(model.tokenizer, context_tokens=model.llama.config.max_position_embeddings)
        right = ask_about(model.connection, chat, rows, asked.scenes, kind)
        np.save(path.with_suffix(".tmp.npy"), right)
        path.with_suffix(".tmp.npy").replace(path)
        self.asked += len(right)
        return right

    def moved(self, rows: np.ndarray, blend: Blend, how: str) -> np.ndarray:
        """Give the embeddings as the pair reads them."""
        if how == "zeroed":
            return np.zeros_like(rows)
        if how == "shuffled":
            rows = rows[np.random.default_rng(0).permutation(len(rows))]
        if not blend.name:
            return rows
        cache = self.caches[blend.name]
        return np.asarray(cache.enhance(rows, min(blend.k, len(cache)), blend.t, blend.w))


def embedded(space: Any, split: str, n: int, folder: Path, modalities: tuple[str, ...] = MODALITIES) -> Asked:
    """Embed the first n scenes of a split in every modality, once."""
    scenes, rows = sample(split_seeds(split, n)), {}
    folder.mkdir(parents=True, exist_ok=True)
    for modality in modalities:
        path = folder / f"{split}-{n}-{modality}-{space.tower_id(modality).split('@')[-1]}.npy"
        if not path.is_file():
            np.save(path, embed_scenes(space, modality, scenes, PICTURE_PX))
        rows[modality] = np.load(path, allow_pickle=False)
    return Asked(split, scenes, rows)


def choose(answers: Answers, asked: Asked, modality: str, cache: str, grid: tuple[Any, ...]) -> tuple[Blend, float]:
    """Choose k, t and w for a modality and a cache, by the mean share of right answers; the first pair answers."""
    best = (Blend(cache), -1.0)
    for k, t, w in grid:
        blend = Blend(cache, k, t, w)
        shares = [share(answers.right(0, asked, modality, kind, blend)) for kind in CHOSEN_ON[modality]]
        if float(np.mean(shares)) > best[1]:
            best = (blend, float(np.mean(shares)))
    return best


def share(right: np.ndarray) -> float:
    """Give the share of right answers among those asked."""
    return float((right == 1).sum() / max(1, (right >= 0).sum()))


def figure(rights: list[np.ndarray]) -> dict[str, Any]:
    """Give the mean over pairs with its interval, bootstrapped over scenes, and each pair's share.

    Args:
        rights: one a pair, (n,) int8 as `Answers.right`. Not modified.
    """
    table = np.stack([right[rights[0] >= 0] for right in rights]).astype(np.float64)
    means = table.mean(axis=0)
    rng = np.random.default_rng(0)
    drawn = means[rng.integers(0, len(means), (DRAWS, len(means)))].mean(axis=1)
    low, high = np.quantile(drawn, [0.025, 0.975])
    return {
        "value": round(float(means.mean()), 4),
        "low": round(float(low), 4),
        "high": round(float(high), 4),
        "n": len(means),
        "pairs": [round(float(row.mean()), 4) for row in table],
    }


def gain(with_cache: list[np.ndarray], without: list[np.ndarray]) -> dict[str, float]:
    """Give what a cache adds, with the interval of the paired difference."""
    there = without[0] >= 0
    moved = np.stack([a[there].astype(np.float64) - b[there] for a, b in zip(with_cache, without, strict=True)])
    means = moved.mean(axis=0)
    rng = np.random.default_rng(0)
    low, high = np.quantile(means[rng.integers(0, len(means), (DRAWS, len(means)))].mean(axis=1), [0.025, 0.975])
    return {"value": round(float(means.mean()), 4), "low": round(float(low), 4), "high": round(float(high), 4)}


def majority(scenes: Scenes, kind: str) -> float:
    """Give the rate of the commonest answer."""
    codes = ask(scenes, kind, plain=True).codes
    there = codes[codes != ABSENT]
    return round(float(np.bincount(there).max() / len(there)), 4)


def measure(answers: Answers, asked: Asked, blends: dict[tuple[str, str], Blend], say: Any) -> dict[str, Any]:
    """Answer every kind of question about every modality, without a cache and with each; and the controls."""
    tables: dict[str, Any] = {}
    pairs = range(len(answers.pairs))
    for modality, kind in itertools.product(asked.rows, KINDS):
        plain = [answers.right(pair, asked, modality, kind, Blend()) for pair in pairs]
        row: dict[str, Any] = {"majority": majority(asked.scenes, kind), "without": figure(plain)}
        for how in ("zeroed", "shuffled"):
            row[how] = figure([answers.right(pair, asked, modality, kind, Blend(), how) for pair in pairs])
        for name in answers.caches:
            blend = blends[modality, name]
            moved = [answers.right(pair, asked, modality, kind, blend) for pair in pairs]
            row[name] = {**figure(moved), "gain": gain(moved, plain)}
            row[name]["shuffled"] = share(answers.right(0, asked, modality, kind, blend, "shuffled"))
        tables.setdefault(modality, {})[kind] = row
        shown = {name: row[name]["value"] for name in ("without", "zeroed", "shuffled", *answers.caches)}
        say(f"{modality} {kind}: majority {row['majority']} {shown}")
    return tables


def sweep(answers: Answers, asked: Asked, name: str, blends: dict[tuple[str, str], Blend]) -> list[dict[str, Any]]:
    """Move one number of the blend at a time, with the largest cache and the first pair."""
    rows = []
    for modality in asked.rows:
        start = blends[modality, name]
        for axis, value in ((each, value) for each in AXES for value in SWEPT[each]):
            blend = dataclasses.replace(start, **{axis: value})
            for kind in CHOSEN_ON[modality]:
                right = answers.right(0, asked, modality, kind, blend)
                rows.append({"modality": modality, "kind": kind, "axis": axis, "at": value, "right": figure([right])})
    return rows


def both_needed(answers: Answers, space: Any, n: int, cache: str, choice: Asked, folder: Path) -> dict[str, Any]:
    """Ask what neither a sound nor a picture can answer alone; see `Mixed`."""
    out = {}
    for task in (Mixed("setting"), Mixed("colour")):
        chosen = task.choose(answers, space, len(choice.scenes), folder, cache)
        out[task.kind] = {**task.measure(answers, space, n, folder, chosen), "chosen": chosen}
    return out


@dataclass(frozen=True)
class Mixed:
    """A sound of a subject alone, and a picture that does not tell the subject.

    Attributes:
        second: setting (the picture shows a setting without any subject) or colour (the picture is so blurred that its
            colours are left, and of its subject half).
    """

    second: str

    @property
    def kind(self) -> str:
        """Kind of the question."""
        return f"subject_{self.second}"

    def rows(self, space: Any, split: str, n: int, folder: Path) -> tuple[Scenes, dict[str, np.ndarray]]:
        """Give n scenes, and the embeddings of their sounds and pictures."""
        scenes = sample(split_seeds(split, n, 500_000))
        path = folder / f"mixed-{self.second}-{BLUR_PX}-{split}-{n}-{space.space_id.split('@')[-1]}.npz"
        if not path.is_file():
            subject = sample(scenes.seed, "subject")
            sound = embed_scenes(space, "audio", subject)
            if self.second == "setting":
                picture = embed_scenes(space, "image", setting_alone(scenes))
            else:
                picture = embed_blurred(space, scenes)
            np.savez(path, audio=sound, image=picture)
        with np.load(path, allow_pickle=False) as found:
            return scenes, {name: found[name] for name in ("audio", "image")}

    def right(self, pair: Pair, scenes: Scenes, rows: np.ndarray) -> dict[str, np.ndarray]:
        """Ask, and say which answers name the subject, the second attribute, and both."""
        question = ask(scenes, self.kind, plain=True)
        chat = Chat(pair.model.tokenizer)
        texts = answer_all(pair.model.connection, chat, rows, [turn.question for turn in question.turns])
        first = np.array([read_answer("subject", text) for text in texts]) == scenes.subject
        second = np.array([read_answer(self.second, text) for text in texts]) == getattr(scenes, self.second)
        return {"subject": first, self.second: second, "both": first & second}

    def choose(self, answers: Answers, space: Any, n: int, folder: Path, cache: str) -> dict[str, Any]:
        """Choose the picture's weight beside the sound's 1, and whether the cache helps, on other scenes."""
        scenes, rows = self.rows(space, "validation", n, folder)
        best: dict[str, Any] = {"share": -1.0}
        for weight, name in itertools.product((0.5, 1.0, 2.0), ("", cache)):
            moved = self.mixture(answers, rows, weight, name)
            value = float(self.right(answers.pairs[0], scenes, moved)["both"].mean())
            if value > best["share"]:
                best = {"share": round(value, 4), "weight": weight, "cache": name}
        return best

    def mixture(self, answers: Answers, rows: dict[str, np.ndarray], weight: float, cache: str) -> np.ndarray:
        """Mix as the model's prompt does, then move with the cache where one is named, by the reference's numbers."""
        mixed = mix([rows["audio"], rows["image"]], [1.0, weight])
        return np.asarray(answers.caches[cache].enhance(mixed)) if cache else mixed

    def measure(self, answers: Answers, space: Any, n: int, folder: Path, how: dict[str, Any]) -> dict[str, Any]:
        """Measure the mixture, and each of its parts alone, with every pair."""
        scenes, rows = self.rows(space, "test", n, folder)
        given = {
            "image + audio": self.mixture(answers, rows, how["weight"], how["cache"]),
            "image + audio, 1:1, no cache": mix([rows["audio"], rows["image"]], [1.0, 1.0]),
            "audio alone": rows["audio"],
            "image alone": rows["image"],
        }
        shuffled = rows["image"][np.random.default_rng(0).permutation(n)]
        given["audio + another scene's image"] = mix([rows["audio"], shuffled], [1.0, how["weight"]])
        out: dict[str, Any] = {}
        for name, each in given.items():
            told = [self.right(pair, scenes, each) for pair in answers.pairs]
            out[name] = {part: figure([one[part].astype(np.int8) for one in told]) for part in told[0]}
        return out


def setting_alone(scenes: Scenes) -> Scenes:
    """Give the same scenes without their subjects."""
    empty = sample(scenes.seed, "setting")
    fields = {name: getattr(empty, name) for name in vars(empty)}
    return Scenes(**{**fields, "setting": scenes.setting})


def embed_blurred(space: Any, scenes: Scenes, block: int = 250) -> np.ndarray:
    """Render pictures, average them over blocks of BLUR_PX pixels and embed them."""
    from bindsearch.world.image import render_images

    parts = []
    for at in range(0, len(scenes), block):
        pictures = render_images(scenes.rows(slice(at, at + block)), PICTURE_PX)
        side = PICTURE_PX // BLUR_PX
        means = pictures.reshape(len(pictures), side, BLUR_PX, side, BLUR_PX, 3).mean(axis=(2, 4))
        coarse = np.repeat(np.repeat(means, BLUR_PX, axis=1), BLUR_PX, axis=2).round().astype(np.uint8)
        parts.append(space.embed("image", list(coarse)))
    return np.concatenate(parts)


def plot(tables: dict[str, Any], caches: list[str], path: Path) -> None:
    """Draw each modality's questions: without a cache, with each, the majority's rate as a line."""
    import matplotlib as mpl

    mpl.use("svg")
    mpl.rcParams["svg.hashsalt"] = "bindsearch"
    from matplotlib import pyplot as plt

    figure_, panels = plt.subplots(len(tables), 1, figsize=(9.0, 2.1 * len(tables)), squeeze=False, sharex=True)
    shown = ["without", *caches]
    for axes, (modality, kinds) in zip(panels[:, 0], tables.items(), strict=True):
        places = np.arange(len(kinds))
        for number, name in enumerate(shown):
            values = np.array([[kinds[kind][name][end] for end in ("value", "low", "high")] for kind in kinds])
            at = places + (number - (len(shown) - 1) / 2) * 0.8 / len(shown)
            errors = np.abs(values[:, 1:] - values[:, :1]).T
            axes.bar(at, values[:, 0], 0.8 / len(shown), yerr=errors, label=name, error_kw={"lw": 0.6})
        lines = [kinds[kind]["majority"] for kind in kinds]
        axes.hlines(lines, places - 0.45, places + 0.45, colors="black", lw=1, label="majority")
        axes.set(ylim=(0, 1.02), ylabel=modality, xticks=places)
    panels[-1, 0].set_xticklabels([kind.replace("is_", "is it? ") for kind in tables["image"]], rotation=30, fontsize=7)
    panels[0, 0].legend(fontsize=6, ncols=len(shown) + 1, loc="upper center", bbox_to_anchor=(0.5, 1.25))
    figure_.tight_layout()
    figure_.savefig(path, metadata={"Date": None})
    plt.close(figure_)


def write_scores(tables: dict[str, Any], mixed: dict[str, Any], caches: list[str]) -> None:
    """Write the rows of the scoreboard."""
    for kind in ("subject", "colour"):
        row = tables["image"][kind]["without"]
        write_score(f"answers: image, {kind}", row["value"], "share right", ">= 0.9", COMMAND, row)
    if caches:
        row = tables["audio"]["subject"][caches[-1]]
        write_score("answers: audio, subject, with the cache", row["value"], "share right", ">= 0.75", COMMAND, row)
        for modality in ("audio", "depth", "thermal", "imu"):
            kind = CHOSEN_ON[modality][0]
            row = tables[modality][kind][caches[-1]]["gain"]
            name = f"answers: what the cache adds, {modality}, {kind}"
            write_score(name, row["value"], "share right", "reported", COMMAND, row)
    for kind, row in mixed.items():
        best = row["image + audio"]["both"]
        name = f"answers: image + audio, {kind.replace('_', ' and ')}"
        write_score(name, best["value"], "share right in both", "above either alone", COMMAND, best)


def open_caches(folders: list[Path], space_id: str) -> dict[str, VisualCache]:
    """Open caches, smaller ones first, and name them by how many pictures they hold: 10k, 100k, 3M."""
    opened = {}
    for cache in map(VisualCache.open, folders):
        opened[f"{len(cache) / 1e6:g}M" if len(cache) >= 1e6 else f"{len(cache) / 1e3:g}k"] = cache
    for name, cache in opened.items():
        if cache.index is not None and cache.index.manifest.space_id != space_id:
            raise SystemExit(f"{name}: of {cache.index.manifest.space_id}; the pairs read {space_id}.")
    return dict(sorted(opened.items(), key=lambda one: len(one[1])))


def chosen_blends(answers: Answers, asked: Asked, grid: tuple[Any, ...], say: Any) -> dict[tuple[str, str], Blend]:
    """Choose a blend for every modality and cache."""
    blends = {}
    for name, modality in itertools.product(answers.caches, asked.rows):
        blend, value = choose(answers, asked, modality, name, grid)
        blends[modality, name] = blend
        say(f"chosen for {modality} with {name}: k {blend.k}, t {blend.t:g}, w {blend.w:g} ({value:.3f})")
    return blends


def stamps() -> Iterator[str]:
    """Give the time since the start, again and again."""
    began = time.monotonic()
    while True:
        yield f"{(time.monotonic() - began) / 60:6.1f} min"


def main() -> None:
    """Measure, print, write JSON, plot and the scoreboard's rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=Path, nargs="+", required=True, help="folders of pairs, one a seed")
    parser.add_argument("--caches", type=Path, nargs="*", default=[], help="folders of caches")
    parser.add_argument(
        "--folder", type=Path, default=Path("runs/answers"), help="embeddings and answers are kept here"
    )
    parser.add_argument("--scenes", type=int, default=1000)
    parser.add_argument("--choose-on", type=int, default=300)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--modalities", nargs="+", choices=MODALITIES, help="answer about these alone and write nothing"
    )
    parser.add_argument("--quick", action="store_true", help="120 scenes, a small grid, no sweep, nothing written")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    n, other, grid = (120, 60, GRID[4:16:3]) if arguments.quick else (arguments.scenes, arguments.choose_on, GRID)
    pairs = [load_pair(folder) for folder in arguments.pairs]
    space, clock = load_space(pairs[0].manifest.space), stamps()
    for pair in pairs:
        pair.check_space(space.space_id)

    def say(line: str) -> None:
        print(next(clock), line, flush=True)

    home = arguments.folder
    answers = Answers(pairs, open_caches(arguments.caches, space.space_id), home / "right")
    caches = list(answers.caches)
    kinds = tuple(arguments.modalities or MODALITIES)
    tests, choices = (
        embedded(space, split, size, home / "rows", kinds) for split, size in (("test", n), ("validation", other))
    )
    blends = chosen_blends(answers, choices, grid, say)
    tables = measure(answers, tests, blends, say)
    swept = [] if arguments.quick or not caches else sweep(answers, tests, caches[-1], blends)
    if arguments.modalities:
        say(f"answered about {', '.join(kinds)}: {answers.asked} answers in this run, kept")
        return
    mixed = both_needed(answers, space, n, caches[-1] if caches else "", choices, home / "rows")
    say(json.dumps(mixed))
    result = {
        "space": space.space_id,
        "pairs": [hashlib.sha256(json.dumps(pair.manifest.files).encode()).hexdigest()[:12] for pair in pairs],
        "caches": {name: len(cache) for name, cache in answers.caches.items()},
        "chosen": {f"{modality}, {name}": vars(blend) for (modality, name), blend in blends.items()},
        "answers": tables,
        "both needed": mixed,
        "swept": swept,
        "scenes": n,
    }
    if arguments.quick:
        print(json.dumps(result["both needed"], indent=1))
        return
    path = write_result("answers", result)
    plot(tables, caches, path.with_suffix(".svg"))
    write_scores(tables, mixed, caches)
    say(f"wrote {path.name}; {answers.asked} answers in this run")


if __name__ == "__main__":
    main()
