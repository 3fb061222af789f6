"""The two stages: image with text, then another modality onto the image tower, which then stays as it is."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from bindsearch.models.bind import ArchitectureConfig, Tower, build_tower
from bindsearch.train.config import StageConfig, TrainConfig
from bindsearch.train.loop import Batch, Stage, has_bfloat16
from bindsearch.train.measure import named_shares, top_hits
from bindsearch.train.pairs import BatchDrawer, TextRows, alike, mel_batch, normalise_images
from bindsearch.train.pool import RENDERERS, pool_scenes, render_pool
from bindsearch.world.scene import Scenes, sample, split_seeds

Numbers = Mapping[str, Mapping[str, Any]]


@torch.no_grad()
def embed_rows(tower: Tower, rows: Any, batch: int = 256) -> NDArray[np.float32]:
    """Encode prepared rows: a callable of a slice that gives the tower's input -> (n, d) unit rows."""
    tower.eval()
    count, make = rows
    parts = []
    for at in range(0, count, batch):
        with torch.autocast("cpu", torch.bfloat16, enabled=has_bfloat16()):
            parts.append(F.normalize(tower(make(slice(at, at + batch))).float(), dim=1))
    return torch.cat(parts).numpy()


class Validation:
    """Unseen full scenes in every modality, prepared once.

    Args:
        config: how many.
        numbers: of the modalities.
        modality: beside image and text.
    """

    def __init__(self, config: TrainConfig, numbers: Numbers, modality: str) -> None:
        """Render the scenes."""
        self.scenes: Scenes = sample(split_seeds("validation", config.validation))
        self.pixels = RENDERERS["image"](self.scenes, numbers["image"])
        self.numbers = numbers
        text = TextRows(numbers["text"])
        self.ids = text.draw(self.scenes, 0)[0]
        self.mels = RENDERERS["audio"](self.scenes, numbers["audio"]) if modality == "audio" else None

    def measure(self, towers: Mapping[str, Tower]) -> dict[str, float]:
        """Give accuracies of each modality to images, and of audio to text, flat by name."""
        rows = {"vision": embed_rows(towers["vision"], (len(self.scenes), self._images))}
        if "text" in towers:
            rows["text"] = embed_rows(towers["text"], (len(self.scenes), lambda part: self.ids[part]))
        if "audio" in towers and self.mels is not None:
            mels = self.mels
            rows["audio"] = embed_rows(towers["audio"], (len(self.scenes), lambda part: mel_batch(mels[part], None)))
        figures: dict[str, float] = {}
        for asked, found in (("text", "vision"), ("audio", "vision"), ("audio", "text")):
            if asked in rows and found in rows:
                shares = named_shares(self.scenes, self.scenes, top_hits(rows[asked], rows[found]))
                figures |= {f"{asked}->{found} {name}": share["value"] for name, share in shares.items()}
        others = rows["vision"] @ rows["vision"].T - 2 * np.eye(len(self.scenes), dtype=np.float32)
        figures["vision->vision subject"] = float((self.scenes.subject[others.argmax(1)] == self.scenes.subject).mean())
        return figures

    def _images(self, part: slice) -> Tensor:
        return normalise_images(self.pixels[part], self.numbers["image"], None)


def image_text_stage(
    config: TrainConfig,
    stage: StageConfig,
    architecture: ArchitectureConfig,
    numbers: Numbers,
    trained: dict[str, Tower],
    folder: Path,
) -> Stage:
    """Prepare a stage that trains the image and the text tower together: those of a stage before, or from the seed."""
    towers = {
        name: trained[name] if name in trained else build_tower(architecture, name, seed=config.seed)
        for name in ("vision", "text")
    }
    scenes = pool_scenes(stage.first_scene, stage.pool, stage.partial)
    pixels = render_pool(
        "image", folder / "pool", (stage.first_scene, stage.pool), stage.partial, dict(numbers["image"])
    )
    drawer, text = BatchDrawer(scenes, stage), TextRows(numbers["text"])
    validation = Validation(config, numbers, "text")

    def draw(rng: np.random.Generator) -> Batch:
        rows = drawer.rows(rng)
        ids, fits = text.draw(scenes.rows(rows), int(rng.integers(0, 1 << 20)))
        images = normalise_images(pixels[rows], numbers["image"], rng)
        mask = torch.from_numpy(fits) if stage.mask_false_negatives else None
        return Batch(lambda: towers["vision"](images), lambda: towers["text"](ids), mask)

    return Stage(
        stage,
        config.seed,
        dict(towers),
        draw,
        _scale(stage, towers["text"]),
        lambda: validation.measure(towers),
        folder,
        (config.checkpoint_every_s, config.measure_every, config.log_every),
    )


def image_audio_stage(
    config: TrainConfig,
    stage: StageConfig,
    architecture: ArchitectureConfig,
    numbers: Numbers,
    trained: dict[str, Tower],
    folder: Path,
) -> Stage:
    """Prepare the stage that binds audio to the trained image tower, whose embeddings are made once."""
    tower = build_tower(architecture, "audio", seed=config.seed)
    scenes = pool_scenes(stage.first_scene, stage.pool, stage.partial)
    span = (stage.first_scene, stage.pool)
    pixels = render_pool("image", folder / "pool", span, stage.partial, dict(numbers["image"]))
    mels = render_pool("audio", folder / "pool", span, stage.partial, dict(numbers["audio"]))
    images = (len(scenes), lambda part: normalise_images(pixels[part], numbers["image"], None))
    anchors = torch.from_numpy(embed_rows(trained["vision"], images))
    drawer, validation = BatchDrawer(scenes, stage), Validation(config, numbers, "audio")

    def draw(rng: np.random.Generator) -> Batch:
        rows = drawer.rows(rng)
        sounds = mel_batch(mels[rows], rng)
        mask = torch.from_numpy(alike(scenes.rows(rows))) if stage.mask_false_negatives else None
        return Batch(lambda: anchors[rows], lambda: tower(sounds), mask)

    return Stage(
        stage,
        config.seed,
        {"audio": tower},
        draw,
        _scale(stage, tower),
        lambda: validation.measure({**trained, "audio": tower}),
        folder,
        (config.checkpoint_every_s, config.measure_every, config.log_every),
    )


def _scale(stage: StageConfig, tower: Tower) -> Any:
    if stage.temperature is not None:
        return lambda: 1.0 / float(stage.temperature or 1.0)
    return tower.scale
