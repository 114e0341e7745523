"""What a run is of: digests by which a resumed run finds out whether anything has changed."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import numpy as np

from fedmoe.config import Experiment
from fedmoe.config.components import foreign_code
from fedmoe.config.load import to_yaml
from fedmoe.config.schema import Simulation
from fedmoe.runs.prepared import Prepared
from fedmoe.system.digests import code_digest

LIBRARIES = ("torch", "transformers", "numpy")


def identity(prepared: Prepared) -> dict[str, str]:
    """`config`, `code`, `libraries`, `device`, `model`, `data`, `components`.

    Each changes a bit of a result; components are those from outside fedmoe, where there are any.
    """
    beside = [prepared.nodes_code] if prepared.nodes_code else []
    foreign = foreign_code(prepared.experiment)
    return {
        "config": settings_digest(prepared.experiment),
        "code": code_digest(*beside),
        "libraries": libraries(),
        "device": prepared.model.device.type,
        "model": prepared.base,
        "data": _data(prepared),
        **({"components": foreign} if foreign else {}),
    }


def libraries() -> str:
    """The versions of libraries that results depend on."""
    return ", ".join(f"{name} {version(name)}" for name in LIBRARIES)


def written_identity(folder: Path) -> dict[str, str]:
    """The identity that a run's folder says it is of; {} where it says none."""
    try:
        return json.loads((folder / "environment.json").read_text(encoding="utf-8"))["identity"]
    except (OSError, ValueError, KeyError, TypeError):
        return {}  # of an older version, or gone


def settings_digest(experiment: Experiment) -> str:
    """A digest of `settings_text`."""
    return hashlib.sha256(settings_text(experiment).encode()).hexdigest()[:16]


def settings_text(experiment: Experiment) -> str:
    """The experiment as YAML, without what changes no bit of the result."""
    # A round is aggregated as ever or not at all, whatever the quorum.
    return to_yaml(replace(experiment, simulation=Simulation(), quorum=0.0))


def _data(prepared: Prepared) -> str:
    """Of every client's examples and of the evaluation sets, the ids in their order."""
    digest = hashlib.sha256()
    held = [*prepared.rows, *(data.rows for data in prepared.sets.values())]
    for rows in held:
        digest.update(f"{len(rows)}\0".encode())
        for row in rows:
            digest.update(np.asarray((row.prompt_length, *row.ids), dtype=np.int64).tobytes())
    return digest.hexdigest()[:16]
