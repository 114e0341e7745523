"""How the server turns clients' updates into the next global adapter.

- `streaming`: the per-expert weighted mean that strategies share, over cache-sized `blocks`
- `factored`: the best low-rank factors of a weighted sum of products BA, never forming the sum
- `fedavg`, `flame`: one strategy a file, its paper's formula in the docstring
- `server_optimizer`: momentum, Adagrad, Adam and Yogi on the change that a strategy proposes

To add one: a `@section` with a `name` and `combine(adapter, updates)`, and its name in the union.
"""

from typing import Annotated

from pydantic import Field

from fedmoe.aggregation.fedavg import FedAvg
from fedmoe.aggregation.flame import Flame
from fedmoe.aggregation.server_optimizer import NoOptimizer, ServerOptimizer

Aggregation = Annotated[FedAvg | Flame, Field(discriminator="name")]

__all__ = ["Aggregation", "FedAvg", "Flame", "NoOptimizer", "ServerOptimizer"]
