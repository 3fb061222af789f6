"""How many things of each modality a space encodes a second, and what preparing one takes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from bindsearch.bench.timing import Figure, rate_figure, seconds_of, time_figure
from bindsearch.errors import WeightsError
from bindsearch.models.spaces import load_space

if TYPE_CHECKING:
    import torch

    from bindsearch.models.space import Space

BATCH = 8
PREPARE_S = 0.3
"""Budget of preparing: above what loading a tokenizer or a decoder takes, so that the first call does not count."""
RANDOM = "random weights"
PREPARE, ONE, MANY = "prepare one", "encode one", "encode"
"""What is measured of a modality; the two last ones once a number type."""


def open_bench_space(name: str, device: str, dtype: str) -> tuple[Space, bool]:
    """Open a space to be measured; where the weights of imagebind-huge are not at hand, random ones take their place.

    Returns:
        The space, and whether its weights are random.

    Raises:
        UnknownNameError: no such space.
        WeightsError: the weights of another space are missing.
    """
    try:
        return load_space(name, device=device, dtype=dtype), False
    except WeightsError:
        if name != "imagebind-huge":
            raise
    return _random_space(name, device, dtype), True


def _random_space(name: str, device: str, dtype: str) -> Space:
    """Build a space of an architecture whose towers are filled with small random numbers when they are first used."""
    from bindsearch.models.architecture import load_architecture, load_preprocess
    from bindsearch.models.manifest import SpaceManifest, TowerRecord
    from bindsearch.models.space import DTYPES, Space, Towers

    architecture = load_architecture(name)
    records = {tower: TowerRecord("", 0, "", "random") for tower in architecture.towers}
    manifest = SpaceManifest(name, architecture, towers=records, preprocess=load_preprocess(name))

    def load(tower: str, wanted: torch.dtype, where: torch.device) -> torch.nn.Module:
        import torch

        from bindsearch.models.bind import build_tower

        module = build_tower(architecture, tower).to(wanted).to_empty(device=where)
        generator = torch.Generator(device=where).manual_seed(0)
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.uniform_(-0.03, 0.03, generator=generator)
        return module.requires_grad_(False).eval()

    computed = "float32" if dtype == "auto" else DTYPES[dtype]
    return Space(manifest.card(), Towers(load, tuple(records), computed, device))


def modality_figures(
    open_space: Callable[[], tuple[Space, bool]], modality: str, budget_s: float, prepares: bool
) -> Iterator[Figure]:
    """Measure one modality: preparing, one thing alone, and a batch; its tower is given back at the end.

    Args:
        open_space: opens the space anew.
        modality: one of the space's.
        budget_s: seconds for encoding.
        prepares: whether to measure the preparing as well.
    """
    space, is_random = open_space()
    kind, config = space.modality(modality), space.config(modality)
    media = [kind.example(seed) for seed in range(BATCH)]
    note = [RANDOM] if is_random else []
    if prepares:
        times = seconds_of(lambda: kind.preprocess(media[0], config), PREPARE_S)
        yield time_figure("rates", f"{modality}, {PREPARE}", "ms", times, 1e3)
    clips = [kind.preprocess(each, config) for each in media]
    if len(clips[0]) > 1:
        note.append(f"{len(clips[0])} clips each")
    alone = seconds_of(lambda: _encode(space, modality, clips[:1]), 0.3 * budget_s)
    yield time_figure("rates", f"{modality}, {ONE}, {space.dtype}", "ms", alone, 1e3, ", ".join(note))
    many = BATCH if alone[-1] * BATCH < 4 * budget_s else 1  # what one takes minutes for is not done twice
    together = seconds_of(lambda: _encode(space, modality, clips), 0.6 * budget_s, fewest=1) if many > 1 else alone
    note.append(f"batch {many}")
    yield rate_figure("rates", f"{modality}, {MANY}, {space.dtype}", f"{modality}/s", many, together, ", ".join(note))


def _encode(space: Space, modality: str, clips: list[np.ndarray[Any, Any]]) -> None:
    """Encode items of (S, ...) clips each; all have as many clips as the first."""
    space.encode(modality, np.stack([each[: len(clips[0])] for each in clips]))
