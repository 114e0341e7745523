"""`fedmoe check`: the resolved plan of a run, before anything is trained."""

from __future__ import annotations

from rich.box import SIMPLE
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from fedmoe.data import manifest_table
from fedmoe.models.pretrained_gating import unlike_gating
from fedmoe.report.units import bytes_text
from fedmoe.runs.costs import expected_flops, expected_time, tier_costs
from fedmoe.runs.prepare import Prepared


def show_plan(prepared: Prepared, console: Console) -> None:
    """Print the model, the tiers with their costs, and who holds what."""
    e, layout = prepared.setup.experiment, prepared.setup.model.layout
    batch = e.training.batch_size * e.training.accumulation
    console.print(
        f"[bold]{e.name}[/]: {e.rounds} rounds, {prepared.server.clients_per_round} of "
        f"{len(prepared.server.members)} clients each, {e.training.steps} steps of {batch} examples"
    )
    console.print(
        f"model {e.model.path} ({e.model.dtype}): {layout.num_layers} sparse layers, "
        f"{layout.num_experts} experts, top_k {prepared.setup.model.full_top_k}; LoRA rank "
        f"{layout.rank}, alpha {layout.alpha:g}"
    )
    console.print(
        f"aggregation {e.aggregation.name}, rescaling {e.rescaling.name}, upload {e.upload.name}"
    )
    console.print(tiers_table(prepared))
    if e.devices:
        console.print(devices_table(prepared))
    warnings = memory_warnings(prepared)
    if said := unlike_gating(e.gating, e.model.path):
        warnings.append(said)
    for warning in warnings:
        console.print(f"[bold]warning:[/] {escape(warning)}", soft_wrap=True, highlight=False)
    console.print(manifest_table(prepared.server.facts.manifest), soft_wrap=True)


def tiers_table(prepared: Prepared) -> Table:
    """One row a tier: its clients and what one of them pays."""
    table = Table(title="per client", title_justify="left", box=SIMPLE)
    for name in (
        "tier",
        "top_k",
        "clients",
        "trainable",
        "MB down / up at most",
        "MFLOPs / token (train)",
        "GFLOPs / round",
        "memory MB",
    ):
        table.add_column(name, justify="left" if name == "tier" else "right")
    for tier, price in tier_costs(prepared.server).items():
        members = [str(m.client) for m in prepared.server.members if m.tier == tier]
        flops = [expected_flops(prepared.server, int(c), tier, price) for c in members]
        work = f"{sum(flops) / len(flops) / 1e9:,.0f}" if flops else "-"
        table.add_row(
            tier,
            str(price.top_k),
            ", ".join(members) if len(members) <= 8 else str(len(members)),
            f"{price.parameters:,}",
            f"{price.bytes_down / 1e6:.2f} / {price.bytes_up / 1e6:.2f}",
            f"{price.train_flops_per_token / 1e6:.1f}",
            work,
            f"{price.memory_bytes / 1e6:.0f}",
        )
    return table


def devices_table(prepared: Prepared) -> Table:
    """One row a tier: its device, and the virtual seconds that a client's round should take."""
    table = Table(title="virtual seconds of a client's round", title_justify="left", box=SIMPLE)
    for name in ("tier", "device", "down", "compute", "up", "in all", "memory", "there"):
        table.add_column(name, justify="left" if name in ("tier", "device") else "right")
    for tier, price in tier_costs(prepared.server).items():
        device = prepared.setup.experiment.devices[tier]
        clients = [m.client for m in prepared.server.members if m.tier == tier]
        times = [expected_time(prepared.server, client, tier, price) for client in clients]
        means = [
            sum(getattr(time, part) for time in times) / max(len(times), 1)
            for part in ("down", "compute", "up", "seconds")
        ]
        table.add_row(
            tier,
            device.label,
            *(f"{seconds:.3g}" for seconds in means),
            "fits" if price.memory_bytes <= device.memory_bytes else "short",
            f"{100 * device.availability:g}%",
        )
    return table


def memory_warnings(prepared: Prepared) -> list[str]:
    """A sentence for each tier whose estimated memory is more than its device has."""
    devices = prepared.setup.experiment.devices
    return [
        f"tier {tier!r} needs about {bytes_text(price.memory_bytes)}, its device "
        f"({devices[tier].label}) has {bytes_text(devices[tier].memory_bytes)}; the estimate is "
        "rough; a smaller training.batch_size or training.recompute=true needs less."
        for tier, price in tier_costs(prepared.server).items()
        if devices and price.memory_bytes > devices[tier].memory_bytes
    ]
