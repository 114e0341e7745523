"""What a client's round should take: tokens, FLOPs, and seconds on its virtual device."""

from __future__ import annotations

from collections.abc import Sequence

from fedmoe.budget.cost import Cost
from fedmoe.data.text import Tokens
from fedmoe.devices.clock import VirtualTime, probe_tokens, profile_tokens, virtual_time
from fedmoe.report.units import bytes_text
from fedmoe.runs.prepared import Prepared
from fedmoe.runs.recorder import tier_costs
from fedmoe.training.settings import Training


def expected_tokens(rows: Sequence[Tokens], training: Training) -> tuple[float, float]:
    """Tokens that a client with these examples trains on, and that its loss probes read."""
    if not rows:
        return 0.0, 0.0
    lengths = [len(row.ids) for row in rows]
    batches = -(-len(rows) // training.batch_size)  # of one epoch; the last may be a small one
    micro_batches = training.steps * training.accumulation
    trained = micro_batches * sum(lengths) / batches
    return trained, probe_tokens(lengths, training.probe_examples)


def expected_flops(prepared: Prepared, client: int, tier: str, price: Cost) -> float:
    """FLOPs of a client's round: its steps, its two probes, and what chooses its experts."""
    rows, subset = prepared.rows[client], prepared.subset(tier)
    trained, probed = expected_tokens(rows, prepared.training_of(tier))
    if subset and rows:
        probed += profile_tokens([len(row.ids) for row in rows], subset.examples)
    return price.train_flops_per_token * trained + price.forward_flops_per_token * probed


def expected_time(prepared: Prepared, client: int, tier: str, price: Cost) -> VirtualTime:
    """The virtual time of a client's round on its tier's device, at the most bytes it can send."""
    return virtual_time(
        prepared.experiment.devices[tier],
        bytes_down=price.bytes_down,
        flops=expected_flops(prepared, client, tier, price),
        bytes_up=price.bytes_up,
    )


def memory_warnings(prepared: Prepared) -> list[str]:
    """Return a sentence for each tier that seems to need more memory than its device has."""
    devices = prepared.experiment.devices
    return [
        f"tier {tier!r} needs about {bytes_text(price.memory_bytes)}, its device "
        f"({devices[tier].label}) has {bytes_text(devices[tier].memory_bytes)}; the estimate is "
        "rough; a smaller training.batch_size or training.recompute=true needs less."
        for tier, price in tier_costs(prepared).items()
        if devices and price.memory_bytes > devices[tier].memory_bytes
    ]
