"""Costs of a device of each tier of a run: downloads, memory, work."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from fedmoe.budget.cost import FLOAT_BYTES
from fedmoe.budget.model import kept_bytes
from fedmoe.budget.shape import Setting, frozen_per_token, low_rank_per_token, shape_of
from fedmoe.export.devices import Device
from fedmoe.models.build import checkpoint_folder

if TYPE_CHECKING:
    from fedmoe.budget import Tier
    from fedmoe.export.saved import SavedRun
    from fedmoe.models.memory.stored import Frozen


def devices_of(
    saved: SavedRun, experts: Frozen | None = None, offload: bool | None = None
) -> tuple[Device, ...]:
    """Return what a device of each tier of a run needs.

    Args:
        experts: the form of frozen experts at every tier; each tier's own when omitted.
        offload: whether they are in a mapped file; as the tiers have it when omitted.
    """
    folder = checkpoint_folder(saved.experiment.model.path)
    base = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    tiers = saved.experiment.budget.resolved(saved.model.full_top_k)
    form = {} if experts is None else {"frozen": experts}
    form |= {} if offload is None else {"offload": offload}
    return tuple(_device(saved, n, replace(tier, **form), base) for n, tier in tiers.items())


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
