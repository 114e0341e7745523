"""The downloads, memory and work of a device of each tier that answers by a run's adapter."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from fedmoe.budget.cost import FLOAT_BYTES
from fedmoe.budget.model import kept_bytes
from fedmoe.budget.shape import Setting, frozen_per_token, low_rank_per_token, shape_of
from fedmoe.models.build import checkpoint_folder
from fedmoe.report.units import bytes_text, flops_text

if TYPE_CHECKING:
    from fedmoe.budget import Tier
    from fedmoe.export.saved import SavedRun

COLUMNS = (
    "tier",
    "k",
    "rank",
    "base to download",
    "adapter",
    "frozen experts",
    "weights in memory",
)
COLUMNS += ("work per token",)


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


def devices_of(saved: SavedRun) -> tuple[Device, ...]:
    """Return what a device of each tier of a run needs."""
    folder = checkpoint_folder(saved.experiment.model.path)
    base = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    tiers = saved.experiment.budget.resolved(saved.model.full_top_k)
    return tuple(_device(saved, name, tier, base) for name, tier in tiers.items())


def _device(saved: SavedRun, name: str, tier: Tier, base: int) -> Device:
    model = saved.model
    layout = model.layout.with_rank(tier.rank or model.layout.rank)
    frozen, subset = tier.frozen, tier.subset
    setting = Setting(tier.top_k, 1, 1, 0, frozen=frozen, offload=tier.offload, subset=subset)
    adapter = FLOAT_BYTES * layout.size
    (dense, expert), (low, low_expert) = frozen_per_token(model), low_rank_per_token(layout)
    return Device(
        tier=name,
        top_k=tier.top_k,
        rank=layout.rank,
        base_bytes=base,
        adapter_bytes=adapter,
        experts=tier.memory_options or "full",
        memory_bytes=round(kept_bytes(shape_of(model, layout), setting)) + adapter,
        flops_per_token=2.0 * (dense + low + tier.top_k * (expert + low_expert)),
    )


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
