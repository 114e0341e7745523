"""Causal language models: prompt and response are one text."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

from torch import Tensor, nn

from fedmoe.models.private import one_text_a_row
from fedmoe.models.routed import sent
from fedmoe.models.tasks.task import Decoding, TaskBatch, TaskForm, device_of


class Causal(TaskForm):
    """Each token of a response follows from the prompt and the tokens before it."""

    name = "causal"
    does = "predict the next token"
    kind = "causal language model"
    auto_name = "AutoModelForCausalLM"
    peft = "CAUSAL_LM"

    def routed(self, model: nn.Module, batch: TaskBatch) -> list[Tensor]:
        return [batch.valid.flatten()]

    def hidden(self, model: nn.Module, batch: TaskBatch) -> Tensor:
        states = all_states(model, batch.input_ids).flatten(0, 1)
        return states[sent(batch.positions, states.device)]

    def own_logits(self, model: Any, batch: TaskBatch) -> Tensor:
        logits = model(input_ids=batch.input_ids.to(device_of(model))).logits.flatten(0, 1)
        return logits[batch.positions.to(logits.device)]

    def answers(
        self, model: nn.Module, prompts: Sequence[Sequence[int]], decoding: Decoding
    ) -> list[list[int]]:
        out = decoding.generate(model, prompts, pad_left=True)
        return [row[max(map(len, prompts)) :].tolist() for row in out]


def all_states(model: nn.Module, input_ids: Tensor) -> Tensor:
    """Return the last hidden states (batch, length, hidden) of right-padded ids.

    Under a causal mask no real token looks at the padding after it, so attention needs no mask;
    nor does a convolution or a recurrent layer, which read their past alone.
    """
    ids = sent(input_ids, device_of(model))
    with one_text_a_row() if ids.is_cuda else nullcontext():
        return body_of(model)(input_ids=ids, use_cache=False).last_hidden_state


def body_of(model: nn.Module) -> nn.Module:
    """Return the part that turns ids into hidden states, below the output head."""
    # transformers 5.23: Llama4ForCausalLM names a prefix that it has no attribute of.
    names = (str(model.base_model_prefix), "model")  # pyright: ignore[reportAttributeAccessIssue]
    return next(model.get_submodule(name) for name in names if hasattr(model, name))
