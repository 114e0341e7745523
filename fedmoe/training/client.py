"""One local round of one client: load, train, and return what changed.

A round is replayed from `(seed, round, client)`, the task, and what the strategy lets the client
keep: the optimiser starts afresh, and batches come from the round's own random stream.
"""

from __future__ import annotations

import resource
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn

from fedmoe.adapter import Adapter, keep_untouched
from fedmoe.aggregation.strategy import Layouts, Local
from fedmoe.data.text import training_batches
from fedmoe.errors import DataError
from fedmoe.messages.records import Update
from fedmoe.models.routed import unwaited
from fedmoe.seeds import generator, numpy_rng
from fedmoe.training.local_client import LocalClient, run_step
from fedmoe.training.loss import mean_loss, response_loss
from fedmoe.training.router_losses import NO_LOSSES, router_training

if TYPE_CHECKING:
    from fedmoe.data.text import Batch, Tokens
    from fedmoe.messages.records import Task
    from fedmoe.models.adapted import AdaptedModel
    from fedmoe.training.local_client import LocalStep
    from fedmoe.training.router_losses import RouterLosses, RouterTraining
    from fedmoe.training.settings import Training

NORM_VALUES = 2**24
"""Values of a gradient that are widened to float64 at one time: a GPU makes a copy of them."""


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
) -> Update:
    """Train on the client's `rows` with `task.top_k` experts per token.

    `local` decides what training starts from, moves and sends: all of `task.adapter` without it.
    With `losses` more than the mean loss over response tokens is minimised; an update reports that
    mean alone. With `settings.local_step` a step of one's own trains in place of AdamW.

    Raises:
        DataError: the client has no examples.
    """
    if not rows:
        raise DataError(f"{task.who} has no training examples")
    started = time.monotonic()
    local = local or Local(Layouts.all(task.adapter.layout), task.adapter)
    _begin(model, task, settings, local)
    probe = rows[:: -(-len(rows) // settings.probe_examples)]
    loss_before = mean_loss(model, probe, settings.batch_size, pad)
    path = "round", task.round, "client", task.client
    batches = training_batches(rows, settings.batch_size, pad, numpy_rng(seed, *path))
    chance, masks = (generator(seed, *path, what) for what in ("gating", "dropout"))
    routing = router_training(model.gates, losses, chance)
    with _watching(model, local) as counts, routing as routers, model.dropping(masks):
        if own_step := settings.local_step:
            done = _own_step(own_step, LocalClient(model, batches, task, local))
        else:
            done = _optimise(model, batches, task, settings, num_rounds, local, counts, routers)
    model.set_budget(task.top_k, done.rescaler)
    counts = counts.cpu()
    return Update(
        round=task.round,
        client=task.client,
        tier=task.tier,
        top_k=task.top_k,
        rescaler=done.rescaler,
        delta=keep_untouched(local.finish(done.after, counts), counts),
        counts=counts,
        examples=len(rows),
        tokens=done.tokens,
        targets=done.targets,
        steps=done.steps,
        loss_before=loss_before,
        loss_after=mean_loss(model, probe, settings.batch_size, pad),
        seconds=time.monotonic() - started,
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


class Trained(NamedTuple):
    """The end of a local round's training."""

    after: Adapter
    """The trained values, in the layout `trained`."""
    rescaler: Tensor
    tokens: int
    targets: int
    steps: int
    metrics: dict[str, float]


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
) -> Trained:
    """Run the round's steps on the model, in place."""
    layout, device = local.layouts.trained, model.device
    whole = Adapter(model.bound, model.flat), Adapter(model.bound, model.grad)
    theta = model.flat if local.whole else local.before.flat.to(device, copy=True)
    flat = nn.Parameter(theta)
    groups = [{"params": [flat], "scale": 1.0}]
    rescaler = None
    if model.rescaling.learned:
        rescaler = model.train_rescaler()
        ratio = model.rescaling.learning_rate / settings.learning_rate
        groups.append({"params": [rescaler], "scale": ratio, "weight_decay": 0.0})
    optimizer = torch.optim.AdamW(
        groups, betas=settings.betas, weight_decay=settings.weight_decay, fused=True
    )
    tokens, targets, counted = 0, 0, counts.clone()
    for step in range(settings.steps):
        rate = settings.rate(step, task.round, num_rounds)
        for group in optimizer.param_groups:
            group["lr"] = rate * group["scale"]
        routers.begin((task.round - 1 + step / settings.steps) / max(1, num_rounds))
        micro_batches = _of_step(model, batches, settings)
        targets += sum(len(batch.targets) for batch in micro_batches)
        tokens += _accumulate(model, micro_batches, routers, counts)
        flat.grad = model.grad if local.whole else local.pull(whole[1]).flat
        local.correct(flat.grad, theta, counts - counted)
        counted.copy_(counts)
        _clip(flat.grad, settings.clip_norm)
        optimizer.step()
        model.grad.zero_()
        if not local.whole:
            local.write(Adapter(layout, theta), whole[0])
        if rescaler is not None:
            rescaler.grad = None
    trained = Adapter(layout, theta.to("cpu", copy=True))
    kept = task.rescaler if rescaler is None else rescaler.detach().to("cpu", copy=True)
    return Trained(trained, kept, tokens, targets, settings.steps, {})


def _of_step(model: AdaptedModel, batches: Iterator[Batch], settings: Training) -> list[Batch]:
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


def _clip(grad: Tensor, largest: float) -> None:
    parts = [torch.linalg.vector_norm(x, dtype=torch.float64) for x in grad.split(NORM_VALUES)]
    norm = parts[0] if len(parts) == 1 else torch.linalg.vector_norm(torch.stack(parts))
    too_large = norm > largest
    # A product with 1 costs a GPU less than waiting for the answer.
    if unwaited(grad) or too_large:
        grad.mul_(torch.where(too_large, largest / norm, 1.0))


def peak_bytes(device: torch.device) -> int:
    """Return the process's largest resident size so far; on a GPU, the largest of this round."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
