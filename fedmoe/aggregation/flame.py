"""FLAME: an expert's average weighs each client by its data and by how often it used the expert."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from fedmoe.aggregation.mean import ByUse
from fedmoe.section import section


@section
class Flame(ByUse):
    r"""Average per expert, by data size and activation frequency.

    $$f_{cj} = a_{cj} / S_c, \qquad \gamma_{cj} = (f_{cj})^t \, n_c$$

    `a_cj` tokens of client c that reached expert j, `S_c` its tokens, `n_c` its size, `t` the
    temperature. `t = 0` is FedAvg. An expert that nobody used keeps its value. Shared parts
    (attention) are used by every token and weigh `n_c`.

    Source: FLAME (Le et al. 2025, arXiv:2506.16600), from second-hand notes: whether its unit of
    `a` and `S` is the token or the step is not certain; here it is the token, per layer.

    Example:
        >>> Flame(temperature=0.0).size_weighted  # FedAvg
        True
    """

    name: Literal["flame"] = "flame"
    temperature: Annotated[float, Field(ge=0)] = 2.0
    """The exponent t: 0 ignores how often an expert was used, larger trusts its users more."""
