"""`fedmoe pretrain`: a small base model from text."""

from __future__ import annotations

from pathlib import Path

import click

from fedmoe.cli import arguments


@click.command()
@arguments.configured
def pretrain(config: Path, overrides: tuple[str, ...]) -> None:
    """Pretrain a small base model from scratch.

    Start it again to continue where it stopped.

    \b
    Examples:
      fedmoe pretrain pretrain_mini
    """
    from fedmoe.base_models.pretraining import recipe, train
    from fedmoe.config.load import load
    from fedmoe.system.extras import require

    require("fedmoe pretrain", "base-models", "matplotlib")

    def show(row: dict[str, object]) -> None:
        numbers = {k: round(v, 4) for k, v in row.items() if isinstance(v, int | float)}
        print(numbers, flush=True)

    train.pretrain(load(recipe.Pretrain, config, overrides), show)
