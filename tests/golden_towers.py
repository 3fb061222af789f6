"""Read the towers' goldens: architectures from constructor arguments, inputs from their recipe, outputs by rung."""

from __future__ import annotations

import hashlib
import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file

from bindsearch.models.architecture import (
    ArchitectureConfig,
    HeadConfig,
    ScaleConfig,
    StemConfig,
    TowerConfig,
    TrunkConfig,
)
from bindsearch.models.bind import Tower, build_tower
from bindsearch.models.keys import DERIVED, tower_key
from bindsearch.models.recipe import generator

GOLDEN = Path(__file__).parent / "golden" / "imagebind"
TINY = ("tiny_a", "tiny_b")


@cache
def read(name: str) -> Any:
    return json.loads((GOLDEN / name).read_text(encoding="utf-8"))


@cache
def outputs(model: str) -> dict[str, np.ndarray]:
    with np.load(GOLDEN / model / "outputs.npz", allow_pickle=False) as file:
        return {name: file[name] for name in file.files}


def cases(quirks: bool) -> list[tuple[str, str]]:
    return [(m, c) for m in TINY for c in read(f"{m}/inputs.json")["inputs"] if ("QUIRK" in c) is quirks]


@cache
def architecture(model: str) -> ArchitectureConfig:
    """Translate the reference's constructor arguments."""
    config = read(f"{model}/config.json")
    k, scales = config["kwargs"], config["logit_scales"]

    def trunk(name: str, **more: Any) -> TrunkConfig:
        return TrunkConfig(k[f"{name}_embed_dim"], k[f"{name}_num_blocks"], k[f"{name}_num_heads"], **more)

    kernel = tuple(k["kernel_size"])
    video = StemConfig("patch", (3, k["video_frames"], 224, 224), kernel, kernel, resizable=True)
    text = StemConfig("text", (77,), vocabulary=49408)
    side, step = k["audio_kernel_size"], k["audio_stride"]
    mel = (1, k["audio_num_mel_bins"], k["audio_target_len"])
    towers = {
        "vision": TowerConfig(video, trunk("vision", pre_norm=True)),
        "text": TowerConfig(text, trunk("text", causal=True), HeadConfig("end"), ScaleConfig(scales["text"], True)),
        "audio": TowerConfig(
            StemConfig("patch", mel, (side, side), (step, step), "layer"),
            trunk("audio", kv_bias=True),
            scale=ScaleConfig(scales["audio"]),
        ),
        "imu": TowerConfig(
            StemConfig("imu", (6, 2000), (k["imu_kernel_size"],), norm="layer"),
            trunk("imu", kv_bias=True),
            HeadConfig(dropout=0.5),
            ScaleConfig(scales["imu"]),
        ),
    }
    for name in ("depth", "thermal"):
        side = k[f"{name}_kernel_size"]
        stem = StemConfig("patch", (1, 224, 224), (side, side), (side, side), "layer")
        towers[name] = TowerConfig(stem, trunk(name, kv_bias=True), scale=ScaleConfig(scales[name]))
    return ArchitectureConfig(model, k["out_embed_dim"], towers)


@cache
def state(model: str) -> dict[str, dict[str, torch.Tensor]]:
    """Tower -> state dict, by way of the renaming function."""
    towers: dict[str, dict[str, torch.Tensor]] = {}
    for key, tensor in load_file(GOLDEN / model / "weights.safetensors").items():
        name, ours = tower_key(key)
        if ours not in DERIVED:
            towers.setdefault(name, {})[ours] = tensor
    return towers


@cache
def tower(model: str, name: str, dtype: torch.dtype) -> Tower:
    built = build_tower(architecture(model), name)
    built.load_state_dict({key: value.to(dtype) for key, value in state(model)[name].items()}, strict=True, assign=True)
    return built.requires_grad_(False).eval()


def draw_input(seed: int, case: str, shape: list[int]) -> np.ndarray:
    """Draw a model input: a coarse pattern, twice as strong as the fine noise on it; float32."""
    g = generator(seed, f"input/{case}")
    size = tuple(shape)
    if size[-1] >= 1000:
        coarse = g.standard_normal((*size[:-1], -(-size[-1] // 25)), dtype=np.float32).repeat(25, -1)[..., : size[-1]]
    else:
        rows, columns = -(-size[-2] // 16), -(-size[-1] // 16)
        coarse = g.standard_normal((*size[:-2], rows, columns), dtype=np.float32).repeat(16, -2).repeat(16, -1)
        coarse = coarse[..., : size[-2], : size[-1]]
    fine = g.standard_normal(size, dtype=np.float32)
    return np.float32(2.0) * coarse + np.float32(0.5) * fine


@cache
def case_input(model: str, case: str) -> np.ndarray:
    """Draw the input of a case and check its bytes against the golden's SHA-256."""
    facts = read(f"{model}/inputs.json")
    if case == "text":
        x = np.array(facts["text_tokens"], dtype=np.int64)
    else:
        x = draw_input(read(f"{model}/config.json")["seed"], case, facts["inputs"][case]["shape"])
    assert hashlib.sha256(x.tobytes()).hexdigest() == facts["inputs"][case]["sha256"], "numpy's stream has changed"
    return x


def clips_of(modality: str, x: np.ndarray, dtype: torch.dtype) -> tuple[torch.Tensor, int]:
    """Lay clips in the batch as our towers take them: (N, ...) and the number of clips an item."""
    clips = x.shape[1] if x.ndim >= 5 else 1
    flat = x.reshape(-1, *x.shape[2:]) if x.ndim >= 5 else x
    if modality == "vision" and flat.ndim == 4:
        flat = flat[:, :, None]
    tensor = torch.from_numpy(flat)
    return (tensor.to(dtype) if tensor.is_floating_point() else tensor), clips


def reference_output(built: Tower, clips: torch.Tensor, per_item: int) -> np.ndarray:
    """The reference's last number, which bindsearch does not store: scale * unit clip, mean over clips, as it is."""
    with torch.inference_mode():
        y = torch.nn.functional.normalize(built(clips), dim=-1, eps=1e-12) * built.scale()
        return y.reshape(-1, per_item, y.shape[-1]).mean(1).numpy()


def error(got: np.ndarray, want: np.ndarray) -> float:
    """Greatest difference over the greatest magnitude."""
    assert got.shape == want.shape, (got.shape, want.shape)
    return float(np.abs(got - want).max() / np.abs(want).max())
