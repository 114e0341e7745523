"""A form of task: how a batch goes through a model, and which tokens its experts meet."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor, nn


class TaskBatch(Protocol):
    """The parts of a batch that forms of task read; see `data.text.Batch`."""

    @property
    def input_ids(self) -> Tensor: ...
    @property
    def valid(self) -> Tensor: ...
    @property
    def positions(self) -> Tensor: ...
    @property
    def prompt_lengths(self) -> Tensor: ...


@dataclass(frozen=True, eq=False)
class Sample:
    """A batch of full rows, to try a model on."""

    input_ids: Tensor
    valid: Tensor
    positions: Tensor
    prompt_lengths: Tensor

    @classmethod
    def of(cls, ids: Tensor, prompt_length: int) -> Sample:
        """Return rows (batch, length) whose targets follow the prompt, one token earlier on."""
        where = torch.arange(ids.numel()).view(ids.shape)[:, prompt_length - 1 :].flatten()
        lengths = torch.full((len(ids),), prompt_length)
        return cls(ids, torch.ones_like(ids, dtype=torch.bool), where, lengths)


@dataclass(frozen=True)
class Decoding:
    """Settings of greedy decoding."""

    max_new_tokens: int
    pad: int
    end: int | list[int]
    cache: bool = True
    """True if the model decodes a padded batch correctly with a cache."""

    def generate(self, model: Any, rows: Sequence[Sequence[int]], pad_left: bool) -> Tensor:
        """Return the ids that transformers generates for rows of unlike lengths."""
        length, device = max(len(row) for row in rows), device_of(model)
        ids = torch.full((len(rows), length), self.pad)
        mask = torch.zeros_like(ids)
        for i, row in enumerate(rows):
            place = slice(length - len(row), None) if pad_left else slice(len(row))
            ids[i, place], mask[i, place] = torch.tensor(row), 1
        return model.generate(
            input_ids=ids.to(device),
            attention_mask=mask.to(device),
            do_sample=False,
            max_new_tokens=self.max_new_tokens,
            pad_token_id=self.pad,
            eos_token_id=self.end,
            use_cache=self.cache or bool(mask.all()),
        )


class TaskForm(ABC):
    """One form of task, shared by all models of its kind."""

    name: ClassVar[str]
    does: ClassVar[str]
    """Words for what such a model does, for errors."""
    kind: ClassVar[str]
    """Name of such a model, for errors."""
    auto_name: ClassVar[str]
    """The class of transformers that finds a model's own."""
    peft: ClassVar[str | None]
    """PEFT's name of it."""
    sample_prompt: ClassVar[int] = 1
    """Ids of a sample's prompt, of 32 in all."""

    @property
    def auto(self) -> Any:
        """Return the class of transformers that finds a model's own."""
        return getattr(import_module("transformers"), self.auto_name)

    def load(self, folder: str, config: Any, dtype: torch.dtype) -> tuple[nn.Module, Any]:
        """Return the model in a folder, and transformers' report on its keys."""
        return self.auto.from_pretrained(
            folder,
            config=config,
            dtype=dtype,
            output_loading_info=True,
            use_safetensors=True,  # a pickle may run anybody's code
            trust_remote_code=False,  # which else is asked for on the terminal
            ignore_mismatched_sizes=True,  # they are in the report, and refused with the others
        )

    def build(self, config: Any, dtype: torch.dtype, **options: Any) -> nn.Module:
        """Return a model of random weights."""
        return self.auto.from_config(config, dtype=dtype, **options)

    def tokenizer(self, folder: str, config: Any) -> Any:
        """Return the encoder of prompts and responses into ids, and of ids into text."""
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(folder, trust_remote_code=False)

    def head(self, model: nn.Module) -> nn.Module:
        """Return the layer that makes logits of hidden states."""
        return model.get_output_embeddings()  # pyright: ignore[reportCallIssue]

    def stack(self, path: str) -> int:
        """Return the number of the model's stack that contains the sparse layer at `path`."""
        return 0

    @abstractmethod
    def routed(self, model: nn.Module, batch: TaskBatch) -> list[Tensor]:
        """Return, for each stack, a flat bool: True at real tokens, False at padding."""

    @abstractmethod
    def hidden(self, model: nn.Module, batch: TaskBatch) -> Tensor:
        """Return the states (targets, hidden) that predict the batch's targets."""

    @abstractmethod
    def own_logits(self, model: Any, batch: TaskBatch) -> Tensor:
        """Return the logits (targets, vocabulary) of the class's own forward pass."""

    def sample(self, model: nn.Module) -> Sample:
        """Return two fixed rows."""
        vocabulary = model.get_input_embeddings().weight.shape[0]  # pyright: ignore
        return Sample.of((torch.arange(64) * 7919 % vocabulary).view(2, 32), self.sample_prompt)

    @abstractmethod
    def answers(
        self, model: nn.Module, prompts: Sequence[Sequence[int]], decoding: Decoding
    ) -> list[list[int]]:
        """Return greedy ids for each prompt, at most `decoding.max_new_tokens`."""


def device_of(model: nn.Module) -> torch.device:
    """Return the device of a model's first parameter."""
    return next(model.parameters()).device
