"""Several processes as one: torchrun starts them, each encodes its rows of every batch, all hold the same towers.

Every process computes the whole loss over the gathered embeddings, so that the gradient of its own rows is complete
without asking the others; the parameters' gradients are the sum over the processes. Batch normalisation takes the
statistics of a process's own rows, which should therefore be drawn like the others'; what it keeps of them is averaged.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn
from torch import distributed as dist


def join_processes(backend: str = "gloo") -> tuple[int, int]:
    """Join the others that torchrun started.

    Args:
        backend: gloo on processors, nccl on graphics cards.

    Returns:
        Number of this process, and how many there are; (0, 1) without torchrun.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and not dist.is_initialized():
        dist.init_process_group(backend)
    return rank(), world_size()


def rank() -> int:
    """Give this process's number, from 0."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def world_size() -> int:
    """Give the number of processes."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def own_rows(count: int) -> slice:
    """Give the rows of a batch of `count` that this process encodes; process r of w has [r * count / w, ...)."""
    number, many = rank(), world_size()
    return slice(number * count // many, (number + 1) * count // many)


def gather_rows(rows: Tensor, count: int) -> Tensor:
    """Put all processes' rows together: (b, d) of `own_rows(count)` -> (count, d), detached."""
    rows = rows.detach()
    if world_size() == 1:
        return rows
    whole = rows.new_zeros((count, rows.shape[1]))
    whole[own_rows(count)] = rows
    dist.all_reduce(whole)
    return whole


def sum_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Add up the processes' gradients; overwrites them. What no process has a gradient of stays without."""
    if world_size() == 1:
        return
    every = list(parameters)
    used = torch.tensor([parameter.grad is not None for parameter in every], dtype=torch.int32)
    dist.all_reduce(used)
    kept = [parameter for parameter, count in zip(every, used.tolist(), strict=True) if count]
    for parameter in kept:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    _add_up([parameter.grad for parameter in kept if parameter.grad is not None])


def average_statistics(towers: Iterable[nn.Module]) -> None:
    """Put the mean over the processes in place of batch normalisation's running means and variances."""
    if world_size() == 1:
        return
    named = [item for tower in towers for item in tower.named_buffers()]
    kept = [buffer for name, buffer in named if name.endswith(("running_mean", "running_var"))]
    if not kept:
        return
    _add_up(kept)
    for buffer in kept:
        buffer /= world_size()


def _add_up(tensors: Sequence[Tensor]) -> None:
    """Put the sum over the processes in place of each tensor, all in one message; overwrites them."""
    flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
    dist.all_reduce(flat)
    at = 0
    for tensor in tensors:
        tensor.copy_(flat[at : at + tensor.numel()].view_as(tensor))
        at += tensor.numel()
