"""The processes of a training: one alone, or those that torchrun started.

In: the environment (RANK, WORLD_SIZE, LOCAL_RANK). Out: who this process is and on which device it
computes, and the few exchanges we need. With one process nothing is exchanged and no process group is made.
"""

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import distributed

from prep.core import memory


class Distributed(NamedTuple):
    """This process among the others."""

    rank: int
    world_size: int
    device: torch.device

    def all_gather(self, thing: Any) -> list[Any]:
        """Return `thing` (picklable) of every rank, in the order of the ranks, on each of them."""
        if self.world_size == 1:
            return [thing]
        things: list[Any] = [None] * self.world_size
        distributed.all_gather_object(things, thing)
        return things

    def all_reduce(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return `tensor` added up over all ranks; it is changed in place."""
        if self.world_size > 1:
            distributed.all_reduce(tensor)
        return tensor

    def broadcast(self, tensors: Iterable[torch.Tensor]) -> None:
        """Give the first rank's values of `tensors` to all ranks, in place."""
        if self.world_size > 1:
            for tensor in tensors:
                distributed.broadcast(tensor, 0)

    def barrier(self) -> None:
        """Return when every rank has come here."""
        if self.world_size > 1:
            distributed.barrier()


@contextmanager
def init_distributed() -> Iterator[Distributed]:
    """Join the processes that torchrun started, if it did; leave them at the end.

    A process without a GPU keeps from now on the memory that it frees.
    """
    rank, world_size = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    cuda = torch.cuda.is_available()
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0"))) if cuda else torch.device("cpu")
    if cuda:
        torch.cuda.set_device(device)
    else:
        memory.keep_freed()  # a step needs what the one before it freed
    if world_size == 1 or distributed.is_initialized():  # whoever joined them leaves them
        yield Distributed(rank, world_size, device)
        return
    distributed.init_process_group("nccl" if cuda else "gloo")
    try:
        yield Distributed(rank, world_size, device)
    finally:
        distributed.destroy_process_group()
