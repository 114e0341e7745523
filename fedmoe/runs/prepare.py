"""From an experiment to a run that is ready: load, share out, and refuse what cannot be done."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from fedmoe.adapter import initial_adapter
from fedmoe.budget import Auto, Tier
from fedmoe.budget.auto import tier_plans
from fedmoe.config.constraints import check
from fedmoe.config.schema import Experiment
from fedmoe.data import Splits, load_splits, manifest, partition
from fedmoe.data.examples import Example
from fedmoe.data.text import Tokens, tokenize
from fedmoe.errors import DataError
from fedmoe.evaluation.evaluate import EvaluationSet
from fedmoe.evaluation.metrics import Metric, measured
from fedmoe.models.adapted import AdaptedModel
from fedmoe.models.build import build_model
from fedmoe.models.memory.frozen import forms_of, frozen_digest
from fedmoe.rounds import Member
from fedmoe.runs.prepared import Prepared
from fedmoe.runs.subsets import places, possible
from fedmoe.seeds import generator, numpy_rng


def prepare(experiment: Experiment, *, on_nodes: bool = False) -> Prepared:
    """Load the model and the data, share the data out, and give every client its tier.

    One thread computes: the same bits on any machine of one kind, and room for parallel workers.

    Args:
        experiment: what is asked for.
        on_nodes: clients have machines of their own; with an automatic budget and no devices each
            plans for its own, and tiers say the most that it may activate.

    Raises:
        FedMoEError: whatever of it cannot be done as asked.
    """
    torch.set_num_threads(1)
    model: AdaptedModel
    tokenizer: Any
    e = requested = experiment
    model, tokenizer = build_model(e.model, e.adapter, e.rescaling, e.gating, experts_stay=True)
    check(experiment, model)
    splits = load_splits(experiment.data, experiment.seed)
    train, rows = tokenize(splits.train, tokenizer, experiment.text, model.form.name)
    if not on_nodes or experiment.devices:
        experiment = _planned(experiment, model, rows)
    tiers = experiment.budget.resolved(model.full_top_k)
    base = frozen_digest(model.model)
    model.frozen.hold(forms_of(places(tiers.values())))
    parts = partition(experiment.partition, [e.label for e in train], experiment.seed)
    names = experiment.budget.assign(len(parts), model.full_top_k, experiment.seed)
    model.check_top_ks({tier.top_k for tier in tiers.values()})
    check(experiment, model, Counter(names))
    return Prepared(
        experiment=experiment,
        model=model,
        tokenizer=tokenizer,
        rows=tuple([rows[i] for i in part] for part in parts),
        members=tuple(
            Member(c, tier, tiers[tier].top_k, _availability(experiment, tier, tiers[tier]))
            for c, tier in enumerate(names)
        ),
        tiers={name: tier.top_k for name, tier in tiers.items()},
        ranks={name: tier.rank or experiment.adapter.rank for name, tier in tiers.items()},
        sets=_evaluation_sets(experiment, splits, tokenizer, model.form.name),
        manifest=manifest(train, parts),
        training=experiment.training,
        initial=initial_adapter(model.layout, generator(experiment.seed, "adapter")),
        base=base,
        requested=requested,
    )


def _planned(experiment: Experiment, model: AdaptedModel, rows: Sequence[Tokens]) -> Experiment:
    """The experiment with an automatic budget's tiers planned, and so fixed."""
    e = experiment
    if not isinstance(e.budget, Auto):
        return e
    plans = tier_plans(
        e.budget, model, rows, e.training, e.devices, e.aggregation, e.upload, possible(e, model)
    )
    return replace(e, budget=e.budget.fixed(plans, model.full_top_k))


def _availability(experiment: Experiment, name: str, tier: Tier) -> float:
    return 0.0 if tier.skipped else experiment.availability(name)


def _verifier(experiment: Experiment) -> Metric | None:
    """How a free-running answer is scored; None where the response's likelihood is the score."""
    if experiment.evaluation.metric:
        return measured(experiment.evaluation.metric)
    if getattr(experiment.data, "verify", "exact") == "likelihood":
        return None
    return experiment.data.score


def _evaluation_sets(
    experiment: Experiment, splits: Splits, tokenizer: Any, task: str
) -> dict[str, EvaluationSet]:
    """A fixed draw of the validation and of the test examples."""
    settings = experiment.evaluation
    sets = {}
    for split, most in (
        ("validation", settings.validation_examples),
        ("test", settings.test_examples),
    ):
        examples: tuple[Example, ...] = getattr(splits, split)
        if not examples:
            raise DataError(f"the dataset has no {split} examples")
        order = numpy_rng(experiment.seed, split).permutation(len(examples))[:most]
        drawn = [examples[i] for i in sorted(order)]
        kept, rows = tokenize(drawn, tokenizer, experiment.text, task)
        if not kept:
            raise DataError(f"all {split} examples are longer than text.max_length; raise it")
        sets[split] = EvaluationSet(split, kept, rows, _verifier(experiment))
    return sets
