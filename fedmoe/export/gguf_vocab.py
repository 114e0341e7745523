"""A tokenizer in the terms of GGUF: tokens, their kinds, merges, and llama.cpp's way to split text.

Byte-level BPE alone. llama.cpp knows regular expressions by name: the first of them that splits
the samples as the tokenizer does is taken.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from tokenizers import Regex, Tokenizer, pre_tokenizers

from fedmoe.errors import ModelError

_WORDS = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)"
_SHORT = r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])"
_SPACES = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_CASED = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+END|"
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*END|"
)
_SIGNS = r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|"
_ANY = rf"{_SHORT}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|DIGITS| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{_SPACES}"
SPLITS = {
    "gpt-2": [_WORDS],
    "qwen2": [_ANY.replace("DIGITS", r"\p{N}")],
    "llama-bpe": [_ANY.replace("DIGITS", r"\p{N}{1,3}")],
    "smollm": [r"\p{N}", _WORDS],
    "tekken": [_CASED.replace("END", "") + r"\p{N}" + _SIGNS + _SPACES],
    "gpt-4o": [_CASED.replace("END", f"{_SHORT}?") + r"\p{N}{1,3}" + _SIGNS + _SPACES],
}
"""The expressions by which llama.cpp splits text, by its names (`src/llama-vocab.cpp`)."""
SAMPLE = (
    "I've been 'told he's there, 'RE you sure? We'Ve\n\n\n \t a\r\n  lot: 3 33 333 3333 3.3 3..3 "
    "HassTurnOn lampe_1 x=f(y); ~/a/b ------===== \U0001f680 (normal) \u2705 Füße à la carte "
    "\u041d\u0435\u0449\u043e \u0431\u044a\u043b\u0433\u0430\u0440\u0441\u043a\u0438 "
    "\u6211\u60f3\u5728apple\u5de5\u4f5c1314\u5929\uff5e  "
)
NORMAL, CONTROL, USER_DEFINED, UNUSED = 1, 3, 4, 5


def split_name(tokenizer: Any, samples: Sequence[str]) -> str:
    """Return llama.cpp's name for the way in which a tokenizer splits text.

    Args:
        tokenizer: transformers', with a byte-level BPE.
        samples: texts that it must split alike, beside a fixed one.

    Raises:
        ModelError: it is no such BPE, or no way that llama.cpp knows gives the same tokens.
    """
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    bytewise = "ByteLevel" in json.dumps(state.get("pre_tokenizer"))
    if state["model"]["type"] != "BPE" or not bytewise or state.get("normalizer"):
        raise ModelError("its tokenizer is no plain byte-level BPE, the only kind that is written")
    texts = [SAMPLE, *samples]
    wanted = _ids(tokenizer.backend_tokenizer, texts)
    for name, patterns in SPLITS.items():
        other = Tokenizer.from_str(json.dumps(state))
        steps = [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in patterns]
        rest = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        other.pre_tokenizer = pre_tokenizers.Sequence([*steps, rest])  # pyright: ignore
        if _ids(other, texts) == wanted:
            return name
    raise ModelError(
        f"its tokenizer splits text in none of the {len(SPLITS)} ways that are known of llama.cpp"
    )


def _ids(tokenizer: Tokenizer, texts: Sequence[str]) -> list[list[int]]:
    return [one.ids for one in tokenizer.encode_batch([*texts], add_special_tokens=False)]


def write_vocab(writer: Any, tokenizer: Any, size: int, split: str, template: str) -> None:
    """Add a tokenizer to a GGUF file.

    Args:
        size: rows of the model's embeddings.
        split: of `split_name`.
    """
    names = {number: token for token, number in tokenizer.get_vocab().items()}
    added = tokenizer.added_tokens_decoder
    kinds = [_kind(number, names, added) for number in range(size)]
    model = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    merges = [" ".join(pair) if isinstance(pair, list) else pair for pair in model["merges"]]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(split)
    writer.add_token_list([names.get(number, f"[PAD{number}]") for number in range(size)])
    writer.add_token_types(kinds)
    writer.add_token_merges(merges)
    for role, add in (
        ("bos", writer.add_bos_token_id),
        ("eos", writer.add_eos_token_id),
        ("pad", writer.add_pad_token_id),
    ):
        if (number := getattr(tokenizer, f"{role}_token_id")) is not None:
            add(number)
    first = tokenizer("a")["input_ids"][:1]
    writer.add_add_bos_token(first == [tokenizer.bos_token_id])
    writer.add_add_eos_token(False)
    if template:
        writer.add_chat_template(template)


def _kind(number: int, names: dict[int, str], added: dict[int, Any]) -> int:
    if number not in names:
        return UNUSED
    if number not in added:
        return NORMAL
    return CONTROL if added[number].special else USER_DEFINED
