"""From a YAML file and dotted overrides to one checked, frozen `Experiment`.

In reading order:
    schema.py     the `Experiment` tree: which sections there are, and their defaults
    simulation.py the section of how this machine carries out a run
    load.py       the way in: file + overrides -> experiment, and back to YAML or a JSON schema
    yaml_text.py  YAML 1.2 text <-> plain dicts, lists and scalars
    files.py      sections that a config names by the path of their own file
    place.py      where a key of the YAML lands in the schema; filling in defaults
    paths.py      where relative paths start, also of a run that is opened from elsewhere
    overrides.py  `a.b=c` written into the plain tree
    explain.py    what pydantic found, in plain words

To add a setting, add a field to the section that uses it; to add a component, write its section
in its own file and name it in its union. Nothing in this folder changes.
"""

from collections.abc import Sequence
from pathlib import Path

from fedmoe.config.load import load
from fedmoe.config.schema import Experiment
from fedmoe.section import ANYWHERE, Imports

__all__ = ["Experiment", "load_experiment"]


def load_experiment(
    path: Path | str, overrides: Sequence[str] = (), imports: Imports = ANYWHERE
) -> Experiment:
    """Return the experiment a YAML file and its overrides describe, or raise every fault found.

    Components named as `package.module:Name` are imported; `imports` may forbid it.

    Raises:
        ConfigError: with every fault of the file and of the overrides.

    Example:
        >>> load_experiment("quickstart", ["rounds=3"]).rounds  # a shipped config, by its name
        3
    """
    return load(Experiment, path, overrides, imports)
