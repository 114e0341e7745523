"""Conventions of a tokenizer and a generation config: faults, and what is not followed here."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

FILES = "tokenizer.json, or tokenizer.model, vocab.json with merges.txt or vocab.txt"
NO_TOKENIZER = (
    f"there is no tokenizer: expected {FILES}, beside tokenizer_config.json; copy those of the "
    "model that this one was made of, or save its tokenizer there with save_pretrained"
)
PROBE = "é漢🙂"
"""Characters that a small vocabulary lacks."""
UNRELATED = ("output_", "return_", "_", "transformers_", "cache_", "use_", "max_", "remove_")
"""How settings of a generation config begin that change no answer of ours."""
POSITIONS = re.compile(r"(pos|wpe)[^.]*$")
"""The end of the name of embeddings of positions."""
ONES = ("num_beams", "num_beam_groups", "num_return_sequences", "temperature", "top_p", "typical_p")
ONES += ("repetition_penalty", "encoder_repetition_penalty", "length_penalty")
ZEROS = ("min_length", "no_repeat_ngram_size", "encoder_no_repeat_ngram_size", "diversity_penalty")
ZEROS += ("epsilon_cutoff", "eta_cutoff")
NEUTRAL = dict.fromkeys(ONES, 1) | dict.fromkeys(ZEROS, 0)
"""Values that change no answer, by setting; nor does one that is off."""


def tokenizer_faults(tokenizer: Any, folder: Path, rows: int) -> Iterator[str]:
    """Yield why a tokenizer cannot be used with embeddings of so many rows."""
    ids = {number: token for token, number in tokenizer.get_vocab().items()}
    if not ids.keys() - tokenizer.added_tokens_decoder.keys():
        # transformers 5.24 makes an empty one, with the class's special tokens, of no files.
        yield NO_TOKENIZER
        return
    if lacking := sorted(number for number in ids if number >= rows):
        yield (
            f"the tokenizer has {max(ids) + 1:,} tokens and the model embeddings of {rows:,}: the "
            f"first without one is {ids[lacking[0]]!r} ({lacking[0]}). Resize the embeddings where "
            "the token was added, and train them, or take the tokenizer that belongs to the model"
        )
    if tokenizer.eos_token_id is None:
        yield (
            "its tokenizer has no end token, so that answers would never end; name one of its "
            "tokens as eos_token in tokenizer_config.json"
        )
        return
    stored = _stored(folder)
    if stored and (end := str(tokenizer.eos_token)) not in stored:
        yield (
            f"its tokenizer's end token {end!r} is not in its vocabulary; name one that is as "
            "eos_token in tokenizer_config.json"
        )


def tokenizer_warnings(tokenizer: Any, model: Any) -> Iterator[str]:
    """Yield special tokens that model and tokenizer name otherwise, and text that would be lost."""
    known, end = {*tokenizer.get_vocab().values()}, tokenizer.eos_token_id
    for kind in ("eos", "bos", "pad"):
        if strange := [n for n in _ids(model, f"{kind}_token_id") if n not in known]:
            yield f"its config names {strange[0]} as {kind}_token_id, which its tokenizer lacks"
    for what, config in _configs(model).items():
        ends = [n for n in _numbers(config, "eos_token_id") if n in known]
        if ends and end not in ends:
            yield (
                f"its {what} ends answers with {_named(tokenizer, ends[0])}, its tokenizer with "
                f"{_named(tokenizer, end)}; answers end, and learn to end, with the tokenizer's"
            )
            break
    begins = [n for n in _ids(model, "bos_token_id") if n in known]
    if tokenizer.bos_token_id is not None and begins and tokenizer.bos_token_id not in begins:
        yield (
            f"its config begins text with {_named(tokenizer, begins[0])}, its tokenizer with "
            f"{_named(tokenizer, tokenizer.bos_token_id)}; text begins as the tokenizer says"
        )
    if tokenizer.unk_token_id is None and (lost := _lost(tokenizer)):
        yield (
            f"its tokenizer has no token for what its vocabulary lacks: such characters, like "
            f"{lost!r}, are left out of prompts and responses"
        )
    if not getattr(tokenizer, "is_fast", True):
        yield f"its tokenizer, {type(tokenizer).__name__}, is a slow one: rows take long to read"


def take_greedy(model: Any) -> Iterator[str]:
    """Let a model generate greedily, and yield what its folder says of generation beyond that."""
    if (said := getattr(model, "generation_config", None)) is None:
        return
    from transformers import GenerationConfig

    names = ("bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id")
    model.generation_config = GenerationConfig(**{n: getattr(said, n, None) for n in names})
    others = {
        name: value
        for name, value in said.to_diff_dict().items()
        if name not in names and not name.startswith(UNRELATED)
        if value is not None and value is not False and value not in ([], {}, NEUTRAL.get(name))
    }
    if others:
        listed = ", ".join(f"{name}: {value!r:.40}" for name, value in sorted(others.items()))
        yield (
            f"its generation config says {listed}: not followed, since answers are greedy here, in "
            "scores, in `fedmoe generate` and in the proof of an export"
        )


def precision_warnings(stored: Any, dtype: torch.dtype) -> Iterator[str]:
    """Yield that weights lose digits which the user may not expect to lose."""
    if stored in (torch.float16, torch.float64) and torch.promote_types(stored, dtype) != dtype:
        kinds = [str(kind).removeprefix("torch.") for kind in (stored, dtype)]
        advice = "; model.dtype: float32 keeps all of them" if stored == torch.float16 else ""
        yield f"its weights are stored in {kinds[0]}; {kinds[1]} keeps fewer digits{advice}"


def most_positions(model: Any) -> tuple[int | None, bool]:
    """Return the length of text that a model is made for, and whether it has no positions beyond.

    Learned positions end there; rotary ones, and those of a formula, can be computed for more.
    The length is None where the config says none.
    """
    config = model.config.get_text_config()
    learned = [
        module.num_embeddings
        for name, module in model.named_modules()
        if isinstance(module, nn.Embedding) and POSITIONS.search(name)
    ]
    if learned:
        return min(learned), True
    found = getattr(config, "max_position_embeddings", None)
    return (found if isinstance(found, int) and found > 0 else None), False


def _stored(folder: Path) -> set[str]:
    """Return the tokens in a folder's tokenizer.json; empty where there is no such file."""
    try:
        found = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
        added = {token["content"] for token in found["added_tokens"]}
        vocabulary = found["model"]["vocab"]
        config = folder / "tokenizer_config.json"
        about = json.loads(config.read_text(encoding="utf-8")) if config.is_file() else {}
        later = {token["content"] for token in about.get("added_tokens_decoder", {}).values()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return set()
    plain = vocabulary if isinstance(vocabulary, dict) else (token for token, _ in vocabulary)
    return {*plain} | added | later


def _configs(model: Any) -> dict[str, Any]:
    found = {"config": model.config, "generation config": getattr(model, "generation_config", None)}
    return {name: config for name, config in found.items() if config is not None}


def _numbers(config: Any, name: str) -> list[int]:
    """Return the ids that a config gives a special token: none, one or several."""
    found = getattr(config, name, None)
    return [n for n in (found if isinstance(found, list) else [found]) if isinstance(n, int)]


def _ids(model: Any, name: str) -> list[int]:
    return [n for config in _configs(model).values() for n in _numbers(config, name)]


def _named(tokenizer: Any, number: int) -> str:
    return f"{tokenizer.convert_ids_to_tokens(number)!r} ({number})"


def _lost(tokenizer: Any) -> str:
    """Return the characters of a probe that do not come back."""
    ids = tokenizer([PROBE], add_special_tokens=False)["input_ids"][0]
    back = tokenizer.decode(ids, skip_special_tokens=False)
    return "".join(character for character in PROBE if character not in back)
