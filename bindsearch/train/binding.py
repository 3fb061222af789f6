"""The stages of the world: images and clips with text, then other modalities onto the frozen image tower."""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from bindsearch.config import content_hash
from bindsearch.errors import InputError, UnknownNameError, UnsupportedError
from bindsearch.models.bind import ArchitectureConfig, Tower, build_tower
from bindsearch.train.checkpoint import hash_weights
from bindsearch.train.config import StageConfig, TrainConfig
from bindsearch.train.loop import Batch, Stage, fast_numbers
from bindsearch.train.measure import pair_figures
from bindsearch.train.naming import Naming, named_codes
from bindsearch.train.pairs import PREPARE, BatchDrawer, TextRows, alike, normalise_clips, normalise_images
from bindsearch.train.pool import RENDERERS, pool_scenes, print_line, render_pool
from bindsearch.world.scene import Scenes, sample, split_seeds
from bindsearch.world.text import LANGUAGES

Numbers = Mapping[str, Mapping[str, Any]]
ROWS_OF = {"image": "vision", "video": "vision", "text": "text", "german": "text"}
"""Towers of the kinds of rows whose tower is named otherwise."""
VALIDATION_STYLE = "full"
NAMING = "naming"
"""Name of the classifiers among the trained parts; no tower, and not part of a space."""


@torch.no_grad()
def embed_rows(tower: nn.Module, count: int, make: Callable[[slice], Tensor], batch: int = 256) -> NDArray[np.float32]:
    """Encode prepared rows: a callable that gives the tower's input for a slice -> (count, d) unit rows."""
    tower.eval()
    parts = []
    for at in range(0, count, batch):
        with fast_numbers():
            parts.append(F.normalize(tower(make(slice(at, min(at + batch, count)))).float(), dim=1))
    return torch.cat(parts).numpy()


def embed_videos(tower: nn.Module, clips: NDArray[np.uint8], numbers: Mapping[str, Any]) -> NDArray[np.float32]:
    """Embed videos as `embed` does: (n, S, T, H, W, 3) levels -> (n, d), the unit mean of the clips' unit rows."""
    count, per_video = clips.shape[:2]
    rows = [
        embed_rows(tower, count, lambda part, clip=clip: normalise_clips(clips[part, clip], numbers, None))  # type: ignore[misc]
        for clip in range(per_video)
    ]
    return F.normalize(torch.from_numpy(np.mean(rows, axis=0)), dim=1).numpy()


@dataclass(frozen=True)
class Run:
    """What all stages of a run share.

    Attributes:
        config: of the run.
        architecture: of its space.
        numbers: preprocessing numbers, modality by modality.
        folder: of checkpoints and pools.
        workers: processes that render.
        pool: folder of the pools; None means `folder/pool`.
        say: told of each shard of a pool.
    """

    config: TrainConfig
    architecture: ArchitectureConfig
    numbers: dict[str, dict[str, Any]]
    folder: Path
    workers: int = 2
    pool: Path | None = None
    say: Callable[[str], None] = print_line

    @property
    def pool_folder(self) -> Path:
        """Where the pools lie."""
        return self.pool or self.folder / "pool"

    def rows(self, modality: str, stage: StageConfig, first: int, count: int) -> NDArray[Any]:
        """Render, or read, a span of the training scenes in one modality."""
        span, numbers = (first, count), self.numbers["video" if modality == "frames" else modality]
        return render_pool(modality, self.pool_folder, span, stage.partial, numbers, self.workers, self.say)

    @property
    def times(self) -> tuple[float, int, int]:
        """What a stage's clock needs."""
        return self.config.checkpoint_every_s, self.config.measure_every, self.config.log_every


