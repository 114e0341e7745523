"""`fedmoe export`: a run's adapter as a PEFT folder."""

from __future__ import annotations

from pathlib import Path

import click

from fedmoe.cli import arguments


@click.command()
@click.argument("run", type=arguments.FILE, help="The folder of a run.")
@click.argument("out", type=arguments.FILE, help="The folder to make.")
@click.option("--without-rescaling", is_flag=True, help="Drop learned factors.")
@arguments.which
def export(run: Path, out: Path, without_rescaling: bool, which: str) -> None:
    """Export a run's adapter for PEFT, proved to be equal.

    Nothing is written unless PEFT computes the same logits.

    \b
    Examples:
      fedmoe export runs/quickstart my-adapter
    """
    from fedmoe.export.saved import SavedRun

    arguments.one_thread()
    saved = SavedRun.open(run, which)
    difference = saved.export(out, without_rescaling=without_rescaling)
    print(f"{out}: PEFT's logits agree within {difference:.1e}")
