"""FedBuff: the server waits for no round's slowest client; late updates count less."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from fedmoe.adapter import Adapter
from fedmoe.aggregation.mean import ByUse
from fedmoe.messages.records import Update
from fedmoe.section import section


@section
class FedBuff(ByUse):
    r"""Average every `buffer_size` updates as they arrive: in the virtual time of `devices`, or
    without them as real nodes answer.

    $$W \leftarrow W + \frac{\sum_c n_c \, (1 + \tau_c)^{-a} \, \Delta_c}{\sum_c n_c}$$

    `tau_c` is the number of server updates since client c was sent its adapter, `a` the exponent.
    With a `temperature` an expert's weights are FLAME's, in place of `n_c`. A stale
    update moves the adapter less, whatever else is in the buffer. `rounds` counts the server's
    updates; `clients_per_round` clients are at work at any time, and one that arrives is replaced
    at once. See `devices.timeline` for the order, and `asynchronous` for the loop.

    Source: Nguyen et al. 2022 (arXiv:2106.06639, Alg. 1; `a = 1/2` in its section 5).
    """

    name: Literal["fedbuff"] = "fedbuff"
    maskable: ClassVar[bool] = False
    asynchronous: ClassVar[bool] = True
    averages_factors: ClassVar[bool] = False
    buffer_size: Annotated[int, Field(ge=1)] | None = None
    """Updates that the server waits for; `clients_per_round` when omitted."""
    exponent: Annotated[float, Field(ge=0)] = 0.5
    """The a: how fast the weight of a late update falls; 0 ignores lateness."""

    def updates_per_step(self, clients_per_round: int) -> int:
        return self.buffer_size or clients_per_round

    def discount(self, update: Update, staleness: int) -> Update:
        share = (1 + staleness) ** -self.exponent
        if share == 1:
            return update
        return replace(update, delta=Adapter(update.delta.layout, update.delta.flat * share))
