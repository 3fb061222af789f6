"""Spaces of the open_clip package, image and text, behind the same interface; the only file that imports it."""

from __future__ import annotations

import logging
import os
import threading
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bindsearch.config import content_hash, setting
from bindsearch.errors import (
    InputError,
    MissingExtraError,
    ShapeError,
    UnknownNameError,
    UnsupportedError,
    WeightsError,
)
from bindsearch.models.download import quiet_hub
from bindsearch.models.manifest import SpaceCard
from bindsearch.models.spaces import Family, Opened
from bindsearch.registry import SPACES

if TYPE_CHECKING:
    from collections.abc import Iterator

    import torch

VOCABULARY = 49408
_TOWERS = {"image": "vision", "text": "text"}
_BUILDING = threading.Lock()
"""Held while a model is built: random weights are drawn from torch's one generator, and both encoders take room."""

_HUB_FILES = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")


@dataclass(frozen=True)
class Choice:
    """What an argument such as "ViT-B-32/laion2b_s34b_b79k" asks for.

    Attributes:
        arch: name of an open_clip model configuration.
        tag: name of its weights, or "random:SEED".
        seed: of random weights; None for released ones.
    """

    arch: str
    tag: str
    seed: int | None

    @classmethod
    def parse(cls, argument: str) -> Choice:
        """Read "ARCH/TAG" or "ARCH/random:SEED".

        Raises:
            InputError: it is written otherwise.
        """
        arch, _, tag = argument.partition("/")
        if not arch or not tag:
            raise InputError(
                f"space 'open_clip:{argument}': write open_clip:ARCH/TAG, such as "
                "open_clip:ViT-B-32/laion2b_s34b_b79k, or open_clip:ARCH/random:SEED."
            )
        head, _, seed = tag.partition(":")
        if head != "random":
            return cls(arch, tag, None)
        if not (seed or "0").isdigit():
            raise InputError(f"space 'open_clip:{argument}': the seed must be a whole number from 0.")
        return cls(arch, f"random:{int(seed or 0)}", int(seed or 0))


def open_space(argument: str) -> Opened:
    """Open one open_clip space; weights are read when a tower is first used.

    Raises:
        MissingExtraError: open_clip is not installed.
        UnknownNameError: no such architecture or weights.
        UnsupportedError: an architecture whose text or pictures are prepared in another way, or whose activation is not
            that of the weights.
    """
    choice = Choice.parse(argument)
    open_clip = _package()
    config = _model_config(open_clip, choice)
    size = config["vision_cfg"]["image_size"]
    size_px = int(size if isinstance(size, int) else size[0])
    context = int(config["text_cfg"].get("context_length", 77))
    picture = _picture_numbers(open_clip, choice)
    name = f"open_clip:{choice.arch}/{choice.tag}"
    anchor = {"package": "open_clip", "arch": choice.arch, "tag": choice.tag}
    quick_gelu = _forces_quick_gelu(open_clip, choice, config)
    if quick_gelu:
        anchor["activation"] = "quick_gelu"
    space_id = f"{name}@{content_hash(anchor)}"
    card = SpaceCard(
        name=name,
        space_id=space_id,
        dim=int(config["embed_dim"]),
        towers=dict(_TOWERS),
        tower_ids={
            tower: f"{tower}:{content_hash({**anchor, 'tower': tower})}@{space_id}" for tower in ("vision", "text")
        },
        clip_shapes={"image": (3, size_px, size_px), "text": (context,)},
        scale_from_tower=True,
        preprocess={"image": {"size_px": size_px, **picture}, "text": {"context_length": context}},
        source={"package": f"open_clip_torch {open_clip.__version__}", "arch": choice.arch, "tag": choice.tag},
        licence="see the model card of these weights" if choice.seed is None else "random weights",
    )

    def load(tower: str, dtype: torch.dtype, device: torch.device) -> torch.nn.Module:
        with _BUILDING:
            half = _keep_half(_build(choice, quick_gelu), tower)
        half = half.to(device, dtype).requires_grad_(False).eval()
        return _encoder(tower, half, (3, 1, size_px, size_px), context)

    return Opened(card, load, name, status=lambda: _status(open_clip, choice))


