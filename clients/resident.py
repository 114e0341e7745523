"""The model and data of a run, built once per process and kept between its tasks."""

from __future__ import annotations

import shlex
from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory

from fedmoe.config import load_experiment
from fedmoe.prepare import prepare
from fedmoe.prepared import Prepared


@lru_cache(maxsize=1)
def resident(experiment: str, overrides: str) -> Prepared:
    """The prepared run of a resolved experiment (YAML), with this machine's dotted overrides.

    A Ray actor lives through a whole run and builds it once. Flower 1.41's SuperNode starts a new
    process for every message, and so builds it for every task.

    Raises:
        FedMoEError: the experiment is faulty, or its model or data are not to be had here.
    """
    with TemporaryDirectory() as folder:
        path = Path(folder) / "experiment.yaml"
        path.write_text(experiment, encoding="utf-8")
        return prepare(load_experiment(path, shlex.split(overrides)))
