"""Labels without training and with a few examples, on scenes that nobody trained on, beside networks from scratch.

python -m benchmarks.bench_fewshot                                  # results/fewshot.json and fewshot.svg
python -m benchmarks.bench_fewshot --folder runs/worlds --networks 3

Zero-shot takes text prompts; few-shot a linear probe on 1, 2, 4 and 8 examples a label; beside it a network of the
tower's size with a linear layer learns the same examples from nothing. Files, embeddings, inputs and every trained
network's figure are kept in the folder, so that a run that was stopped goes on where it was.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.record import write_result, write_score
from benchmarks.shares import accuracy
from benchmarks.supervised import Schooling, train_and_test
from benchmarks.written import World, list_files, rows_of, write_files
from bindsearch.config import content_hash
from bindsearch.errors import InputError
from bindsearch.models.architecture import ArchitectureConfig, load_architecture
from bindsearch.models.spaces import load_space, path
from bindsearch.probe import fit_probe
from bindsearch.world.scene import Scenes, names, table
from bindsearch.zeroshot import Labels, build_classifier, calibrate

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from bindsearch.models.space import Space

COMMAND = "python -m benchmarks.bench_fewshot"
CARRIES = {
    "subject": ("image", "video", "audio", "depth", "thermal"),
    "setting": ("image", "video", "audio", "depth", "thermal"),
    "motion": ("image", "video", "depth", "thermal", "imu"),
}
MAIN = {**dict.fromkeys(CARRIES["subject"], "subject"), "imu": "motion"}
SHOTS = (1, 2, 4, 8)
PROBE_DRAWS = 5
CLIPS = 3


def prompts(attribute: str) -> dict[str, Labels]:
    """Give the labels of an attribute: as words alone, and as sentences that vary what else a caption says."""
    words = table("english")
    subjects = {name: [entry[0] for entry in entries] for name, entries in words["subject"].items()}
    articles = {name: f"{'an' if name[0] in 'aeiou' else 'a'} {name}" for name in subjects}
    if attribute == "subject":
        alone: dict[str, list[str]] = {name: [name] for name in subjects}
        said = {
            name: [f"{'an' if noun[0] in 'aeiou' else 'a'} {noun} {where[0]}" for noun in nouns for where in settings]
            for name, nouns in subjects.items()
            for settings in [list(words["setting"].values())]
        }
    elif attribute == "setting":
        alone = {name: [places[0]] for name, places in words["setting"].items()}
        said = {
            name: [f"{article} {where}" for article in articles.values() for where in places]
            for name, places in words["setting"].items()
        }
    else:
        alone = {name: [entry["ing"] for entry in entries] for name, entries in words["motion"].items()}
        said = {
            name: [f"{article} {entry['ing']}" for article in articles.values() for entry in entries]
            for name, entries in words["motion"].items()
        }
    return {"words": Labels.of(alone), "sentences": Labels.of(said)}


def measure_zero_shot(
    space: Space, scenes: Scenes, rows: Mapping[str, NDArray[np.float32]]
) -> dict[str, dict[str, Any]]:
    """Classify every modality by text prompts: attribute -> modality -> accuracies and calibration."""
    found: dict[str, dict[str, Any]] = {}
    for attribute, carriers in CARRIES.items():
        codes = getattr(scenes, attribute).astype(np.int16)
        truth = [names(attribute)[code] for code in codes]
        labels = {how: build_classifier(space, given, "plain") for how, given in prompts(attribute).items()}
        found[attribute] = {}
        for modality in (name for name in carriers if name in rows):
            figures: dict[str, Any] = {}
            for how, classifier in labels.items():
                order = np.array([names(attribute).index(name) for name in classifier.labels])
                best = order[classifier.scores(rows[modality]).argmax(axis=1)].astype(np.int16)
                figures[how] = accuracy(codes, best)
            fit = calibrate(labels["sentences"], rows[modality], [modality] * len(codes), truth).fits[modality]
            figures["calibration error"] = {"as trained": fit.before.ece, "calibrated": fit.after.ece}
            figures["scale"] = {"as trained": labels["sentences"].scales[modality], "calibrated": fit.scale}
            if fit.none_after is not None:
                figures["none of these"] = {"accuracy": fit.none_after.accuracy, "error": fit.none_after.ece}
            found[attribute][modality] = figures
    return found


def draw(codes: NDArray[np.int16], shots: int, number: int) -> NDArray[np.int64]:
    """Draw so many examples of every value; the same for probe and network."""
    rng = np.random.default_rng([number, shots])
    picked = [rng.choice(np.flatnonzero(codes == code), shots, replace=False) for code in np.unique(codes)]
    return np.concatenate(picked)


def summary(values: list[float]) -> dict[str, Any]:
    """Give mean, standard deviation and extremes of some draws."""
    spread = float(np.std(values, ddof=1)) if len(values) > 1 else 0.0
    return {
        "mean": round(float(np.mean(values)), 4),
        "deviation": round(spread, 4),
        "min": round(min(values), 4),
        "max": round(max(values), 4),
        "draws": [round(value, 4) for value in values],
    }


def measure_probe(
    pool: tuple[NDArray[np.float32], NDArray[np.int16]], test: tuple[NDArray[np.float32], NDArray[np.int16]]
) -> dict[str, Any]:
    """Fit a linear probe on each draw of each number of shots."""
    figures = {}
    for shots in SHOTS:
        values = []
        for number in range(PROBE_DRAWS):
            drawn = draw(pool[1], shots, number)
            probe = fit_probe(pool[0][drawn], [str(code) for code in pool[1][drawn]])
            values.append(float(np.mean([int(name) for name in probe.predict(test[0])] == test[1])))
        figures[str(shots)] = summary(values)
    return figures


# ---- networks from scratch -------------------------------------------------------------------------------------------


def inputs_of(space: Space, world: World, home: Path, modality: str, first: int) -> NDArray[np.float16]:
    """Decode and preprocess a world's first files as `space.embed` does, kept on disk.

    Returns:
        (first, S, ...) float16; of a video's clips CLIPS, evenly chosen.
    """
    config = space.config(modality)
    file = home / "inputs" / f"{world.name}-{first}-{modality}-{config.id.replace(':', '_')}.npy"
    if file.exists():
        return np.load(file, allow_pickle=False, mmap_mode="r")
    kind = space.modality(modality)
    paths = list_files(world, write_files(world, home, (modality,)), modality)[:first]
    parts = []
    for one in paths:
        clips = kind.preprocess(kind.decode(kind.source_of(one), config), config)
        kept = np.linspace(0, len(clips) - 1, min(len(clips), CLIPS)).round().astype(int)
        parts.append(clips[kept].astype(np.float16))
    rows = np.stack(parts)
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = file.with_suffix(".tmp.npy")
    np.save(temporary, rows)
    temporary.replace(file)
    return rows


class Cells:
    """Figures of trained networks, kept in a file as soon as they are there.

    Args:
        file: JSON; a run that finds it goes on from it.
    """

    def __init__(self, file: Path) -> None:
        """Read what is there."""
        self.file = file
        self.known: dict[str, Any] = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}

    def get(self, facts: Mapping[str, Any], make: Any) -> dict[str, Any]:
        """Give the figure of a network; it is trained where nothing is known of exactly these facts."""
        key = content_hash(dict(facts), 16)
        if key not in self.known:
            self.known[key] = {**{name: facts[name] for name in ("modality", "shots", "draw")}, **make()}
            temporary = self.file.with_suffix(".tmp")
            temporary.parent.mkdir(parents=True, exist_ok=True)
            temporary.write_text(json.dumps(self.known, indent=1), encoding="utf-8")
            temporary.replace(self.file)
        found: dict[str, Any] = self.known[key]
        return found


def measure_network(
    architecture: ArchitectureConfig,
    modality: str,
    pool: tuple[NDArray[Any], NDArray[np.int16]],
    test: tuple[NDArray[Any], NDArray[np.int16]],
    cells: Cells,
    draws: int,
    schooling: Schooling,
) -> dict[str, Any]:
    """Train a network of the tower's size on each draw of each number of shots, one kept cell after the other."""
    tower = architecture.tower("vision" if modality in ("image", "video") else modality)
    digest = content_hash([float(np.float64(part[0]).sum()) for part in (pool, test)] + [len(test[1])])
    figures = {}
    for shots in SHOTS:
        made = []
        for number in range(draws):
            facts = {
                "modality": modality,
                "shots": shots,
                "draw": number,
                "tower": content_hash(tower),
                "inputs": digest,
                "schooling": content_hash(schooling),
            }
            drawn = draw(pool[1], shots, number)
            examples = (np.asarray(pool[0])[drawn], pool[1][drawn].astype(np.int64))
            asked = (test[0], test[1].astype(np.int64))
            made.append(
                cells.get(
                    facts,
                    lambda e=examples, a=asked, seed=number: train_and_test(
                        architecture, modality, e, a, schooling, seed
                    ),
                )
            )
            print(f"{modality}, {shots} shots, draw {number}: {made[-1]}", flush=True)
        figures[str(shots)] = {
            **summary([cell["accuracy"] for cell in made]),
            "right of the shots": round(float(np.mean([cell["on the shots"] for cell in made])), 4),
            "cut off": sum(cell["cut off"] for cell in made),
        }
    return figures


