"""Distributed utilities: process group, all-reduce helpers, overlapped gradient averaging.

`torch.nn.parallel.DistributedDataParallel` wants one forward call of one module for each backward. A recipe calls
networks in pieces (encode, then decode; a SiT stopped at its alignment depth with frozen parameters; a discriminator
twice) and steps three optimizers in one iteration, so the core averages gradients itself, in the way that DDP does:
buckets, filled in the order in which the backward pass makes the gradients, each sent as soon as it is full.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous

from recipes.core.errors import UserError, nearest

BUCKET_BYTES = 25 * 2**20
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


class GradientAverage:
    """Averages the gradients of a network's parameters over the processes, overlapped with the backward pass."""

    def __init__(self, parameters: Sequence[nn.Parameter], size: int) -> None:
        self._size = size
        self._active = False
        self._works: list[tuple[dist.Work, Tensor, list[Tensor]]] = []
        self._buckets: list[list[nn.Parameter]] = []
        self._missing: list[int] = []
        self._next = 0
        if size == 1:
            return
        room = 0
        for parameter in reversed(parameters):  # the backward pass reaches the last layers first
            if room <= 0:
                self._buckets.append([])
                room = BUCKET_BYTES
            self._buckets[-1].append(parameter)
            room -= parameter.numel() * parameter.element_size()
        for index, bucket in enumerate(self._buckets):
            for parameter in bucket:
                parameter.register_post_accumulate_grad_hook(lambda _, index=index: self._arrived(index))

    @contextmanager
    def during_backward(self, *, last: bool) -> Iterator[None]:
        """Around a backward pass; only after the `last` one of an effective batch are the gradients complete."""
        if self._size == 1 or not last:
            yield
            return
        self._missing = [len(bucket) for bucket in self._buckets]
        self._next = 0
        self._active = True
        try:
            yield
        finally:
            self._active = False
        while self._next < len(self._buckets):  # those with a parameter that got no gradient
            self._send(self._next)
        for work, flat, gradients in self._works:
            work.wait()
            sizes = [g.numel() for g in gradients]
            shares = [part.view_as(g) for part, g in zip(flat.split(sizes), gradients, strict=True)]
            torch._foreach_copy_(gradients, shares)
        self._works.clear()

    def _arrived(self, index: int) -> None:
        if not self._active:
            return
        self._missing[index] -= 1
        # In one order on every process, whatever the order of arrival.
        while self._next < len(self._buckets) and self._missing[self._next] == 0:
            self._send(self._next)

    def _send(self, index: int) -> None:
        self._next = index + 1
        gradients = [p.grad for p in self._buckets[index] if p.grad is not None]
        if not gradients:
            return
        flat = torch.cat([g.flatten() for g in gradients]).div_(self._size)
        work = dist.all_reduce(flat, async_op=True)
        assert work is not None
        self._works.append((work, flat, gradients))
