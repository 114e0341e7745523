"""The loss of some rows at a time against the loss of all logits at once."""

import pytest
import torch

from fedmoe.data.text import Tokens, collate
from fedmoe.models.private import SeenBy
from fedmoe.training import loss

ROWS = [Tokens(tuple(range(2, 9 + i)), 2) for i in range(4)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rows_at_once", [1, 7])
def test_value_and_gradient_are_those_of_all_logits_at_once(
    tiny_model, random_adapter, monkeypatch, dtype, rows_at_once
):
    model = tiny_model(num_hidden_layers=1, vocab_size=101)
    model.model.to(dtype)
    model.load(random_adapter(model.layout))
    vocabulary, batch, found, seen = 101, collate(ROWS, 0), [], []

    def see(x):
        if x.shape[-1:] == (vocabulary,) and x.shape[:-1] not in ((), (32,)):  # the head's own
            seen.append(len(x))

    for values in (loss.LOGIT_VALUES, vocabulary * rows_at_once):
        monkeypatch.setattr(loss, "LOGIT_VALUES", values)
        model.grad.zero_()
        seen.clear()
        with SeenBy(see):
            out = loss.response_loss(model, batch) / len(batch.targets)
            out.backward()
        found.append((out.item(), model.grad.clone(), loss.row_losses(model, ROWS, 4, 0)))
    assert 0 < max(seen) <= rows_at_once
    (value, gradient, each), (ours, ours_gradient, ours_each) = found
    tolerance = 1e-5 if dtype == torch.float32 else 2e-2
    assert ours == pytest.approx(value, rel=1e-6)
    assert ours_each == pytest.approx(each, rel=1e-6)
    assert gradient.norm() > 0
    assert (ours_gradient - gradient).norm() <= tolerance * gradient.norm()