class Validation:
    """Unseen full scenes, prepared once in the kinds of rows that a stage is measured in.

    Args:
        run: says how many, and the numbers.
        kinds: keys of measure.CARRIED.
        pairs: kinds asked with and found among.
    """

    def __init__(self, run: Run, kinds: tuple[str, ...], pairs: tuple[tuple[str, str], ...]) -> None:
        """Render the scenes."""
        self.scenes: Scenes = sample(split_seeds("validation", run.config.validation))
        self.pairs, self.numbers = pairs, run.numbers
        self.kept: dict[str, Any] = {}
        text = TextRows(run.numbers["text"])
        for kind in kinds:
            if kind in ("text", "german"):
                language = (LANGUAGES[0] if kind == "text" else LANGUAGES[1],)
                rng = np.random.default_rng(0)
                self.kept[kind] = text.draw(self.scenes, rng, language, (VALIDATION_STYLE,))[0]
            else:
                self.kept[kind] = RENDERERS[kind](self.scenes, run.numbers[kind])

    def measure(self, towers: Mapping[str, nn.Module]) -> dict[str, float]:
        """Give top-1 accuracies of every pair, flat by name."""
        rows = {kind: self._embed(towers[ROWS_OF.get(kind, kind)], kind) for kind in self.kept}
        return pair_figures(self.scenes, rows, self.pairs)

    def _embed(self, tower: nn.Module, kind: str) -> NDArray[np.float32]:
        if kind == "video":
            return embed_videos(tower, self.kept[kind], self.numbers["video"])
        return embed_rows(tower, len(self.scenes), self._inputs(kind))

    def _inputs(self, kind: str) -> Callable[[slice], Tensor]:
        kept = self.kept[kind]
        if kind in ("text", "german"):
            return lambda part: kept[part]
        if kind == "image":
            return lambda part: normalise_images(kept[part], self.numbers["image"], None)
        return lambda part: PREPARE[kind](kept[part], None)


def text_stage(run: Run, stage: StageConfig, trained: Mapping[str, nn.Module]) -> Stage:
    """Prepare a stage that trains image and text towers together: those of a stage before, or from the seed.

    Args:
        run: the run.
        stage: its numbers; `video_share` of a batch are clips.
        trained: towers so far, by name. Overwritten by training.
    """
    towers: dict[str, nn.Module] = {
        name: trained[name] if name in trained else build_tower(run.architecture, name, seed=run.config.seed)
        for name in ("vision", "text")
    }
    naming = trained.get(NAMING, Naming(run.architecture.dim, run.config.seed)) if stage.naming else None
    if naming is not None:
        towers[NAMING] = naming
    scenes = pool_scenes(stage.first_scene, stage.pool + stage.clips, stage.partial)
    stills = run.rows("image", stage, stage.first_scene, stage.pool)
    clips = run.rows("frames", stage, stage.first_scene + stage.pool, stage.clips) if stage.clips else None
    moving = round(stage.batch * stage.video_share)
    draw_stills = BatchDrawer(scenes.rows(slice(0, stage.pool)), stage, stage.batch - moving)
    draw_clips = BatchDrawer(scenes.rows(slice(stage.pool, None)), stage, moving) if moving else None
    text = TextRows(run.numbers["text"])

    def draw(rng: np.random.Generator) -> Batch:
        which = draw_stills.rows(rng)
        seen = normalise_images(stills[which], run.numbers["image"], rng)
        if draw_clips is not None and clips is not None:
            more = draw_clips.rows(rng)
            pair = normalise_clips(clips[more], run.numbers["video"], rng)
            seen = torch.cat((seen.expand(-1, -1, pair.shape[2], -1, -1), pair))
            which = np.concatenate((which, more + stage.pool))
        shown = scenes.rows(which)
        ids, fits = text.draw(shown, rng, stage.languages, stage.styles)
        codes = torch.from_numpy(named_codes(shown))
        return Batch(
            len(which),
            lambda part: towers["vision"](seen[part]),
            lambda part: towers["text"](ids[part]),
            _tensor(fits),
            None if naming is None else lambda rows: stage.naming * naming(rows, codes, stage.naming_weights),
        )

    pairs = (("text", "image"), ("image", "text"), ("image", "image"), ("text", "video"), ("german", "text"))
    validation = Validation(run, ("image", "video", "text", "german"), pairs)
    return _stage(run, stage, towers, draw, lambda: validation.measure(towers))


