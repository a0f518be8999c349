"""Sharding: each of several processes keeps a part of a network's weights (FSDP2).

    before a block computes, forwards or backwards    its weights come together from all processes
    afterwards                                        each process keeps its part alone

It is torch's `fully_shard`. accelerate has it for GPUs only, and only for a model and an optimizer
that it takes over together, so it cannot be tested without several GPUs; here it makes the group of
processes, as ever. An adapter is small: it stays whole in every process, and so do its optimizer,
its average and its files. With `train="full"` all of these are in parts too.

The network's calls are now messages between processes, so all of them must make as many.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

BLOCKS = ("TransformerBlock", "ResnetBlock2D")
"""The ends of the names of the classes whose weights come together at a time."""


def shard(networks: Sequence[nn.Module], device: torch.device, train: str) -> None:
    """Bring networks to the device, of which each process keeps a part.

    Args:
        networks: in main memory, ready but for this, the same in all processes.
        device: of this process.
        train: "lora" leaves the weights that learn whole.

    Raises:
        ValueError: the processes' weights are not the same.
    """
    check_alike(networks, device)
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(device.type, (torch.distributed.get_world_size(),))

    for network in networks:
        for parameter in network.parameters():
            parameter.data = parameter.data.contiguous()  # channels last cannot be divided

        learning = {p for p in network.parameters() if p.requires_grad}
        undivided = learning if train == "lora" else set()
        for parameter in undivided:
            parameter.data = parameter.data.to(device)

        blocks = [one for one in network.modules() if type(one).__name__.endswith(BLOCKS)]
        for module in [*reversed(blocks), network]:
            module.register_forward_hook(_without_views)
            # also of the outermost one, whose weights another call may find changed
            fully_shard(module, mesh=mesh, reshard_after_forward=True, ignored_params=undivided)


def _without_views(module: nn.Module, args: object, output: Any) -> Any:
    """Return a layer's output without views, on which torch's hook for the way back may be lost."""
    if isinstance(output, (tuple, list)):
        return type(output)(_without_views(module, args, one) for one in output)
    if isinstance(output, Tensor) and output._is_view():
        return output.clone()
    return output


def check_alike(networks: Sequence[nn.Module], device: torch.device) -> None:
    """Refuse networks that are not the same in all processes.

    Raises:
        ValueError: the message names the processes.
    """
    local_sums = torch.tensor([bit_sum(network) for network in networks], device=device)
    all_sums = [torch.empty_like(local_sums) for _ in range(torch.distributed.get_world_size())]
    torch.distributed.all_gather(all_sums, local_sums)

    if others := [str(rank) for rank, sums in enumerate(all_sums) if not sums.equal(all_sums[0])]:
        raise ValueError(unlike(others))


def unlike(processes: Iterable[object]) -> str:
    """Return the message about processes with other weights than the main one."""
    return (
        f"processes {', '.join(map(str, processes))} do not begin with the weights of process 0; "
        "see that all machines have the same files of the model, of model.adapter and of the "
        "expander"
    )


def bit_sum(network: nn.Module) -> int:
    """Return the sum of the bits of weights, read as whole numbers: the same in whatever order.

    Sharded ones are left out.
    """
    integers = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    weights = [one.detach() for one in network.parameters() if not is_sharded(one)]
    sums = [int(one.contiguous().view(integers[one.element_size()]).sum()) for one in weights]
    return sum(sums) % 2**62


def stock_class(network: nn.Module) -> type[nn.Module]:
    """Return the class that a network had before it was sharded."""
    from torch.distributed.fsdp import FSDPModule

    kinds: Iterable[Any] = type(network).__mro__
    return next(one for one in kinds if not issubclass(one, FSDPModule))


def is_sharded(tensor: Tensor) -> bool:
    """Return whether this process has a part of a tensor only."""
    if type(tensor) in (Tensor, nn.Parameter):
        return False  # without the import, which takes long

    from torch.distributed.tensor import DTensor

    return isinstance(tensor, DTensor)


def is_main() -> bool:
    """Return True in the process that gets what `gathered` brings together."""
    return not torch.distributed.is_initialized() or torch.distributed.get_rank() == 0


def gathered(tensor: Any) -> Tensor:
    """Return a tensor on the CPU; of a sharded one all of it, and nothing but in the main process.

    All processes must call this together, if the tensor is sharded.
    """
    if not is_sharded(tensor):
        return tensor.detach().cpu()

    full = tensor.detach().full_tensor()
    return full.cpu() if is_main() else torch.empty(0)


def total(value: Any) -> Tensor:
    """Return a number that was computed of the parts of all processes, in each of them."""
    found: Tensor = value.full_tensor() if is_sharded(value) else value
    return found


def part_of(value: Tensor, like: Any) -> Tensor:
    """Return the part of a whole tensor that this process keeps, if it is sharded as `like` is."""
    if not is_sharded(like):
        return value

    from torch.distributed.tensor import distribute_tensor

    mesh = like.device_mesh
    placed = value.to(like.device)
    # without a message: all processes have the whole one
    return distribute_tensor(placed, mesh, like.placements, src_data_rank=None).clone()


def copies_held(copies: Iterable[Tensor], parameters: Iterable[nn.Parameter]) -> list[Tensor]:
    """Return what this process keeps of whole copies of parameters."""
    parts: Iterable[Any] = map(part_of, copies, parameters)
    return [part.to_local() for part in parts]


def held(parameters: Iterable[Any]) -> list[nn.Parameter]:
    """Return what this process holds of parameters, in their own memory: all, or its parts."""
    return [
        nn.Parameter(one.detach().to_local(), one.requires_grad) if is_sharded(one) else one
        for one in parameters
    ]
