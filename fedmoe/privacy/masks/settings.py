"""The `secure_aggregation` section."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Annotated, Any

from pydantic import Field

from fedmoe.errors import Fault
from fedmoe.section import section


@section
class SecureAggregation:
    """Masked sums: the server learns what all clients' vectors add up to, and no single one.

    Example:
        >>> SecureAggregation().threshold_of(9)
        6
    """

    neighbours: Annotated[int, Field(ge=2)] | None = None
    """Clients with which each shares masks and secrets, chosen anew in each round; all when
    omitted. Fewer cost less, and protect against fewer that are in league with the server."""
    threshold: Annotated[float, Field(gt=0.5, le=1)] = 2 / 3
    """Share of a client's neighbours, rounded up, that must stay to the end: fewer together learn
    nothing, and if more leave, the round is lost."""

    def threshold_of(self, neighbours: int) -> int:
        """Return how many of so many neighbours must stay; at least two."""
        return max(2, math.ceil(round(self.threshold * neighbours, 9)))

    def faults(self, experiment: Any, model: Any = None) -> Iterator[Fault]:
        """Yield what needs to see single updates."""
        e, strategy = experiment, experiment.aggregation
        if not strategy.maskable or strategy.asynchronous:
            said = (
                f"aggregation.name {strategy.name!r} needs single updates, which masks hide; use "
            )
            yield Fault("secure_aggregation", said + "an average of updates")
        if e.rescaling.learned:
            said = f"{e.rescaling.name!r} sends factors that no mask hides; use 'none' or 'static'"
            yield Fault("rescaling.name", said)
        if e.upload.name != "none":
            said = f"{e.upload.name!r} has no sums under masks, which take 8 bytes a value; use "
            yield Fault("upload.name", said + "'none'")
