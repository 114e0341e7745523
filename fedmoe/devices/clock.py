"""The time of a client's round on its device, as a function of figures in the ledger."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fedmoe.devices.device import Device
from fedmoe.messages.codec import MEASURED, measured_length, update_scalars
from fedmoe.messages.records import Update


@dataclass(frozen=True)
class VirtualTime:
    """The virtual seconds of one client's round, by where they go."""

    latency: float
    down: float
    compute: float
    up: float

    @property
    def seconds(self) -> float:
        """All of it."""
        return self.latency + self.down + self.compute + self.up


def virtual_time(
    device: Device, *, bytes_down: float, flops: float, bytes_up: float, slowdown: float = 1.0
) -> VirtualTime:
    r"""The time of one client's round, its parts one after another.

    $$t = \ell + \frac{b_\downarrow}{r_\downarrow} + \frac{F}{u P} + \frac{b_\uparrow}{r_\uparrow}$$

    `F` FLOPs at `u` (utilisation) of the peak `P`; `b` bytes at `r` bytes per second; `l` latency.
    A `slowdown` (see `config.faults`) is a factor on each part.

    The same figures give the same seconds, to the bit, on every machine. Computing is taken to be
    bound by arithmetic, at one utilisation for all work. Left out: memory bandwidth (which binds
    small batches, and experts with few tokens), padding, attention scores and recomputation, which
    the FLOPs do not count either; loading the model; heat, batteries and other programs.

    Source: bytes over rate plus work over speed is how federated systems are simulated elsewhere,
    e.g. FedScale (arXiv:2105.11367); the FLOPs and bytes are ours, see `budget.cost` and `wire`.
    """
    return VirtualTime(
        latency=slowdown * device.latency_seconds,
        down=slowdown * (bytes_down / device.downlink_bytes_per_second),
        compute=slowdown * (flops / device.effective_flops),
        up=slowdown * (bytes_up / device.uplink_bytes_per_second),
    )


def client_time(device: Device, line: Mapping[str, Any]) -> VirtualTime:
    """The time of a client's round from its line in the ledger: training, and the loss probes."""
    return virtual_time(
        device,
        bytes_down=line["bytes_down"],
        flops=line["flops"] + line["probe_flops"],
        bytes_up=line["virtual_bytes_up"],
        slowdown=line.get("slowdown", 1.0),
    )


def virtual_bytes_up(update: Update) -> int:
    """The bytes of an update's message without the digits of its scalars.

    They say how well the model learns, which is no affair of a clock.
    """
    spelt = sum(len(json.dumps(value)) for value in update_scalars(update).values())
    return update.num_bytes - (spelt - measured_length(update) + MEASURED)


def profile_tokens(lengths: Sequence[int], examples: int) -> float:
    """Tokens of the forward pass that chooses a client's subset of experts, in a mean round."""
    return min(1.0, examples / len(lengths)) * sum(lengths)


def probe_tokens(lengths: Sequence[int], probe_examples: int) -> int:
    """Tokens in the two forward passes with which a client measures its loss.

    Args:
        lengths: tokens of each of the client's training examples, in their order.
        probe_examples: as in `Training`; every n-th example is taken, so as to have at most these.
    """
    return 2 * sum(lengths[:: -(-len(lengths) // probe_examples)])
