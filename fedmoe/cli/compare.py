"""`fedmoe compare`: variants of an experiment over the same seeds."""

from __future__ import annotations

from pathlib import Path

import click

from fedmoe.cli import arguments
from fedmoe.cli.terminal import terminal


@click.command()
@arguments.configured
@arguments.quiet
def compare(config: Path, overrides: tuple[str, ...], quiet: bool) -> None:
    """Compare variants over paired seeds, or finished runs.

    A run that has ended is not repeated: start an interrupted comparison again to finish it. In
    place of a config, name the folders of two runs or more; the first one is the reference.

    \b
    Examples:
      fedmoe compare compare_flame
      fedmoe compare my-comparison.yaml seeds=[0]
      fedmoe compare runs/quickstart runs/quickstart-2
    """
    from fedmoe.system.extras import require

    arguments.one_thread()
    require("fedmoe compare", "report", "matplotlib", "scipy")
    from fedmoe.comparison import compare, compare_runs

    if config.is_dir():
        folder = compare_runs([config, *map(Path, overrides)], terminal())
    else:
        arguments.end_like_ctrl_c()
        folder = compare(config, overrides, quiet, terminal())
    print(folder / "comparison.html")
