"""The capabilities of a client's device."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from fedmoe.section import section

Positive = Annotated[float, Field(gt=0)]


@section
class Device:
    """A machine that clients of a tier are taken to run on."""

    label: str = ""
    """What tables and plots call it."""
    peak_flops: Positive
    """FLOP/s that the maker states, dense, in the number format it would train in."""
    utilisation: Annotated[float, Field(gt=0, le=1)] = 0.3
    """Share of the peak that training reaches. Large dense models are reported at 0.21 to 0.46
    (arXiv:2204.02311, table 3); small batches and sparse layers reach less."""
    memory_bytes: Annotated[int, Field(ge=1)]
    """Memory that training could use."""
    downlink_bytes_per_second: Positive
    uplink_bytes_per_second: Positive
    latency_seconds: Annotated[float, Field(ge=0)] = 0.0
    """Waiting in a client's round that no rate explains; once, for both ways together."""
    availability: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Probability that a client is reachable in a round."""

    @property
    def effective_flops(self) -> float:
        """FLOP/s in training."""
        return self.peak_flops * self.utilisation
