"""A subset of each layer's experts: those that a client keeps, and what becomes of the others."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Annotated, Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float64, Int64
from pydantic import Field
from torch import Tensor, nn

from fedmoe.models.expert_state import Biases, ExpertState, Merged
from fedmoe.models.experts import biases_of
from fedmoe.models.families import Family, MoELayer
from fedmoe.models.memory.frozen import FrozenExperts, weights_of
from fedmoe.models.memory.stored import Frozen, Stored, quantised
from fedmoe.section import section

LeftOut = Literal["drop", "merge"]
Output = tuple[Tensor, Tensor, Tensor]
"""A router's logits (tokens, experts), weights and index (tokens, top_k)."""


@section
class Subset:
    """The experts of each layer that a client keeps: those that its own data activate most.

    Before each round the client counts, on a few of its own examples and with the adapter that it
    was sent, how many tokens each expert of each layer is given. It keeps the `keep` experts with
    the most; of equal ones those of the lower index. LoRA of all others is neither trained nor
    sent: their count is 0. FLAME's weights (with a temperature over 0) and A3SMoE's leave such a
    client out of an expert's mean; plain averaging counts it as one that did not change the expert.

    Source: choosing by what local data activate, counting with quantised weights, and merging the
    others in proportion to their activation are ideas of FLUX (arXiv:2508.19078); a subset within
    each client's budget is also HFedMoE's (arXiv:2601.00583). Both from abstracts and second-hand
    notes. Ours: tokens are counted, every layer keeps as many, the others become one expert.
    """

    keep: Annotated[int, Field(ge=1)]
    """Experts of each layer that stay, at least the tier's `top_k`."""
    left_out: LeftOut = "drop"
    """Treatment of the others. `drop`: no token can choose them. `merge`: one frozen expert
    stands for all of them, the mean of their frozen weights by how often each was chosen; the
    router chooses as ever, and a token's choices among them go there, with their weights added."""
    examples: Annotated[int, Field(ge=1)] = 32
    """A client's examples, drawn anew in each round, on which it counts."""
    profile: Frozen | None = None
    """The form of the frozen experts while it counts; as in training when omitted."""

    @property
    def merges(self) -> bool:
        """True where one expert stands for those left out."""
        return self.left_out == "merge"

    @property
    def outcome(self) -> str:
        """The treatment of the others, in a word or two."""
        return "merged into one" if self.merges else "dropped"

    def misfits(self, experiment: Any, model: Any) -> Iterator[tuple[str, str]]:
        """Yield what of an experiment, or of its model, does not go with this subset.

        Each as a place below it (`.keep`, or empty for the subset itself) and what is wrong.
        """
        e, number = experiment, model.layout.num_experts
        if self.keep > number:
            yield ".keep", f"{self.keep} is over the model's {number} experts"
        if self.keep >= number:
            return
        if e.aggregation.changes_routers:
            yield (
                "",
                f"aggregation.name {e.aggregation.name!r} nudges routers towards all experts; use "
                "another strategy, or no subset",
            )
        if not e.gating.own:
            yield "", f"needs gating.name 'top_k'; {e.gating.name!r} chooses among all experts"
        if e.losses.similarity:
            yield "", "losses.similarity needs experts that are left out; use 0"
        if self.merges:
            return
        if fault := drop_fault(model.family, model.layers):
            yield ".left_out", f"'drop' cannot be honoured: {fault}"
        if e.rescaling.reweighs:
            named = f"rescaling.by {e.rescaling.by!r}"
            yield ".left_out", f"'drop' and {named} both change routers' weights; use 'merge'"
        if e.losses.alignment:
            said = "'drop' makes choices impossible that losses.alignment compares; use 'merge'"
            yield ".left_out", said

    def num_held(self, num_experts: int) -> int:
        """Return the number of each layer's experts whose weights are needed."""
        return min(num_experts, self.keep + self.merges)


def most_active(
    counts: Int64[Tensor, "layers experts"], keep: int
) -> Bool[Tensor, "layers experts"]:
    """Return the `keep` experts of each layer with the most tokens; ties go to the lower index."""
    order = counts.sort(dim=1, descending=True, stable=True).indices
    return torch.zeros_like(counts, dtype=torch.bool).scatter(1, order[:, :keep], True)


def merging_shares(
    counts: Int64[Tensor, " experts"], kept: Bool[Tensor, " experts"]
) -> Float64[Tensor, " experts"]:
    r"""Return the share of each expert in the merged one of its layer; they sum to 1.

    $$p_e = n_e / \sum_{j\ left\ out} n_j$$

    of the tokens n, and 0 for the experts kept. Where none left out had a token, all count alike.
    """
    chosen = counts.double().masked_fill(kept, 0)
    chosen = chosen if chosen.any() else (~kept).double()
    return chosen / chosen.sum()


