"""One variant of an ablation: a small tower bound to a frozen image tower, and what it then finds."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from benchmarks.shares import accuracy
from bindsearch.config import content_hash, from_json_dict
from bindsearch.models.architecture import load_preprocess
from bindsearch.models.bind import ArchitectureConfig, Tower, build_tower
from bindsearch.models.manifest import load_manifest
from bindsearch.models.spaces import path as space_folder
from bindsearch.models.weights import load_tower
from bindsearch.train.binding import Run, embed_rows, text_stage
from bindsearch.train.config import StageConfig, TrainConfig
from bindsearch.train.loop import Batch, Stage, train_stage
from bindsearch.train.measure import top_hits
from bindsearch.train.pairs import PREPARE, BatchDrawer, TextRows, alike, normalise_images
from bindsearch.train.pool import RENDERERS, pool_scenes, render_pool
from bindsearch.world.scene import Scenes, sample, split_seeds

if TYPE_CHECKING:
    from numpy.typing import NDArray

SHIPPED = "shipped"
WORDINGS = 3
CHECKPOINT_S, LOG_STEPS = 60.0, 50
FIRST_STAGE = "first stage"


@dataclass(frozen=True)
class Bench:
    """What all variants share.

    Attributes:
        plan: variants.json.
        folder: of pools, embeddings, checkpoints and results.
        workers: processes that render.
    """

    plan: Mapping[str, Any]
    folder: Path
    workers: int = 2

    @property
    def numbers(self) -> dict[str, dict[str, Any]]:
        """Preprocessing of the space whose image tower is the anchor."""
        kept = load_manifest(space_folder(self.plan["space"])).preprocess
        return {name: dict(values) for name, values in {**load_preprocess(self.plan["space"]), **kept}.items()}

    @property
    def validation(self) -> Scenes:
        """Scenes that variants are measured on."""
        return sample(split_seeds("validation", self.plan["validation"]))

    def architecture(self, towers: Mapping[str, str], variant: Mapping[str, Any]) -> ArchitectureConfig:
        """Put an architecture together: tower -> its entry in the plan, with the variant's own numbers."""
        data = {name: {**self.plan["towers"][entry], **variant.get("tower", {})} for name, entry in towers.items()}
        whole = {"name": "ablation", "dim": self.plan["dim"], "num_cls_tokens": variant.get("num_cls_tokens", 1)}
        return from_json_dict(ArchitectureConfig, {**whole, "towers": data}, "variants.json")

    def kept(self, name: str, make: Callable[[], NDArray[Any]]) -> NDArray[Any]:
        """Read an array that an earlier run made, or make it."""
        path = self.folder / "arrays" / f"{name}.npy"
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary = path.with_suffix(".tmp.npy")
            np.save(temporary, make())
            temporary.replace(path)
        return np.load(path, allow_pickle=False)

    def pool(self, modality: str, stage: StageConfig) -> NDArray[Any]:
        """Render, or read, the scenes that a stage trains on."""
        span = (stage.first_scene, stage.pool)
        return render_pool(
            modality, self.folder / "pool", span, stage.partial, self.numbers[modality], workers=self.workers
        )

    def second_stage(self, variant: Mapping[str, Any], modality: str) -> StageConfig:
        """Give the numbers of a variant's run."""
        data = {**self.plan["second_stage"], **variant.get("stage", {})}
        return from_json_dict(StageConfig, {"name": slug(variant["name"], modality), "modality": modality, **data})

    def first_stage(self, tower: str) -> StageConfig:
        """Give the numbers of a run that trains an image tower with text."""
        return from_json_dict(StageConfig, {"name": slug(FIRST_STAGE, tower), **self.plan["first_stage"]})


def slug(*words: str) -> str:
    """Make a file name."""
    return "-".join(words).replace(",", "").replace(" ", "-").lower()