def _status(open_clip: Any, choice: Choice) -> str:
    """Say whether weights are on this machine."""
    if choice.seed is not None:
        return "from a seed"
    try:
        _cached_file(open_clip, choice)
    except WeightsError:
        return "fetched at first use"
    return "at hand"


def _package() -> Any:
    try:
        import open_clip
    except ImportError as error:
        raise MissingExtraError("open_clip_torch", "open-clip", "An open_clip space") from error
    return open_clip


def _model_config(open_clip: Any, choice: Choice) -> dict[str, Any]:
    """Give the numbers of an architecture whose text is CLIP's BPE and whose weights are known."""
    config: dict[str, Any] | None = open_clip.get_model_config(choice.arch)
    if config is None:
        raise UnknownNameError("open_clip architecture", choice.arch, open_clip.list_models())
    text = config.get("text_cfg", {})
    plain = not config.get("custom_text") and not {"hf_model_name", "hf_tokenizer_name"} & set(text)
    if not plain or int(text.get("vocab_size", VOCABULARY)) != VOCABULARY or "image_size" not in config["vision_cfg"]:
        raise UnsupportedError(
            f"open_clip:{choice.arch}: only architectures with CLIP's own tokenizer are supported, such as ViT-B-32, "
            "ViT-L-14 or ViT-H-14."
        )
    tags = open_clip.list_pretrained_tags_by_model(choice.arch)
    if choice.seed is None and choice.tag not in tags:
        raise UnknownNameError(f"weights of open_clip:{choice.arch}", choice.tag, [*tags, "random:0"])
    return config


def _picture_numbers(open_clip: Any, choice: Choice) -> dict[str, Any]:
    """Give mean and standard deviation as these weights want them."""
    wanted = {} if choice.seed is not None else open_clip.get_pretrained_cfg(choice.arch, choice.tag)
    if wanted.get("interpolation", "bicubic") != "bicubic" or wanted.get("resize_mode", "shortest") != "shortest":
        raise UnsupportedError(
            f"open_clip:{choice.arch}/{choice.tag}: wants pictures resized by {wanted.get('interpolation')!r}, "
            f"{wanted.get('resize_mode')!r}; only bicubic, shortest side, is supported."
        )
    constants = open_clip.constants
    mean, std = (
        (wanted.get("mean") or constants.OPENAI_DATASET_MEAN),
        (wanted.get("std") or constants.OPENAI_DATASET_STD),
    )
    return {"mean": list(map(float, mean)), "std": list(map(float, std))}


def _forces_quick_gelu(open_clip: Any, choice: Choice, config: dict[str, Any]) -> bool:
    """Say whether weights want QuickGELU, x * sigmoid(1.702 x), of an architecture written with plain GELU.

    The package only warns of it, and its vectors are then wrong.

    Raises:
        UnsupportedError: they want plain GELU of an architecture with QuickGELU; names an architecture that fits.
    """
    if choice.seed is not None:
        return False
    wanted = bool(open_clip.get_pretrained_cfg(choice.arch, choice.tag).get("quick_gelu", False))
    built = bool(config.get("quick_gelu", False))
    if built and not wanted:
        plain = choice.arch.removesuffix("-quickgelu")
        fits = f"{plain}/{choice.tag}" if plain != choice.arch else "ViT-B-32/laion2b_s34b_b79k"
        raise UnsupportedError(
            f"open_clip:{choice.arch}/{choice.tag}: the architecture computes with QuickGELU, its weights were trained "
            f"with plain GELU. Use an architecture with plain GELU: --space open_clip:{fits}"
        )
    return wanted and not built


def _keep_half(model: torch.nn.Module, tower: str) -> torch.nn.Module:
    """Drop the encoder that was not asked for from a model that open_clip builds with both; keeps the logit scale."""
    parts = [name for name, _ in model.named_children() if (name == "visual") != (tower == "vision")]
    if tower == "vision":
        parts += [name for name in ("positional_embedding", "text_projection", "attn_mask") if hasattr(model, name)]
    for name in parts:
        delattr(model, name)
    return model


