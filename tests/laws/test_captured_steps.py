"""Batches of few shapes, and steps that a graph replays, here one that computes anew."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from fedmoe.data.text import Tokens, collate
from fedmoe.errors import FedMoEWarning, ModelError
from fedmoe.models.build import ModelSettings
from fedmoe.models.captured import Graphs, padded, shape_of
from fedmoe.models.kernels import check_kernels
from fedmoe.training.client import _accumulate
from fedmoe.training.loss import response_loss

ROWS = [Tokens(tuple(range(2, 9 + i)), 2) for i in range(5)]


def test_a_thousand_batches_have_few_shapes():
    """Of 8 texts each, 20 to 700 tokens long: one graph for every 25 batches, at most."""
    rng = np.random.default_rng(0)
    shapes, tokens, added = set(), 0, 0
    for _ in range(1000):
        most = int(np.exp(rng.uniform(np.log(20), np.log(700))))
        lengths = rng.integers(max(most // 2, 12), most + 1, 8)
        rows, length, targets = 8, int(lengths.max()), int((lengths - 10).sum())
        ids, targets = torch.empty(rows, length), torch.empty(targets)
        shape = shape_of(SimpleNamespace(input_ids=ids, targets=targets))
        shapes.add(shape)
        tokens, added = tokens + rows * length, added + shape.rows * shape.length - rows * length
    assert len(shapes) <= 40
    assert 0 < added < 0.15 * tokens


@pytest.mark.parametrize("rows", [ROWS, ROWS[:1]])
def test_a_padded_batch_has_the_same_loss_gradients_and_counts(tiny_model, random_adapter, rows):
    model = tiny_model(num_hidden_layers=1)
    model.load(random_adapter(model.layout))
    batch, found = collate(rows, 0), []
    for given in (batch, padded(batch, shape_of(batch))):
        model.grad.zero_()
        with model.counting() as counts:
            loss = response_loss(model, given)
            loss.backward()
        found.append((loss.item(), model.grad.clone(), counts))
    assert given.input_ids.shape == shape_of(batch)[:2] != batch.input_ids.shape
    (loss, grad, counts), (ours, ours_grad, ours_counts) = found
    assert ours == pytest.approx(loss, rel=1e-6)
    assert (ours_grad - grad).norm() <= 1e-5 * grad.norm() > 0
    assert torch.equal(ours_counts, counts)


class Anew:
    """A graph that computes on its own tensors, as a replay does, and counts replays."""

    def __init__(self, graphs, captured, passes):
        self.graphs, self.captured, self.passes, self.replays = graphs, captured, passes, 0

    def replay(self):
        self.replays += 1
        with self.graphs._own(self.captured):
            self.captured.counts.zero_()
            self.passes(self.captured.batch, self.captured.share)


@pytest.fixture
def captured(tiny_model, random_adapter, monkeypatch):
    """A model whose graphs compute anew."""
    monkeypatch.setattr(Graphs, "_capture", lambda *given: Anew(*given))
    model = tiny_model(num_hidden_layers=1)
    model.load(random_adapter(model.layout))
    model.graphs = Graphs(model)
    return model


def gradient(model, rows, counts):
    model.grad.zero_()
    _accumulate(model, [collate(rows, 0)], None, counts)
    return model.grad.clone()


def test_a_replayed_step_is_the_step_of_its_own_batch_budget_and_rescaler(captured):
    """From the second of a shape on; other values, another k and another factor are followed."""
    model = captured
    others = [Tokens(tuple(reversed(row.ids)), 2) for row in ROWS]
    for top_k, rows, factor in ((2, ROWS, 1.5), (2, others, 0.5), (2, ROWS, 2.0), (1, ROWS, 2.0)):
        model.set_budget(top_k, torch.tensor([factor]))
        wanted, model.graphs, kept = None, None, model.graphs
        with model.counting() as plain:
            wanted = gradient(model, rows, plain)
        model.graphs = kept
        with model.counting() as counts:
            found = gradient(model, rows, counts)
        assert (found - wanted).norm() <= 1e-5 * wanted.norm() > 0
        assert torch.equal(counts, plain)
    assert [one.graph and one.graph.replays for one in model.graphs.found.values()] == [2, None]
    model.bind(model.layout.with_rank(2, None))
    with model.counting() as counts:
        gradient(model, ROWS, counts)
    assert [one.graph for one in model.graphs.found.values()] == [None]


def test_what_cannot_be_captured_runs_as_ever_and_is_said_once(captured):
    model = captured
    model.states[0].without = lambda index, weights: torch.zeros_like(index, dtype=torch.bool)
    with model.counting() as counts:
        with pytest.warns(FedMoEWarning, match="choices learn nothing; these steps are not cap"):
            first = gradient(model, ROWS, counts)
        assert gradient(model, ROWS, counts).norm() > 0  # a second warning would fail
        terms = SimpleNamespace(terms=[1], loss=lambda valid: None)
        with pytest.warns(FedMoEWarning, match="losses on routing"):
            _accumulate(model, [collate(ROWS, 0)], terms, counts)
    assert first.norm() > 0
    assert not model.graphs.found


@pytest.mark.parametrize("given", [{"graphs": True}, {"kernels": "triton"}])
def test_what_is_for_a_gpu_is_refused_on_a_processor(given):
    with pytest.raises(ModelError, match=f"model.{next(iter(given))}.* is for a GPU"):
        check_kernels(ModelSettings(device="cpu", **given), on_gpu=False)
