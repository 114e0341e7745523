"""The identity of a run, by which a resumed run finds out whether anything has changed."""

from __future__ import annotations

import datetime
import hashlib
import platform
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from fedmoe.config.components import foreign_code
from fedmoe.config.load import to_yaml
from fedmoe.config.schema import Membership, Simulation
from fedmoe.system.digests import code_digest, template_digest
from fedmoe.system.extras import versions
from fedmoe.system.folders import STARTED, started_in
from fedmoe.system.machine import processor

if TYPE_CHECKING:
    from fedmoe.config import Experiment
    from fedmoe.runs.server_side import ServerSide

VERSIONS = ("torch", "transformers", "peft", "flwr", "numpy", "home-assistant-intents")
LIBRARIES = ("torch", "transformers", "numpy")


def identity(server: ServerSide) -> dict[str, str]:
    """Return everything that can change a bit of the result, by `config`, `code` and so on.

    Components are those from outside fedmoe, start the adapter it begins with, and template that of
    a .jinja file, where there are any.
    """
    foreign, template = foreign_code(server.setup.experiment), server.setup.experiment.text.template
    start, words = server.setup.start, template_digest(template)
    return {
        "config": settings_digest(server.setup.experiment),
        "code": code_digest(*filter(None, [server.nodes_code])),
        "libraries": libraries(),
        "device": server.setup.model.device.type,
        "processor": processor(torch.backends.cpu.get_cpu_capability()),
        "threads": _threads(server),
        "model": server.setup.base,
        "data": server.facts.sha256,
        **({"components": foreign} if foreign else {}),
        **({"template": words} if words != template else {}),
        **({"start": start.adapter.digest()} if start else {}),
    }


def _threads(server: ServerSide) -> str:
    """Return the threads of torch here, and of a client: sums of products differ with them."""
    here = torch.get_num_threads()
    in_process = server.setup.experiment.simulation.workers == 1 and server.nodes_code is None
    return f"{here} here, {here if in_process else 1} per client"


def libraries() -> str:
    """Return the versions of the libraries that results depend on."""
    return ", ".join(f"{name} {version(name)}" for name in LIBRARIES)


def settings_digest(experiment: Experiment) -> str:
    """Return a digest of `settings_text`."""
    return hashlib.sha256(settings_text(experiment).encode()).hexdigest()[:16]


def settings_text(experiment: Experiment) -> str:
    """Return the experiment as YAML, without the settings that change no bit of the result."""
    # Whatever the quorum, a round is aggregated in the same way or not at all.
    patient = replace(experiment.membership, wait_seconds=Membership().wait_seconds)
    passes = Simulation(clients_per_pass=experiment.simulation.clients_per_pass)
    return to_yaml(replace(experiment, simulation=passes, membership=patient, quorum=0.0))


def environment(server: ServerSide, folder: Path) -> dict[str, Any]:
    """Return the versions and the machine that a run's figures depend on, and its identity.

    Args:
        folder: the run's, from which its paths are found again.
    """
    return {
        "identity": identity(server),
        "code": code_digest(),
        "requested": settings_digest(server.requested or server.setup.experiment),
        "device": str(server.setup.model.device),
        "python": platform.python_version(),
        "machine": platform.machine(),
        "threads": str(torch.get_num_threads()),
        **versions(*VERSIONS),
        STARTED: started_in(folder),
        "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }
