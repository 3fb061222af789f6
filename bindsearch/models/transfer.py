"""Bring a batch to where the towers compute."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    import torch


def to_device(batch: np.ndarray[Any, Any], device: torch.device, dtype: torch.dtype) -> torch.Tensor:
    """Give a batch on a device; to a GPU it goes from memory that is pinned, and the caller does not wait for it.

    Args:
        batch: (N, ...) float32 or int64. Not modified; on the CPU the result may share its memory.
        device: where to.
        dtype: of the result, where the batch holds floats; whole numbers stay int64.

    Returns:
        (N, ...) on the device. Pinned memory comes from torch's own store of it, which keeps it until the copy is done.
    """
    import torch

    x = torch.from_numpy(batch)
    wanted = dtype if x.is_floating_point() else x.dtype
    if device.type != "cuda":
        return x.to(device, wanted)
    return x.pin_memory().to(device, non_blocking=True).to(wanted)
