"""Lying clients against robust rules: the scores that are left, on the quickstart's households.

    python -m simulations.attacks table honest whole pairs unlike twenty --minutes 5
    python -m simulations.attacks --case flame clip:most_norm=1 bound last

Each grid is a list of cases, which `cases` has. A case that was run is not run again; with
`--minutes` no new one begins after so much processor time, and the same command continues. The
page `simulations/attacks.md` and its figure are made of all that were run on this base model.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from fedmoe.models.folder import MINI, model_folder
from fedmoe.system.digests import files_digest
from fedmoe.system.files import write_bytes, write_text
from simulations.attacks.cases import Bench, Case, Line, found, grids, seconds
from simulations.attacks.page import page
from simulations.attacks.picture import picture

RESULTS = Path("runs/attacks/results.jsonl")
PAGE = Path(__file__).parents[1] / "attacks.md"
WORDS = Path(__file__).with_name("words.txt")
"""The first part of the page, which a person wrote."""
BASE = Path(model_folder(MINI)) / "model.safetensors"


def known(base: str) -> list[Line]:
    """Return the lines of all cases that were run on this base model."""
    text = RESULTS.read_text(encoding="utf-8") if RESULTS.exists() else ""
    lines = map(json.loads, text.splitlines())
    return [vars(Case()) | line for line in lines if line.get("base") == base]


def run(wanted: Sequence[Case], lines: list[Line], base: str, end: float) -> None:
    """Run cases and add their lines, until the processor time is over."""
    bench = Bench()
    for case in wanted:
        if found(lines, case) or time.process_time() > end:
            continue
        lines.append(bench.line(case) | {"base": base})
        with RESULTS.open("a", encoding="utf-8") as file:
            file.write(json.dumps(lines[-1]) + "\n")
        shown = {name: lines[-1][name] for name in ("loss", "score", "trigger")}
        print(*asdict(case).values(), shown, file=sys.stderr, flush=True)


def main() -> None:
    """Run what is missing of some grids, and write the page."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("grids", nargs="*", help=f"of {', '.join(grids())}; none: the page alone")
    parser.add_argument("--case", nargs=4, metavar=("STRATEGY", "RULE", "ATTACK", "WHEN"))
    parser.add_argument("--minutes", type=float, default=math.inf, help="processor time at most")
    given = parser.parse_args()
    if unknown := [*{*given.grids} - grids().keys()]:
        parser.error(f"no grid {', '.join(unknown)}; there are {', '.join(grids())}")
    base, end = files_digest(BASE), time.process_time() + 60 * given.minutes
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    lines = known(base)
    parts = {name: grids()[name] for name in given.grids}
    parts |= {"--case": [Case(*given.case)]} if given.case else {}
    for name, cases in parts.items():
        left = [case for case in cases if not found(lines, case)]
        said = f"{len(left)} of {len(cases)} cases, about {sum(map(seconds, left)) / 60:.1f}"
        print(f"{name}: {said} processor minutes", file=sys.stderr, flush=True)
        run(left, lines, base, end)
    write_text(PAGE, page(lines, WORDS.read_text(encoding="utf-8")))
    write_bytes(PAGE.with_suffix(".png"), picture(lines))


if __name__ == "__main__":
    main()
