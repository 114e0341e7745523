"""From an experiment to what a run needs: the resident model, each client's data, the members."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fedmoe.adapter import initial_adapter
from fedmoe.config.schema import Experiment
from fedmoe.data import Splits, load_splits, manifest, partition
from fedmoe.data.examples import Example
from fedmoe.data.text import Tokens, tokenize
from fedmoe.errors import DataError
from fedmoe.evaluation.evaluate import EvaluationSet
from fedmoe.models.adapted import AdaptedModel
from fedmoe.models.build import build_model
from fedmoe.residuals import pack_with_residual
from fedmoe.rounds import Member, ServerState
from fedmoe.seeds import generator, numpy_rng
from fedmoe.training.client import train_client
from fedmoe.wire import Message, Task, Update, pack_update, unpack_update


@dataclass(frozen=True, eq=False)
class Prepared:
    """A run before its first round; the same on every machine, from the experiment alone."""

    experiment: Experiment
    model: AdaptedModel
    tokenizer: Any
    rows: tuple[Sequence[Tokens], ...]
    """Each client's training examples."""
    members: tuple[Member, ...]
    tiers: dict[str, int]
    """Tier name to `top_k`."""
    sets: dict[str, EvaluationSet]
    manifest: dict[str, Any]
    state_folder: Path | None = None
    """Where clients keep what their uploads left out; see `residuals`."""

    @property
    def clients_per_round(self) -> int:
        """Clients that take part in one round."""
        return min(self.experiment.clients_per_round or len(self.members), len(self.members))

    def train(self, task: Task) -> Update:
        """Carry out a task with the client's own data."""
        e = self.experiment
        return train_client(
            self.model, self.rows[task.client], self.tokenizer.pad_token_id, task, e.training,
            e.rounds, e.seed,
        )  # fmt: skip

    def answer(self, task: Task) -> Message:
        """Carry out a task; the update in the form that crosses a network."""
        upload, update = self.experiment.upload, self.train(task)
        if upload.error_feedback:
            return pack_with_residual(update, task, upload, self.state_folder)
        return pack_update(update, upload)

    def read(self, message: Message, task: Task) -> Update:
        """The checked update in an answer to `task`; WireError says what is wrong with it."""
        e = self.experiment
        return unpack_update(
            message, self.model.layout, task, e.upload,
            learns_rescaler=e.rescaling.name == "learned",
        )  # fmt: skip

    def first_state(self) -> ServerState:
        """The state before round 1: an adapter that changes nothing."""
        adapter = initial_adapter(self.model.layout, generator(self.experiment.seed, "adapter"))
        return ServerState(0, adapter, {tier: self.rescaler(k) for tier, k in self.tiers.items()})

    def rescaler(self, top_k: int) -> Tensor:
        """The first factors of a tier."""
        model = self.model
        return model.rescaling.initial(model.layout.num_layers, model.full_top_k, top_k)


def prepare(experiment: Experiment) -> Prepared:
    """Load the model and the data, share the data out, and give every client its tier.

    One thread computes: the same bits on any machine of one kind, and room for parallel workers.

    Raises:
        FedMoEError: whatever of it cannot be done as asked.
    """
    torch.set_num_threads(1)
    model: AdaptedModel
    tokenizer: Any
    model, tokenizer = build_model(experiment.model, experiment.adapter, experiment.rescaling)
    splits = load_splits(experiment.data, experiment.seed)
    train, rows = tokenize(splits.train, tokenizer, experiment.text)
    parts = partition(experiment.partition, [e.label for e in train], experiment.seed)
    tiers = experiment.budget.resolved(model.full_top_k)
    names = experiment.budget.assign(len(parts), model.full_top_k, experiment.seed)
    model.check_top_ks({tier.top_k for tier in tiers.values()})
    return Prepared(
        experiment=experiment,
        model=model,
        tokenizer=tokenizer,
        rows=tuple([rows[i] for i in part] for part in parts),
        members=tuple(Member(c, name, tiers[name].top_k) for c, name in enumerate(names)),
        tiers={name: tier.top_k for name, tier in tiers.items()},
        sets=_evaluation_sets(experiment, splits, tokenizer),
        manifest=manifest(train, parts),
    )


def _evaluation_sets(
    experiment: Experiment, splits: Splits, tokenizer: Any
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
        kept, rows = tokenize([examples[i] for i in sorted(order)], tokenizer, experiment.text)
        if not kept:
            raise DataError(f"all {split} examples are longer than text.max_length; raise it")
        sets[split] = EvaluationSet(split, kept, rows, experiment.data.score)
    return sets
