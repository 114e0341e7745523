"""How the server turns clients' updates into the next global adapter.

- `streaming`: the per-expert weighted mean that strategies share
- `fedavg`, `flame`: one strategy a file, its paper's formula in the docstring

To add one: a `@section` with a `name` and `combine(adapter, updates)`, and its name in the union.
"""

from typing import Annotated

from pydantic import Field

from fedmoe.aggregation.fedavg import FedAvg
from fedmoe.aggregation.flame import Flame

Aggregation = Annotated[FedAvg | Flame, Field(discriminator="name")]

__all__ = ["Aggregation", "FedAvg", "Flame"]