class Anchors:
    """The frozen image and text towers that a variant is bound to, and their embeddings, made once.

    Args:
        bench: what all variants share.
        which: "shipped", or an image tower of the plan that its first stage has trained.
    """

    def __init__(self, bench: Bench, which: str) -> None:
        """Name the towers; load none."""
        self.bench, self.which = bench, which
        if which == SHIPPED:
            records = load_manifest(space_folder(bench.plan["space"])).towers
            facts: Any = {name: records[name].sha256 for name in ("vision", "text")}
        else:
            facts = [bench.plan["towers"][which], bench.plan["first_stage"]]
        self.id = f"{slug(which)}-{content_hash(facts, 8)}"

    def tower(self, name: str) -> Tower:
        """Load the vision or the text tower."""
        if self.which == SHIPPED:
            folder = space_folder(self.bench.plan["space"])
            return load_tower(folder, load_manifest(folder), name, torch.float32, torch.device("cpu"))
        from safetensors.torch import load_file

        tower = build_tower(first_architecture(self.bench, self.which), name, seed=0)
        tower.load_state_dict(load_file(str(tower_path(self.bench, self.which, name))))
        return tower.eval()

    def images(self, name: str, pixels: Callable[[], NDArray[np.uint8]]) -> NDArray[np.float32]:
        """Embed pictures: (n, d) unit rows."""

        def make() -> NDArray[np.float32]:
            rows, numbers = pixels(), self.bench.numbers["image"]
            return embed_rows(self.tower("vision"), len(rows), lambda part: normalise_images(rows[part], numbers, None))

        return self.bench.kept(f"{name}-image-{len_of(name, self.bench)}-{self.id}", make)

    def texts(self, name: str, scenes: Scenes, seed: int = 0) -> NDArray[np.float32]:
        """Embed one full English caption of each scene: (n, d) unit rows."""

        def make() -> NDArray[np.float32]:
            text = TextRows(self.bench.numbers["text"])
            ids = text.draw(scenes, np.random.default_rng(seed), ("english",), ("full",))[0]
            return embed_rows(self.tower("text"), len(ids), lambda part: ids[part])

        return self.bench.kept(f"{name}-text{seed}-{len_of(name, self.bench)}-{self.id}", make)


def len_of(name: str, bench: Bench) -> int:
    """Say how many scenes a kept array has: a plan of another size does not take it."""
    return int(bench.plan["validation"] if name == "validation" else bench.plan["second_stage"]["pool"])


def first_architecture(bench: Bench, which: str) -> ArchitectureConfig:
    """Put the image tower of the plan beside the space's text tower."""
    whole = load_manifest(space_folder(bench.plan["space"])).architecture
    mine = bench.architecture({"vision": which}, {})
    return replace(whole, towers={"text": whole.towers["text"], **mine.towers})


def tower_path(bench: Bench, which: str, name: str) -> Path:
    """Say where a tower of a first stage lies when it is trained."""
    return bench.folder / "towers" / f"{Anchors(bench, which).id}-{name}.safetensors"


def run_first_stage(bench: Bench, which: str, checkpoints: Path) -> dict[str, Any]:
    """Train an image tower of the plan with text, and keep both towers; give the figures."""
    from safetensors.torch import save_file

    stage = bench.first_stage(which)
    config = TrainConfig(
        bench.plan["space"], 1, (stage,), bench.plan["validation"], stage.steps, CHECKPOINT_S, LOG_STEPS
    )
    run = Run(config, first_architecture(bench, which), bench.numbers, bench.folder, bench.workers)
    prepared = text_stage(run, stage, {})
    prepared.folder = checkpoints
    notes = train_stage(prepared, say=lambda line: print(line, flush=True))
    for name in ("vision", "text"):
        tower, path = prepared.towers[name], tower_path(bench, which, name)
        path.parent.mkdir(parents=True, exist_ok=True)
        state = {key: value.detach().contiguous() for key, value in tower.state_dict().items()}
        save_file(state, str(path))
    figures = {
        key: value for key, value in notes["curve"][-1].items() if key.startswith(("text->image", "image->text"))
    }
    return {"figures": figures, "seconds": notes["seconds"], "steps": stage.steps, "batch": stage.batch}


