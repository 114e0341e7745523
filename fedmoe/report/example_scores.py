"""The test score of every single example, by which two runs are compared in pairs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedmoe.system.files import write_text

FILE = "test-scores.json"


@dataclass(frozen=True)
class ExampleScores:
    """The last adapter's score on each test example, by tier."""

    sha256: str = ""
    """Of the examples and their order; empty where nobody kept their scores."""
    by_tier: dict[str, list[float]] | None = None


def write_example_scores(folder: Path, evaluations: Sequence[Any]) -> None:
    """Write the scores of test examples to a run's folder, in place of earlier ones.

    `evaluations` are those of `fedmoe.evaluation`, of one round.
    """
    found = [e for e in evaluations if e.split == "test" and e.each]
    if found:
        # Most scores are 0 or 1, which need no decimals.
        scores = {e.tier: [int(x) if x in (0, 1) else x for x in e.each] for e in found}
        kept = {"round": found[0].round, "sha256": found[0].examples_sha256, "scores": scores}
        write_text(folder / FILE, json.dumps(kept) + "\n")


def read_example_scores(folder: Path) -> ExampleScores:
    """Return the scores of a run's test examples; empty ones where they were not kept."""
    if not (folder / FILE).exists():
        return ExampleScores()
    found = json.loads((folder / FILE).read_text(encoding="utf-8"))
    return ExampleScores(found["sha256"], found["scores"])
