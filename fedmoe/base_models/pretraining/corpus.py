"""The pretraining text: collected, shuffled, tokenised once, and read in fixed blocks.

The recipe's work folder receives `tokenizer/`, `sources.json` and `tokens.npy` (uint16, documents
joined by the end token, validation first).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path

import numpy as np
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from fedmoe.base_models.pretraining import sources
from fedmoe.base_models.pretraining.exercises import exercises
from fedmoe.base_models.pretraining.recipe import Pretrain
from fedmoe.base_models.pretraining.sources import END, is_conversation
from fedmoe.base_models.pretraining.work import REBUILD, TOKENS, reading
from fedmoe.errors import DataError
from fedmoe.seeds import numpy_rng
from fedmoe.system.files import expanded
from fedmoe.system.package_data import package_text

PACKAGE = "fedmoe.base_models.pretraining"
PAD = "<pad>"
# A word keeps the space before it, a digit stands alone: "25%" and ": 25" share their tokens.
WORDS = r"'(?:[sdmt]|ll|ve|re)| ?\p{Lu}?\p{Ll}+| ?\p{L}+| ?\p{N}| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"

SOURCES: dict[str, Callable[[Path], Iterator[str]]] = {
    "wordnet": sources.wordnet,
    "jane_austen": sources.jane_austen,
    "jargon": lambda root: sources.dictionary(root, "jargon"),
    "devil": lambda root: sources.dictionary(root, "devil"),
    "reading": sources.reading,
    "choices": sources.choices,
    "bible": sources.bible,
    "almanac": sources.almanac,
    "manual": sources.manual,
    "chit_chat": sources.chit_chat,
}
COUNTS = ("documents", "bytes", "tokens", "conversation_tokens")
HELD_OUT_DOCUMENTS = 1000
"""Documents at the start that are none of the exercises: validation is on natural text."""


def collect(root: Path, num_exercises: int, seed: int) -> list[tuple[str, str]]:
    """Return all (source, document) pairs in a shuffled order that depends on the seed alone.

    The first ones are natural text.

    Raises:
        DataError: a source's files are not below `root`; every missing source is named.
    """
    documents: list[tuple[str, str]] = []
    missing = []
    for name, read in SOURCES.items():
        try:
            documents += [(name, text) for text in read(root) if text.strip()]
        except FileNotFoundError as error:
            missing.append(f"  {name}: {error.filename} is missing")
    if missing:
        raise DataError("\n".join([f"pretraining sources below {root}:", *missing]))
    nouns, verbs = sources.vocabulary(root)
    rng = numpy_rng(seed, "exercises")
    documents += [("exercises", text) for text in exercises(rng, nouns, verbs, num_exercises)]
    order = numpy_rng(seed, "corpus").permutation(len(documents))
    shuffled = [documents[i] for i in order]
    natural = [i for i, (name, _) in enumerate(shuffled) if name != "exercises"]
    first = dict.fromkeys(natural[:HELD_OUT_DOCUMENTS])
    return [shuffled[i] for i in (*first, *(i for i in range(len(shuffled)) if i not in first))]


def train_tokenizer(texts: Iterator[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """Return a byte-level BPE tokenizer with a padding and an end token."""
    tokenizer = Tokenizer(models.BPE())
    split = pre_tokenizers.Split(Regex(WORDS), behavior="isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(  # pyright: ignore[reportAttributeAccessIssue]
        [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()  # pyright: ignore[reportAttributeAccessIssue]
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[PAD, END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token=PAD, eos_token=END, model_max_length=512
    )


def build(recipe: Pretrain) -> None:
    """Write the tokenizer, the tokens and a summary per source into the work folder, once."""
    work = expanded(recipe.work)
    if (work / TOKENS).exists():
        return
    work.mkdir(parents=True, exist_ok=True)
    documents = collect(expanded(recipe.sources), recipe.num_exercises, recipe.seed)
    texts = (text.replace(END, "") for _, text in documents)
    tokenizer = train_tokenizer(texts, recipe.model.vocab_size)
    tokenizer.chat_template = package_text(PACKAGE, "chat_template.jinja")
    tokenizer.save_pretrained(work / "tokenizer")
    encoded = tokenizer([text for _, text in documents], add_special_tokens=False)["input_ids"]
    end = tokenizer.eos_token_id
    summary: dict[str, dict[str, int]] = {}
    for (name, text), ids in zip(documents, encoded, strict=True):
        entry = summary.setdefault(name, dict.fromkeys(COUNTS, 0))
        entry["documents"] += 1
        entry["bytes"] += len(text.encode())
        entry["tokens"] += len(ids) + 1
        entry["conversation_tokens"] += (len(ids) + 1) * is_conversation(text)
    (work / "sources.json").write_text(json.dumps(summary, indent=2) + "\n")
    tokens = np.fromiter(chain.from_iterable([*ids, end] for ids in encoded), dtype=np.uint16)
    np.save(work / "tokens.tmp.npy", tokens)
    (work / "tokens.tmp.npy").replace(work / TOKENS)


def tokenizer_of(work: Path) -> PreTrainedTokenizerFast:
    """Return the tokenizer that `build` has made.

    Raises:
        FedMoEError: it is damaged, or missing.
    """
    path = work / "tokenizer"
    with reading(path, REBUILD):
        if not path.is_dir():  # transformers would ask the Hub
            raise FileNotFoundError("no such folder")
        return PreTrainedTokenizerFast.from_pretrained(path)


def blocks(tokens: np.ndarray, length: int, seed: int, epoch: int) -> np.ndarray:
    """Return where an epoch's blocks start, in random order; the phase differs between epochs."""
    rng = numpy_rng(seed, "epoch", epoch)
    starts = np.arange(int(rng.integers(length)), len(tokens) - length - 1, length)
    return rng.permutation(starts)
