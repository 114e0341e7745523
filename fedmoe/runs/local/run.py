"""`fedmoe run`: a session whose clients train on this machine."""

from __future__ import annotations

from pathlib import Path

from fedmoe.config import Experiment
from fedmoe.runs import session
from fedmoe.runs.local.in_process import make_transport
from fedmoe.runs.resume import Resume


def run(experiment: Experiment, display: session.Display, resume: Resume = "no") -> Path:
    """Run an experiment to its end and return its folder; see `session.run`."""
    return session.run(experiment, display, make_transport, resume)
