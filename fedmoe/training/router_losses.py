"""Losses on routing, added to a local round's loss: even loads, small logits, unlike experts."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from fedmoe.errors import Fault, ModelError
from fedmoe.models.gating import Gates, Routed, Turn
from fedmoe.models.gating.outputs import expert_output
from fedmoe.section import Component, section
from fedmoe.training.similarity import co_activated, linear_cka

Weight = Annotated[float, Field(ge=0, le=1e6)]


@section
class RouterLosses(Component):
    """Weights of the losses on routing; 0 leaves one out.

    Each is taken per layer, over a micro-batch without its padding, and averaged over layers: over
    pooled layers an expert may die in one as long as its namesake in another works twice as hard.
    Where routers are frozen (`adapter.router: false`) they act through the hidden states alone.
    """

    load_balance: Weight = 0.0
    """Switch: the number of experts times the sum of load times mean probability; 1 when even."""
    importance: Weight = 0.0
    """Shazeer: the squared variation of experts' summed weights; without effect at k = 1 on routers
    that normalise, whose one weight is always 1."""
    load: Weight = 0.0
    """Shazeer: that of a smooth estimate of their loads; asks for `gating.name: noisy_top_k`."""
    z: Weight = 0.0
    """ST-MoE: the mean square of the log of the summed exponentials of logits."""
    similarity: Weight = 0.0
    """SimSMoE: the mean CKA of the answers of experts that share the most tokens."""
    similarity_pairs: Annotated[int, Field(ge=1)] = 2
    """Pairs of experts in each layer that `similarity` looks at."""
    similarity_tokens: Annotated[int, Field(ge=2)] = 16
    """Least number of tokens that a pair has to share for that."""
    alignment: Weight = 0.0
    """Divergence of the local router's choice from that of the router that the round began with;
    asks for `adapter.router: true`."""

    @property
    def requested(self) -> dict[str, float]:
        """The weights that are not 0, by name."""
        names = ("load_balance", "importance", "load", "z", "similarity", "alignment")
        return {name: weight for name in names if (weight := getattr(self, name))}

    def faults(self, experiment: Any, model: Any = None) -> Iterator[Fault]:
        """Yield losses that the gating, the adapter or the model's routers give no meaning to."""
        gating = experiment.gating
        if self.load and not gating.noisy:
            said = f"estimates loads under noise; gating.name {gating.name!r} has none"
            yield Fault("losses.load", f"{said}, use 'noisy_top_k'")
        if self.alignment and not experiment.adapter.router:
            said = "holds trained routers near, which are frozen; set adapter.router"
            yield Fault("losses.alignment", said)
        if model is not None and (fault := model.gates.softmax_fault()):
            for name, weight in self.requested.items():
                yield Fault(f"losses.{name}", f"{weight} {fault}; use 0")


NO_LOSSES = RouterLosses()


def load_balance(routed: Routed) -> Tensor:
    r"""$E \sum_i f_i P_i$ of a layer, a scalar: 1 where loads or probabilities are even.

    $f_i$ is expert i's share of all routed rows, $P_i$ the mean of softmax(logits), E the number of
    experts that can be chosen. With one expert
    per token it is the source's; with k it is its value over k, so that one weight serves any k.

    Source: Switch Transformer (arXiv:2101.03961, eq. 4-6).
    """
    number = routed.logits.shape[-1]
    load = torch.bincount(routed.index.flatten(), minlength=number + 1)[:number]
    share = load / load.sum().clamp_min(1)
    return there(routed).sum() * (share * torch.softmax(routed.logits.float(), -1).mean(0)).sum()


def there(routed: Routed) -> Tensor:
    """bool (experts,): those that any token could choose; a subset's others have no logits."""
    return routed.logits.detach().isneginf().all(0).logical_not()


def squared_variation(x: Tensor, there: Tensor | None = None) -> Tensor:
    r"""$\mathrm{CV}(x)^2 = \mathrm{Var}(x) / \mathrm{Mean}(x)^2$ of a vector, not below 0.

    Over those members alone that are `there`, bool, where given.
    """
    there = torch.ones_like(x, dtype=torch.bool) if there is None else there
    number = there.sum().clamp_min(1)
    mean = (x * there).sum() / number
    variance = ((x - mean).square() * there).sum() / number
    return variance / mean.square().clamp_min(1e-10)


def importance(routed: Routed) -> Tensor:
    r"""$\mathrm{CV}(\sum_x G(x))^2$ of a layer, a scalar; $G_i(x)$ is expert i's weight or 0.

    Over the experts that can be chosen. Where a router normalises its weights and k is 1 they are
    all 1, whatever its logits: then it teaches nothing.

    Source: Shazeer et al. 2017 (arXiv:1701.06538, eq. 6-7).
    """
    number = routed.logits.shape[-1]
    # Not index_add: on a GPU it adds in any order. Only "no expert" can be there twice in a row.
    spread = routed.weights.new_zeros(len(routed.index), number + 1, dtype=torch.float)
    spread = spread.scatter(1, routed.index, routed.weights.float())
    return squared_variation(spread.sum(0)[:number], there(routed))


def load(routed: Routed) -> Tensor:
    r"""$\mathrm{CV}(\sum_x P(x))^2$ of a layer under noisy top-k, a scalar.

    $$P_i(x) = \Phi\Big(\frac{(xW)_i - \mathrm{kth}(H(x), k, i)}{\text{spread}_i}\Big)$$

    is the probability that expert i is among the k if its noise alone were drawn again; kth is the
    k-th largest of the noisy logits H without the i-th. 0 with k = E: then all are chosen.

    Source: Shazeer et al. 2017 (arXiv:1701.06538, app. A, eq. 8-11).
    """
    choice = routed.choice
    assert choice is not None, "the load loss needs noisy top-k's choice"
    assert choice.clean is not None
    assert choice.spread is not None
    k, number = choice.index.shape[-1], choice.logits.shape[-1]
    if k == number:
        return choice.clean.sum() * 0.0
    noisy = choice.logits.float()
    best = noisy.topk(k + 1, dim=-1).values
    inside = torch.zeros_like(noisy, dtype=torch.bool).scatter(-1, choice.index, True)
    bar = torch.where(inside, best[:, k : k + 1], best[:, k - 1 : k])
    chance = torch.special.ndtr((choice.clean.float() - bar) / choice.spread.float())
    return squared_variation(chance.sum(0))


