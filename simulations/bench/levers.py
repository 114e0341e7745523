"""Memory levers: bytes of the frozen experts against the score that a client's training reaches.

One client of the quickstart, which holds all of its data, trains the built-in model for a round
with its frozen experts in each form, and is scored on test examples in the same form.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from fedmoe.budget.plan import SMALLER
from fedmoe.config import load_experiment
from fedmoe.evaluation.evaluate import Evaluation, evaluate
from fedmoe.models.held import Frozen
from fedmoe.prepare import prepare
from fedmoe.prepared import Prepared
from fedmoe.wire import Task
from simulations.bench.measure import Options, Row, at_most

CONFIG = Path(__file__).parents[2] / "configs/quickstart.yaml"
FORMS: tuple[Frozen, ...] = ("full", *(form for form, _ in SMALLER))
BARS: dict[Frozen, float] = {"int8": 0.26, "int4": 0.15}
"""The most that a form may take of the experts' bytes in float32."""


def rows(options: Options) -> Iterator[Row]:
    """Each form's bytes, time and score; then what mapping all of them into a file leaves."""
    run = client(options.quick)
    full, seconds = 1, 1.0
    for form in FORMS:
        size = run.model.frozen.num_bytes(form)
        found, took = trained(run, form)
        if form == "full":
            full, seconds = size, took
        score = f"score {found.score:.3f}, loss {found.loss:.3f}, {took / seconds:.2f}x the time"
        what, setting = f"frozen experts in {form}, against float32", said(run)
        note = f"{size / 1e6:.1f} MB; {score} over {found.examples} examples"
        if form in BARS:
            yield Row(what, setting, note=note, **at_most(size / full, BARS[form]))
        else:
            yield Row(what, setting, f"{size / full:.2f}x", note=note)


def client(quick: bool) -> Prepared:
    """One client with all data, and a tier for every form."""
    tiers = ", ".join(f"{form}: {{top_k: 4, frozen: {form}}}" for form in FORMS)
    overrides = [
        "partition={name: iid, num_clients: 1}", "clients_per_round=1", "rounds=1",
        f"training.steps={2 if quick else 300}", f"budget.tiers={{{tiers}}}",
    ]  # fmt: skip
    if quick:
        overrides += ["data.per_domain=40", "evaluation.test_examples=8"]
    return prepare(load_experiment(CONFIG, overrides))


def trained(run: Prepared, form: Frozen) -> tuple[Evaluation, float]:
    """The score after a round with the frozen experts in `form`, and the round's seconds."""
    rescaler, start = run.rescaler(run.model.full_top_k), run.initial
    task = Task(1, 0, form, run.model.full_top_k, rescaler, start)
    update = run.train(task)
    tiers = {form: (task.top_k, update.rescaler)}
    after = start + update.delta
    settings = run.experiment.evaluation
    (found,) = evaluate(run.model, run.tokenizer, run.sets["test"], after, tiers, settings, 1)
    return found, update.seconds


def said(run: Prepared) -> str:
    """The client in a few words."""
    return f"mini, k = {run.model.full_top_k}, {run.training.steps} steps"
