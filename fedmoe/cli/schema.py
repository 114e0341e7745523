"""`fedmoe schema`: the JSON Schema of configs."""

from __future__ import annotations

import json

import click


@click.command()
def schema() -> None:
    """Print the JSON Schema of configs, for an editor.

    It then completes and checks the YAML.

    \b
    Examples:
      fedmoe schema > fedmoe.schema.json
    """
    from fedmoe.config import Experiment
    from fedmoe.config.load import json_schema

    print(json.dumps(json_schema(Experiment), indent=2))
