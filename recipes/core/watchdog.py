"""Detects diverged training with counters kept on the device; the host reads them only when it logs, so no step waits.

An update whose gradient is not finite never happens, in any precision: the optimizer is told on the device. So NaN
never reaches weights, optimizer moments, averages or statistics, no matter how rarely the host reads the counters.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

#: What to do about an update that is not finite: stop, or leave it out and count it.
OnNaN = Literal["stop", "skip"]
#: Updates left out in succession, after which training stops whatever was asked for. A loss scaler that halves 50 times
#: has gone from 65,536 to 6e-11: nothing is left to be found by halving.
MOST_SKIPPED = 50
#: Updates in succession with a gradient of exactly 0: the network is cut off from its loss.
MOST_STILL = 100
#: Latents have exploded whose variance exceeds this times the larger of 1 and the variance that the run began with.
EXPLODED = 1e4


@dataclass(frozen=True)
class Fault:
    """What is wrong with a training."""

    network: str
    what: str
    skippable: bool = False
    """Whether it could go on without the update."""


@dataclass(frozen=True)
class Finding:
    """Snapshot of the counters, read by the host."""

    skipped: dict[str, int]
    """Updates of each network left out since the run began."""
    streak: dict[str, int]
    """Consecutive skipped updates of each network, up to now."""
    still: dict[str, int]
    """Updates in succession with a zero gradient."""
    position: int | None
    """Number of the first batch with an update left out since the last reading."""
    logs: dict[str, float]
    """Logs of that batch."""

    def fault(self, on_nan: OnNaN, *, scaled: bool) -> Fault | None:
        """What is wrong, or nothing.

        Args:
            on_nan: whether an update that is not finite is a fault at all.
            scaled: with a loss scaler, which looks for its scale by trying: one is no fault.
        """
        for network, count in self.streak.items():
            if count >= MOST_SKIPPED:
                return Fault(network, f"{count} updates in succession were not finite")
        if self.position is not None and on_nan == "stop" and not scaled:
            network = next((n for n in self.skipped if _not_finite(self.logs.get(f"grad_norm_{n}"))), "?")
            return Fault(network, "the gradient was not finite", skippable=True)
        for network, count in self.still.items():
            if count >= MOST_STILL:
                return Fault(network, f"the gradient was exactly 0 for {count} updates in succession")
        return None


def _not_finite(value: float | None) -> bool:
    return value is not None and not math.isfinite(value)


class Watch:
    """Counts for each network, in one small tensor: left out, left out in succession, zero in succession."""

    def __init__(self, networks: Sequence[str], device: torch.device) -> None:
        self._counts = {name: torch.zeros(3, dtype=torch.int64, device=device) for name in networks}
        self._bad = torch.zeros((), dtype=torch.bool, device=device)
        self._first = torch.full((), -1, dtype=torch.int64, device=device)
        self._names: list[str] = []
        self._values = torch.zeros(0, device=device)

    @property
    def skipped(self) -> dict[str, Tensor]:
        """Updates left out of each network, int64 scalars on the device."""
        return {name: counts[0] for name, counts in self._counts.items()}

    def see(self, network: str, norm: Tensor) -> Tensor:
        """Look at the gradient norm of an update; whether the update may happen, a bool scalar on the device."""
        good, counts = norm.isfinite(), self._counts[network]
        bad = ~good
        counts[0] += bad
        counts[1] = (counts[1] + 1) * bad
        counts[2] = (counts[2] + 1) * (norm == 0)
        self._bad |= bad
        return good

    def end(self, position: int, logs: Mapping[str, Tensor]) -> None:
        """End of an iteration; remembers position and logs of the first bad one since the last `read`."""
        new = self._bad & (self._first < 0)
        self._names = list(logs)
        values = torch.stack([logs[name].detach().float() for name in self._names])
        old = self._values if len(self._values) == len(values) else torch.zeros_like(values)
        self._values = torch.where(new, values, old)
        self._first.masked_fill_(new, position)
        self._bad.zero_()

    def read(self) -> Finding:
        """Copy the counters to the host (synchronises) and reset the record of the first bad update."""
        table = torch.stack([*self._counts.values(), self._first.expand(3)]).tolist()
        *rows, (first, _, _) = table
        counts = dict(zip(self._counts, rows, strict=True))
        logs = dict(zip(self._names, self._values.tolist(), strict=True)) if first >= 0 else {}
        self._first.fill_(-1)
        return Finding(
            skipped={name: row[0] for name, row in counts.items()},
            streak={name: row[1] for name, row in counts.items()},
            still={name: row[2] for name, row in counts.items()},
            position=first if first >= 0 else None,
            logs=logs,
        )


def leave_out(optimizer: Any, bad: Tensor) -> None:
    """Let an optimizer's next step do nothing if a bool scalar on its device is true; no host waits for it.

    PyTorch's fused steps read the attribute ``found_inf`` on the device: it is how `torch.amp.GradScaler` leaves out an
    update, and the only way that needs no synchronisation. It is no public interface; `tests/unit/test_watchdog.py`
    fails if a release of PyTorch no longer looks at it.
    """
    optimizer.found_inf = bad.float()
