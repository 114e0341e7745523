"""`fedmoe check`: the resolved plan of a run, before anything is trained."""

from __future__ import annotations

from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING

import click

from fedmoe.cli import arguments
from fedmoe.cli.terminal import say, table
from fedmoe.errors import ConfigError

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from fedmoe.runs.prepare import Prepared
    from fedmoe.runs.server_side import ServerSide


@click.command()
@arguments.configured
@click.option(
    "--show",
    type=click.IntRange(0, 100),
    default=0,
    metavar="N",
    help="Print so many examples as they are trained on, with the learnt part marked.",
)
def check(config: Path, overrides: tuple[str, ...], show: int) -> None:
    """Check a config, and show tiers, clients, costs and data.

    \b
    Examples:
      fedmoe check quickstart
      fedmoe check my.yaml budget.tiers.low.top_k=1
      fedmoe check my.yaml --show 2
    """
    from rich.console import Console
    from rich.markup import escape

    from fedmoe.config import load_experiment
    from fedmoe.data import manifest_table
    from fedmoe.models.pretrained_gating import unlike_gating
    from fedmoe.runs.costs import memory_warnings
    from fedmoe.runs.prepare import prepare

    arguments.one_thread()
    prepared, console = prepare(load_experiment(config, overrides)), Console()
    server = prepared.server
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
    if show:
        _show(prepared, console, show)


def _show(prepared: Prepared, console: Console, number: int) -> None:
    """Print examples, the first of every client in turn, and how long all of them are."""
    from rich.text import Text

    from fedmoe.data.shown import length_lines, pieces, template_line

    e, tokenizer = prepared.setup.experiment, prepared.setup.tokenizer
    clients = [[*rows] for rows in prepared.client.rows.values()]
    if prepared.setup.model.form.name != "causal":
        raise ConfigError("--show is for language models: examples of others are no single text")
    console.print()
    for line in (
        template_line(tokenizer, e.data.wording(e.text)),
        *length_lines([row for rows in clients for row in rows]),
    ):
        say(console, line)
    in_turn = [row for layer in zip_longest(*clients) for row in layer if row is not None]
    for count, row in enumerate(in_turn[:number], 1):
        said = "in reverse" if console.is_terminal else "between « and »"
        say(console, f"[bold]example {count}[/], {len(row.ids):,} tokens, learnt {said}:")
        text = Text()
        for piece, learnt in pieces(row, tokenizer):
            if learnt and not console.is_terminal:
                piece = f"«{piece}»"
            text.append(piece, "reverse" if learnt else "")
        console.print(text, soft_wrap=True)


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
