"""Which client activates how many experts.

- `levels`: fixed tiers from the YAML
- `cost`: what a tier costs: parameters, bytes, FLOPs, memory

To add a policy: a `@section` with a `name` and `assign(...)`, and its name in the union.
"""

from fedmoe.budget.levels import Levels, Tier

Budget = Levels

__all__ = ["Budget", "Levels", "Tier"]