def z(routed: Routed) -> Tensor:
    r"""$\frac{1}{T} \sum_t (\log \sum_i e^{s_{ti}})^2$ of a layer, a scalar; s without noise.

    Source: ST-MoE (Zoph et al. 2022, arXiv:2202.08906, eq. 5).
    """
    return routed.clean.float().logsumexp(-1).square().mean()


def similarity(routed: Routed, experts: torch.nn.Module, pairs: int, tokens: int) -> Tensor:
    """The mean linear CKA of the `pairs` pairs that share the most tokens, on those tokens.

    Pairs of fewer than `tokens` shared tokens are left out; 0 where none is left, as with one
    expert per token. Gradients reach the experts, and the hidden states that they read.

    Source: SimSMoE (Do et al. 2024, arXiv:2406.15883), which penalises CKA of experts that get the
    same tokens; which pairs, and how many, is our choice.
    """
    found = []
    for a, b, shared in co_activated(routed.index, routed.logits.shape[-1], pairs):
        if shared >= tokens:
            rows = (routed.index == a).any(1) & (routed.index == b).any(1)
            x, y = (expert_output(experts, routed.hidden[rows], e).float() for e in (a, b))
            found.append(linear_cka(x, y))
    return torch.stack(found).mean() if found else routed.logits.sum() * 0.0


Anchor = tuple[Tensor, Tensor | None]
"""A router's weight (experts, hidden), and its bias (experts,) where it has one."""


def anchor_of(scorer: torch.nn.Module) -> Anchor:
    """A copy of what a router's logits are made with, without a gradient."""
    bias = getattr(scorer, "bias", None)
    return scorer.weight.detach().clone(), bias if bias is None else bias.detach().clone()  # pyright: ignore


def alignment(routed: Routed, anchor: Anchor) -> Tensor:
    r"""$\frac{1}{T} \sum_t \mathrm{KL}(p^{global}_t \Vert p^{local}_t)$ of a layer, a scalar.

    Both are softmaxes over all experts for the same hidden states: of the router that the round
    began with, `anchor`, which gets no gradient, and of the present one.

    Source: after FedAlign-MoE's alignment of routing distributions (arXiv:2603.21276), from
    second-hand notes; the divergence and its direction are our choice.
    """
    with torch.no_grad():
        goal = F.log_softmax(F.linear(routed.hidden, *anchor).float(), dim=-1)
    now = F.log_softmax(routed.clean.float(), dim=-1)
    return F.kl_div(now, goal, reduction="batchmean", log_target=True)


Term = Callable[[Routed], Tensor]


@dataclass(eq=False)
class RouterTraining:
    """The gates' turn in a local round, and the losses on what they route."""

    turn: Turn
    seen: Sequence[Routed]
    terms: Sequence[tuple[float, Sequence[Term]]]
    """Weights, each with one function per layer."""

    def begin(self, done: float) -> None:
        """Begin a step of which `done`, 0 to 1, is the share of the run that lies behind."""
        self.turn.begin(done)

    def loss(self, valid: Tensor) -> Tensor | None:
        """The weighted sum over what the last forward pass routed; None where there is no loss.

        `valid`, bool of any shape of as many values as tokens, is False at padding.
        """
        if not self.terms:
            return None
        routed = [seen.only(valid.flatten().to(seen.logits.device)) for seen in self.seen]
        total = routed[0].logits.new_zeros((), dtype=torch.float)
        for weight, layers in self.terms:
            each = [term(layer) for term, layer in zip(layers, routed, strict=True)]
            total = total + weight * torch.stack(each).mean()
        return total


@contextmanager
def router_training(
    gates: Gates, losses: RouterLosses, generator: torch.Generator
) -> Iterator[RouterTraining]:
    """Let the gates choose as in training, and keep what the losses need, while it lasts.

    The routers' present weights become the anchor of `alignment`.

    Raises:
        ModelError: losses are asked for and the model's routers take no softmax.
    """
    terms = list(_terms(gates, losses))
    with ExitStack() as stack:
        turn = stack.enter_context(gates.training(generator))
        if terms and (fault := gates.softmax_fault()):
            raise ModelError(f"a loss on routing {fault}")
        seen = stack.enter_context(gates.recording()) if terms else []
        yield RouterTraining(turn, seen, terms)


def _terms(gates: Gates, losses: RouterLosses) -> Iterator[tuple[float, list[Term]]]:
    """Each loss that has a weight, with its function for every layer."""
    layers = gates.layers
    plain = {"load_balance": load_balance, "importance": importance, "load": load, "z": z}
    for name, term in plain.items():
        if weight := getattr(losses, name):
            yield weight, [term] * len(layers)
    if losses.similarity:
        sizes = {"pairs": losses.similarity_pairs, "tokens": losses.similarity_tokens}
        yield losses.similarity, [partial(similarity, experts=x.experts, **sizes) for x in layers]
    if losses.alignment:
        anchors = [anchor_of(layer.scorer) for layer in layers]
        yield losses.alignment, [partial(alignment, anchor=anchor) for anchor in anchors]
    for weight, term in gates.gating.losses:
        yield weight, [term] * len(layers)
