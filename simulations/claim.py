"""Fewer experts or a lower rank? The papers' claim about clients that can afford less.

    python -m simulations.claim                  (570 runs of a minute, and a search)
    python -m simulations.claim configs/compare_quick.yaml     (15 runs; 10 minutes)

Runs `fedmoe compare` on a config whose variants either activate fewer experts or lower the rank,
and writes a page into the comparison's folder: each of the first against each of the second at the
lowest tier, paired by seed, then the comparison's own tables. A run that ended is not repeated.
What came of it: `claim.md`, and of other configs `quick.md` and `smollm2.md`.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from fedmoe import FedMoEError
from fedmoe.comparison.compare import compare
from fedmoe.comparison.outcomes import cell
from fedmoe.comparison.paired import difference
from fedmoe.report.text_table import TextTable
from fedmoe.system.files import write_text

CONFIG = Path(__file__).parents[1] / "configs/compare_claim.yaml"
TIER = "lowest"
FEWER_EXPERTS = ("FedAvg", "FLAME", "A3SMoE", "UB-SMoE", "HFedMoE", "FLUX")
LOWER_RANK = ("HetLoRA", "FlexLoRA", "FLoRA", "FLoRIST", "raFLoRA")
"""Beginnings of variants' names."""
HEAD = """\
# Fewer experts or a lower rank: `{config}`

Directly against each other, lowest tier, test loss per token over paired seeds (fewer experts minus
lower rank; below 0, fewer experts are better). The intervals of all {tests} cells of a table hold
together with 95 % (Bonferroni); bold where one leaves 0 out.

{tables}
![validation loss against bytes both ways](plots/loss-against-bytes-both-ways.svg)

"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the comparison and write its page; the exit code is 0, or 2 for a user's mistake."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser("claim", description=__doc__, formatter_class=raw)
    parser.add_argument("config", nargs="?", type=Path, default=CONFIG, help="what to compare")
    parser.add_argument("overrides", nargs="*", metavar="a.b=c", help="settings: seeds=[0]")
    arguments = parser.parse_args(argv)
    try:
        folder = compare(arguments.config, arguments.overrides, True, Console(stderr=True))
    except FedMoEError as error:
        print(f"claim: error: {error}", file=sys.stderr)
        return error.exit_code
    cases = json.loads((folder / "comparison.json").read_text(encoding="utf-8"))["cases"]
    found = [
        (f"{case['name']}\n\n" if case["name"] else "") + directly(losses_of(case))
        for case in cases
    ]
    names = losses_of(cases[0])
    tests = len(named(names, FEWER_EXPERTS)) * len(named(names, LOWER_RANK))
    head = HEAD.format(config=arguments.config.name, tables="\n".join(found), tests=tests)
    tables = (folder / "comparison.md").read_text(encoding="utf-8")
    write_text(folder / "claim.md", head + tables)
    print(folder / "claim.md")
    return 0


def losses_of(case: Mapping[str, Any]) -> dict[str, dict[int, float]]:
    """Return the test loss of the lowest tier by variant and seed."""
    losses: dict[str, dict[int, float]] = {}
    for run in case["runs"]:
        losses.setdefault(run["variant"], {})[run["seed"]] = run["losses"][TIER]
    return losses


def named(losses: Mapping[str, Mapping[int, float]], beginnings: tuple[str, ...]) -> list[str]:
    """Return the variants whose names begin so."""
    return [name for name in losses if name.startswith(beginnings)]


def directly(losses: Mapping[str, Mapping[int, float]]) -> str:
    """Return the table of every variant of fewer experts against every one of lower rank.

    `losses` are by variant and seed; a difference is over the seeds that both have.
    """
    fewer, lower = named(losses, FEWER_EXPERTS), named(losses, LOWER_RANK)
    rows = []
    for name in fewer:
        rows.append([name])
        for other in lower:
            seeds = sorted(losses[name].keys() & losses[other].keys())
            ours, theirs = ([losses[v][s] for s in seeds] for v in (name, other))
            found = difference(ours, theirs, len(fewer) * len(lower))
            rows[-1].append(cell(found, "loss"))
    return "\n".join([*TextTable("", ["", *lower], rows).markdown(), ""])


if __name__ == "__main__":
    sys.exit(main())
