"""Distributed training: a single process, or the processes that torchrun started.

Input: the environment variables RANK, WORLD_SIZE and LOCAL_RANK. Output: the rank and device of this process, and the
collective operations that we need. A single process communicates nothing and creates no process group.
"""

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Literal, NamedTuple

import torch
from torch import distributed

from prep.core import memory


class Distributed(NamedTuple):
    """The rank and device of this process, and its collective operations."""

    rank: int
    world_size: int
    device: torch.device

    def all_gather(self, thing: Any) -> list[Any]:
        """Return the picklable `thing` of every rank, in the order of the ranks."""
        if self.world_size == 1:
            return [thing]
        things: list[Any] = [None] * self.world_size
        distributed.all_gather_object(things, thing)
        return things

    def all_reduce(self, tensor: torch.Tensor) -> torch.Tensor:
        """Sum `tensor` over all ranks in place, and return it."""
        if self.world_size > 1:
            distributed.all_reduce(tensor)
        return tensor

    def broadcast(self, tensors: Iterable[torch.Tensor]) -> None:
        """Copy the values of `tensors` from rank 0 to all ranks, in place."""
        if self.world_size > 1:
            for tensor in tensors:
                distributed.broadcast(tensor, 0)

    def barrier(self) -> None:
        """Wait until every rank has reached this call."""
        if self.world_size > 1:
            distributed.barrier()


def first_rank() -> bool:
    """Return whether this process is the first one of those that torchrun started, or a single one."""
    return os.environ.get("RANK", "0") == "0"


def set_tf32(operations: Literal["none", "convolutions", "all"]) -> None:
    """Set which float32 operations use TF32 on a GPU that has it; torch's default, and the paper's, is convolutions."""
    torch.backends.cudnn.allow_tf32 = operations != "none"
    torch.backends.cuda.matmul.allow_tf32 = operations == "all"


@contextmanager
def init_distributed() -> Iterator[Distributed]:
    """Initialize the process group if torchrun started this process, and destroy it on exit.

    On a CPU, malloc keeps freed memory from then on, which makes steps faster.
    """
    rank, world_size = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    cuda = torch.cuda.is_available()
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0"))) if cuda else torch.device("cpu")
    if cuda:
        torch.cuda.set_device(device)
    else:
        memory.keep_freed()  # each step reuses the memory of the previous one
    if world_size == 1 or distributed.is_initialized():  # whoever initialized the group destroys it
        yield Distributed(rank, world_size, device)
        return
    distributed.init_process_group("nccl" if cuda else "gloo")
    try:
        yield Distributed(rank, world_size, device)
    finally:
        distributed.destroy_process_group()
