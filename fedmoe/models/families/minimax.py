"""MiniMax-Text-01 (arXiv:2501.08313): lightning attention between softmax attention."""

from fedmoe.models.families.family import ATTENTION, Family

FAMILY = Family(
    name="MiniMax-01",
    model_type="minimax",
    attention=(*ATTENTION, "qkv_proj", "out_proj"),
    # transformers 5.23: of a padded batch, lightning attention loses later tokens from its cache.
    padded_cache=False,
    step="block_size",
)
