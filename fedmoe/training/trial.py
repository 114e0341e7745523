"""Training steps of any size, to see what one takes before a round depends on it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from fedmoe.adapter import initial_adapter
from fedmoe.budget.measure import Step
from fedmoe.budget.shape import Setting
from fedmoe.data.text import Tokens, collate
from fedmoe.models.adapted import AdaptedModel
from fedmoe.seeds import generator
from fedmoe.training.loss import response_loss


def trial_steps(model: AdaptedModel, rows: Sequence[Tokens], pad: int) -> Step:
    """Training steps of any setting on the tokens of `rows`, cut to length."""
    tokens = [i for row in rows for i in row.ids]

    def prepare(setting: Setting) -> Callable[[], object]:
        model.load(initial_adapter(model.layout, generator(0, "plan")))
        model.set_budget(setting.top_k)
        model.set_recompute(setting.recompute)
        model.kept.clear()
        model.frozen.use(setting.frozen)
        if setting.subset is not None:  # which experts it keeps changes neither memory nor time
            idle = torch.zeros(len(model.layers), model.layout.num_experts, dtype=torch.int64)
            model.kept.keep(idle, setting.subset, offloaded=setting.offload)
        size = setting.length + 1
        text = tokens * (1 + setting.batch_size * size // len(tokens))
        cut = (tuple(text[i * size : (i + 1) * size]) for i in range(setting.batch_size))
        batch = collate([Tokens(ids, size - setting.targets) for ids in cut], pad)
        flat = torch.nn.Parameter(model.flat)
        optimizer = torch.optim.AdamW([flat], fused=True)

        def step() -> None:
            (response_loss(model, batch) / len(batch.targets)).backward()
            flat.grad = model.grad
            optimizer.step()
            model.grad.zero_()

        return step

    return prepare
