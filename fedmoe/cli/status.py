"""`fedmoe status`: the state of runs, in the terminal."""

from __future__ import annotations

from pathlib import Path

import click

from fedmoe.cli import arguments
from fedmoe.cli.terminal import terminal


@click.command()
@arguments.any_folder
@click.option("--json", is_flag=True, help="Print all of it as JSON.")
@arguments.follow
@click.option(
    "--prometheus", type=arguments.FILE, help="A file to write metrics to, for a collector."
)
def status(folder: Path, json: bool, follow: bool, prometheus: Path | None) -> None:
    """Show a run's round, clients, scores and time left.

    \b
    Examples:
      fedmoe status runs/quickstart --follow
      fedmoe status runs/compare_flame           (one line per run)
      fedmoe status runs --follow --prometheus /var/lib/node_exporter/fedmoe.prom
    """
    from fedmoe.watch import status as views
    from fedmoe.watch.folder import WatchedFolder

    show = views.follow if follow else views.show
    show(WatchedFolder(folder), terminal(), json=json, prometheus=prometheus)
