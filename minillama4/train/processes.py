"""Several processes under ``torchrun``: who is who, on which device, and how they meet.

A process has a rank among all of them, and a local rank among those of its own machine: the first
says which rows of a batch are its own, the second which GPU.
"""

from __future__ import annotations

import os
from contextlib import nullcontext

import torch
import torch.distributed as dist
from torch import Tensor, nn


def process_rank() -> tuple[int, int]:
    """(rank, number of processes); (0, 1) outside torchrun."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def is_main() -> bool:
    return process_rank()[0] == 0


def local_device(device: str) -> torch.device:
    """This process's own: "cuda" is the GPU with its local rank; anything else is as named."""
    chosen = torch.device(device)
    if chosen.type == "cuda" and chosen.index is None:
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
    return chosen


def distributed(model: nn.Module) -> nn.Module:
    """The model with its gradients averaged over the processes; itself where there is but one."""
    if not dist.is_initialized():
        return model
    text_only = getattr(model, "vision", None) is None  # DDP waits for every gradient it expects
    return nn.parallel.DistributedDataParallel(model, find_unused_parameters=not text_only)


def mean_over_processes(value: Tensor) -> float:
    if dist.is_initialized():
        dist.all_reduce(value)
        value = value / dist.get_world_size()
    return value.item()


def join_processes(device: str | None = None):
    """A context: joins torchrun's process group where there is one, and leaves it at the end.

    device: that the tensors will be on; if None, a GPU where there is one.
    """
    if "RANK" not in os.environ or dist.is_initialized():
        return nullcontext()
    return _ProcessGroup(device or ("cuda" if torch.cuda.is_available() else "cpu"))


class _ProcessGroup:
    def __init__(self, device: str):
        self.device = local_device(device)

    def __enter__(self):
        gpu = self.device.type == "cuda"
        if gpu:
            torch.cuda.set_device(self.device)
        dist.init_process_group("nccl" if gpu else "gloo")  # nccl knows GPUs alone

    def __exit__(self, *_):
        dist.destroy_process_group()
