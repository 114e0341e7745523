"""Tokenizers of the usual kinds, trained on a few lines, with their own ways with spaces."""

import json
from functools import cache

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from tokenizers.trainers import BpeTrainer, UnigramTrainer

LINES = [
    "Q: turn on the light in the kitchen\nA: light.on kitchen",
    "user: what is the weather like?\nassistant: It is sunny, 21.5 degrees.",
    "def f(x):\n    y = x + 1\n    return y\n",
    '{"name": "f", "arguments": {"x": 1.0, "y": "caf\u00e9"}}',
    "<|im_start|>system\nBe brief.<|im_end|>",
] * 4
SPLIT = r" ?[^\s\w]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s?\w+|\s+"
"""Words with their space; punctuation with the line breaks after it, as of Llama 3 and Qwen."""


def _byte_level(control):
    made = Tokenizer(models.BPE())
    split = pre_tokenizers.Split(Regex(SPLIT), "isolated")
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    made.pre_tokenizer = pre_tokenizers.Sequence([split, byte_level])
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = BpeTrainer(vocab_size=400, show_progress=False, initial_alphabet=alphabet)
    made.train_from_iterator(LINES, trainer)
    made.add_special_tokens([*control])
    return made


def _metaspace(control):
    made = Tokenizer(models.Unigram())
    made.normalizer = normalizers.NFC()
    made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    made.decoder = decoders.Metaspace(prepend_scheme="first")
    alphabet = sorted({chr(n) for n in range(33, 127)} | {"\n", "\u2581", "\u00e9"})
    trainer = UnigramTrainer(
        vocab_size=220,
        show_progress=False,
        unk_token="<unk>",
        initial_alphabet=alphabet,
        special_tokens=["<unk>"],
    )
    made.train_from_iterator(LINES, trainer)
    made.add_special_tokens([*control])
    return made


def _llama(control):
    """BPE of SentencePiece: a space before every text, bytes for what is unknown."""
    made = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    spaces = [normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")]
    made.normalizer = normalizers.Sequence(spaces)
    trainer = BpeTrainer(
        vocab_size=420,
        show_progress=False,
        special_tokens=["<unk>", *control, *(f"<0x{n:02X}>" for n in range(256))],
    )
    made.train_from_iterator(LINES, trainer)
    whole = json.loads(made.to_str())  # bytes are in the vocabulary, and are no control tokens
    whole["added_tokens"] = [t for t in whole["added_tokens"] if not t["content"].startswith("<0x")]
    made = Tokenizer.from_str(json.dumps(whole))
    parts = [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()]
    made.decoder = decoders.Sequence([*parts, decoders.Strip(" ", 1, 0)])
    return made


KINDS = {"byte-level": _byte_level, "metaspace": _metaspace, "llama": _llama}


@cache
def trained(kind, bos=False, control=("<bos>", "<eos>", "<pad>"), eos="<eos>"):
    """A tokenizer of a kind; with `bos` it begins every text with one."""
    from transformers import PreTrainedTokenizerFast

    made = KINDS[kind](control)
    if bos:
        begin = ("<bos>", made.token_to_id("<bos>"))
        made.post_processor = processors.TemplateProcessing(
            single="<bos> $A", special_tokens=[begin]
        )
    names = {"bos_token": "<bos>", "eos_token": eos, "pad_token": "<pad>"}
    return PreTrainedTokenizerFast(tokenizer_object=made, **names)