def _encoder(name: str, model: torch.nn.Module, clip: tuple[int, ...], context: int) -> torch.nn.Module:
    """Wrap one encoder of an open_clip model."""
    import torch

    class Encoder(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def check(self, x: torch.Tensor) -> None:
            wanted = clip if name == "vision" else (context,)
            if tuple(x.shape[1:]) != wanted:
                raise ShapeError(
                    f"{name} tower: expected shape (N, {', '.join(map(str, wanted))}), got {tuple(x.shape)}."
                )

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.check(x)
            return model.encode_image(x[:, :, 0]) if name == "vision" else model.encode_text(x)  # type: ignore[operator, no-any-return]

        def logit_scale(self) -> float:
            return min(float(model.logit_scale.detach().exp()), 100.0)  # type: ignore[operator]

    return Encoder()


def _build(choice: Choice, quick_gelu: bool) -> torch.nn.Module:
    """Build a model with random or released weights; these come through open_clip's own download and cache.

    Args:
        choice: which.
        quick_gelu: whether to compute with QuickGELU whatever the architecture says.

    Raises:
        WeightsError: they cannot be had; the message names them.
    """
    import torch

    open_clip = _package()
    if choice.seed is not None:
        with torch.random.fork_rng(devices=[]), _quiet_root():
            torch.manual_seed(choice.seed)
            model: torch.nn.Module = open_clip.create_model(choice.arch, pretrained=None)
        return model
    where = _cached_file(open_clip, choice) if setting("offline") else choice.tag
    try:
        with _quiet_root(Path(open_clip.__file__).parent), quiet_hub():
            loaded: torch.nn.Module = open_clip.create_model(
                choice.arch, pretrained=str(where), weights_only=True, force_quick_gelu=quick_gelu
            )
    except Exception as error:  # whatever the hub's client, the network or the file raises
        reason = f"{type(error).__name__}: {next(iter(str(error).strip().splitlines()), 'no reason given')}"
        raise WeightsError(
            f"open_clip:{choice.arch}/{choice.tag}: the weights cannot be had ({reason}). "
            "With a network, run the command once more; it keeps what it fetched. Without one, BINDSEARCH_OFFLINE=1 "
            "asks for what is on this machine alone."
        ) from error
    return loaded


def _cached_file(open_clip: Any, choice: Choice) -> Path:
    """Find released weights on this machine, for the offline switch.

    Raises:
        WeightsError: naming the file, where it would be and where it comes from.
    """
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.constants import HF_HUB_CACHE

    wanted = open_clip.get_pretrained_cfg(choice.arch, choice.tag)
    hub, url = str(wanted.get("hf_hub") or ""), str(wanted.get("url") or "")
    if hub:
        repository, _, file = hub.rpartition("/")
        for name in [file] if file else _HUB_FILES:
            found = try_to_load_from_cache(repository, name)
            if isinstance(found, str):
                return Path(found)
        place, origin = HF_HUB_CACHE, f"https://huggingface.co/{repository}"
    else:
        local = Path("~/.cache/clip").expanduser() / os.path.basename(url)  # noqa: PTH119 - part of a URL
        if local.is_file():
            return local
        place, origin = str(local), url
    raise WeightsError(
        f"open_clip:{choice.arch}/{choice.tag}: offline, and its weights are not in {place}. They come from {origin}. "
        "Switch offline off (BINDSEARCH_OFFLINE=0) and run once, or copy that cache from a machine that has it."
    )


@contextmanager
def _quiet_root(package: Path | None = None) -> Iterator[None]:
    """Keep open_clip's remark on random weights, which are meant here, and its handler off the root logger.

    Args:
        package: its folder: drop all that it says, which the error that follows says as well.
    """

    def drop(record: logging.LogRecord) -> bool:
        return not (
            "No pretrained weights" in record.getMessage()
            or (package is not None and package in Path(record.pathname).parents)
        )

    root = logging.getLogger()
    handlers = list(root.handlers)
    root.addFilter(drop)
    try:
        yield
    finally:
        root.removeFilter(drop)
        for added in set(root.handlers) - set(handlers):
            root.removeHandler(added)


SPACES.register("open_clip", Family(open_space, lambda: "open_clip's cache", ("image", "text")))
