"""`python -m simulations.ablation CONFIG`: aggregation and rescaling, several seeds, one table.

Each variant differs from the config in one choice. Finished runs are kept in the folder and not
repeated; the table is Markdown, mean and standard deviation of the test score over seeds.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from pathlib import Path

from fedmoe.config import load_experiment
from fedmoe.errors import FedMoEError
from fedmoe.report.ledger import read_ledger
from simulations.live import LiveTable
from simulations.run import run

VARIANTS: dict[str, list[str]] = {
    "FLAME (t = 2), no rescaling": ["aggregation.name=flame", "rescaling.name=none"],
    "FedAvg, no rescaling": ["aggregation.name=fedavg", "rescaling.name=none"],
    "FLAME, static K / k": ["aggregation.name=flame", "rescaling.name=static"],
    "FLAME, learned": ["aggregation.name=flame", "rescaling.name=learned"],
}


def main() -> int:
    """Run what is missing, then print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("config", type=Path)
    parser.add_argument("overrides", nargs="*", metavar="a.b=c")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--folder", type=Path, default=Path("runs/ablation"))
    arguments = parser.parse_args()
    try:
        scores = {
            name: [_scores(arguments, name, choice, seed) for seed in arguments.seeds]
            for name, choice in VARIANTS.items()
        }
    except FedMoEError as error:
        print(f"fedmoe: error: {error}", file=sys.stderr)
        return error.exit_code
    (arguments.folder / "scores.json").write_text(json.dumps(scores, indent=2) + "\n")
    print(table(scores))
    return 0


def _scores(
    arguments: argparse.Namespace, name: str, choice: list[str], seed: int
) -> dict[str, float]:
    """The final test score per tier of one variant and seed, run now unless it is there."""
    slug = "".join(c if c.isalnum() else "-" for c in name) + f"-seed{seed}"
    ledger = arguments.folder / slug / "ledger.jsonl"
    if not ledger.exists() or read_ledger(ledger)[-1]["kind"] != "end":
        overrides = [*arguments.overrides, *choice, f"seed={seed}", f"name={slug}"]
        overrides.append(f"simulation.folder={arguments.folder}")
        experiment = load_experiment(arguments.config, overrides)
        ledger = run(experiment, LiveTable(num_rounds=experiment.rounds)) / "ledger.jsonl"
    rows = [r for r in read_ledger(ledger) if r["kind"] == "evaluation" and r["split"] == "test"]
    last = max(row["round"] for row in rows)
    return {row["tier"]: row["score"] for row in rows if row["round"] == last}


def table(scores: dict[str, list[dict[str, float]]]) -> str:
    """Mean and standard deviation over seeds, in percent, a column per tier."""
    tiers = list(next(iter(scores.values()))[0])
    lines = [f"| | {' | '.join(tiers)} | mean of tiers |", "|---|" + "--:|" * (len(tiers) + 1)]
    for name, seeds in scores.items():
        columns = [[run_[tier] for run_ in seeds] for tier in tiers]
        columns.append([statistics.mean(run_.values()) for run_ in seeds])
        lines.append(f"| {name} | " + " | ".join(map(_spread, columns)) + " |")
    return "\n".join(lines)


def _spread(values: list[float]) -> str:
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{100 * statistics.mean(values):.1f} ± {100 * deviation:.1f}"


if __name__ == "__main__":
    sys.exit(main())
