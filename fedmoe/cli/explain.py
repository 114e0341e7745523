"""`fedmoe explain`: which experts of a run fire for whom."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from fedmoe.cli import arguments, sources


@click.command()
@click.argument("run", type=arguments.FILE, help="The folder of a run.")
@arguments.overrides
@click.option("--data", type=arguments.FILE, help="A file or folder in place of the run's rows.")
@click.option("--tier", default="", help="Route rows as this tier; the highest k by default.")
@click.option(
    "--rows", type=click.IntRange(min=1), default=512, help="Rows to look at, evenly by owner."
)
@arguments.which
@click.option("--out", type=arguments.FILE, help="The folder to write to; the run's by default.")
def explain(
    run: Path,
    overrides: tuple[str, ...],
    data: Path | None,
    tier: str,
    rows: int,
    which: Any,
    out: Path | None,
) -> None:
    """Show which experts fire for which labels and owners.

    It writes explain.html and explain.json: lifts with intervals, experts that resemble each
    other, calibration by tier, and how routing moved. Settings are for --data.

    \b
    Examples:
      fedmoe explain runs/quickstart
      fedmoe explain runs/quickstart --tier low --rows 200 --out experts
      fedmoe explain runs/quickstart --data rows.jsonl data.prompt=question
    """
    from fedmoe.errors import FedMoEError
    from fedmoe.system.extras import require

    if overrides and data is None:
        raise FedMoEError(f"{overrides[0]}: settings are for the rows of --data; name some")
    require("fedmoe explain", "report", "matplotlib", "scipy", "jinja2")
    sources.check_run(run, tiers=[tier] if tier else [])
    sources.check_files(data)
    from fedmoe.cli.terminal import print_table, say, terminal
    from fedmoe.explain.explained import explain
    from fedmoe.explain.page import calibrations, groups, headline, write_explained
    from fedmoe.system.waiting import waiting

    arguments.one_thread()
    with waiting(f"looking at up to {rows:,} rows"):
        found = explain(run, data=data, overrides=overrides, tier=tier, which=which, rows=rows)
    console = terminal()
    for note in found.notes:
        say(console, note)
    say(console, headline(found))
    for table in [*map(groups, found.groups), calibrations(found)]:
        print_table(console, table)
    print(write_explained(found, out or run))
