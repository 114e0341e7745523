"""A client's size: the examples it holds, the tokens it trained on, or 1."""

from dataclasses import replace

import conformance as c
import pytest
import torch

from fedmoe.aggregation import FedAvg
from fedmoe.aggregation.flexlora import FlexLoRA

SIZES = {"examples": (1, 3, 6), "tokens": (50, 20, 10), "uniform": (1, 1, 1)}


def clients(strategy, state):
    updates = c.clients(strategy, state, 5, examples=SIZES["examples"])[0]
    return [replace(u, tokens=n) for u, n in zip(updates, SIZES["tokens"], strict=True)]


@pytest.mark.parametrize("weighting", SIZES)
def test_a_mean_weighs_by_the_size_that_was_asked_for(weighting):
    strategy = FedAvg(weighting=weighting)
    state = c.second_state(strategy)
    updates = clients(strategy, state)
    found = strategy.combine(state, updates, 3)
    sizes = torch.tensor(SIZES[weighting], dtype=torch.float64)
    deltas = torch.stack([u.delta.flat.double() for u in updates])
    wanted = state.flat.double() + (sizes[:, None] * deltas).sum(0) / sizes.sum()
    torch.testing.assert_close(found.flat.double(), wanted, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("weighting", SIZES)
def test_a_mean_of_products_does_too(weighting):
    strategy = FlexLoRA(weighting=weighting)
    state = c.second_state(strategy)
    updates = clients(strategy, state)
    found = strategy.combine(state, updates, 3).views()
    sizes = torch.tensor(SIZES[weighting], dtype=torch.float64)
    products = []
    for update in updates:
        views = (state + update.delta).views()
        products.append(views["q.B"].double() @ views["q.A"].double())
    wanted = (sizes[:, None, None] * torch.stack(products)).sum(0) / sizes.sum()
    torch.testing.assert_close(
        found["q.B"].double() @ found["q.A"].double(), wanted, rtol=1e-5, atol=1e-5
    )
