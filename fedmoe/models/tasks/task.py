"""A form of task: how a batch goes through a model, and which tokens its experts meet."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor, nn
from transformers import AutoTokenizer


class TaskBatch(Protocol):
    """What is used of a batch, see `data.text.Batch`."""

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
        """Rows (batch, length) of which all behind the prompt, and one more, is asked for."""
        where = torch.arange(ids.numel()).view(ids.shape)[:, prompt_length - 1 :].flatten()
        lengths = torch.full((len(ids),), prompt_length)
        return cls(ids, torch.ones_like(ids, dtype=torch.bool), where, lengths)


class TaskForm(ABC):
    """One form of task, of all models that are asked it."""

    name: ClassVar[str]
    does: ClassVar[str]
    """What such a model does, for an error's sentence."""
    kind: ClassVar[str]
    """What it is called when a folder does not hold one."""
    auto: ClassVar[Any]
    """The class of transformers that finds a model's own."""
    peft: ClassVar[str | None]
    """PEFT's name of it."""
    sample_prompt: ClassVar[int] = 1
    """Of the 32 ids of a sample, those that are its prompt."""

    def load(self, folder: str, config: Any, dtype: torch.dtype) -> tuple[nn.Module, Any]:
        """The model in a folder, and what transformers says of its keys."""
        return self.auto.from_pretrained(
            folder, config=config, dtype=dtype, output_loading_info=True
        )

    def build(self, config: Any, dtype: torch.dtype, **options: Any) -> nn.Module:
        """A model of random weights."""
        return self.auto.from_config(config, dtype=dtype, **options)

    def tokenizer(self, folder: str, config: Any) -> Any:
        """What makes ids of a prompt and of a response, and text of ids."""
        return AutoTokenizer.from_pretrained(folder)

    def head(self, model: nn.Module) -> nn.Module:
        """The layer that makes logits of hidden states."""
        return model.get_output_embeddings()  # pyright: ignore[reportCallIssue]

    def stack(self, path: str) -> int:
        """Which of the model's stacks the sparse layer at `path` is in."""
        return 0

    @abstractmethod
    def routed(self, model: nn.Module, batch: TaskBatch) -> list[Tensor]:
        """For each stack which of its tokens are real: flat bool; False at padding."""

    @abstractmethod
    def hidden(self, model: nn.Module, batch: TaskBatch) -> Tensor:
        """The states (targets, hidden) from which the batch's targets are predicted."""

    @abstractmethod
    def own_logits(self, model: Any, batch: TaskBatch) -> Tensor:
        """Logits (targets, vocabulary) as the class's own forward pass makes them."""

    def sample(self, model: nn.Module) -> Sample:
        """Two fixed rows."""
        vocabulary = model.get_input_embeddings().weight.shape[0]  # pyright: ignore
        return Sample.of((torch.arange(64) * 7919 % vocabulary).view(2, 32), self.sample_prompt)

    @abstractmethod
    def answers(
        self,
        model: nn.Module,
        prompts: Sequence[Sequence[int]],
        max_new_tokens: int,
        pad: int,
        end: int,
        cache: bool,
    ) -> list[list[int]]:
        """The best ids for each prompt, one after another, in no more than `max_new_tokens`."""


def device_of(model: nn.Module) -> torch.device:
    """Where a model's first parameter is."""
    return next(model.parameters()).device
