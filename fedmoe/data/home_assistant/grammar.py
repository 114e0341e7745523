"""English repairs: the intents file is made to recognise speech, so much of it is not good English.

Rules and sentences are rewritten before they are expanded, sentences are inflected afterwards, and
what is still not English is refused. Only the surface changes: an intent keeps its slots. The
tables are in `english.yaml`.
"""

import re
from collections.abc import Iterable
from functools import cache
from typing import Any

from fedmoe.data.home_assistant.household import PACKAGE
from fedmoe.system.package_data import package_yaml

_DOUBLED = re.compile(r"(?i)\b(\w+) \1\b|(\w{4,})\2")


@cache
def english() -> dict[str, Any]:
    """Return the tables of `english.yaml`, with the words that its patterns name put into them."""
    tables = package_yaml(PACKAGE, "english.yaml")
    for name in ("inflections", "plurals"):
        tables[name] = [
            (pattern.format(floor=tables["floor"], nouns=tables["nouns"]), replacement)
            for pattern, replacement in tables[name]
        ]
    return tables


def rewrite(sentence: str) -> str:
    """Return the template of better English, empty where it is best left out."""
    sentence = _substituted(sentence, english()["sentences"])
    if "{area}" in sentence or "{floor}" in sentence:
        sentence = sentence.replace("{cover_classes:", "{indoor_cover:")
    if "{position}" in sentence:
        sentence = sentence.replace("<numeric_value_set>", "(set|change|move)")
    return sentence


def inflect(prompt: str) -> str:
    """Make units and nouns agree with their numbers: "1 hour", "a 5-minute timer", "all lights"."""
    prompt = _substituted(prompt, english()["inflections"])
    if re.match(english()["question"], prompt):
        prompt = _substituted(prompt, english()["plurals"])
    return prompt


def is_sensible(prompt: str, language: str) -> bool:
    """Return whether a sentence has no doubled words and, in English, none of its known faults."""
    if _DOUBLED.search(prompt):
        return False
    return language != "en" or not any(re.search(p, prompt) for p in english()["not_english"])


def _substituted(text: str, pairs: Iterable[tuple[str, str]]) -> str:
    for pattern, replacement in pairs:
        text = re.sub(pattern, replacement, text)
    return text
