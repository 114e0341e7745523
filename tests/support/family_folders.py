"""Folders as families publish them: a tiny model, a tokenizer of its kind and a chat template."""

from family_models import tiny_family
from template_shapes import SHAPES
from trained_tokenizers import trained

from fedmoe.models.families import FAMILIES

FOLDERS = {
    "qwen3_moe": ("byte-level", False, "Qwen 3"),
    "mixtral": ("llama", True, "Mistral"),
    "olmoe": ("byte-level", False, "Tulu"),
    "gpt_oss": ("byte-level", False, "harmony"),
    "deepseek_v3": ("metaspace", True, "DeepSeek"),
}
"""By family: the kind of tokenizer, whether it adds a begin of text, and the template's shape."""


def family_folder(kind, place, template=True):
    """Save and return such a folder; without `template` its tokenizer has none."""
    tokens, bos, name = FOLDERS[kind]
    shape = SHAPES[name]
    control = dict.fromkeys(("<bos>", shape.eos, "<pad>", *shape.control))
    made = trained(tokens, bos, tuple(control), shape.eos)
    made.chat_template = shape.template if template else None
    numbers = {"bos_token_id": made.bos_token_id, "eos_token_id": made.eos_token_id}
    numbers |= {"pad_token_id": made.pad_token_id, "vocab_size": len(made)}
    tiny_family(FAMILIES[kind], **numbers).save_pretrained(place)
    made.save_pretrained(place)
    return place
