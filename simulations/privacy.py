"""What client-level differential privacy costs: loss and score on commands against epsilon.

Two hundred households train a small adapter (rank 2) with plain averaging and with FLAME, without
privacy and with budgets of 32, 8 and 2. Each cell is one line in `runs/privacy/cells.jsonl`, so
that a run that was stopped continues where it was. What came of it: `privacy.md`.

    python -m simulations.privacy                        # takes about 4 minutes a cell on one core
    python -m simulations.privacy --cells norms fedavg-8
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from fedmoe import Experiment, load_experiment, run
from fedmoe.aggregation.mean import Mean
from fedmoe.aggregation.streaming import partial_sums
from fedmoe.messages.records import Update
from fedmoe.privacy.private_mean import norm
from fedmoe.rounds import plan_round
from fedmoe.runs.local.in_process import InProcess
from fedmoe.runs.prepare import prepare
from simulations.study import markdown

CONFIG = Path(__file__).parents[1] / "configs/home_assistant.yaml"
FOLDER = Path("runs/privacy")
CELLS_FILE = FOLDER / "cells.jsonl"
CLIENTS, EXPECTED, ROUNDS, DELTA = 200, 20, 10, 1e-3
STRATEGIES = {
    "fedavg": "aggregation={name: fedavg, weighting: uniform}",
    "ffa": "aggregation={name: ffa_lora, weighting: uniform}",
    "flame": "aggregation={name: flame, weighting: uniform, temperature: 2}",
}
CLIP = {"fedavg": 0.5, "ffa": 0.5, "flame": 0.1}
"""A fifth to a tenth of the median norm of a client's weighted change (`norms`), and no search."""
CELLS = [f"{s}-{e}" for s in ("fedavg", "flame") for e in ("none", "8", "32", "2")]
CELLS += ["fedavg-8-adaptive", "fedavg-8-still", "fedavg-8-0.1", "ffa-8"]
Line = dict[str, Any]


def experiment(cell: str) -> Experiment:
    """Return the run of a cell, named `STRATEGY-EPSILON` or `STRATEGY-EPSILON-CLIP`.

    CLIP may be `adaptive`, or `still` for noise alone, on households that learn nothing.
    """
    (strategy, epsilon, clip), more = [*cell.split("-"), ""][:3], []
    if epsilon != "none":
        how = "noised" if strategy == "flame" else "public"
        bound = CLIP[strategy] if clip in ("", "adaptive", "still") else float(clip)
        given = f"epsilon: {epsilon}, delta: {DELTA}, clip: {bound}, denominators: {how}"
        more = [f"privacy={{{given}{', adaptive: {}' if clip == 'adaptive' else ''}}}"]
        more += ["training.learning_rate=1e-12"] if clip == "still" else []
    overrides = [
        f"name={cell}",
        f"simulation={{folder: {FOLDER}, workers: 1}}",
        f"rounds={ROUNDS}",
        f"clients_per_round={EXPECTED}",
        f"partition.num_clients={CLIENTS}",
        "adapter={rank: 2, alpha: 4}",
        "data={name: home_assistant, per_template: 96, per_domain: 1000}",
        "budget={tiers: {high: {top_k: 8}, lowest: {top_k: 1}}}",
        "training={steps: 3, batch_size: 8, learning_rate: 5e-3, warmup_steps: 1}",
        "training.probe_examples=2",
        "evaluation={every: 0, test_examples: 100}",
        STRATEGIES[strategy],
    ]
    return load_experiment(CONFIG, [*overrides, *more])


def norms(strategy: str) -> Line:
    """Return norms of clients' weighted changes in round 1, and of their mean."""
    e = experiment(f"{strategy}-none")
    assert isinstance(e.aggregation, Mean)
    prepared = prepare(e)
    server = prepared.server
    tasks = plan_round(server.first_state(), server.members, EXPECTED, e.seed, server.send_to)
    updates = [u for u in InProcess(server, prepared.scorer)(tasks) if isinstance(u, Update)]
    mean = e.aggregation
    assert isinstance(mean, Mean)
    each = sorted(norm(u.delta, mean.weigh(u)) for u in updates)
    sums = partial_sums(updates[0].delta.layout, iter(updates), mean.weigh)
    return {
        "cell": f"norms-{strategy}",
        "values": sums.layout.size,
        "least": each[0],
        "median": each[len(each) // 2],
        "most": each[-1],
        "mean": float(sums.descent.norm()) / len(updates),
        "weights": [float(w) / len(updates) for w in (sums.weights[:-1].mean(), sums.weights[-1])],
    }


def measured(cell: str) -> Line:
    """Run a cell and return what came of it."""
    e = experiment(cell)
    results = run(e, resume="auto")
    lines = [json.loads(x) for x in (results.folder / "ledger.jsonl").read_text().splitlines()]
    tests = [x for x in lines if x["kind"] == "evaluation" and x["split"] == "test"]
    found = {
        f"{x['tier']} {'base' if x['round'] == 0 else 'end'}": [x["loss"], 100 * x["score"]]
        for x in tests
    }
    spent = [x for x in lines if x["kind"] == "private"]
    more = {k: spent[-1][k] for k in ("epsilon", "noise_multiplier", "clip")} if spent else {}
    return {"cell": cell, "scores": found, "seconds": lines[-1]["seconds"], **more}


def known() -> dict[str, Line]:
    """Return the lines that are there, by cell."""
    lines = CELLS_FILE.read_text().splitlines() if CELLS_FILE.exists() else []
    return {line["cell"]: line for line in map(json.loads, lines)}


def table(cells: Iterable[Line]) -> str:
    """Return the table of cells as Markdown."""
    rows = []
    for line in (line for line in cells if "scores" in line):
        strategy, epsilon = line["cell"].split("-")[:2]
        z, clip = line.get("noise_multiplier", 0.0), line.get("clip", math.nan)
        values = [f"{loss:.2f} / {score:.0f} %" for loss, score in line["scores"].values()]
        rows.append([strategy, epsilon, f"{z:.2f}", f"{clip:.3g}", *values])
    tiers = ["high, base", "lowest, base", "high, end", "lowest, end"]
    columns = ["strategy", "epsilon", "noise z", "clip", *tiers]
    return markdown(columns, rows)


def main() -> None:
    """Run the cells that are missing, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cells", nargs="+", default=["norms-fedavg", "norms-flame", *CELLS])
    for cell in parser.parse_args().cells:
        if cell in known():
            continue
        line = norms(cell[6:]) if cell.startswith("norms-") else measured(cell)
        FOLDER.mkdir(parents=True, exist_ok=True)
        with CELLS_FILE.open("a") as file:
            file.write(json.dumps(line) + "\n")
        print(json.dumps(line), flush=True)
    print(table(known().values()))


if __name__ == "__main__":
    main()
