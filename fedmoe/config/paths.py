"""Paths in an experiment: where relative ones start, also when a run is opened from elsewhere."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from glob import glob, has_magic
from pathlib import Path
from typing import Any

from fedmoe.config.load import load
from fedmoe.config.schema import Experiment
from fedmoe.models.build import MINI
from fedmoe.system.files import expanded
from fedmoe.system.folders import STARTED

PATHS = {
    "model": ("path",),
    "adapter": ("start",),
    "data": ("path", "tools", "server_test"),
    "text": ("template",),
}
"""Settings that name files or folders, by section; one that a section lacks is passed over."""


def saved_experiment(run: Path) -> Experiment:
    """Return the experiment of a run's folder, with the paths of files that are there in full.

    Raises:
        ConfigError: its config.yaml is damaged.
    """
    experiment = load(Experiment, run / "config.yaml")
    try:
        about = json.loads((run / "environment.json").read_text(encoding="utf-8"))
        return rooted(experiment, (run / about[STARTED]).resolve())
    except (OSError, ValueError, KeyError, TypeError):
        return experiment  # of an older version: its paths start at the working folder


def rooted(experiment: Experiment, folder: Path) -> Experiment:
    """Return an experiment whose relative paths, as far as they are there, start at a folder."""
    for section, names in PATHS.items():
        part = getattr(experiment, section)
        changes = {
            name: found
            for name in names
            if (value := getattr(part, name, None)) and value != MINI
            if (found := _from(folder, value)) != value
        }
        if changes:
            experiment = replace(experiment, **{section: replace(part, **changes)})
    return experiment


def _from(folder: Path, value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _from(folder, path) for name, path in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_from(folder, path) for path in value)
    if not isinstance(value, str):
        return value
    path = folder / expanded(value)
    return (
        str(path.absolute()) if path.exists() or (has_magic(value) and glob(str(path))) else value
    )
