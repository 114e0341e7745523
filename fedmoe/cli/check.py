"""`fedmoe check`: the resolved plan of a run, before anything is trained."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING

import click

from fedmoe.cli import arguments
from fedmoe.cli.terminal import print_table, say, table, terminal
from fedmoe.errors import FedMoEError

if TYPE_CHECKING:
    from rich.console import Console

    from fedmoe.config import Experiment
    from fedmoe.report.text_table import TextTable
    from fedmoe.rounds import Member
    from fedmoe.runs.own_account import OwnAccount
    from fedmoe.runs.prepare import Prepared
    from fedmoe.runs.server_side import ServerSide

MOST_ROWS = 30
"""Clients with a row of their own."""
MOST_NAMES = 8
"""Clients of a tier that are listed."""


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
    from rich.markup import escape

    from fedmoe.config import load_experiment
    from fedmoe.models.pretrained_gating import unlike_gating
    from fedmoe.runs.costs import memory_warnings
    from fedmoe.runs.prepare import prepare

    arguments.one_thread()
    e = load_experiment(config, overrides)
    prepared = prepare(e, holds_rows=not _on_nodes(e))
    server, console = prepared.server, terminal()
    account = _own_account(prepared)
    e, model = server.setup.experiment, server.setup.model
    training = e.training
    step = f"{training.batch_size * training.accumulation} examples"
    if training.tokens_per_step is not None:
        step = f"about {training.tokens_per_step:,} tokens"
    in_epochs = training.epochs is not None
    length = f"{training.epochs:g} epochs in steps" if in_epochs else f"{training.steps} steps"
    say(
        console,
        f"[bold]{e.name}[/]: {e.rounds} rounds, {_clients(server)} each, {length} of {step}",
    )
    say(
        console,
        f"model {e.model.path} ({e.model.dtype}): {model.layout.num_layers} sparse layers, "
        f"{model.layout.num_experts} experts, top_k {model.full_top_k}; LoRA rank "
        f"{model.layout.rank}, alpha {model.layout.alpha:g}",
    )
    chosen = f"aggregation {e.aggregation.name}, rescaling {e.rescaling.name}"
    say(console, f"{chosen}, upload {e.upload.name}")
    for note in (*server.setup.notes, *(server.setup.start.notes if server.setup.start else ())):
        say(console, escape(note))
    print_table(console, _tiers(server))
    if e.devices:
        print_table(console, _devices(server))
    warnings = memory_warnings(server) + (account.warnings() if account else [])
    if unlike := unlike_gating(e.gating, e.model.path):
        warnings.append(unlike)
    for warning in warnings:
        say(console, f"[bold]warning:[/] {escape(warning)}")
    _show_rows(console, prepared, account)
    if show:
        _show_examples(console, prepared, account, show)


def _on_nodes(experiment: Experiment) -> bool:
    """Return whether the config says that the clients' rows are on other machines."""
    from fedmoe.data.federated import Federated

    return isinstance(experiment.data, Federated) and not experiment.data.path


def _own_account(prepared: Prepared) -> OwnAccount | None:
    """Return the account of clients whose own rows are here; None where there are none."""
    from fedmoe.runs.own_account import read_account
    from fedmoe.runs.own_data import OwnData

    if not isinstance(prepared.client.rows, OwnData):
        return None
    account = read_account(prepared.client.rows)
    account.check_enough(prepared.setup.experiment.quorum)
    return account


def _clients(server: ServerSide) -> str:
    """Return in words how many clients take part in a round."""
    if server.members:
        return f"{server.clients_per_round} of {len(server.members)} clients"
    number = server.setup.experiment.clients_per_round
    return f"{number} of the clients that are there" if number else "all clients that are there"


