"""Facts about the process group, asked at the moment they are needed.

Nothing here is cached: before Lightning starts a strategy there is no process group, so a rank that was
remembered in an ``__init__`` would be wrong (and its codebook would train unsynchronised).
"""

import torch
import torch.distributed as dist


def world_size() -> int:
    """Number of processes that work together; 1 when there is no process group."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """This process's number among them; 0 when there is no process group."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def all_reduce_sum(tensor: torch.Tensor) -> torch.Tensor:
    """Sums `tensor` over all ranks, in place, and returns it."""
    if world_size() > 1:
        dist.all_reduce(tensor, op=dist.ReduceOp.SUM)
    return tensor


def broadcast(tensors: list[torch.Tensor]) -> None:
    """Gives all ranks the first one's values, in place."""
    if world_size() > 1:
        for tensor in tensors:
            dist.broadcast(tensor, 0)


def all_gather_objects(value: object) -> list:
    """What every rank passed, in rank order."""
    if world_size() == 1:
        return [value]
    gathered: list = [None] * world_size()
    dist.all_gather_object(gathered, value)
    return gathered
