"""`fedmoe check`: the resolved plan of a run, before anything is trained."""

from __future__ import annotations

from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from fedmoe.data import manifest_table
from fedmoe.prepare import Prepared
from fedmoe.record import tier_costs


def show_plan(prepared: Prepared, console: Console) -> None:
    """Print the model, the tiers with their costs, and who holds what."""
    e, layout = prepared.experiment, prepared.model.layout
    batch = e.training.batch_size * e.training.accumulation
    console.print(
        f"[bold]{e.name}[/]: {e.rounds} rounds, {prepared.clients_per_round} of "
        f"{len(prepared.members)} clients each, {e.training.steps} steps of {batch} examples"
    )
    console.print(
        f"model {e.model.path} ({e.model.dtype}): {layout.num_layers} sparse layers, "
        f"{layout.num_experts} experts, top_k {prepared.model.full_top_k}; LoRA rank "
        f"{layout.rank}, alpha {layout.alpha:g}"
    )
    console.print(
        f"aggregation {e.aggregation.name}, rescaling {e.rescaling.name}, upload {e.upload.name}"
    )
    console.print(tiers_table(prepared))
    console.print(manifest_table(prepared.manifest), soft_wrap=True)


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
        "memory MB",
    ):
        table.add_column(name, justify="left" if name == "tier" else "right")
    for tier, price in tier_costs(prepared).items():
        members = [str(m.client) for m in prepared.members if m.tier == tier]
        table.add_row(
            tier, str(price.top_k), ", ".join(members) if len(members) <= 8 else str(len(members)),
            f"{price.parameters:,}", f"{price.bytes_down / 1e6:.2f} / {price.bytes_up / 1e6:.2f}",
            f"{price.train_flops_per_token / 1e6:.1f}", f"{price.memory_bytes / 1e6:.0f}",
        )  # fmt: skip
    return table