def _show_rows(console: Console, prepared: Prepared, account: OwnAccount | None) -> None:
    """Print what becomes of every row."""
    from rich.markup import escape

    from fedmoe.data import manifest_rows

    facts, at_nodes = prepared.server.facts, _on_nodes(prepared.setup.experiment)
    notes = _scored(prepared)
    if account:
        notes = [*_show_clients(console, prepared, account), *account.notes(), *notes]
        known = {"scored": account.scored, "answers": account.answers}
        facts = replace(facts, rows=account.total, form="; ".join(account.forms), **known)
    at_nodes_line = "rows: at the nodes, which say what became of theirs when the run begins"
    for line in [at_nodes_line] if at_nodes else facts.account():
        say(console, escape(line))
    for note in notes:
        say(console, f"  {escape(note)}")
    if not account and not at_nodes:
        columns, rows = manifest_rows(facts.manifest)
        print_table(console, table("each client's training examples", columns, rows, 0))


def _show_clients(console: Console, prepared: Prepared, account: OwnAccount) -> list[str]:
    """Print a row per client; return what is to be said of those that have none."""
    from fedmoe.report.clients import rows_table

    tiers = {member.name: member.tier for member in prepared.server.members}
    found = rows_table(account.rows, tiers, MOST_ROWS)
    print_table(console, replace(found, note=""))
    return [found.note] if found.note else []


def _scored(prepared: Prepared) -> list[str]:
    """Return who scores, where not all clients do, or the server does, too."""
    from fedmoe.runs.own_data import SERVER

    notes = []
    if most := prepared.setup.experiment.evaluation.clients:
        notes.append(f"{most} client(s) score at most, drawn from the seed (evaluation.clients)")
    if own := prepared.scorer.sets.get(SERVER):
        notes.append(f"the server scores {len(own.rows)} rows of its own (data.server_test)")
    return notes


def _show_examples(
    console: Console, prepared: Prepared, account: OwnAccount | None, number: int
) -> None:
    """Print examples, the first of every client in turn, and how long all of them are."""
    from rich.text import Text

    from fedmoe.data.shown import length_lines, pieces, template_line

    e, tokenizer = prepared.setup.experiment, prepared.setup.tokenizer
    rows = prepared.client.rows
    clients = [[*rows[name]] for name in (account.rows if account else rows)]
    if not clients:
        raise FedMoEError("--show needs rows, and those of this config are at the nodes")
    if prepared.setup.model.form.name != "causal":
        raise FedMoEError("--show is for language models: examples of others are no single text")
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


def _tiers(server: ServerSide) -> TextTable:
    """Return a row per tier: its clients, and what a round costs one of them."""
    from fedmoe.runs.costs import expected_flops, tier_costs

    columns = ("tier", "clients", "top_k", "trainable", "MB down", "MB up")
    columns += ("MFLOPs per token", "GFLOPs per round", "memory MB")
    rows = []
    for tier, price in tier_costs(server).items():
        members = [m for m in server.members if m.tier == tier]
        flops = [expected_flops(server, m.client, tier, price) for m in members]
        rows.append(
            (
                tier,
                _listed(members),
                str(price.top_k),
                f"{price.parameters:,}",
                f"{price.bytes_down / 1e6:.2f}",
                f"{price.bytes_up / 1e6:.2f}",
                f"{price.train_flops_per_token / 1e6:.1f}",
                f"{sum(flops) / len(flops) / 1e9:,.0f}" if flops else "-",
                f"{price.memory_bytes / 1e6:.0f}",
            )
        )
    note = "MB: at most, in a round. FLOPs: of training. Memory: estimated."
    return table("per client", columns, rows, num_words=2, note=note)


def _listed(members: Sequence[Member]) -> str:
    """Return a tier's clients, names one a line; their number if there are many."""
    if len(members) > MOST_NAMES or not members:
        return str(len(members))
    named = all(member.name for member in members)
    return ("\n" if named else ", ").join(str(member.name or member.client) for member in members)


def _devices(server: ServerSide) -> TextTable:
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
