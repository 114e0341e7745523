"""Ling 3: delta attention between latent attention."""

from dataclasses import replace

from fedmoe.models.families.kimi_linear import FAMILY as KIMI_LINEAR

FAMILY = replace(KIMI_LINEAR, name="Ling 3 hybrid", model_type="bailing_hybrid")
