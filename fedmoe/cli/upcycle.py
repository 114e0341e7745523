"""`fedmoe upcycle`: a dense model becomes a sparse one."""

from __future__ import annotations

from pathlib import Path

import click

from fedmoe.cli import arguments
from fedmoe.cli.terminal import print_table, say, table, terminal


@click.command()
@arguments.configured
def upcycle(config: Path, overrides: tuple[str, ...]) -> None:
    """Turn a dense, Llama-like model into a sparse MoE.

    A run then names its folder in model.path. Prints the losses at every number of experts.

    \b
    Examples:
      fedmoe upcycle upcycle_smollm2 data.path=rows.jsonl
      fedmoe upcycle upcycle_smollm2 data.path=rows.jsonl 'method={name: copy}' out=copies
    """
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    from fedmoe.system.extras import require

    arguments.one_thread()
    require("fedmoe upcycle", "base-models", "scipy")
    from fedmoe.base_models.upcycling.recipe import Upcycle
    from fedmoe.base_models.upcycling.upcycle import upcycle
    from fedmoe.config.load import load

    recipe, console = load(Upcycle, config, overrides), terminal()
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn()
    with Progress(*columns, TimeElapsedColumn(), console=console) as progress:
        tasks = {}

        def show(stage: str, done: int, total: int) -> None:
            if stage not in tasks:
                tasks[stage] = progress.add_task(stage, total=total)
            progress.update(tasks[stage], completed=done, total=total)

        made = upcycle(recipe, show)
    millions = made.num_parameters / 1e6
    say(console, f"{made.folder}: {made.architecture}, {millions:.1f} M parameters")
    say(console, f"all experts active: logits differ by {made.logits_difference:.1e} of their size")
    losses = [
        (row.model, str(row.top_k or ""), f"{row.active_share:.0%}", f"{row.loss:.3f}")
        for row in made.losses
    ]
    columns = ("model", "top_k", "feed-forward weights in use", "loss")
    print_table(console, table("held-out loss (nats per response token)", columns, losses))
