"""The local rounds of several clients in one: their batches share each pass over the model.

Each client has what it has alone: its rows in the order of its own random stream, its adapter, its
optimiser, its clipping and schedule, and its counts. Its gradients are those of a round alone but
for rounding.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from itertools import zip_longest
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from fedmoe.adapter import Adapter
from fedmoe.data.text import evaluation_batches
from fedmoe.errors import ModelError
from fedmoe.models.together import Together
from fedmoe.training.client import Trained, Trainee, step_batches
from fedmoe.training.learner import Learner
from fedmoe.training.loss import states_loss
from fedmoe.training.steps import Told, unseen

if TYPE_CHECKING:
    from fedmoe.data.text import Batch
    from fedmoe.messages.records import Update
    from fedmoe.models.adapted import AdaptedModel


def train_side_by_side(
    model: AdaptedModel,
    clients: Sequence[Trainee],
    pad: int,
    num_rounds: int,
    seed: int,
    told: Told = unseen,
) -> list[Update]:
    """Return what each of the clients sends, in order; their adapters have one layout.

    A client's `seconds` are its share of the time by its tokens.

    Raises:
        ModelError: a strategy lets experts learn that it chooses in every pass.
    """
    if any(client.local.backward is not None for client in clients):
        raise ModelError("the strategy chooses which experts learn, for one client at a time")
    started = time.monotonic()
    top_ks = [client.task.top_k for client in clients]
    together = Together(model, clients[0].local.layouts.model, top_ks)
    factors = [nn.Parameter(client.task.rescaler.to(model.device)) for client in clients]
    model.set_budget(max(top_ks), torch.stack([*factors], dim=1).detach())
    model.set_recompute(clients[0].settings.recompute)
    values = torch.stack([client.local.start.flat for client in clients]).to(model.device)
    together.load(values)
    before = mean_losses(together, clients, pad)
    with model.counting() as counted:
        learners = _learners(together, clients, values, factors, num_rounds)
        done = _optimise(together, clients, learners, values, pad, seed, counted, told)
    counts = together.by_client(counted.cpu())
    with torch.no_grad():
        model.rescale(torch.stack([*factors], dim=1))
    losses = [*zip(before, mean_losses(together, clients, pad), strict=True)]
    seconds = (time.monotonic() - started) / sum(each.tokens for each in done)
    return [
        client.update(model, end, counts[i], losses[i], seconds * end.tokens)
        for i, (client, end) in enumerate(zip(clients, done, strict=True))
    ]


def _optimise(
    together: Together,
    clients: Sequence[Trainee],
    learners: Sequence[Learner],
    values: Tensor,
    pad: int,
    seed: int,
    counted: Tensor,
    told: Told,
) -> list[Trained]:
    """Run all steps of all clients; one of fewer steps is done earlier."""
    model, grads = together.model, torch.empty_like(values)
    factors = [learner.rescaler for learner in learners]
    batches = [client.batches(pad, seed) for client in clients]
    tokens, targets = [0] * len(clients), [0] * len(clients)
    for step in range(max(client.settings.steps for client in clients)):
        there = {
            i: step_batches(model, batches[i], client.settings)
            for i, client in enumerate(clients)
            if step < client.settings.steps
        }
        accumulate(together, there, factors)
        together.take_gradients(grads)
        counts = together.by_client(counted)
        for i, used in there.items():
            tokens[i] += sum(model.num_tokens(batch) for batch in used)
            targets[i] += sum(len(batch.targets) for batch in used)
            learners[i].move(step, Adapter(together.layout, grads[i]), counts[i])
            told(clients[i].task.client, step + 1, clients[i].settings.steps)
        together.load(values)
    ends = zip(learners, tokens, targets, clients, strict=True)
    return [Trained(x.after(), x.factors(), n, t, c.settings.steps, {}) for x, n, t, c in ends]


def _learners(
    together: Together,
    clients: Sequence[Trainee],
    values: Tensor,
    factors: Sequence[nn.Parameter],
    num_rounds: int,
) -> list[Learner]:
    """Return what moves each client's row of `values`, and its factors where they are learned."""
    rescaling, found = together.model.rescaling, []
    for client, flat, factor in zip(clients, values, factors, strict=True):
        settings, own = client.settings, Adapter(together.layout, flat)
        learnt = (factor, rescaling.learning_rate) if rescaling.learned else None
        found.append(Learner(client.task, settings, num_rounds, client.local, own, learnt))
    return found


def accumulate(
    together: Together,
    steps: Mapping[int, Sequence[Batch]],
    factors: Sequence[nn.Parameter | None] = (),
) -> None:
    """Add each client's gradient of its own mean loss over the response tokens of its step.

    `factors` are the clients' rescalings, where those are learned.
    """
    targets = {i: sum(len(batch.targets) for batch in step) for i, step in steps.items()}
    for micro in zip_longest(*steps.values()):
        here = {i: batch for i, batch in zip(steps, micro, strict=True) if batch is not None}
        if together.model.rescaling.learned:
            together.model.rescale(torch.stack([*factors], dim=1))  # pyright: ignore
        sums = zip(here, losses(together, here), strict=True)
        torch.stack([loss / targets[i] for i, loss in sums]).sum().backward()


def losses(together: Together, batches: Mapping[int, Batch]) -> Iterator[Tensor]:
    """Yield each client's summed cross-entropy over the response tokens of its batch."""
    states = together.target_states(batches)
    for part, batch in zip(states, batches.values(), strict=True):
        yield states_loss(together.model, part, batch.targets)


@torch.no_grad()
def mean_losses(together: Together, clients: Sequence[Trainee], pad: int) -> list[float]:
    """Return each client's mean cross-entropy per response token over its probe."""
    each = [evaluation_batches(x.probe, x.settings.batch_size, pad) for x in clients]
    sums, targets = [0.0] * len(clients), [0] * len(clients)
    for batches in zip_longest(*each):
        here = {i: batch for i, batch in enumerate(batches) if batch is not None}
        for (i, batch), loss in zip(here.items(), losses(together, here), strict=True):
            sums[i] += loss.item()
            targets[i] += len(batch.targets)
    return [total / number for total, number in zip(sums, targets, strict=True)]
