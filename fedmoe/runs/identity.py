"""The identity of a run, by which a resumed run finds out whether anything has changed."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch

from fedmoe.config import Experiment
from fedmoe.config.load import to_yaml
from fedmoe.config.schema import Simulation
from fedmoe.runs.prepared import Prepared
from fedmoe.system.digests import code_digest
from fedmoe.system.machine import processor

LIBRARIES = ("torch", "transformers", "numpy")


def identity(prepared: Prepared) -> dict[str, str]:
    """Return everything that can change a bit of the result, by `config`, `code` and so on."""
    return {
        "config": settings_digest(prepared.experiment),
        "code": code_digest(*filter(None, [prepared.nodes_code])),
        "libraries": libraries(),
        "device": prepared.model.device.type,
        "processor": processor(torch.backends.cpu.get_cpu_capability()),
        "threads": _threads(prepared),
        "model": prepared.base,
        "data": _data(prepared),
    }


def _threads(prepared: Prepared) -> str:
    """Return the threads of torch here, and of a client: sums of products differ with them."""
    here = torch.get_num_threads()
    in_process = prepared.experiment.simulation.workers == 1 and prepared.nodes_code is None
    return f"{here} here, {here if in_process else 1} per client"


def libraries() -> str:
    """Return the versions of the libraries that results depend on."""
    return ", ".join(f"{name} {version(name)}" for name in LIBRARIES)


def written_identity(folder: Path) -> dict[str, str]:
    """Read the identity of the run in a folder; {} if it is not written there."""
    try:
        return json.loads((folder / "environment.json").read_text(encoding="utf-8"))["identity"]
    except (OSError, ValueError, KeyError, TypeError):
        return {}  # of an older version, or gone


def settings_digest(experiment: Experiment) -> str:
    """Return a digest of `settings_text`."""
    return hashlib.sha256(settings_text(experiment).encode()).hexdigest()[:16]


def settings_text(experiment: Experiment) -> str:
    """Return the experiment as YAML, without the settings that change no bit of the result."""
    # Whatever the quorum, a round is aggregated in the same way or not at all.
    return to_yaml(replace(experiment, simulation=Simulation(), quorum=0.0))


def _data(prepared: Prepared) -> str:
    """Return a digest of the token ids of all clients and evaluation sets, in their order."""
    digest = hashlib.sha256()
    for rows in [*prepared.rows, *(data.rows for data in prepared.sets.values())]:
        digest.update(f"{len(rows)}\0".encode())
        for row in rows:
            digest.update(np.asarray((row.prompt_length, *row.ids), dtype=np.int64).tobytes())
    return digest.hexdigest()[:16]
