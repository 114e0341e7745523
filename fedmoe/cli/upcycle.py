"""`fedmoe upcycle`: progress while a dense model is made sparse, and its losses at the end."""

from __future__ import annotations

from rich.box import SIMPLE
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from fedmoe.base_models.upcycling.recipe import Upcycle
from fedmoe.base_models.upcycling.upcycle import Upcycled
from fedmoe.base_models.upcycling.upcycle import upcycle as make


def upcycle(recipe: Upcycle, console: Console) -> None:
    """Make the model, with a line of progress a stage, then print what it computes at each k."""
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn()
    with Progress(*columns, TimeElapsedColumn(), console=console) as progress:
        tasks = {}

        def show(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = progress.add_task(what, total=total)
            progress.update(tasks[what], completed=done, total=total)

        made = make(recipe, show)
    size = f"{made.num_parameters / 1e6:.1f} M parameters"
    console.print(f"{made.folder}: {made.architecture}, {size}", highlight=False, soft_wrap=True)
    console.print(
        f"with all experts active: logits {made.logits_difference:.1e} of their size off the dense",
        highlight=False,
    )
    console.print(losses_table(made))


def losses_table(made: Upcycled) -> Table:
    """One row for the dense model, and one for each number of active experts."""
    table = Table(title="held-out loss (nats per response token)", title_justify="left", box=SIMPLE)
    for name in ("model", "top_k", "feed-forward weights in use", "loss"):
        table.add_column(name, justify="left" if name == "model" else "right")
    for row in made.losses:
        top_k = "" if row.top_k is None else str(row.top_k)
        table.add_row(row.model, top_k, f"{row.active_share:.0%}", f"{row.loss:.3f}")
    return table
