"""FLAME: an expert's average weighs each client by its data and by how often it used the expert."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Literal

from jaxtyping import Float64
from pydantic import Field
from torch import Tensor

from fedmoe.aggregation.mean import ByUse
from fedmoe.errors import Fault
from fedmoe.messages.records import Update
from fedmoe.section import section


@section
class Flame(ByUse):
    r"""Average per expert, by data size and activation frequency.

    $$f_{cj} = a_{cj} / S_c, \qquad \gamma_{cj} = (f_{cj})^t \, n_c$$

    `a_cj` tokens of client c that reached expert j, `S_c` its tokens, `n_c` its size, `t` the
    temperature. `t = 0` is FedAvg. An expert that nobody used keeps its value. Shared parts
    (attention) are used by every token and weigh `n_c`.

    The f of a client sum to its `k_c` over experts, not to 1: at t = 2 a client with k = 1 counts a
    sixteenth of one with k = 4 and the same data. With `frequency: per_choice` they sum to 1. A
    report shows each tier's share of the means.

    Source: FLAME (Le et al. 2025, arXiv:2506.16600), from second-hand notes: whether its unit of
    `S` is the token or the step is not certain, nor is a value of t known; the default is ours.

    Example:
        >>> Flame(temperature=0.0).size_weighted  # FedAvg
        True
    """

    name: Literal["flame"] = "flame"
    temperature: Annotated[float, Field(ge=0)] = 2.0
    """The exponent t: 0 ignores how often an expert was used, larger trusts its users more."""
    frequency: Literal["per_token", "per_choice"] = "per_token"
    """The denominator of f: a client's tokens S, or its choices, k S."""
    unit: Literal["token", "step"] = "token"
    """The unit of S. With `step` f is tokens per optimiser step, so that clients with large batches
    gain. (Counted in steps, `a` would be S for nearly every expert.)"""

    floor: Annotated[float, Field(ge=0, le=1)] = 0.0
    """The least f of an expert that a client used at all, as a share of its mean f over a layer's
    experts, so that rarely used experts are not left to few clients. 0: no floor. An option beside
    the paper, after the floors of sparse federated training (SparseFedMoE), which is known to us
    by this idea alone."""

    def use(self, update: Update) -> Float64[Tensor, "layers experts"]:
        """Return the f of a client."""
        total = update.steps if self.unit == "step" else update.tokens
        choices = update.top_k if self.frequency == "per_choice" else 1
        f = update.counts.double() / (total * choices)
        return f.maximum(self.floor * f.mean(-1, keepdim=True)) * (f > 0)

    def faults(self, experiment: Any, model: Any = None) -> Iterator[Fault]:
        """Yield sums that hide their terms, where a weight has no bound."""
        yield from super().faults(experiment, model)
        if self.unit == "step" and (experiment.privacy or experiment.secure_aggregation):
            said = "'step' gives weights above a client's size, which hidden sums have no room for"
            yield Fault("aggregation.unit", f"{said}; use 'token'")
