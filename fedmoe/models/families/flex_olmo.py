"""FlexOlmo (arXiv:2507.07024): experts trained apart and put together."""

from dataclasses import replace

from fedmoe.models.families.olmoe import FAMILY as OLMOE

FAMILY = replace(OLMOE, name="FlexOlmo", model_type="flex_olmo")
