"""Gates: hooks through which a gating decides in a model's routers, and what losses see of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from fedmoe.errors import ModelError
from fedmoe.models.experts import STATE
from fedmoe.models.families import FAMILIES, MoELayer
from fedmoe.models.gating.outputs import responses
from fedmoe.models.gating.rule import Call, Choice, Rule, Turn, weigh
from fedmoe.models.modulation import softmax_fault

Output = tuple[Tensor, Tensor, Tensor]
"""Of a router: logits (tokens, experts), weights and index (tokens, slots)."""


@dataclass(frozen=True, eq=False)
class Routed:
    """The input and output of one router in one forward pass; it can be differentiated."""

    hidden: Tensor
    logits: Tensor
    weights: Tensor
    index: Tensor
    choice: Choice | None = None
    """The choice of a gating; None where the router chose."""

    @property
    def clean(self) -> Tensor:
        """The logits (tokens, experts) without noise."""
        noisy = self.choice is not None and self.choice.clean is not None
        return self.choice.clean if noisy else self.logits  # pyright: ignore

    def only(self, rows: Tensor) -> Routed:
        """The tokens that `rows`, bool (tokens,), marks."""
        choice = self.choice
        if choice is not None:
            held = {name: x[rows] for name, x in vars(choice).items() if x is not None}
            choice = Choice(**held)
        return Routed(
            self.hidden[rows], self.logits[rows], self.weights[rows], self.index[rows], choice
        )


class Gates:
    """The routers of a model under one gating.

    Raises:
        ModelError: the model's routers take no softmax, or the gating does not fit its sizes.
    """

    def __init__(
        self, layers: Sequence[MoELayer], gating: Rule, model_type: str, full_top_k: int
    ) -> None:
        self.layers, self.gating, self.model_type = layers, gating, model_type
        self.noises: list[Tensor] = []
        self.choices: list[Choice | None] = [None] * len(layers)
        self.turn: Turn | None = None
        if gating.own:
            return
        self._check(full_top_k)
        for i, layer in enumerate(layers):
            layer.router.register_forward_hook(partial(self._choose, i))

    def softmax_fault(self) -> str | None:
        """Return why the routers' weights are no softmax of their logits; None where they are."""
        return softmax_fault((layer.router for layer in self.layers), self.model_type)

    def tensors(self) -> list[tuple[str, tuple[int, ...], int | None]]:
        """Return what the gating trains beside the routers, as entries of an adapter's layout.

        Their kind is `shift`, as a router's own: whatever strategies do with that is right here.
        """
        if not self.gating.trains_noise:
            return []
        shapes = [tuple(layer.scorer.weight.shape) for layer in self.layers]  # pyright: ignore
        return [(_noise(x), s, None) for x, s in zip(self.layers, shapes, strict=True)]

    def bind(self, leaves: Mapping[str, Tensor]) -> None:
        """Compute with the values in `leaves`, by the names of `tensors`."""
        if self.gating.trains_noise:
            self.noises = [leaves[_noise(layer)] for layer in self.layers]

    @contextmanager
    def training(self, generator: torch.Generator) -> Iterator[Turn]:
        """Choose as in training while the context lasts; all chance comes from `generator`."""
        self.turn = Turn(generator)
        try:
            yield self.turn
        finally:
            self.turn, self.choices = None, [None] * len(self.layers)

    @contextmanager
    def recording(self) -> Iterator[list[Routed]]:
        """Keep, layer by layer, what last went through the routers."""
        seen: list[Routed] = [None] * len(self.layers)  # pyright: ignore[reportAssignmentType]

        def keep(i: int, module: nn.Module, inputs: tuple[Tensor], output: Output) -> None:
            seen[i] = Routed(_rows(inputs[0]), *output, self.choices[i])

        handles = [
            layer.router.register_forward_hook(partial(keep, i))
            for i, layer in enumerate(self.layers)
        ]
        try:
            yield seen
        finally:
            for handle in handles:
                handle.remove()
            seen.clear()

    def _check(self, full_top_k: int) -> None:
        named = f"gating.name {self.gating.name!r}"
        if fault := self.softmax_fault():
            raise ModelError(f"{named} {fault}")
        for layer in self.layers:
            if fault := self.gating.misfit(layer.num_experts, full_top_k):
                raise ModelError(f"{named}: {fault}")

    def _choose(self, i: int, module: nn.Module, inputs: tuple[Tensor], output: Output) -> Output:
        """The hook: ask the gating, and weigh what it chose by the router's own rule."""
        logits, weights, _ = output
        experts, hidden = self.layers[i].experts, _rows(inputs[0])
        state = getattr(experts, STATE, None)
        call = Call(
            hidden=hidden,
            logits=logits,
            top_k=int(module.top_k),  # pyright: ignore
            valid=None if state is None else state.valid,
            turn=self.turn,
            noise=self.noises[i] if self.noises else None,
            respond=partial(responses, experts, hidden.detach()),
        )
        choice = self.gating.choose(call)
        self.choices[i] = choice if self.turn else None
        if choice is None:
            return output
        renormalise = FAMILIES[self.model_type].renormalises(module)
        return choice.logits, weigh(choice, renormalise).to(weights.dtype), choice.index


def _rows(hidden: Tensor) -> Tensor:
    return hidden.reshape(-1, hidden.shape[-1])


def _noise(layer: MoELayer) -> str:
    return f"{layer.router_path}.noise.shift"
