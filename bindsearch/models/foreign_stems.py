"""Stems around encoders of other people: their precomputed features, or a timm backbone; the only file with timm."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bindsearch.config import setting
from bindsearch.errors import InputError, MissingExtraError, UnknownNameError, WeightsError
from bindsearch.models.architecture import StemConfig
from bindsearch.models.download import quiet_hub
from bindsearch.models.parts import Stem

_HUB_FILES = ("model.safetensors", "pytorch_model.bin")


class FeaturesStem(Stem):
    """A vector of another frozen encoder as one token: (N, F) -> (N, 1, F), each number standardised.

    Mean and deviation are part of the weights: `set_statistics` takes them from the rows that training sees.
    """

    mean: Tensor
    deviation: Tensor

    def __init__(self, config: StemConfig, width: int, device: torch.device | str) -> None:
        super().__init__(config)
        if config.shape != (width,):
            raise InputError(f"features stem: shape {config.shape} must be the trunk's width {width}.")
        self.register_buffer("mean", torch.zeros(width, device=device))
        self.register_buffer("deviation", torch.ones(width, device=device))

    def set_statistics(self, rows: Tensor) -> None:
        """Take mean and deviation of (n, F) float rows; overwrites both. A number that never changes is left as is."""
        deviation, mean = torch.std_mean(rows.double(), dim=0, correction=0)
        self.mean = mean.float()
        self.deviation = torch.where(deviation > 1e-8, deviation, 1.0).float()

    def forward(self, x: Tensor) -> Tensor:
        """(N, F) float -> (N, 1, F)."""
        return ((x - self.mean) / self.deviation).unsqueeze(1)


class TimmStem(Stem):
    """A backbone of the timm package, pooled, as one token: (N, C, [T,] H, W) -> (N, 1, D).

    Frames of a video go through it one by one, and their tokens are averaged. Weights are timm's own draw from torch's
    generator, or are loaded afterwards.
    """

    def __init__(self, config: StemConfig, width: int) -> None:
        super().__init__(config)
        self.backbone = build_backbone(config.backbone, config.shape)
        found = _pooled_width(self.backbone)
        if found != width:
            raise InputError(f"timm stem: {config.backbone} gives {found} numbers, the trunk's width is {width}.")

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, [T,] H, W) float -> (N, 1, D)."""
        if x.ndim == 4:
            return self.backbone(x).unsqueeze(1)  # type: ignore[no-any-return]
        count, channels, frames, *sides = x.shape
        pooled = self.backbone(x.transpose(1, 2).reshape(count * frames, channels, *sides))
        return pooled.reshape(count, frames, -1).mean(dim=1, keepdim=True)  # type: ignore[no-any-return]


def _package() -> Any:
    try:
        import timm
    except ImportError as error:
        raise MissingExtraError("timm", "timm", "A timm backbone") from error
    return timm


def build_backbone(name: str, shape: tuple[int, ...], pretrained: bool = False) -> nn.Module:
    """Build a timm model without its classifier, for inputs of (C, [T,] H, W).

    Args:
        name: of the model, as `timm.list_models()` has it.
        shape: of one input; timm adapts the first convolution to C.
        pretrained: take released weights, through timm's own download and cache.

    Raises:
        MissingExtraError: timm is not installed.
        UnknownNameError: timm has no such model.
        InputError: the model does not take such inputs.
        WeightsError: the released weights cannot be had.
    """
    timm = _package()
    if not timm.is_model(name):
        raise UnknownNameError("timm backbone", name, timm.list_models())
    options: dict[str, Any] = {"num_classes": 0, "in_chans": shape[0]}
    with torch.device("cpu"):
        try:
            model: nn.Module = timm.create_model(name, pretrained=False, img_size=shape[-2:], **options)
            options["img_size"] = shape[-2:]
        except TypeError:  # a network without a fixed input size
            model = timm.create_model(name, pretrained=False, **options)
        if pretrained:
            model = _with_released_weights(timm, name, options)
    _check_takes(model, name, shape)
    return model


def _with_released_weights(timm: Any, name: str, options: Mapping[str, Any]) -> nn.Module:
    where = {"pretrained_cfg_overlay": {"file": str(_cached_file(timm, name))}} if setting("offline") else {}
    try:
        with quiet_hub():
            model: nn.Module = timm.create_model(name, pretrained=True, **where, **options)
    except Exception as error:  # whatever the hub's client, the network or the file raises
        reason = f"{type(error).__name__}: {next(iter(str(error).strip().splitlines()), 'no reason given')}"
        raise WeightsError(
            f"timm {name}: the released weights cannot be had ({reason}). With a network, run the command once more; "
            "or train from random weights: leave --pretrained away."
        ) from error
    return model


def _cached_file(timm: Any, name: str) -> Path:
    """Find a timm model's released weights on this machine, for the offline switch.

    Raises:
        WeightsError: naming where they would be and where they come from.
    """
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.constants import HF_HUB_CACHE

    known = timm.get_pretrained_cfg(name)
    repository, url = (str(getattr(known, field, None) or "") for field in ("hf_hub_id", "url"))
    if repository:
        own = getattr(known, "hf_hub_filename", None)
        repository, _, revision = repository.partition("@")
        for file in [own] if own else _HUB_FILES:
            found = try_to_load_from_cache(repository, file, revision=revision or None)
            if isinstance(found, str):
                return Path(found)
        place, origin = HF_HUB_CACHE, f"https://huggingface.co/{repository}"
    else:
        local = Path(torch.hub.get_dir()) / "checkpoints" / url.rpartition("/")[2]
        if url and local.is_file():
            return local
        place, origin = str(local), url or "nowhere: timm has no weights of this name"
    raise WeightsError(
        f"timm {name}: offline, and its released weights are not in {place}. They come from {origin}. Switch offline "
        "off (BINDSEARCH_OFFLINE=0) and run once, or train from random weights: leave --pretrained away."
    )


def _check_takes(model: nn.Module, name: str, shape: tuple[int, ...]) -> None:
    was_training = model.training
    try:
        with torch.no_grad():
            model.eval()(torch.zeros(1, shape[0], *shape[-2:]))
    except Exception as error:  # whatever the network raises on a size it was not made for
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise InputError(f"timm {name}: does not take inputs of {shape}: {reason}. Choose another size_px.") from error
    model.train(was_training)


def _pooled_width(model: nn.Module) -> int:
    return int(getattr(model, "head_hidden_size", None) or model.num_features)  # type: ignore[arg-type]


def backbone_width(name: str, shape: tuple[int, ...]) -> int:
    """Give the number of pooled features of a timm model for inputs of a shape; draws and drops its weights.

    Raises:
        As `build_backbone`.
    """
    with torch.random.fork_rng(devices=[]):
        return _pooled_width(build_backbone(name, shape))


def backbone_levels(name: str) -> dict[str, list[float]]:
    """Give the mean and standard deviation of pixels (in 0..1) that a timm model's released weights were made with."""
    known = _package().get_pretrained_cfg(name)
    if known is None:
        return {}
    return {"mean": list(map(float, known.mean)), "std": list(map(float, known.std))}
