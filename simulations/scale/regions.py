"""Regional servers: the sums of their sums against the flat federation, for FedAvg and FLAME.

    python -m simulations.scale.regions            (eight minutes on 2 CPU cores; 1 GB)
    python -m simulations.scale.regions --simulated (the thousand made-up updates alone; one minute)

A strategy with the trait `maskable` is a ratio of two sums over clients. A region adds up its own
owners' (`Mean.sums`), the server above adds the regions' (`Sums.add`) and divides
(`Mean.combine_sums`). What came of it: `README.md`.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch

import fedmoe as fm
from fedmoe.adapter import Adapter, Layout, initial_adapter, keep_untouched
from fedmoe.aggregation.mean import Mean
from fedmoe.aggregation.streaming import Sums
from fedmoe.seeds import generator, numpy_rng

STRATEGIES: tuple[Mean, ...] = (fm.FedAvg(), fm.Flame())
REGIONS, SIMULATED_OWNERS, REAL_OWNERS, ROUNDS = 10, 100, 10, 3
"""Owners are of one region."""
SUM_BYTES = 8
"""Of a value in a region's sum, float64."""


def simulated(layout: Layout, owners: range) -> Iterator[fm.Update]:
    """Yield made-up updates of the mini model's adapter; most owners reach half of the experts."""
    for client in owners:
        rng, noise = numpy_rng(0, "simulated", client), generator(0, "simulated", client)
        counts = torch.from_numpy(rng.integers(0, 60, (layout.num_layers, layout.num_experts)))
        counts *= torch.from_numpy(rng.random(counts.shape) < 0.5)
        delta = Adapter(layout, 1e-3 * torch.randn(layout.size, generator=noise))
        yield fm.Update(
            round=1,
            client=client,
            tier="low",
            top_k=1,
            rescaler=torch.ones(layout.num_layers),
            delta=keep_untouched(delta, counts),
            counts=counts,
            examples=int(rng.integers(1, 40)),
            tokens=60,
            steps=1,
            loss_before=1.0,
            loss_after=1.0,
            seconds=1.0,
            peak_bytes=1,
        )


def above(strategy: Mean, state: Adapter, regions: Sequence[Sums]) -> Adapter:
    """Return the next state, as the server above the regions makes it of their sums."""
    first, *others = regions
    for sums in others:
        first.add(sums)
    return strategy.combine_sums(state, first)


def apart(one: Adapter, other: Adapter) -> float:
    """Return the largest difference of two adapters' values."""
    return (one.flat - other.flat).abs().max().item()


def thousand_updates(strategy: Mean) -> str:
    """Return a line of the table: one round of a thousand made-up updates."""
    layout = federation(strategy, 1).prepared.setup.model.layout
    state, all_owners = initial_adapter(layout, generator(0)), range(REGIONS * SIMULATED_OWNERS)
    flat = strategy.combine(state, simulated(layout, all_owners))
    parts = [all_owners[r * SIMULATED_OWNERS :][:SIMULATED_OWNERS] for r in range(REGIONS)]
    sums = [strategy.sums(state, simulated(layout, part)) for part in parts]
    started = time.process_time()
    found = above(strategy, state, sums)
    seconds = time.process_time() - started
    return (
        f"{strategy.name}: {REGIONS} regions of {SIMULATED_OWNERS}, made-up updates: values moved "
        f"by up to {apart(flat, state):.2e}, differ by up to {apart(flat, found):.2e}; the server "
        f"above takes {seconds:.3f} s, and {SUM_BYTES * layout.size:,} bytes from each region in "
        f"place of {4 * layout.size * SIMULATED_OWNERS:,} from its owners"
    )


def federation(strategy: Mean, owners: int) -> fm.Federation:
    """Return owners with a few rows each, in two tiers."""
    words, clients = ("lamp", "heater", "fan", "blind", "radio"), []
    for owner in range(owners):
        rng = numpy_rng(0, "owner", owner)
        rows = [(f"turn on {rng.choice(words)} {n}", f"on({n})") for n in range(8)]
        clients.append(fm.Client(rows, tier="low" if owner % 2 else "high"))
    tiers = {"high": fm.Tier(top_k=8), "low": fm.Tier(top_k=1)}
    held_out = [(f"turn on radio {n}", f"on({n})") for n in range(50, 58)]
    return fm.Federation(
        "mini",
        clients,
        tiers=tiers,
        strategy=strategy,
        training=fm.Training(steps=2, batch_size=4),
        validation=held_out[:1],
        test=held_out[1:],
        rounds=ROUNDS,
    )


def real_rounds(strategy: Mean) -> Iterator[str]:
    """Yield a line for each round of a federation and of one with regions, both from round 0."""
    fed = federation(strategy, REGIONS * REAL_OWNERS)
    flat = regional = fed.init()
    for _ in range(ROUNDS):
        same, updates = fed.round(regional)
        # Before round 1 both are the same.
        flat = same if flat is regional else fed.round(flat)[0]
        parts = [updates[r * REAL_OWNERS :][:REAL_OWNERS] for r in range(REGIONS)]
        sums = [strategy.sums(regional.adapter, part) for part in parts]
        adapter = above(strategy, regional.adapter, sums)
        moved = apart(adapter, regional.adapter)
        regional = replace(regional, round=regional.round + 1, adapter=adapter)
        losses = [fed.evaluate(state).losses["low"] for state in (flat, regional)]
        since = apart(flat.adapter, adapter)
        yield (
            f"{strategy.name}: round {regional.round}, {REGIONS} regions of {REAL_OWNERS}: values "
            f"moved by up to {moved:.2e}; of the same updates they differ by up to "
            f"{apart(same.adapter, adapter):.2e}, since round 0 by {since:.2e}; "
            f"test loss {losses[0]:.6f} and {losses[1]:.6f}"
        )


def main() -> None:
    """Print what FedAvg and FLAME make of the same federation, with and without regions."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--simulated", action="store_true", help="No training")
    options = parser.parse_args()
    for strategy in STRATEGIES:
        print(thousand_updates(strategy), flush=True)
        for line in () if options.simulated else real_rounds(strategy):
            print(line, flush=True)


if __name__ == "__main__":
    main()