def run_second_stage(bench: Bench, variant: Mapping[str, Any], modality: str, checkpoints: Path) -> dict[str, Any]:
    """Bind a tower of one modality as a variant says; give its figures."""
    stage = bench.second_stage(variant, modality)
    anchors = Anchors(bench, variant.get("image_tower", SHIPPED))
    scenes = pool_scenes(stage.first_scene, stage.pool, stage.partial)
    if variant.get("pair_with") == "text":
        fixed = np.stack([anchors.texts("pool", scenes, 1 + number) for number in range(WORDINGS)])
    else:
        fixed = anchors.images("pool", lambda: bench.pool("image", stage))[None]
    tower = build_tower(bench.architecture({modality: modality}, variant), modality, seed=variant.get("seed", 1))
    prepared = build_stage(stage, variant.get("seed", 1), tower, (scenes, bench.pool(modality, stage), fixed))
    prepared.folder, prepared.data = checkpoints, anchors.id + variant.get("pair_with", "")
    began = time.monotonic()
    notes = train_stage(prepared, say=lambda line: print(line, flush=True))
    return {
        "figures": measure(bench, anchors, tower, modality),
        "seconds": notes["seconds"],
        "measured_s": round(time.monotonic() - began - notes["seconds"], 1),
        "steps": stage.steps,
        "batch": stage.batch,
        "parameters": sum(parameter.numel() for parameter in tower.parameters()),
        "scale": round(float(torch.as_tensor(prepared.scale()).detach()), 2),
    }


def build_stage(
    stage: StageConfig, seed: int, tower: Tower, data: tuple[Scenes, NDArray[Any], NDArray[np.float32]]
) -> Stage:
    """Prepare the training of one tower onto frozen embeddings.

    Args:
        stage: its numbers.
        seed: of the batches.
        tower: overwritten by training.
        data: the pool's scenes; its kept rows of the modality; (K, n, d) embeddings, one of K drawn each time.
    """
    scenes, kept, fixed = data
    frozen = torch.from_numpy(fixed)
    drawer, prepare = BatchDrawer(scenes, stage, stage.batch), PREPARE[stage.modality]

    def draw(rng: np.random.Generator) -> Batch:
        which = drawer.rows(rng)
        inputs = prepare(kept[which], rng)
        chosen = frozen[torch.from_numpy(rng.integers(0, len(frozen), len(which))), torch.from_numpy(which)]
        fits = torch.from_numpy(alike(scenes.rows(which), stage.alike))
        return Batch(len(which), lambda part: chosen[part], lambda part: tower(inputs[part]), fits)

    temperature = stage.temperature
    scale = tower.scale if temperature is None else lambda: 1.0 / temperature
    times = (CHECKPOINT_S, 1 << 30, LOG_STEPS)
    return Stage(stage, seed, {stage.modality: tower}, draw, scale, dict, Path(), times)


def measure(bench: Bench, anchors: Anchors, tower: Tower, modality: str) -> dict[str, float]:
    """Ask with the new tower for images and for captions of unseen scenes: top-1 by attribute."""
    scenes = bench.validation
    rows = {
        "image": anchors.images("validation", lambda: RENDERERS["image"](scenes, bench.numbers["image"])),
        "text": anchors.texts("validation", scenes),
    }
    kept = bench.kept(
        f"validation-{modality}-{len(scenes)}", lambda: RENDERERS[modality](scenes, bench.numbers[modality])
    )
    mine = embed_rows(tower, len(scenes), lambda part: PREPARE[modality](kept[part], None))
    return {
        f"→{found} {name}": accuracy(getattr(scenes, name), getattr(scenes, name)[top_hits(mine, rows[found])])["value"]
        for found in rows
        for name in bench.plan["measured_by"]
    }


def run_job(bench: Bench, variant: Mapping[str, Any], modality: str, path: Path, hashed: str) -> None:
    """Run one variant and write its result at once; checkpoints of other numbers lie elsewhere."""
    checkpoints = bench.folder / "checkpoints" / hashed
    if variant["name"] == FIRST_STAGE:
        result = run_first_stage(bench, modality, checkpoints)
    else:
        result = run_second_stage(bench, variant, modality, checkpoints)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    record = {"name": variant["name"], "modality": modality, "hash": hashed, **result}
    temporary.write_text(json.dumps(record, indent=1, ensure_ascii=False), encoding="utf-8")
    temporary.replace(path)