# ---- report ----------------------------------------------------------------------------------------------------------


def draw_plot(result: Mapping[str, Any], file: Path) -> None:
    """Draw a small plot a modality: probe, network from scratch, zero-shot, chance."""
    import matplotlib as mpl

    mpl.use("svg")
    mpl.rcParams["svg.hashsalt"] = "fewshot"
    from matplotlib import pyplot as plt

    curves = result["few-shot"]
    figure, grid = plt.subplots(1, len(curves), figsize=(2.6 * len(curves), 3.0), sharey=True, squeeze=False)
    for axes, (modality, one) in zip(grid[0], curves.items(), strict=True):
        for name, colour in (("linear probe", "#2f6fde"), ("network from scratch", "#c8453d")):
            cells = one.get(name)
            if cells:
                means, spreads = ([cell[key] for cell in cells.values()] for key in ("mean", "deviation"))
                axes.errorbar([int(k) for k in cells], means, spreads, marker="o", capsize=2, color=colour, label=name)
        axes.axhline(one["zero-shot"], color="#12877b", linestyle="--", linewidth=1.2, label="zero-shot, text prompts")
        axes.axhline(one["chance"], color="black", linestyle=":", linewidth=0.8, label="chance")
        axes.set_xscale("log", base=2)
        axes.set_xticks(SHOTS, [str(k) for k in SHOTS])
        axes.set_ylim(0, 1.02)
        axes.set_title(f"{modality}: {one['attribute']}", fontsize=9)
        axes.set_xlabel("examples a label", fontsize=8)
    grid[0][0].set_ylabel(f"accuracy, {result['few-shot tested on']:,} unseen scenes", fontsize=8)
    handles, labels = grid[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="lower center", ncol=4, fontsize=8)
    figure.tight_layout(rect=(0, 0.08, 1, 1))
    figure.savefig(file, metadata={"Date": None})