class KeptExperts:
    """The experts of each layer that a model computes with: a mask over shared weights."""

    def __init__(
        self,
        layers: Sequence[MoELayer],
        states: Sequence[ExpertState],
        frozen: FrozenExperts,
        family: Family,
    ) -> None:
        self.layers, self.states, self.frozen, self.family = layers, states, frozen, family
        self.merges = False
        """True while some experts are merged."""
        self.counts = torch.zeros(len(layers), dtype=torch.int64)
        """int64 (layers,): choices that went to merged experts since counting began."""
        self._routers_see = False

    def keep(
        self, counts: Int64[Tensor, "layers experts"], subset: Subset, *, offloaded: bool = False
    ) -> None:
        """Compute with the experts that `counts` favour; with all of them where all are kept.

        Merged experts take the form that the frozen experts are used in. With `offloaded` those
        kept stay in their place.
        """
        self.clear()
        kept = most_active(counts, subset.keep)
        if kept.all():
            return
        self.merges = subset.merges
        if not subset.merges:
            self._let_routers_see()
        for i, state in enumerate(self.states):
            state.left_out = F.pad(~kept[i], (0, 1)).to(self.frozen.device)
            if subset.merges:
                shares = merging_shares(counts[i], kept[i])
                state.merged = merged(self.layers[i], state.stored, shares, self.frozen.used)
        if not offloaded:
            self.frozen.narrow(kept)

    def clear(self) -> None:
        """Compute with all experts."""
        self.merges = False
        for state in self.states:
            state.left_out = state.merged = None
        self.frozen.narrow(None)

    def _let_routers_see(self) -> None:
        if not self._routers_see:
            self._routers_see = True
            for layer, state in zip(self.layers, self.states, strict=True):
                layer.router.register_forward_hook(partial(_among_kept, self.family, state))


def drop_fault(family: Family, layers: Sequence[MoELayer]) -> str | None:
    """Return why routers of this family cannot be kept from an expert exactly; None: they can.

    A router is known that takes a softmax of its logits, over all experts or over the chosen, or a
    sigmoid of each, and chooses by that alone.
    """
    odd = (
        family.groups
        or family.corrected
        or family.capacity
        or bool(family.scaled)
        or not family.listed
    )
    softmax = family.scores.startswith("softmax")
    plain = all(family.is_plain(layer.router) for layer in layers) or not softmax
    if odd or family.scores == "sparsemixer" or not plain:
        return (
            f"routers of {family.name} models choose by more than their logits ({family.rule}), so "
            "that no expert can be kept from being chosen exactly; use left_out: merge, which "
            "leaves routers alone"
        )
    return None


def merged(
    layer: MoELayer,
    stored: tuple[Stored, Stored] | None,
    shares: Float64[Tensor, " experts"],
    frozen: Frozen,
) -> Merged:
    r"""Return one expert in the place of several: $W = \sum_e p_e W_e$, and its biases likewise.

    Sums run in float32 at least; the result is of the weights' type, or quantised as they are.
    LoRA of the merged experts does not enter.

    Args:
        stored: the form of the layer's weights; None for its parameters.
        shares: the p; an expert of none is not read.
        frozen: the form that the result takes.
    """
    means = [_mean(w, shares) for w in stored or weights_of(layer)]
    gate_up, down = means if frozen == "full" else [quantised(mean, frozen) for mean in means]
    biases = biases_of(layer.experts)
    return Merged(gate_up, down, biases and Biases(*(_mean(bias, shares) for bias in biases)))


@torch.no_grad()
def _mean(weights: Tensor | Stored, shares: Tensor) -> Tensor:
    """Return (1, ...): the weighted mean over experts, summed one after another."""
    total, kind = None, None
    for e, share in enumerate(shares.tolist()):
        if share:
            one = weights[e]
            kind = one.dtype
            part = one.to(torch.promote_types(kind, torch.float32))
            total = part * share if total is None else total.add_(part, alpha=share)
    assert total is not None, shares
    return total.to(kind).unsqueeze(0)


def _among_kept(
    family: Family, state: ExpertState, router: nn.Module, _inputs: object, output: Output
) -> Output:
    """A router's hook: choose among the experts kept, and weigh by the router's own rule."""
    if state.left_out is None or state.merged is not None:
        return output
    logits, weights, _ = output
    among = logits.masked_fill(state.left_out[:-1], -torch.inf)
    # By logits, not by their softmax: of an expert kept that may underflow to 0 as well.
    best = among.topk(int(router.top_k), dim=-1)  # pyright: ignore[reportArgumentType]
    if family.scores == "softmax of the chosen":
        chosen = torch.softmax(best.values, dim=-1, dtype=torch.float)
    else:
        score = partial(torch.softmax, dim=-1) if family.scores == "softmax" else torch.sigmoid
        chosen = score(among.float()).gather(-1, best.indices)
        if family.renormalises(router):
            chosen = chosen / chosen.sum(-1, keepdim=True)
    return among, chosen.to(weights.dtype), best.indices
