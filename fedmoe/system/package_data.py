"""Data files that ship inside the package: word lists, tables, templates."""

from __future__ import annotations

from importlib.resources import files
from typing import Any

import yaml


def package_text(package: str, name: str) -> str:
    """Return the text of the file `name` in the folder of `package`.

    >>> package_text("fedmoe.models.families", "sizes.yaml").startswith("# Published models")
    True
    """
    return (files(package) / name).read_text(encoding="utf-8")


def package_yaml(package: str, name: str) -> Any:
    """Return what a YAML file in the folder of `package` holds.

    >>> package_yaml("fedmoe.models.families", "sizes.yaml")["mixtral"][0]["name"]
    'Mixtral 8x7B'
    """
    return yaml.safe_load(package_text(package, name))
