"""A book of a long benchmark: a line for every run that ended, so that none is made twice."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from fedmoe.comparison.paired import Difference, difference
from fedmoe.config.schema import Experiment
from fedmoe.runs.identity import settings_text
from fedmoe.system.files import write_text

CONFIG = Path(__file__).parents[2] / "configs/quickstart.yaml"
FOLDER = Path("runs")
SEEDS = (0, 1, 2)
QUICK = (
    "rounds=1",
    "clients_per_round=1",
    "training.steps=2",
    "training.probe_examples=2",
    "evaluation.test_examples=4",
    "evaluation.max_new_tokens=4",
)
Line = dict[str, Any]


@dataclass(frozen=True)
class Variant:
    """A row: what it changes of the quickstart."""

    name: str
    overrides: tuple[str, ...] = ()
    trains: bool = True


def line_of(
    book: Path, variant: Variant, experiment: Experiment, measured: Callable[[], Line]
) -> Line:
    """The variant's line of an experiment: as it stands in the book, else measured and added."""
    digest = hashlib.sha256(settings_text(experiment).encode()).hexdigest()[:16]
    known = {"variant": variant.name, "seed": experiment.seed, "settings": digest}
    for line in read(book):
        if known.items() <= line.items():
            return line
    line = known | measured()
    book.parent.mkdir(exist_ok=True)
    lines = [*read(book), line]  # the file anew: its last line may have been cut short
    write_text(book, "".join(json.dumps(found) + "\n" for found in lines))
    return line


def read(book: Path) -> list[Line]:
    """The lines that a book holds; a last one that was cut short is left out."""
    text = book.read_text(encoding="utf-8") if book.exists() else ""
    return [json.loads(line) for line in text.splitlines() if line.endswith("}")]


def by_variant(lines: Sequence[Line]) -> dict[str, list[Line]]:
    """The lines of each variant, in the order in which they were written."""
    groups: dict[str, list[Line]] = {}
    for line in lines:
        groups.setdefault(line["variant"], []).append(line)
    return groups


def amount(lines: Sequence[Line], key: str) -> str:
    """Mean and standard deviation over seeds."""
    values = [line[key] for line in lines if line[key] is not None]
    if not values:
        return "-"
    spread = f" ± {stdev(values):.3f}" if len(values) > 1 else ""
    return f"{mean(values):.3f}{spread}"


def gained(lines: Sequence[Line], base: Sequence[Line]) -> Difference | None:
    """The score minus the base's, over the seeds that both have."""
    known = {line["seed"]: line["score"] for line in base}
    pairs = [(line["score"], known[line["seed"]]) for line in lines if line["seed"] in known]
    return difference([a for a, _ in pairs], [b for _, b in pairs]) if pairs else None


def points(against: Difference | None) -> str:
    """A difference of scores in points, with its interval where there is one."""
    if against is None:
        return "-"
    if against.low is None or against.high is None:
        return f"{100 * against.mean:+.1f}"
    return f"{100 * against.mean:+.1f} [{100 * against.low:+.1f}, {100 * against.high:+.1f}]"


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table as Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)
