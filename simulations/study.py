"""Short runs of variants over seeds, each measured once: what the studies here are made of.

A study names variants of the quickstart, and how to measure a finished run's folder. Runs are
written under `runs/NAME/`, with what was measured of each: a study that was stopped continues where
it was, and a finished one prints its table at once.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedmoe import Experiment, FedMoEError, load_experiment, run
from fedmoe.comparison.config import slug
from fedmoe.comparison.outcomes import difference_text
from fedmoe.comparison.paired import Difference, difference
from fedmoe.comparison.study import spread
from fedmoe.report.text_table import TextTable
from fedmoe.runs.identity import settings_digest
from fedmoe.system.files import write_json, write_text

CONFIG = Path(__file__).parents[1] / "configs/quickstart.yaml"
SEEDS = (0, 1, 2)
QUICK = (
    "rounds=1",
    "clients_per_round=1",
    "training.steps=2",
    "training.probe_examples=2",
    "data.per_domain=40",
    "evaluation.test_examples=4",
    "evaluation.max_new_tokens=4",
)
"""Settings of a trial of a study itself, whose figures mean nothing."""
Line = dict[str, Any]
Known = dict[str, list[Line]]
"""By variant, the line of each seed."""


@dataclass(frozen=True)
class Variant:
    """A row of a study's table, and what it changes of the quickstart."""

    name: str
    overrides: tuple[str, ...] = ()


@dataclass(frozen=True)
class Study:
    """Variants, each run with every seed and measured the same way."""

    name: str
    variants: Sequence[Variant]
    measure: Callable[[Variant, Path], Line]
    """What is wanted of a finished run's folder."""
    parent: Path = Path("runs")

    def folder(self, quick: bool = False) -> Path:
        """Return where runs and table are written."""
        return self.parent / (f"{self.name}-quick" if quick else self.name)

    def experiment(self, variant: Variant, seed: int, quick: bool = False) -> Experiment:
        """Return the run of a variant with a seed."""
        where = (f"name={slug(variant.name)}-{seed}", f"simulation.folder={self.folder(quick)}")
        shared = (*where, *(QUICK if quick else ()), f"seed={seed}", "evaluation.every=0")
        return load_experiment(CONFIG, [*shared, *variant.overrides])

    def lines(self, quick: bool = False) -> Iterator[Known]:
        """Run and measure what is missing; yield all that is known after each variant."""
        known: Known = {}
        for variant in self.variants:
            known[variant.name] = [
                self.line(variant, self.experiment(variant, seed, quick))
                for seed in SEEDS[: 1 if quick else None]
            ]
            yield known

    def line(self, variant: Variant, experiment: Experiment) -> Line:
        """Return what was measured of a run; run and measure it if nobody did."""
        folder = Path(experiment.simulation.folder) / experiment.name
        measured = folder / f"measured-{settings_digest(experiment)}.json"
        if not measured.exists():
            run(experiment, resume="auto")
            write_json(measured, {"seed": experiment.seed} | self.measure(variant, folder))
        return json.loads(measured.read_text(encoding="utf-8"))


def amount(lines: Sequence[Line], key: str) -> str:
    """Return the mean and standard deviation of a figure over seeds."""
    return spread([x[key] for x in lines if x[key] is not None], "{:.3f}".format)


def gained(lines: Sequence[Line], base: Sequence[Line], tests: int = 1) -> Difference | None:
    """Return the score minus the base's, paired by seed; None without a common seed.

    The intervals of `tests` variants hold together.
    """
    known = {line["seed"]: line["score"] for line in base}
    paired = [line for line in lines if line["seed"] in known]
    scores = [line["score"] for line in paired]
    others = [known[line["seed"]] for line in paired]
    return difference(scores, others, tests) if paired else None


def against(lines: Sequence[Line], base: Sequence[Line], tests: int = 1) -> str:
    """Return `gained` in points, with its interval."""
    found = gained(lines, base, tests)
    return difference_text(found) if found else "-"


def markdown(columns: list[str], rows: list[list[str]], note: str = "") -> str:
    """Return a table as Markdown."""
    return "\n".join([*TextTable("", columns, rows).markdown(), "", note]).rstrip() + "\n"


def main(
    study: Study,
    show: Callable[[Known, Path], str],
    doc: str | None,
    argv: Sequence[str] | None = None,
) -> int:
    """Carry out a study; `show` makes its page and may write plots beside it."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=doc, formatter_class=raw)
    parser.add_argument("--quick", action="store_true", help="tiny runs: does everything work?")
    quick, page = parser.parse_args(argv).quick, ""
    try:
        for known in study.lines(quick):
            page = show(known, study.folder(quick))
            write_text(study.folder(quick) / f"{study.name}.md", page)
            print(f"{len(known)} of {len(study.variants)}: {[*known][-1]}", file=sys.stderr)
    except FedMoEError as error:
        print(f"{study.name}: error: {error}", file=sys.stderr)
        return error.exit_code
    print(page, end="")
    return 0
