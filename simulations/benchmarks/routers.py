"""What gatings and losses on routing do: score, load, collapse and seconds, on the built-in model.

Each row is a short run like the quickstart's, with trained routers, of each seed; the adapter of
its last round is measured at the model's full k, on test examples. An hour or two on 2 CPU cores:
every run is written to `runs/routers.jsonl` as it ends, and what stands there is not run again.
What a client's round takes is measured at the end, of all variants in turns.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from torch import Tensor

from fedmoe.config import load_experiment
from fedmoe.config.schema import Experiment
from fedmoe.data.text import evaluation_batches
from fedmoe.evaluation.evaluate import evaluate
from fedmoe.models.adapted import AdaptedModel
from fedmoe.rounds import ServerState, finish_round, plan_round
from fedmoe.runs.prepare import prepare
from fedmoe.runs.prepared import Prepared
from fedmoe.training.client import mean_loss
from fedmoe.training.similarity import mean_pairwise_cka
from simulations.benchmarks.book import (
    CONFIG,
    FOLDER,
    QUICK,
    SEEDS,
    Line,
    Variant,
    amount,
    by_variant,
    gained,
    line_of,
    markdown,
    points,
    read,
)
from simulations.benchmarks.measure import Options, Row, in_turns, ratio

CKA_TOKENS = 512
"""Tokens that every expert answers; twice the width of the model."""


ROUTER = "adapter.router=true"
VARIANTS = (
    Variant("the base model, untrained", trains=False),
    Variant("top_k, routers frozen"),
    Variant("top_k", (ROUTER,)),
    Variant("top_1", (ROUTER, "gating.name=top_1")),
    Variant("top_p", (ROUTER, "gating.name=top_p")),
    Variant("noisy_top_k", (ROUTER, "gating.name=noisy_top_k")),
    Variant("hierarchical, 2 of 4 groups", (ROUTER, "gating.name=hierarchical")),
    Variant("expert_choice", (ROUTER, "gating.name=expert_choice")),
    Variant("competition, linear", (ROUTER, "gating.name=competition")),
    Variant("competition, learned", (ROUTER, "gating.name=competition", "gating.schedule=learned")),
    Variant("ub_smoe's modulation", (ROUTER, "aggregation.name=ub_smoe")),
    Variant("load_balance .01", (ROUTER, "losses.load_balance=0.01")),
    Variant("load_balance 1", (ROUTER, "losses.load_balance=1.0")),
    Variant("importance .1", (ROUTER, "losses.importance=0.1")),
    Variant("load .1, noisy_top_k", (ROUTER, "gating.name=noisy_top_k", "losses.load=0.1")),
    Variant("z .001", (ROUTER, "losses.z=0.001")),
    Variant("similarity .1", (ROUTER, "losses.similarity=0.1")),
    Variant("alignment 1", (ROUTER, "losses.alignment=1.0")),
)
COLUMNS = {
    "score": "score at full k",
    "train_load_cv": "load CV in training",
    "load_cv": "load CV in the test",
    "experts": "experts per token",
    "cka": "mean pairwise CKA",
}
USUAL = "top_k"
"""What the seconds of the others are compared with."""


def rows(options: Options) -> Iterator[Row]:
    """One row per variant, over the seeds, and its seconds; all of it is in `runs/routers.md`."""
    torch.set_num_threads(options.threads)
    stem = "routers-quick" if options.quick else "routers"
    book, seeds = FOLDER / f"{stem}.jsonl", SEEDS[:1] if options.quick else SEEDS
    for variant in VARIANTS:
        found = [line(variant, seed, options.quick, book) for seed in seeds]
        (FOLDER / f"{stem}.md").write_text(table(read(book)))
        note = "; ".join(f"{said} {amount(found, key)}" for key, said in COLUMNS.items())
        yield Row(variant.name, f"{len(found)} seed(s)", amount(found, "score"), note=note)
    found = paces(options)
    (FOLDER / f"{stem}.md").write_text(table(read(book), found))
    for name, pace in found.items():
        yield Row(f"a client's rounds: {name}", f"against {USUAL}", f"{pace:.2f}x")


def paces(options: Options) -> dict[str, float]:
    """Seconds of a client's first and last round against those of `top_k`, all in turns."""
    steps = {
        variant.name: partial(two_rounds, prepare(asked(variant, SEEDS[0], options.quick)))
        for variant in VARIANTS
        if variant.trains
    }
    seconds = in_turns(steps, options.repeats, clock=options.clock)
    return {name: ratio(found, seconds[USUAL]) for name, found in seconds.items()}


def two_rounds(prepared: Prepared) -> None:
    """What a client of the highest k does in the first round and in the last, from one adapter."""
    state, rounds = prepared.first_state(), prepared.experiment.rounds
    for done in (0, rounds - 1):
        tasks = plan_round(
            replace(state, round=done),
            prepared.members,
            len(prepared.members),
            prepared.experiment.seed,
            prepared.send_to,
        )
        prepared.answer(max(tasks, key=lambda task: (task.top_k, -task.client)))


