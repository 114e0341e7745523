"""Lying clients against robust rules: the scores that are left, on the quickstart's households.

    python -m simulations.attacks table honest whole    (an hour on 2 CPU cores)
    python -m simulations.attacks --case flame clip:most_norm=1 bound last

Each grid is a list of cases, which `cases` has. A case that was run is not run again; the page
`simulations/attacks.md` and its figure are made of all that were.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path

from fedmoe.system.files import write_bytes, write_text
from simulations.attacks.cases import Bench, Case, grids
from simulations.attacks.page import Line, found, page
from simulations.attacks.picture import picture

RESULTS = Path("runs/attacks/results.jsonl")
PAGE = Path(__file__).parents[1] / "attacks.md"
WORDS = Path(__file__).with_name("words.txt")
"""The first part of the page, which a person wrote."""


def known() -> list[Line]:
    """Return the lines of all cases that were run."""
    if not RESULTS.exists():
        return []
    return [json.loads(line) for line in RESULTS.read_text(encoding="utf-8").splitlines()]


def main() -> None:
    """Run what is missing of some grids, and write the page."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("grids", nargs="*", help=f"of {', '.join(grids())}; none: the page alone")
    parser.add_argument("--case", nargs=4, metavar=("STRATEGY", "RULE", "ATTACK", "WHEN"))
    given = parser.parse_args()
    if unknown := [*{*given.grids} - grids().keys()]:
        parser.error(f"no grid {', '.join(unknown)}; there are {', '.join(grids())}")
    wanted = [case for name in given.grids for case in grids()[name]]
    bench, lines = Bench(), known()
    wanted += [Case(*given.case)] if given.case else []
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    for case in wanted:
        if found(lines, case):
            continue
        lines.append(bench.line(case))
        with RESULTS.open("a", encoding="utf-8") as file:
            file.write(json.dumps(lines[-1]) + "\n")
        shown = {name: lines[-1][name] for name in ("loss", "score", "trigger")}
        print(*asdict(case).values(), shown, file=sys.stderr, flush=True)
    write_text(PAGE, page(lines, WORDS.read_text(encoding="utf-8")))
    write_bytes(PAGE.with_suffix(".png"), picture(lines))


if __name__ == "__main__":
    main()
