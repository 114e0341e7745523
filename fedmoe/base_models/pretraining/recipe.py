"""The recipe of `fedmoe pretrain`, and checks that its folders serve no other recipe."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from fedmoe.base_models.pretraining import work as works
from fedmoe.errors import FedMoEError, ModelError
from fedmoe.models.gating import Gating, TopKGating
from fedmoe.section import section
from fedmoe.system.files import expanded, write_json
from fedmoe.training.router_losses import RouterLosses

PATHS = ("sources", "work", "out")
"""Settings of this machine, which do not change the model."""
LATE = ("tokens", "decay_share")
"""Settings that may change on the way: the length of training is chosen late."""
MOST_BLOCK = 512
"""Positions of a model."""
HELD_OUT = 64
"""Blocks of tokens to validate on."""
FILES = (
    *("config.json", "model.safetensors", "tokenizer.json", "chat_template.jinja"),
    *("README.md", "loss.png"),
)
"""Files that a finished model would be written over."""
Count = Annotated[int, Field(ge=1)]


@section
class ModelShape:
    """An OLMoE model's sizes; by default those of the built-in model.

    Wide experts on a narrow hidden state: so the loss depends on how many of them work.
    """

    hidden_size: Count = 128
    intermediate_size: Count = 128
    """Width of one expert."""
    num_hidden_layers: Count = 6
    num_attention_heads: Count = 4
    num_experts: Count = 32
    top_k: Count = 8
    vocab_size: Annotated[int, Field(ge=258, le=2**16)] = 4096
    """Tokens in all: at least 256 bytes, and two special ones."""

    def __post_init__(self) -> None:
        if self.top_k > self.num_experts:
            raise ValueError(f"top_k {self.top_k} is over num_experts, which is {self.num_experts}")
        if self.hidden_size % (2 * self.num_attention_heads):
            raise ValueError(
                f"hidden_size {self.hidden_size} is no multiple of twice num_attention_heads, "
                f"{2 * self.num_attention_heads}: a head's width is even"
            )


@section
class Pretrain:
    """A recipe: the text, the model, how long to train, and where the result goes."""

    sources: str
    """Folder that the packages named in the recipe were unpacked into."""
    work: str
    """Folder for tokens and checkpoints, of one recipe; delete it to begin anew."""
    out: str
    """Folder that receives the finished model, its tokenizer and its model card. It may hold an
    earlier model of this recipe."""
    seed: int = 0
    model: ModelShape = ModelShape()
    num_exercises: Annotated[int, Field(ge=0)] = 65_000
    tokens: Count = 30_000_000
    """Tokens to train on."""
    block: Annotated[int, Field(ge=2, le=MOST_BLOCK)] = 256
    """Tokens in one sequence."""
    batch_size: Count = 16
    """Sequences in one optimiser step, over all workers."""
    workers: Count = 2
    learning_rate: Annotated[float, Field(gt=0)] = 1.5e-3
    weight_decay: Annotated[float, Field(ge=0)] = 0.1
    warmup_steps: Count = 200
    decay_share: Annotated[float, Field(ge=0, le=1)] = 0.25
    """Last part of the run in which the learning rate falls to zero."""
    gating: Gating = TopKGating()
    """The rule by which tokens and experts choose each other. The finished model keeps its router,
    and `fedmoe generate` chooses as here; a run that should do so names the same gating."""
    losses: RouterLosses = RouterLosses(load_balance=0.04, z=0.001)
    """Losses on routing, as in a run."""

    def __post_init__(self) -> None:
        if self.losses.alignment:
            raise ValueError("losses.alignment: there is no global router to be near; use 0")
        if self.losses.load and not self.gating.noisy:
            raise ValueError("losses.load: estimates loads under noise; use gating 'noisy_top_k'")
        if self.batch_size < self.workers:
            raise ValueError(f"batch_size {self.batch_size} is below workers, {self.workers}")
        if self.steps < 1:
            raise ValueError(
                f"tokens {self.tokens} make no step; expected {self.batch_size * self.block} "
                "(batch_size * block) or more"
            )
        if said := self.gating.misfit(self.model.num_experts, self.model.top_k):
            raise ValueError(said)

    @property
    def steps(self) -> int:
        """Optimiser steps in all."""
        return self.tokens // (self.batch_size * self.block)


def claim(recipe: Pretrain) -> None:
    """Write into the work folder which recipe it serves.

    Raises:
        FedMoEError: it holds work of another recipe, or cannot be made.
    """
    work = expanded(recipe.work)
    path = work / "recipe.json"
    try:
        begun = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        differ = _differences(recipe, begun)
    except (ValueError, AttributeError) as error:
        raise FedMoEError(f"{path} is no recipe: {error}; delete {work} to begin anew") from error
    if differ and any((work / done).exists() for done in (works.TOKENS, works.CHECKPOINT)):
        raise FedMoEError(
            f"{work} holds work on another recipe ({differ}); give `work` another folder, or "
            f"delete it to begin anew. Only {' and '.join(LATE)} may change on the way"
        )
    try:
        work.mkdir(parents=True, exist_ok=True)
        write_json(path, _lasting(recipe))
    except OSError as error:
        raise FedMoEError(f"work {recipe.work!r} cannot be written: {error.strerror}") from error


def check_out(recipe: Pretrain, out: Path) -> None:
    """Refuse to write over anything but a model of this recipe.

    Raises:
        ModelError: a file; a folder with another recipe's model, or with an unknown one.
    """
    path, fault = out / "pretraining.json", ""
    if out.exists() and not out.is_dir():
        fault = " is a file"
    elif found := [name for name in FILES if (out / name).is_dir()]:
        fault = f" holds a folder called {found[0]}"
    elif path.exists():
        try:
            differ = _differences(recipe, json.loads(path.read_text(encoding="utf-8"))["recipe"])
            fault = f" holds a model of another recipe ({differ})" if differ else ""
        except (ValueError, KeyError, TypeError, AttributeError):
            fault = f": {path.name} is damaged"
    elif found := [name for name in FILES if (out / name).exists()]:
        fault = f" holds {found[0]}, and no {path.name} to say of what recipe"
    if fault:
        raise ModelError(f"out {recipe.out!r}{fault}; name another folder, or remove it")


def check_tokens(recipe: Pretrain) -> None:
    """Refuse a corpus that does not fill one step.

    Raises:
        FedMoEError: too few tokens, or a damaged file.
    """
    found = len(works.tokens(expanded(recipe.work)))
    least = (HELD_OUT + recipe.batch_size + 3) * recipe.block
    if found < least:
        raise FedMoEError(
            f"the corpus in {recipe.work} has {found} tokens; expected {least} or more: "
            f"{HELD_OUT} blocks of {recipe.block} to validate on, and a batch"
        )


def _lasting(recipe: Pretrain) -> dict[str, Any]:
    """Return the settings that a model depends on from its first step on, as JSON has them."""
    settings = json.loads(json.dumps(asdict(recipe)))
    return {name: value for name, value in settings.items() if name not in (*PATHS, *LATE)}


def _differences(recipe: Pretrain, other: dict[str, Any]) -> str:
    """Return the names of the lasting settings in which another recipe, from JSON, differs."""
    return ", ".join(name for name, own in _lasting(recipe).items() if other.get(name) != own)
