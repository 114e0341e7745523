"""Forms of task: how prompts and responses pass through a model.

- `task`: the base class (`TaskForm`), and what it reads of a batch (`TaskBatch`)
- `causal`: a prompt and its response are one text, of which each token follows from those before
- `seq2seq`: the prompt goes to an encoder, the response comes from a decoder

A family names its form (`Family.task`). To add a form: a file here with a `TaskForm`, its name
below and in `Family.task`, and in `data.text.FRAMES` how its examples become ids.
"""

from __future__ import annotations

from torch import nn

from fedmoe.errors import ModelError
from fedmoe.models.families import FAMILIES
from fedmoe.models.tasks.causal import Causal
from fedmoe.models.tasks.seq2seq import SequenceToSequence
from fedmoe.models.tasks.task import Decoding, TaskBatch, TaskForm

__all__ = [
    "TASKS",
    "Decoding",
    "TaskBatch",
    "TaskForm",
    "causal_fault",
    "require_causal",
    "task_of",
]

TASKS: dict[str, TaskForm] = {"causal": Causal(), "seq2seq": SequenceToSequence()}


def task_of(model_type: str) -> TaskForm:
    """Return the form of task of a model type; causal where the type is not listed."""
    family = FAMILIES.get(model_type)
    return TASKS[family.task if family else "causal"]


def causal_fault(model: nn.Module) -> str | None:
    """Return why something is not for this model; None for a causal language model."""
    kind = str(model.config.model_type)  # pyright: ignore[reportAttributeAccessIssue]
    if (form := task_of(kind)).name == "causal":
        return None
    return f"is for causal language models; {kind!r} models {form.does}: leave it out"


def require_causal(model: nn.Module, what: str) -> None:
    """Refuse `what` for a model that is no causal language model.

    Raises:
        ModelError: which model, and why.
    """
    if fault := causal_fault(model):
        raise ModelError(f"{what} {fault}")
