"""`fedmoe track`: runs in an experiment tracker."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from fedmoe.cli import arguments


@click.command()
@click.argument("runs", nargs=-1, required=True, type=arguments.FILE, help="Folders of runs.")
@click.option(
    "--to",
    type=click.Choice(["tensorboard", "trackio", "mlflow", "wandb"]),
    default="tensorboard",
    help="The tracker.",
)
@arguments.follow
def track(runs: tuple[Path, ...], to: Any, follow: bool) -> None:
    """Export runs to TensorBoard, trackio, MLflow or W&B.

    Nothing leaves this machine unless the tracker's own environment variables say so.

    \b
    Examples:
      fedmoe track runs/quickstart
      fedmoe track runs/compare_flame/*-seed0 --to mlflow
      fedmoe track runs/quickstart --follow      (beside a run in progress)
    """
    from fedmoe.report.trackers import track

    for folder in runs:
        print(f"{folder}: {track(folder, to, follow=follow)} values exported to {to}")
