"""`fedmoe check`: the resolved plan of a run, before anything is trained."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from fedmoe.cli import arguments
from fedmoe.cli.terminal import say, table

if TYPE_CHECKING:
    from rich.table import Table

    from fedmoe.runs.server_side import ServerSide


@click.command()
@arguments.configured
def check(config: Path, overrides: tuple[str, ...]) -> None:
    """Check a config, and show tiers, clients, costs and data.

    \b
    Examples:
      fedmoe check quickstart
      fedmoe check my.yaml budget.tiers.low.top_k=1
    """
    from rich.console import Console
    from rich.markup import escape

    from fedmoe.config import load_experiment
    from fedmoe.data import manifest_table
    from fedmoe.models.pretrained_gating import unlike_gating
    from fedmoe.runs.costs import memory_warnings
    from fedmoe.runs.prepare import prepare

    arguments.one_thread()
    server, console = prepare(load_experiment(config, overrides)).server, Console()
    e, model = server.setup.experiment, server.setup.model
    batch = e.training.batch_size * e.training.accumulation
    console.print(
        f"[bold]{e.name}[/]: {e.rounds} rounds, {server.clients_per_round} of "
        f"{len(server.members)} clients each, {e.training.steps} steps of {batch} examples"
    )
    console.print(
        f"model {e.model.path} ({e.model.dtype}): {model.layout.num_layers} sparse layers, "
        f"{model.layout.num_experts} experts, top_k {model.full_top_k}; LoRA rank "
        f"{model.layout.rank}, alpha {model.layout.alpha:g}"
    )
    console.print(
        f"aggregation {e.aggregation.name}, rescaling {e.rescaling.name}, upload {e.upload.name}"
    )
    console.print(_tiers(server))
    if e.devices:
        console.print(_devices(server))
    warnings = memory_warnings(server)
    if unlike := unlike_gating(e.gating, e.model.path):
        warnings.append(unlike)
    for warning in warnings:
        say(console, f"[bold]warning:[/] {escape(warning)}")
    for line in server.facts.account():
        say(console, escape(line))
    console.print(manifest_table(server.facts.manifest), soft_wrap=True)


def _tiers(server: ServerSide) -> Table:
    """Return a row per tier: its clients, and what a round costs one of them."""
    from fedmoe.runs.costs import expected_flops, tier_costs

    columns = ("tier", "top_k", "clients", "trainable", "MB down / up at most")
    columns += ("MFLOPs / token (train)", "GFLOPs / round", "memory MB")
    rows = []
    for tier, price in tier_costs(server).items():
        members = [m.client for m in server.members if m.tier == tier]
        flops = [expected_flops(server, client, tier, price) for client in members]
        rows.append(
            (
                tier,
                str(price.top_k),
                ", ".join(map(str, members)) if len(members) <= 8 else str(len(members)),
                f"{price.parameters:,}",
                f"{price.bytes_down / 1e6:.2f} / {price.bytes_up / 1e6:.2f}",
                f"{price.train_flops_per_token / 1e6:.1f}",
                f"{sum(flops) / len(flops) / 1e9:,.0f}" if flops else "-",
                f"{price.memory_bytes / 1e6:.0f}",
            )
        )
    return table("per client", columns, rows)


def _devices(server: ServerSide) -> Table:
    """Return a row per tier: its device, and the virtual seconds of a client's round."""
    from fedmoe.runs.costs import expected_time, tier_costs

    rows = []
    for tier, price in tier_costs(server).items():
        device = server.setup.experiment.devices[tier]
        clients = [m.client for m in server.members if m.tier == tier]
        times = [expected_time(server, client, tier, price) for client in clients]
        parts = ("down", "compute", "up", "seconds")
        means = [sum(getattr(t, part) for t in times) / max(len(times), 1) for part in parts]
        fits = "fits" if price.memory_bytes <= device.memory_bytes else "short"
        there = f"{100 * device.availability:g}%"
        rows.append((tier, device.label, *(f"{s:.3g}" for s in means), fits, there))
    columns = ("tier", "device", "down", "compute", "up", "in all", "memory", "there")
    return table("virtual seconds of a client's round", columns, rows, num_words=2)
