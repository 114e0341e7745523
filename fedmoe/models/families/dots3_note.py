"""dots 3's language model: latent attention in windows and with an indexer."""

from dataclasses import replace

from fedmoe.models.families.deepseek_v32 import FAMILY as DEEPSEEK_V32

FAMILY = replace(DEEPSEEK_V32, name="dots 3", model_type="dots3_note_text")
