"""Training with weights, gradients, moments and averages sharded over the ranks (FSDP2).

Checkpoints are those of a single process: a sharded run goes on without sharding, and the other way round.
"""

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer
from torch.utils._pytree import tree_map

from vqvae2 import distributed
from vqvae2.storage.checkpoint import META, Pieces, read_checkpoint, shard_file


class ShardedStrategy(ModelParallelStrategy):
    """Lightning's `ModelParallelStrategy` with checkpoints in the form that every other strategy reads.

    Each node holds a whole, sharded over its devices: gathering stays within the node, and the nodes'
    gradients are averaged. With `data_parallel_size: 1` and `tensor_parallel_size` the number of all devices
    there is one whole, sharded over all nodes. (Lightning's names are those of its own use; nothing is tensor
    parallel here.)

    Lightning's own checkpoints would number the moments of several parameter groups in another way than
    torch does, check a checkpoint after loading it, and unpickle sharded ones.

    Args:
        save_distributed_checkpoint: write a folder with one file a shard in place of one file; without it
            rank 0 gathers the whole checkpoint in its memory.
        options: of `ModelParallelStrategy`.
    """

    def __init__(self, *, save_distributed_checkpoint: bool = False, **options: Any) -> None:
        super().__init__(save_distributed_checkpoint=save_distributed_checkpoint, **options)
        self.saves_shards = save_distributed_checkpoint

    @property
    def lightning_restore_optimizer(self) -> bool:
        return True

    def lightning_module_state_dict(self) -> dict[str, Any]:
        return self.lightning_module.state_dict()

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        return optimizer.state_dict()

    def save_checkpoint(
        self, checkpoint: dict[str, Any], filepath: str | Path, storage_options: Any = None
    ) -> None:
        """Writes a file or a folder in the place of what is there. All ranks take part."""
        path = Path(self.broadcast(filepath))
        if self.is_global_zero and path.is_dir():
            shutil.rmtree(path)
        if self.saves_shards:
            self._save_shards(checkpoint, path)
            return
        keep = self.is_global_zero
        whole = tree_map(lambda leaf: gathered(leaf, keep) if isinstance(leaf, DTensor) else leaf, checkpoint)
        if keep:
            self.checkpoint_io.save_checkpoint(whole, path, storage_options=storage_options)

    def _save_shards(self, checkpoint: dict[str, Any], path: Path) -> None:
        """Each shard to a file; last, to `META`, the rest, with empty tensors where sharded ones were."""
        copy, shard = self.device_mesh.get_coordinate()
        mine: list[Tensor] = []

        def put(leaf: Any) -> Any:
            if not isinstance(leaf, DTensor):
                return leaf
            mine.append(leaf.to_local().detach().clone())
            return torch.empty(leaf.shape, dtype=leaf.dtype, device="meta")

        rest = tree_map(put, checkpoint)
        _together(lambda: path.mkdir(parents=True) if self.is_global_zero else None)
        _together(
            lambda: self.checkpoint_io.save_checkpoint(mine, path / shard_file(shard)) if copy == 0 else None
        )
        if self.is_global_zero:
            rest["num_shards"] = self.device_mesh.shape[1]
            self.checkpoint_io.save_checkpoint(rest, path / META)

    def load_checkpoint(
        self, checkpoint_path: str | Path, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """The checkpoint, with its tensors left on the disk. They are sharded when they are asked for."""
        return read_checkpoint(self.broadcast(checkpoint_path), join=Pieces)

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        module, state = self.lightning_module, dict(checkpoint["state_dict"])
        for name, tensor in module.state_dict().items():
            if isinstance(tensor, DTensor) and name in state:
                state[name] = sharded_like(state[name], tensor)
        module.load_state_dict(state, strict=strict)

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        for optimizer, saved in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            numbers = [number for group in saved["param_groups"] for number in group["params"]]
            weights = [weight for group in optimizer.param_groups for weight in group["params"]]
            state = {
                number: {name: _shard_moment(value, weight) for name, value in saved["state"][number].items()}
                for number, weight in zip(numbers, weights, strict=True)
                if number in saved["state"]
            }
            optimizer.load_state_dict({**saved, "state": state})


def shard(network: nn.Module, mesh: DeviceMesh, *, mixed: bool = False, between: bool = False) -> None:
    """Shards the weights of `network` in place: each of its `blocks` at a time, then what is left.

    Args:
        network: one of `vqvae2.nn`.
        mesh: of `ShardedStrategy`: copies, shards.
        mixed: gather blocks as bfloat16, for training under autocast; gradients are summed in float32.
            Blocks with batch statistics are gathered as they are, which mixed kernels want, and those that
            say that they are `exact`.
        between: whether what the root gathers is freed after each forward pass too, as a network needs it
            that sees no backward pass.
    """
    network.to(memory_format=torch.contiguous_format)  # FSDP2 refuses channels last
    mesh = mesh if mesh.shape[0] > 1 else mesh[mesh.mesh_dim_names[1]]
    plain = MixedPrecisionPolicy(reduce_dtype=torch.float32)
    half = MixedPrecisionPolicy(torch.bfloat16, reduce_dtype=torch.float32, cast_forward_inputs=False)
    for block in network.blocks:
        exact = not mixed or any(_is_exact(part) for part in block.modules())
        fully_shard(block, mesh=mesh, mp_policy=plain if exact else half)
    fully_shard(network, mesh=mesh, mp_policy=plain, reshard_after_forward=True if between else None)


def _is_exact(part: nn.Module) -> bool:
    return isinstance(part, nn.BatchNorm2d) or getattr(part, "exact", False)


def local(tensor: Tensor) -> Tensor:
    """This rank's part of a tensor, or the tensor where it is not sharded."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def gathered(tensor: DTensor, keep: bool) -> Tensor:
    """The whole tensor, on the CPU; nothing where it is not to be kept. All ranks take part."""
    whole = tensor.full_tensor()
    return whole.detach().cpu() if keep else whole.new_empty(0, device="cpu")


def sharded_like(whole: Tensor | Pieces, like: DTensor) -> DTensor:
    """This rank's part of a tensor on the disk, in the layout and on the device of `like`."""
    if whole.shape != like.shape:
        raise ValueError(f"The checkpoint holds {tuple(whole.shape)} where {tuple(like.shape)} is wanted.")
    mesh, mine = like.device_mesh, like.to_local()
    start = -(-like.shape[0] // mesh.shape[-1]) * mesh.get_coordinate()[-1]
    rows = whole[start : start + len(mine)]
    return DTensor.from_local(
        torch.empty_like(mine, dtype=rows.dtype).copy_(rows),
        mesh,
        like.placements,
        run_check=False,
        shape=like.shape,
        stride=like.stride(),
    )


def _shard_moment(value: Any, weight: Tensor) -> Any:
    """What an optimiser keeps of a weight, sharded if the weight is and it has its shape."""
    has_shape = isinstance(value, Tensor | Pieces) and value.shape == weight.shape
    return sharded_like(value, weight) if has_shape and isinstance(weight, DTensor) else value


def _together(write: Callable[[], None]) -> None:
    """Runs `write` on every rank. What one raises all raise: the others would wait for it forever."""
    error = None
    try:
        write()
    except OSError as raised:
        error = raised
    for raised in distributed.all_gather_objects(error):
        if raised is not None:
            raise raised