def line(variant: Variant, seed: int, quick: bool, book: Path) -> Line:
    """The variant's line of that seed: as it stands in the book, else measured and added to it."""
    experiment = asked(variant, seed, quick)
    return line_of(book, variant, experiment, lambda: measured(experiment, variant.trains))


def asked(variant: Variant, seed: int, quick: bool) -> Experiment:
    """A variant's run."""
    extra = QUICK if quick else ()
    changes = [*extra, f"seed={seed}", "evaluation.every=0", *variant.overrides]
    return load_experiment(CONFIG, changes)


def measured(experiment: Experiment, trains: bool) -> Line:
    """Run an experiment in this process and measure its last adapter."""
    prepared = prepare(experiment)
    state, counts = prepared.first_state(), None
    if trains:
        state, counts = trained(prepared, state)
    training = {"train_load_cv": None if counts is None else variation(counts)}
    return after(prepared, state) | training


def trained(prepared: Prepared, state: ServerState) -> tuple[ServerState, Tensor]:
    """The state after all rounds, and where tokens went in them, (layers, experts)."""
    e, counts = prepared.experiment, torch.zeros(())
    for _ in range(e.rounds):
        tasks = plan_round(
            state, prepared.members, prepared.clients_per_round, e.seed, prepared.send_to
        )
        # Through the door, as in a run: a count that is not exact ends the benchmark.
        updates = [prepared.read(prepared.answer(task), task) for task in tasks]
        counts = counts + sum(u.counts for u in updates)
        state = finish_round(
            state, e.aggregation, updates, e.server_optimizer, len(prepared.members)
        )
    return state, counts


def after(prepared: Prepared, state: ServerState) -> Line:
    """Score, loss, load and collapse at the model's full k."""
    model, data = prepared.model, prepared.sets["test"]
    top_k, pad = model.full_top_k, prepared.tokenizer.pad_token_id
    tier = max(prepared.tiers, key=lambda name: prepared.tiers[name])
    prepared.configure_experts(tier)
    adapter = prepared.send(state.adapter, tier)
    budget = {"full": (top_k, prepared.rescaler(top_k))}
    settings = prepared.experiment.evaluation
    (found,) = evaluate(model, prepared.tokenizer, data, adapter, budget, settings, state.round)
    with model.counting() as counts:
        mean_loss(model, data.rows, settings.batch_size, pad)
    tokens = sum(len(row.ids) - 1 for row in data.rows)
    return {
        "score": found.score,
        "loss": found.loss,
        "load_cv": variation(counts),
        "experts": float(counts.sum()) / tokens / len(counts),
        "cka": collapse(model, data.rows, pad),
    }


@torch.no_grad()
def collapse(model: AdaptedModel, data: Sequence[Any], pad: int) -> float:
    """The mean over layers of experts' pairwise CKA, on what routers see of the first tokens."""
    seen: list[list[Tensor]] = [[] for _ in model.layers]
    for batch in evaluation_batches(data, 16, pad):
        with model.gates.recording() as routed:
            model.hidden(batch.input_ids, batch.valid)
            for held, one in zip(seen, routed, strict=True):
                held.append(one.hidden[batch.valid.flatten().to(one.hidden.device)])
        if sum(len(part) for part in seen[0]) >= CKA_TOKENS:
            break
    hidden = [torch.cat(parts)[:CKA_TOKENS] for parts in seen]
    pairs = zip(model.layers, hidden, strict=True)
    return mean(mean_pairwise_cka(layer.experts, x) for layer, x in pairs)


def variation(counts: Tensor) -> float:
    """The mean over layers of the standard deviation of experts' routed tokens by their mean."""
    loads = counts.double()
    return float((loads.std(1, correction=0) / loads.mean(1)).mean())


def table(lines: Sequence[Line], paces: Mapping[str, float] | None = None) -> str:
    """The variants that the book knows, as Markdown: mean and standard deviation over seeds, and
    what a client's round takes."""
    known, order = by_variant(lines), {variant.name: i for i, variant in enumerate(VARIANTS)}
    rows = []
    for name in sorted(known, key=lambda name: order.get(name, len(order))):
        group = known[name]
        score, *others = (amount(group, key) for key in COLUMNS)
        against = "" if name == USUAL else points(gained(group, known.get(USUAL, [])))
        pace = f"{paces[name]:.2f}x" if paces and name in paces else "-"
        rows.append([name, str(len(group)), score, against, *others, pace])
    score, *others = COLUMNS.values()
    head = ["variant", "seeds", score, f"points against {USUAL} [95 %]", *others]
    return markdown([*head, f"seconds against {USUAL}"], rows)