def bound_stage(run: Run, stage: StageConfig, trained: Mapping[str, nn.Module]) -> Stage:
    """Prepare a stage that binds one modality to the trained image tower, whose embeddings are made once.

    Args:
        run: the run.
        stage: its numbers; the anchor is a still, or a video.
        trained: vision, and text for the figures. Not modified.
    """
    modality = stage.modality
    tower = build_tower(run.architecture, modality, seed=run.config.seed)
    scenes = pool_scenes(stage.first_scene, stage.pool, stage.partial)
    pixels = run.rows(stage.anchor, stage, stage.first_scene, stage.pool)
    kept = run.rows(modality, stage, stage.first_scene, stage.pool)
    numbers = run.numbers[stage.anchor]
    if stage.anchor == "video":
        seen = embed_videos(trained["vision"], pixels, numbers)
    else:
        seen = embed_rows(trained["vision"], len(scenes), lambda part: normalise_images(pixels[part], numbers, None))
    anchors = torch.from_numpy(seen)
    drawer = BatchDrawer(scenes, stage, stage.batch)

    def draw(rng: np.random.Generator) -> Batch:
        which = drawer.rows(rng)
        inputs, fixed = PREPARE[modality](kept[which], rng), anchors[which]
        fits = _tensor(alike(scenes.rows(which), stage.alike))
        return Batch(len(which), lambda part: fixed[part], lambda part: tower(inputs[part]), fits)

    kinds = (stage.anchor, "text")
    pairs = tuple((asked, found) for kind in kinds for asked, found in ((modality, kind), (kind, modality)))
    validation = Validation(run, (*kinds, modality), pairs)
    measured = {**trained, modality: tower}
    data = bound_to(run, stage, trained)
    return _stage(run, stage, {modality: tower}, draw, lambda: validation.measure(measured), data)


def bound_to(run: Run, stage: StageConfig, trained: Mapping[str, nn.Module]) -> str:
    """Name the image tower that a stage binds to, by its weights, and how it sees videos; "" if the stage trains it."""
    if stage.train_anchor:
        return ""
    clips = f" video@{content_hash(dict(run.numbers['video']), 8)}" if stage.anchor == "video" else ""
    return f"vision@{hash_weights(trained['vision'])}{clips}"


def check_stage(stage: StageConfig, trained: Container[str]) -> None:
    """Refuse a stage that the world cannot give, or whose turn it is not.

    Args:
        stage: its numbers.
        trained: names of the towers that are trained before it.

    Raises:
        UnknownNameError: the world has no such modality, or none that a stage binds.
        UnsupportedError: a stage of text that leaves the image tower as it is, or another one that trains it.
        InputError: no image tower is trained yet.
    """
    if stage.modality not in ("text", *PREPARE):
        raise UnknownNameError(f"modality of stage {stage.name}", stage.modality, ("text", *PREPARE))
    if (stage.modality == "text") != stage.train_anchor:
        value, does = ("true", "trains") if stage.modality == "text" else ("false", "does not train")
        raise UnsupportedError(
            f"stage {stage.name}: a stage of {stage.modality} {does} the image tower. Set train_anchor to {value}."
        )
    if stage.modality != "text" and not ("vision" in trained and "text" in trained):
        raise InputError(f"stage {stage.name}: no stage before it trains the image tower. Put one of text first.")


def build_stage(run: Run, stage: StageConfig, trained: Mapping[str, nn.Module]) -> Stage:
    """Prepare a stage of the world: text with the image tower, or a modality onto the frozen one.

    Raises:
        InputError: as `check_stage`.
    """
    check_stage(stage, trained)
    return (text_stage if stage.modality == "text" else bound_stage)(run, stage, trained)


def _tensor(fits: NDArray[np.bool_]) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(fits))


def _stage(
    run: Run,
    stage: StageConfig,
    towers: dict[str, nn.Module],
    draw: Callable[[np.random.Generator], Batch],
    measure: Callable[[], dict[str, float]],
    data: str = "",
) -> Stage:
    bound = towers[stage.modality]
    fixed = stage.temperature
    scale = bound.scale if fixed is None and isinstance(bound, Tower) else lambda: 1.0 / float(fixed or 1.0)
    return Stage(stage, run.config.seed, towers, draw, scale, measure, run.folder, run.times, data)
