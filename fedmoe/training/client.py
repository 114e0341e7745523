"""One local round of one client: load, train, and return what changed.

A round is replayed from `(seed, round, client)`, the task, and what the strategy lets the client
keep: the optimiser starts afresh, and batches come from the round's own random stream.
"""

from __future__ import annotations

import resource
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from fedmoe.adapter import Adapter, keep_untouched
from fedmoe.aggregation.strategy import Layouts, Local
from fedmoe.data.text import training_batches
from fedmoe.errors import DataError
from fedmoe.messages.records import Update
from fedmoe.seeds import generator, numpy_rng
from fedmoe.training.learner import Learner
from fedmoe.training.local_client import LocalClient, run_step
from fedmoe.training.loss import mean_loss, response_loss
from fedmoe.training.router_losses import NO_LOSSES, router_training
from fedmoe.training.steps import unseen

if TYPE_CHECKING:
    from fedmoe.data.text import Batch, Tokens
    from fedmoe.messages.records import Task
    from fedmoe.models.adapted import AdaptedModel
    from fedmoe.training.local_client import LocalStep
    from fedmoe.training.router_losses import RouterLosses, RouterTraining
    from fedmoe.training.settings import Training
    from fedmoe.training.steps import Told


def train_client(
    model: AdaptedModel,
    rows: Sequence[Tokens],
    pad: int,
    task: Task,
    settings: Training,
    num_rounds: int,
    seed: int,
    local: Local | None = None,
    losses: RouterLosses = NO_LOSSES,
    told: Told = unseen,
) -> Update:
    """Train on the client's `rows` with `task.top_k` experts per token.

    `local` decides what training starts from, moves and sends: all of `task.adapter` without it.
    With `losses` more than the mean loss over response tokens is minimised; an update reports that
    mean alone. With `settings.local_step` a step of one's own trains in place of AdamW. `told` is
    told of every step that is done.

    Raises:
        DataError: the client has no examples.
    """
    started = time.monotonic()
    local = local or Local(Layouts.all(task.adapter.layout), task.adapter)
    client = Trainee(task, rows, settings, local)
    _begin(model, task, settings, local)
    loss_before = mean_loss(model, client.probe, settings.batch_size, pad)
    batches, path = client.batches(pad, seed), ("round", task.round, "client", task.client)
    chance, masks = (generator(seed, *path, what) for what in ("gating", "dropout"))
    routing = router_training(model.gates, losses, chance)
    with _watching(model, local) as counts, routing as routers, model.dropping(masks):
        if own_step := settings.local_step:
            done = _own_step(own_step, LocalClient(model, batches, task, local, told))
        else:
            args = model, batches, task, settings, num_rounds, local, counts, routers
            done = _optimise(*args, told)
    model.set_budget(task.top_k, done.rescaler)
    loss_after = mean_loss(model, client.probe, settings.batch_size, pad)
    seconds = time.monotonic() - started
    return client.update(model, done, counts.cpu(), (loss_before, loss_after), seconds)


class Trained(NamedTuple):
    """The end of a local round's training."""

    after: Adapter
    """The trained values, in the layout `trained`."""
    rescaler: Tensor
    tokens: int
    targets: int
    steps: int
    metrics: dict[str, float]


