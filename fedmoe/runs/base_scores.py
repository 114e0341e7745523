"""Scores of the base model, which runs of one folder share: a later one need not measure them.

`<simulation.folder>/.base-scores/<key>.json`. The key is a digest of all that the scores depend on:
code, libraries, processor and threads, the model and what each tier is sent, the examples, and
every setting but those of training. Removing the folder is safe at any time.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from fedmoe.config.components import untold
from fedmoe.config.load import to_yaml
from fedmoe.config.yaml_text import parse
from fedmoe.evaluation.evaluate import Evaluation
from fedmoe.runs.roster import Roster
from fedmoe.system.files import expanded, write_text

if TYPE_CHECKING:
    from fedmoe.evaluation.evaluate import EvaluationSet
    from fedmoe.rounds import ServerState
    from fedmoe.runs.server_side import ServerSide

FOLDER = ".base-scores"
OF_TRAINING = {
    "name",
    "rounds",
    "clients_per_round",
    "quorum",
    "training",
    "losses",
    "robust",
    "server_optimizer",
    "upload",
    "admission",
    "privacy",
    "secure_aggregation",
    "membership",
    "early_stopping",
    "devices",
    "simulation",
    "faults",
}
"""Settings that no score of a model without training depends on."""


def scores_file(
    server: ServerSide, identity: Mapping[str, str], test: EvaluationSet, state: ServerState
) -> Path | None:
    """Return the file of the scores of a run's first state; None where none are shared.

    A run of no rounds is there to measure them; clients with parts, experts or rows of their own
    have other scores; and code that is in no file has no digest.
    """
    setup, e = server.setup, server.setup.experiment
    subsets = any(setup.subset(tier) for tier in setup.top_ks)
    roster = isinstance(server.members, Roster)
    if not e.rounds or roster or subsets or e.aggregation.personal or untold(e):
        return None
    settings = {k: v for k, v in parse(to_yaml(e), "").items() if k not in OF_TRAINING}
    sent = {
        tier: (k, server.send(state.adapter, tier).digest(), state.rescalers[tier].tolist())
        for tier, k in setup.top_ks.items()
    }
    same = {name: value for name, value in identity.items() if name != "config"}
    parts = [same, settings, sent, [repr(example) for example in test.examples]]
    return expanded(e.simulation.folder) / FOLDER / f"{_sha256(parts)}.json"


def read_scores(path: Path) -> list[Evaluation]:
    """Return the scores in a file, which took no time; none without one, or from a damaged one."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if found["sha256"] == _sha256(found["scores"]):
            free = {"seconds": 0.0, "clients": ()}
            return [
                Evaluation(**score | free | {"each": (*score["each"],)})
                for score in found["scores"]
            ]
    except (OSError, ValueError, TypeError, KeyError):
        pass
    return []


def write_scores(path: Path, scores: Sequence[Evaluation]) -> None:
    """Write the scores of every tier for later runs."""
    path.parent.mkdir(parents=True, exist_ok=True)
    found = [asdict(score) for score in scores]
    write_text(path, json.dumps({"sha256": _sha256(found), "scores": found}))


def _sha256(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
