"""What a run is of: digests by which a resumed run finds out whether anything has changed."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from importlib.metadata import version

import numpy as np

from fedmoe.code import code_digest
from fedmoe.config import Experiment
from fedmoe.config.load import to_yaml
from fedmoe.config.schema import Simulation
from fedmoe.prepared import Prepared

LIBRARIES = ("torch", "transformers", "numpy")


def identity(prepared: Prepared) -> dict[str, str]:
    """`config`, `code`, `libraries`, `model` and `data`: what changes a bit of the result."""
    return {
        "config": settings_digest(prepared.experiment), "code": code_digest(),
        "libraries": ", ".join(f"{name} {version(name)}" for name in LIBRARIES),
        "model": prepared.base, "data": _data(prepared),
    }  # fmt: skip


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
