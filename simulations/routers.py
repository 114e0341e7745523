"""Gatings and losses on routing: score, load, collapse and seconds, on the built-in model.

    python -m simulations.routers            (54 runs; an hour or two on 2 CPU cores)
    python -m simulations.routers --quick    (tiny runs, three minutes: does it work?)

Each row is a run like the quickstart's with each of three seeds, with trained routers where it does
not say otherwise; its last adapter is measured at the model's full k on test examples. What came of
it: `routers.md`.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import mean, median

import numpy as np
import torch
from torch import Tensor

from fedmoe.config import load_experiment
from fedmoe.data.text import Tokens, evaluation_batches
from fedmoe.export.saved import SavedRun
from fedmoe.models.adapted import AdaptedModel
from fedmoe.report.run import read_run
from fedmoe.runs.prepare import prepare
from fedmoe.training.loss import mean_loss
from fedmoe.training.similarity import mean_pairwise_cka
from simulations.study import Known, Line, Study, Variant, against, amount, main, markdown

CKA_TOKENS = 512
"""Tokens that every expert answers: four times the width of the model."""
BASE, USUAL = "the base model, untrained", "top_k"
"""The first is measured before round 1; scores and seconds are compared with the second's."""
ROUTER = "adapter.router=true"


def routed(name: str, *overrides: str) -> Variant:
    """Return a variant whose clients train the routers."""
    return Variant(name, (ROUTER, *overrides))


VARIANTS = (
    Variant(BASE, ("rounds=1", "training.steps=1")),
    Variant("top_k, routers frozen"),
    routed(USUAL),
    routed("top_1", "gating.name=top_1"),
    routed("top_p", "gating.name=top_p"),
    routed("noisy_top_k", "gating.name=noisy_top_k"),
    routed("hierarchical, 2 of 4 groups", "gating.name=hierarchical"),
    routed("expert_choice", "gating.name=expert_choice"),
    routed("competition, linear", "gating.name=competition"),
    routed("competition, learned", "gating.name=competition", "gating.schedule=learned"),
    routed("ub_smoe's modulation", "aggregation.name=ub_smoe"),
    routed("load_balance .01", "losses.load_balance=0.01"),
    routed("load_balance 1", "losses.load_balance=1.0"),
    routed("importance .1", "losses.importance=0.1"),
    routed("load .1, noisy_top_k", "gating.name=noisy_top_k", "losses.load=0.1"),
    routed("z .001", "losses.z=0.001"),
    routed("similarity .1", "losses.similarity=0.1"),
    routed("alignment 1", "losses.alignment=1.0"),
)
COLUMNS = {
    "score": "score at full k",
    "train_load_cv": "load CV in training",
    "load_cv": "load CV in the test",
    "experts": "experts per token",
    "cka": "mean pairwise CKA",
}


def measure(variant: Variant, folder: Path) -> Line:
    """Return score, load, collapse and seconds of a run, at the tier of the model's full k."""
    run, trained = read_run(folder), variant.name != BASE
    tested = run.curve("test", run.tiers[-1].name)
    line: Line = {"score": tested[-1 if trained else 0]["score"], "train_load_cv": None}
    if trained:
        assert run.by_client is not None, folder
        line["train_load_cv"] = variation(run.by_client.sum(0))
        line["seconds"] = {f"{c['round']} {c['client']}": c["seconds"] for c in run.ok()}
    return line | after(folder, trained)


def after(folder: Path, trained: bool) -> Line:
    """Return the load and the collapse that test examples see, with or without the adapter."""
    prepared = prepare(load_experiment(folder / "config.yaml"))
    setup, rows = prepared.setup, prepared.scorer.sets["test"].rows
    model, pad = setup.model, setup.tokenizer.pad_token_id
    model.load(SavedRun.open(folder, "last").adapter() if trained else setup.initial)
    model.set_budget(model.full_top_k, torch.ones(model.layout.num_layers))
    with model.counting() as counts:
        mean_loss(model, rows, setup.experiment.evaluation.batch_size, pad)
    tokens = sum(len(row.ids) - 1 for row in rows)
    experts = float(counts.sum()) / tokens / len(counts)
    load = variation(counts.numpy())
    return {"load_cv": load, "experts": experts, "cka": collapse(model, rows, pad)}


@torch.no_grad()
def collapse(model: AdaptedModel, rows: Sequence[Tokens], pad: int) -> float:
    """Return experts' pairwise CKA, mean over layers, on what routers see of the first tokens."""
    seen: list[list[Tensor]] = [[] for _ in model.layers]
    for batch in evaluation_batches(rows, 16, pad):
        with model.gates.recording() as recorded:
            model.hidden(batch.input_ids, batch.valid)
            for parts, one in zip(seen, recorded, strict=True):
                parts.append(one.hidden[batch.valid.flatten().to(one.hidden.device)])
        if sum(len(part) for part in seen[0]) >= CKA_TOKENS:
            break
    hidden = [torch.cat(parts)[:CKA_TOKENS] for parts in seen]
    pairs = zip(model.layers, hidden, strict=True)
    return mean(mean_pairwise_cka(layer.experts, x) for layer, x in pairs)


def variation(counts: np.ndarray) -> float:
    """Return the standard deviation of experts' tokens by their mean, averaged over layers."""
    return float((counts.std(1) / counts.mean(1)).mean())


def pace(lines: Sequence[Line], base: Sequence[Line]) -> str:
    """Return the median over client-rounds of their seconds against the base's."""
    ratios = [
        seconds / other["seconds"][key]
        for line, other in zip(lines, base, strict=False)
        for key, seconds in line.get("seconds", {}).items()
        if key in other["seconds"]
    ]
    return f"{median(ratios):.2f}x" if ratios else "-"


def show(known: Known, folder: Path) -> str:
    """Return the table as Markdown."""
    usual = known.get(USUAL, [])
    rows = []
    for name, lines in known.items():
        score, *others = (amount(lines, key) for key in COLUMNS)
        points = "" if name == USUAL else against(lines, usual, len(known) - 1)
        rows.append([name, str(len(lines)), score, points, *others, pace(lines, usual)])
    score, *others = COLUMNS.values()
    head = ["variant", "seeds", score, f"points against {USUAL} [95 % for all]", *others]
    return markdown([*head, f"seconds against {USUAL}"], rows)


STUDY = Study("routers", VARIANTS, measure)

if __name__ == "__main__":
    sys.exit(main(STUDY, show, __doc__))
