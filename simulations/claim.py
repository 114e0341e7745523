"""Fewer experts or a lower rank? The papers' claim about clients that can afford less.

    python -m simulations.claim                                (45 runs; 45 minutes on 2 CPU cores)
    python -m simulations.claim configs/compare_quick.yaml     (15 runs; 10 minutes)

Runs `fedmoe compare` on a config whose variants either activate fewer experts or lower the rank,
and writes a page into the comparison's folder: each of the first against each of the second at the
lowest tier, paired by seed, then the comparison's own tables. A run that ended is not repeated.
What came of it: `claim.md`, and of other configs `quick.md`, `smollm2.md` and `full.md`.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.console import Console

from fedmoe import FedMoEError
from fedmoe.comparison.compare import compare
from fedmoe.comparison.paired import difference
from fedmoe.comparison.tables import difference_text
from fedmoe.system.files import write_text

CONFIG = Path(__file__).parents[1] / "configs/compare_claim.yaml"
TIER = "lowest"
FEWER_EXPERTS, LOWER_RANK = ("FedAvg", "FLAME", "UB-SMoE"), ("HetLoRA", "FlexLoRA", "FLoRA")
"""Beginnings of variants' names."""
HEAD = """\
# Fewer experts or a lower rank: `{config}`

Directly against each other, lowest tier, points with 95 % t-intervals over paired seeds (fewer
experts minus lower rank):

{table}
![validation score against bytes both ways](plots/score-against-bytes-both-ways.svg)

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
    (case,) = json.loads((folder / "comparison.json").read_text(encoding="utf-8"))["cases"]
    scores: dict[str, dict[int, float]] = {}
    for run in case["runs"]:
        scores.setdefault(run["variant"], {})[run["seed"]] = run["scores"][TIER]
    head = HEAD.format(config=arguments.config.name, table=directly(scores))
    tables = (folder / "comparison.md").read_text(encoding="utf-8")
    write_text(folder / "claim.md", head + tables)
    print(folder / "claim.md")
    return 0


def directly(scores: Mapping[str, Mapping[int, float]]) -> str:
    """Return the table of every variant of fewer experts against every one of lower rank.

    `scores` are shares of 1 by variant and seed; an interval without 0 is set in bold.
    """
    ranks = [name for name in scores if name.startswith(LOWER_RANK)]
    lines = [["", *ranks], ["---", *["--:"] * len(ranks)]]
    for name in scores:
        if name.startswith(FEWER_EXPERTS):
            lines.append([name, *(cell(scores[name], scores[other]) for other in ranks)])
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def cell(ours: Mapping[int, float], theirs: Mapping[int, float]) -> str:
    """Return the difference over the seeds that both have."""
    seeds = sorted(ours.keys() & theirs.keys())
    found = difference([ours[s] for s in seeds], [theirs[s] for s in seeds])
    sure = found.low is not None and found.high is not None and found.low * found.high > 0
    return f"**{difference_text(found)}**" if sure else difference_text(found)


if __name__ == "__main__":
    sys.exit(main())