def write_scores(result: Mapping[str, Any]) -> None:
    """Put the headline figures on the scoreboard."""
    for attribute, by_modality in result["zero-shot"].items():
        for modality, figures in by_modality.items():
            if MAIN[modality] == attribute or attribute == "setting":
                figure = figures["sentences"]
                target = f"reported; chance {1 / len(names(attribute)):.3f}"
                write_score(f"zero-shot: {modality}, {attribute}", figure["value"], "top-1", target, COMMAND, figure)
    for modality, one in result["few-shot"].items():
        for shots in (1, 8):
            probe, network = one["linear probe"][str(shots)], one.get("network from scratch", {}).get(str(shots))
            target = f"> {network['mean']:.3f} of a network from scratch" if network else "reported"
            spread = {"runs": len(probe["draws"]), "min": probe["min"], "max": probe["max"], "mean": probe["mean"]}
            name = f"few-shot: {modality}, {one['attribute']}, {shots} a label"
            write_score(name, probe["mean"], "accuracy", target, COMMAND, spread)


def architecture_of(space: Space) -> ArchitectureConfig:
    """Read the numbers of a space's towers: from its folder, or the packaged ones of a space that keeps none."""
    try:
        return load_architecture(path(space.name) / "space.json")
    except InputError:
        return load_architecture(space.name.partition(":")[0])


def measure(space: Space, arguments: argparse.Namespace) -> dict[str, Any]:
    """Measure everything that the space can read."""
    home = Path(arguments.folder)
    test, pool = World("test-full", "test", arguments.n), World("shots-full", "test", arguments.pool, 600_000)
    present = [modality for modality in MAIN if modality in space.modalities]
    rows = {modality: rows_of(space, test, home, modality) for modality in present}
    architecture = architecture_of(space)
    tested = min(arguments.tested, arguments.n)
    result: dict[str, Any] = {
        "space": space.space_id,
        "n": arguments.n,
        "few-shot tested on": tested,
        "zero-shot": measure_zero_shot(space, test.scenes, rows),
        "few-shot": {},
        "not in the space": [modality for modality in MAIN if modality not in present],
        "schooling": dict(vars(Schooling())) if arguments.networks else {},
    }
    cells = Cells(home / "networks.json")
    for modality in present:
        attribute = MAIN[modality]
        own, asked = (getattr(world.scenes, attribute).astype(np.int16) for world in (pool, test))
        shots = (rows_of(space, pool, home, modality), own)
        one: dict[str, Any] = {
            "attribute": attribute,
            "chance": round(1 / len(names(attribute)), 4),
            "zero-shot": result["zero-shot"][attribute][modality]["sentences"]["value"],
            "linear probe": measure_probe(shots, (rows[modality][:tested], asked[:tested])),
        }
        if arguments.networks:
            examples = (inputs_of(space, pool, home, modality, arguments.pool), own)
            exam = (inputs_of(space, test, home, modality, tested), asked[:tested])
            one["network from scratch"] = measure_network(
                architecture, modality, examples, exam, cells, arguments.networks, Schooling()
            )
        result["few-shot"][modality] = one
    return result


def main() -> None:
    """Measure, print, write JSON and plot."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--space", default="bindsearch-mini")
    parser.add_argument("--folder", default="runs/fewshot", help="of files, embeddings and trained cells")
    parser.add_argument("--n", type=int, default=2000, help="scenes of the zero-shot test")
    parser.add_argument("--tested", type=int, default=1000, help="of them, scenes of the few-shot test")
    parser.add_argument("--pool", type=int, default=800, help="scenes that examples are drawn from")
    parser.add_argument("--networks", type=int, default=2, help="draws a network from scratch is trained on; 0: none")
    parser.add_argument("--dry", action="store_true", help="print only; leave the results as they are")
    arguments = parser.parse_args()
    began = time.time()
    result = measure(load_space(arguments.space), arguments)
    result["seconds"] = round(time.time() - began)
    if not arguments.dry:
        file = write_result("fewshot", result)
        draw_plot(result, file.with_suffix(".svg"))
        if arguments.n == 2000:
            write_scores(result)
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
