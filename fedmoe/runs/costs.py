"""The cost of a client's round: parameters, bytes, FLOPs and memory, and its virtual seconds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from fedmoe.budget.cost import cost
from fedmoe.devices.clock import probe_tokens, profile_tokens, virtual_time
from fedmoe.report.units import bytes_text

if TYPE_CHECKING:
    from fedmoe.budget.cost import Cost
    from fedmoe.devices.clock import VirtualTime
    from fedmoe.runs.server_side import ServerSide
    from fedmoe.training.settings import Training


def tier_costs(server: ServerSide) -> dict[str, Cost]:
    """Return what each tier's clients pay, for batches of the run's mean length."""
    return {tier: tier_cost(server, tier, k) for tier, k in server.setup.top_ks.items()}


def tier_cost(server: ServerSide, tier: str, top_k: int) -> Cost:
    """Return what one of a tier's clients pays that activates `top_k` experts."""
    setup, settings = server.setup, server.setup.tier(tier)
    batch_tokens = setup.training.batch_size * round(server.facts.mean_length)
    return cost(
        setup.model,
        setup.layouts(tier, 1),
        top_k,
        batch_tokens,
        setup.experiment.upload,
        frozen=settings.frozen,
        offload=settings.offload,
        subset=setup.subset(tier),
        target_share=server.facts.target_share,
    )


def expected_tokens(lengths: Sequence[int], training: Training) -> tuple[float, float]:
    """Return the tokens that a client trains on, and those that its loss probes read."""
    if not lengths:
        return 0.0, 0.0
    training = training.on(len(lengths))
    batches = -(-len(lengths) // training.batch_size)  # of one epoch; the last may be a small one
    micro_batches = training.steps * training.micro_batches(sum(lengths) / len(lengths))
    trained = micro_batches * sum(lengths) / batches
    return trained, probe_tokens(lengths, training.probe_examples)


def expected_flops(server: ServerSide, client: int, tier: str, price: Cost) -> float:
    """Return the FLOPs of a client's round: its steps, two probes, and the choice of a subset."""
    lengths, subset = server.facts.lengths_of(client), server.setup.subset(tier)
    trained, probed = expected_tokens(lengths, server.setup.training_of(tier))
    if subset and lengths:
        probed += profile_tokens(lengths, subset.examples)
    return price.train_flops_per_token * trained + price.forward_flops_per_token * probed


def expected_time(server: ServerSide, client: int, tier: str, price: Cost) -> VirtualTime:
    """Return the virtual time of a client's round, at the most bytes that it can send."""
    return virtual_time(
        server.setup.experiment.devices[tier],
        bytes_down=price.bytes_down,
        flops=expected_flops(server, client, tier, price),
        bytes_up=price.bytes_up,
    )


def memory_warnings(server: ServerSide) -> list[str]:
    """Return a sentence for each tier that seems to need more memory than its device has."""
    devices = server.setup.experiment.devices
    return [
        f"tier {tier!r} needs about {bytes_text(price.memory_bytes)}, its device "
        f"({devices[tier].label}) has {bytes_text(devices[tier].memory_bytes)}; the estimate is "
        "rough; a smaller training.batch_size or training.recompute=true needs less."
        for tier, price in tier_costs(server).items()
        if devices and price.memory_bytes > devices[tier].memory_bytes
    ]
