"""`fedmoe run`: a session whose clients train on this machine."""

from __future__ import annotations

from pathlib import Path

from fedmoe import session
from fedmoe.config import Experiment
from fedmoe.resume import Resume
from simulations.live import LiveTable
from simulations.transports import make_transport


def run(experiment: Experiment, live: LiveTable, resume: Resume = "no") -> Path:
    """Run an experiment to its end and return its folder; see `session.run`."""
    return session.run(experiment, live, make_transport, resume)