@dataclass(frozen=True, eq=False)
class Trainee:
    """A client that is to train, with its own rows.

    Raises:
        DataError: it has no examples.
    """

    task: Task
    rows: Sequence[Tokens]
    settings: Training
    """With a known number of steps."""
    local: Local

    def __post_init__(self) -> None:
        if not self.rows:
            raise DataError(f"{self.task.who} has no training examples")

    @property
    def probe(self) -> Sequence[Tokens]:
        """Return the examples on which the loss is measured before and after."""
        return self.rows[:: -(-len(self.rows) // self.settings.probe_examples)]

    def batches(self, pad: int, seed: int) -> Iterator[Batch]:
        """Return the round's batches, one after another without end."""
        rng = numpy_rng(seed, "round", self.task.round, "client", self.task.client)
        return training_batches(self.rows, self.settings.batch_size, pad, rng)

    def update(
        self,
        model: AdaptedModel,
        done: Trained,
        counts: Tensor,
        losses: tuple[float, float],
        seconds: float,
    ) -> Update:
        """Return what the client sends; `losses` are those of its probe."""
        task = self.task
        return Update(
            round=task.round,
            client=task.client,
            tier=task.tier,
            top_k=task.top_k,
            rescaler=done.rescaler,
            delta=keep_untouched(self.local.finish(done.after, counts), counts),
            counts=counts,
            examples=len(self.rows),
            tokens=done.tokens,
            targets=done.targets,
            steps=done.steps,
            loss_before=losses[0],
            loss_after=losses[1],
            seconds=seconds,
            peak_bytes=peak_bytes(model.device),
            merged=model.kept.counts.cpu() if model.kept.merges else None,
            metrics=done.metrics,
            name=task.name,
        )


@contextmanager
def _watching(model: AdaptedModel, local: Local) -> Iterator[Tensor]:
    """Let the strategy see what is routed, and choose what learns; yield counts."""
    without = None
    if local.backward is not None:
        local.backward.to(model.device)
        without = local.backward.without
    with model.counting() as counts, model.weighing() as local.mass, model.narrowing(without):
        yield counts


def _begin(model: AdaptedModel, task: Task, settings: Training, local: Local) -> None:
    """Make the model the client's, as the round begins."""
    if model.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(model.device)
    model.load(local.start)
    model.grad.zero_()  # a round that failed half-way may have left something there
    model.set_budget(task.top_k, task.rescaler)
    model.set_recompute(settings.recompute)


def _own_step(step: LocalStep, client: LocalClient) -> Trained:
    """Train with a local step from outside."""
    metrics = run_step(step, client)
    done = client.tokens, client.num_targets, client.steps
    return Trained(client.after(), client.task.rescaler, *done, metrics)


def _optimise(
    model: AdaptedModel,
    batches: Iterator[Batch],
    task: Task,
    settings: Training,
    num_rounds: int,
    local: Local,
    counts: Tensor,
    routers: RouterTraining,
    told: Told = unseen,
) -> Trained:
    """Run the round's steps on the model, in place."""
    values, grad = Adapter(model.bound, model.flat), Adapter(model.bound, model.grad)
    rescaler = None
    if model.rescaling.learned:
        rescaler = model.train_rescaler(), model.rescaling.learning_rate
    learner, tokens, targets = Learner(task, settings, num_rounds, local, values, rescaler), 0, 0
    for step in range(settings.steps):
        routers.begin((task.round - 1 + step / settings.steps) / max(1, num_rounds))
        micro_batches = step_batches(model, batches, settings)
        targets += sum(len(batch.targets) for batch in micro_batches)
        tokens += _accumulate(model, micro_batches, routers, counts)
        learner.move(step, grad, counts)
        model.grad.zero_()
        told(task.client, step + 1, settings.steps)
    return Trained(learner.after(), learner.factors(), tokens, targets, settings.steps, {})


def step_batches(model: AdaptedModel, batches: Iterator[Batch], settings: Training) -> list[Batch]:
    """Return the micro-batches of the next step."""
    if settings.tokens_per_step is None:
        return list(islice(batches, settings.accumulation))
    found, tokens = [], 0
    while tokens < settings.tokens_per_step:
        found.append(next(batches))
        tokens += model.num_tokens(found[-1])
    return found


def _accumulate(
    model: AdaptedModel,
    batches: list[Batch],
    routers: RouterTraining | None = None,
    counts: Tensor | None = None,
) -> int:
    """Add the gradients of the mean loss over all response tokens; return the tokens trained on.

    Losses on routing are averaged over micro-batches, by their tokens.
    """
    num_targets = sum(len(batch.targets) for batch in batches)
    tokens = [model.num_tokens(batch) for batch in batches]

    def passes(batch: Batch, share: Tensor) -> None:
        (response_loss(model, batch) * share).backward()

    graphs = model.graphs if counts is not None else None
    if graphs and routers and routers.terms:
        graphs.say("losses on routing are minimised")
        graphs = None
    for batch, num_tokens in zip(batches, tokens, strict=True):
        if graphs and graphs.run(batch, 1 / num_targets, counts, passes):  # pyright: ignore
            continue
        loss = response_loss(model, batch) / num_targets
        # Models that such losses fit have one stack, whose tokens pass all layers.
        if routers and (extra := routers.loss(model.routed(batch)[0])) is not None:
            loss = loss + extra * (num_tokens / sum(tokens))
        loss.backward()
    return sum(tokens)


def peak_bytes(device: torch.device) -> int:
    """Return the process's largest resident size so far; on a GPU, the largest of this round."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
