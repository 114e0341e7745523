"""The downloads, memory and work of a device of each tier that answers by a run's adapter."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from fedmoe.report.units import bytes_text, flops_text

COLUMNS = (
    "tier",
    "k",
    "rank",
    "base to download",
    "adapter",
    "frozen experts",
    "weights in memory",
    "work per token",
)


@dataclass(frozen=True)
class Device:
    """The numbers of a device of one tier."""

    tier: str
    top_k: int
    rank: int
    base_bytes: int
    """The base's checkpoint, which is downloaded whole, whatever form its experts then take."""
    adapter_bytes: int
    """The adapter in float32, at the tier's rank."""
    experts: str
    """The form of frozen experts."""
    memory_bytes: int
    """Frozen weights in that form, and the adapter."""
    flops_per_token: float


def as_facts(devices: Sequence[Device]) -> list[dict[str, Any]]:
    """Return devices as JSON values."""
    return [asdict(device) for device in devices]


def table_rows(devices: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """Return the cells of `COLUMNS` for devices as JSON values."""
    return [
        [
            device["tier"],
            str(device["top_k"]),
            str(device["rank"]),
            bytes_text(device["base_bytes"]),
            bytes_text(device["adapter_bytes"]),
            device["experts"],
            bytes_text(device["memory_bytes"]),
            flops_text(device["flops_per_token"]),
        ]
        for device in devices
    ]
