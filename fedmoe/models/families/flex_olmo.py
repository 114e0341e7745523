"""FlexOlmo (arXiv:2507.07024): experts trained apart and put together."""

from __future__ import annotations

from fedmoe.models.families.family import Family

FAMILY = Family(
    name="FlexOlmo", model_type="flex_olmo", normalised="config", tiny={"num_experts": 8}
)
