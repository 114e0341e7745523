"""`fedmoe compare`: variants of an experiment over the same seeds."""

from __future__ import annotations

from pathlib import Path

import click

from fedmoe.cli import arguments


@click.command()
@arguments.configured
@arguments.quiet
def compare(config: Path, overrides: tuple[str, ...], quiet: bool) -> None:
    """Compare variants over paired seeds: one report with intervals.

    A run that has ended is not repeated: start an interrupted comparison again to finish it.

    \b
    Examples:
      fedmoe compare compare_flame
      fedmoe compare my-comparison.yaml seeds=[0]
    """
    from rich.console import Console

    from fedmoe.system.extras import require

    arguments.one_thread()
    require("fedmoe compare", "report", "matplotlib", "scipy")
    from fedmoe.comparison import compare

    arguments.end_like_ctrl_c()
    print(compare(config, overrides, quiet, Console()) / "comparison.html")
