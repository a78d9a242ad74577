"""Distributed utilities: process group, all-reduce helpers, averaged gradients."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous
from torch.nn.parallel import DistributedDataParallel

from recipes.core.errors import UserError, nearest

#: Rank 0 may prepare assets or write a checkpoint while the others wait.
TIMEOUT = timedelta(hours=2)


@dataclass(frozen=True)
class World:
    """The processes of this run. `World()` is one process on the CPU."""

    rank: int = 0
    size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    @property
    def main(self) -> bool:
        """Whether this is rank 0, which writes files and prints."""
        return self.rank == 0

    def barrier(self) -> None:
        """Wait for all."""
        if self.size > 1:
            dist.barrier()

    @contextmanager
    def main_first(self) -> Iterator[None]:
        """Context: rank 0 runs the block first, the others after it."""
        if not self.main:
            self.barrier()
        yield
        if self.main:
            self.barrier()

    def mean(self, values: Tensor) -> Tensor:
        """The mean over the processes of a tensor that each of them holds."""
        if self.size == 1:
            return values
        total = values.clone()
        dist.all_reduce(total)
        return total / self.size

    def any(self, flag: bool) -> bool:
        """Logical or over processes (via gloo, no GPU sync)."""
        if self.size == 1:
            return flag
        votes = torch.tensor(int(flag))
        dist.all_reduce(votes, op=dist.ReduceOp.MAX)
        return bool(votes)

    def rows(self, batch_size: int) -> slice:
        """The rows of a global batch that this process holds.

        Raises:
            ValueError: the batch does not divide.
        """
        if batch_size % self.size:
            raise ValueError(f"a batch of {batch_size} does not divide by {self.size} processes")
        local = batch_size // self.size
        return slice(self.rank * local, (self.rank + 1) * local)


def choose_device(name: str) -> torch.device:
    """``auto``: this process's GPU if there is one, else the CPU.

    Raises:
        UserError: another name, or a GPU that is not there.
    """
    if name not in ("auto", "cpu", "cuda"):
        raise UserError(f"--device: there is no device '{name}'.{nearest(name, ('auto', 'cpu', 'cuda'))}")
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: PyTorch finds no GPU here; give --device cpu, or repair the driver.")
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda":
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    return torch.device(name)


@contextmanager
def world(device: str = "auto") -> Iterator[World]:
    """Join the processes that ``torchrun`` started, or be alone."""
    chosen = choose_device(device)
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)
        torch.backends.cudnn.benchmark = True  # shapes never change, so the fastest convolutions are worth finding
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        yield World(device=chosen)
        return
    # Gloo beside NCCL, so that hosts can agree on something without waiting for their devices.
    backend = "cpu:gloo,cuda:nccl" if chosen.type == "cuda" else "gloo"
    store, rank, size = next(rendezvous("env://", timeout=TIMEOUT))
    dist.init_process_group(backend, store=_of_this_start(store), rank=rank, world_size=size, timeout=TIMEOUT)
    try:
        yield World(rank=dist.get_rank(), size=size, device=chosen)
    finally:
        dist.destroy_process_group()


def _of_this_start(store: Store) -> Store:
    """Use a separate store prefix after an elastic restart.

    When torchrun starts its processes again, it gives them the store that the dead ones wrote their addresses into. On
    one machine all of them know how often that happened; on several, each machine counts its own failures, and
    ``TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1`` makes torchrun open a new store instead.
    """
    if os.environ.get("LOCAL_WORLD_SIZE") != os.environ.get("WORLD_SIZE"):
        return store
    return PrefixStore(f"start{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)


def world_size() -> int:
    """Processes that share a batch now: 1 outside torchrun."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def world_rank() -> int:
    """Which of them this one is."""
    return dist.get_rank() if world_size() > 1 else 0


def differentiable_mean(values: Tensor) -> Tensor:
    """The mean over the processes, with a gradient to each process's share."""
    if world_size() == 1:
        return values
    return _Mean.apply(values)  # type: ignore[no-any-return]


class _Mean(torch.autograd.Function):
    """y = mean over processes of x. Each process's loss is a share of the mean loss, so gradients average too."""

    @staticmethod
    def forward(ctx: object, values: Tensor) -> Tensor:
        total = values.contiguous().clone()
        dist.all_reduce(total)
        return total / world_size()

    @staticmethod
    def backward(ctx: object, gradient: Tensor) -> Tensor:
        total = gradient.contiguous().clone()
        dist.all_reduce(total)
        return total / world_size()


def gather_equal(values: Tensor) -> Tensor:
    """A tensor of every process, stacked: (processes, *shape)."""
    if world_size() == 1:
        return values[None]
    parts = [torch.empty_like(values) for _ in range(world_size())]
    dist.all_gather(parts, values.contiguous())
    return torch.stack(parts)


def gather_rows(values: Tensor) -> Tensor:
    """The rows (N, ...) of every process in the order of the global batch, with a gradient to each process's own."""
    if world_size() == 1:
        return values
    return _Rows.apply(values)  # type: ignore[no-any-return]


class _Rows(torch.autograd.Function):
    """Every process computes the same global loss; gradients are summed here and later averaged with the parameter
    gradients.
    """

    @staticmethod
    def forward(ctx: object, values: Tensor) -> Tensor:
        return gather_equal(values).flatten(0, 1)

    @staticmethod
    def backward(ctx: object, gradient: Tensor) -> Tensor:
        total = gradient.contiguous().clone()
        dist.all_reduce(total)
        return total.chunk(world_size())[dist.get_rank()]


class _Owner(nn.Module):
    """Owns the parameters of a network, and gives back the loss that it is given.

    `DistributedDataParallel` (DDP) wants one forward call of one module for each backward. A recipe calls networks in
    pieces (encode, then decode; a SiT stopped at its alignment depth; a discriminator twice), and each of its losses is
    the gradients' of one network alone. So DDP sees the loss itself, which is all that it has to know.
    """

    def __init__(self, parameters: Sequence[nn.Parameter]) -> None:
        super().__init__()
        self.owned = nn.ParameterList(parameters)

    def forward(self, loss: Tensor) -> Tensor:
        return loss


class GradientAverage:
    """Averages the gradients of a network's parameters over the processes while the backward pass runs, by DDP."""

    def __init__(self, parameters: Sequence[nn.Parameter], size: int) -> None:
        self._parameters, self._size = list(parameters), size
        self._ddp = self._over(self._parameters) if size > 1 else None
        self._known = set(self._parameters)

    @staticmethod
    def _over(parameters: Sequence[nn.Parameter]) -> DistributedDataParallel:
        return DistributedDataParallel(
            _Owner(parameters),
            broadcast_buffers=False,
            gradient_as_bucket_view=True,
            find_unused_parameters=True,
            init_sync=False,  # every process drew the same weights
        )

    def backward(self, loss: Tensor, *, last: bool) -> None:
        """The backward pass of a scalar loss; only after the `last` one of an effective batch are gradients averaged.

        A parameter may go without a gradient, in all processes alike (a projection head whose term has stopped). DDP
        looks for those, and from then on is over the others alone: a parameter that is looked for in vain makes the
        host wait for the device.
        """
        if self._ddp is None:
            loss.backward()
            return
        with nullcontext() if last else self._ddp.no_sync():
            self._ddp(loss).backward()
        if not last:
            return
        reached = {p: p.grad for p in self._parameters if p.grad is not None}
        for parameter, gradient in reached.items():
            if parameter not in self._known:  # its term has begun again
                dist.all_reduce(gradient.div_(self._size))
        if reached and set(reached) != self._known:
            self._ddp, self._known = self._over(list(reached)), set(reached)
