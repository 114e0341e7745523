"""Encoder-decoders: the prompt goes to the encoder, the response comes from the decoder.

A batch is what it is for causal models, one row of prompt and response; here each row is taken
apart. The decoder starts with the token that its config names and is shown the response so far
(teacher forcing); the encoder sees the whole prompt.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fedmoe.models.tasks.task import Decoding, TaskBatch, TaskForm, device_of

ENCODER, DECODER = 0, 1


class SequenceToSequence(TaskForm):
    """Each token of a response follows from the whole prompt and the response before it."""

    name = "seq2seq"
    does = "have an encoder and a decoder"
    kind = "encoder-decoder model"
    auto_name = "AutoModelForSeq2SeqLM"
    peft = "SEQ_2_SEQ_LM"
    sample_prompt = 16

    def stack(self, path: str) -> int:
        return DECODER if "decoder" in path.split(".") else ENCODER

    def routed(self, model: nn.Module, batch: TaskBatch) -> list[Tensor]:
        encoded = _before(batch.prompt_lengths)
        decoded = _before(batch.valid.sum(1) - batch.prompt_lengths + 1)
        return [encoded.flatten(), decoded.flatten()]

    def hidden(self, model: nn.Module, batch: TaskBatch) -> Tensor:
        """Return the decoder's states.

        The state that predicts token t of a row's text is at decoder position t - prompt_length:
        the causal model's, counted from the prompt's end.
        """
        prompt, mask, response = _inputs(model, batch)
        encoded = model.get_encoder()(  # pyright: ignore[reportCallIssue]
            input_ids=prompt, attention_mask=mask
        ).last_hidden_state
        # The decoder is causal and padded on the right: it needs no separate mask.
        states = model.get_decoder()(  # pyright: ignore[reportCallIssue]
            input_ids=response,
            encoder_hidden_states=encoded,
            encoder_attention_mask=mask,
            use_cache=False,
        ).last_hidden_state
        return _targets(states, batch)

    def own_logits(self, model: Any, batch: TaskBatch) -> Tensor:
        prompt, mask, response = _inputs(model, batch)
        out = model(input_ids=prompt, attention_mask=mask, decoder_input_ids=response)
        return _targets(out.logits, batch)

    def answers(
        self, model: nn.Module, prompts: Sequence[Sequence[int]], decoding: Decoding
    ) -> list[list[int]]:
        out = decoding.generate(model, prompts, pad_left=False)
        return [row[1:].tolist() for row in out]  # without the token it started with


def _inputs(model: Any, batch: TaskBatch) -> tuple[Tensor, Tensor, Tensor]:
    """Return the prompts, the mask of their real tokens, and the decoder's input."""
    prompt, response = apart(batch, int(model.config.decoder_start_token_id))
    mask = _before(batch.prompt_lengths).long()
    prompt, mask, response = (x.to(device_of(model)) for x in (prompt, mask, response))
    return prompt, mask, response


def _targets(states: Tensor, batch: TaskBatch) -> Tensor:
    """Pick the decoder's states, of (batch, length, ...), that predict the targets."""
    length = batch.valid.shape[1]
    row, column = batch.positions // length, batch.positions % length
    column = column - batch.prompt_lengths[row] + 1
    return states[row.to(states.device), column.to(states.device)]


def apart(batch: TaskBatch, start: int) -> tuple[Tensor, Tensor]:
    """Return the prompts, and `start` with the responses but for their last token.

    Both are right-padded, with any id.
    """
    ids, lengths = batch.input_ids, batch.prompt_lengths
    most = int((batch.valid.sum(1) - lengths).max()) + 1
    columns = lengths.unsqueeze(1) - 1 + torch.arange(most)
    response = ids.gather(1, columns.clamp(max=ids.shape[1] - 1))
    response[:, 0] = start
    return ids[:, : int(lengths.max())], response


def _before(lengths: Tensor) -> Tensor:
    """bool (rows, longest): True before each row's end."""
    return torch.arange(int(lengths.max())) < lengths.unsqueeze(1)
