"""Generated question-answer pairs that teach a small model to read a request and copy from it.

A model of this size learns from plain text to imitate, but not to carry words from a prompt into
an answer. Each exercise below draws its words from WordNet's frequent nouns and verbs; none of
them shares a template with a fine-tuning task.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from fedmoe.base_models.pretraining.sources import pair
from fedmoe.system.package_data import package_yaml


@dataclass(frozen=True)
class Words:
    """The words and phrasings that exercises draw from."""

    rng: np.random.Generator
    nouns: list[str]
    verbs: list[str]
    tables: dict[str, Any] = field(
        default_factory=lambda: package_yaml("fedmoe.base_models.pretraining", "exercises.yaml")
    )

    def one(self, items):
        """Draw one of `items`, or of the table of this name."""
        items = self.tables[items] if isinstance(items, str) else items
        return items[int(self.rng.integers(len(items)))]

    def noun(self) -> str:
        """Draw a noun, Zipf-like: every second one from the 500 most frequent."""
        return self.one(self.nouns[:500] if self.rng.random() < 0.5 else self.nouns)

    def phrase(self, most: int = 3) -> str:
        """Draw one noun or more."""
        return " ".join(self.noun() for _ in range(int(self.rng.integers(1, most + 1))))

    def distinct(self, count: int) -> list[str]:
        """Draw different nouns, `count` or sometimes fewer."""
        return list(dict.fromkeys(self.noun() for _ in range(count * 2)))[:count]

    def number(self) -> str:
        """Draw a number, more often a small one."""
        return str(int(self.rng.integers(1, self.one((10, 60, 100, 1000)))))

    def shuffled(self, items: list) -> list:
        """Return the items in random order."""
        return [items[i] for i in self.rng.permutation(len(items))]


def repeat(w: Words) -> str:
    """Ask to repeat some words."""
    text = " ".join(
        w.noun() if w.rng.random() < 0.8 else w.number() for _ in range(w.rng.integers(1, 9))
    )
    return pair(f"{w.one('repeat')}: {text}", text)


def pick(w: Words) -> str:
    """Ask which word of a list is at a place."""
    items = w.distinct(int(w.rng.integers(2, 6)))
    where = int(w.rng.integers(len(items)))
    last = where == len(items) - 1 and w.rng.random() < 0.5
    which = "last" if last else w.tables["ordinals"][where]
    return pair(f"{', '.join(items)}. what is the {which}?", items[where])


def after(w: Words) -> str:
    """Ask for a word's neighbour in a list."""
    items = w.distinct(int(w.rng.integers(3, 8)))
    where = int(w.rng.integers(1, len(items)))
    side, key, answer = w.one((("after", where - 1, where), ("before", where, where - 1)))
    return pair(f"{' '.join(items)}. what comes {side} {items[key]}?", items[answer])


def lookup(w: Words) -> str:
    """Ask for the value of a key."""
    table = {
        k: w.number() if w.rng.random() < 0.3 else w.phrase(2)
        for k in w.distinct(int(w.rng.integers(2, 6)))
    }
    key = w.one(list(table))
    listed = ", ".join(f"{k}: {v}" for k, v in table.items())
    return pair(f"{listed}. {w.one('lookup')} {key}?", table[key])


def replace(w: Words) -> str:
    """Ask to replace a word in a list."""
    items = w.distinct(int(w.rng.integers(2, 6)))
    old, new = w.one(items), w.noun()
    return pair(
        f"replace {old} with {new} in: {' '.join(items)}",
        " ".join(new if i == old else i for i in items),
    )


def reverse(w: Words) -> str:
    """Ask for a list in reverse order."""
    items = w.distinct(int(w.rng.integers(2, 5)))
    return pair(f"reverse: {' '.join(items)}", " ".join(items[::-1]))


def story(w: Words) -> str:
    """Ask about people, things and places of three sentences."""
    people, things = w.shuffled(w.tables["names"])[:3], w.distinct(3)
    places = w.distinct(6)[3:]
    lines = [
        f"{p} {w.one('deeds')} the {t} {w.one('places')} the {o}."
        for p, t, o in zip(people, things, places, strict=True)
    ]
    i = int(w.rng.integers(len(places)))
    question, answer = w.one("story")
    told = {"p": people[i], "t": things[i], "o": places[i]}
    return pair(f"{' '.join(lines)} {question.format(**told)}", told[answer])


def records(w: Words) -> str:
    """Ask to write facts as `field: value`, fields in alphabetical order."""
    table = {k: w.phrase() for k in w.distinct(int(w.rng.integers(1, 5)))}
    facts = w.shuffled([w.one("fact").format(k=k, v=v) for k, v in table.items()])
    request = f"{w.one('record')} {w.one((', ', ' and ', ' '))}".strip()
    return pair(f"{request} {w.one((' and ', ', ')).join(facts)}", fields(table))


def fields(table: dict[str, str]) -> str:
    """Return `field: value` pairs in alphabetical order."""
    return ", ".join(f"{k}: {table[k]}" for k in sorted(table))


def call(w: Words) -> str:
    """Make one to three requests of a made-up command, answered as `VerbNoun field: value, ...`.

    Each request words the command and orders its fields anew, so that the answer has to follow the
    meaning of the words and copy the values.
    """
    verb, noun = w.one(w.verbs), w.noun()
    roles = w.shuffled(list(w.tables["roles"]))[: int(w.rng.integers(1, 4))]
    own = w.distinct(int(w.rng.integers(0, 3)))
    return "\n".join(_request(w, verb, noun, roles, own) for _ in range(int(w.rng.integers(1, 4))))


def _request(w: Words, verb: str, noun: str, roles: list[str], own: list[str]) -> str:
    table: dict[str, str] = {}
    parts = []
    for role in roles:
        if w.rng.random() < 0.75:
            drawn = {"person": w.one("names"), "amount": w.number()}.get(role)
            table[role] = drawn or w.phrase(2)
            parts.append(w.one(w.tables["roles"][role]).format(table[role]))
    for name in own:
        if w.rng.random() < 0.75:
            unit = w.one("units")
            if w.rng.random() < 0.4:
                table[unit] = w.number()
                parts.append(w.one("amount").format(table[unit], unit))
            else:
                table[name] = w.phrase()
                parts.append(w.one("field").format(k=name, v=table[name]))
    head = w.one("command").format(verb=verb, noun=noun)
    words = w.shuffled([head, *parts]) if w.rng.random() < 0.2 else [head, *w.shuffled(parts)]
    return pair(" ".join(words), f"{verb.capitalize()}{noun.capitalize()} {fields(table)}".strip())


EXERCISES: tuple[tuple[Callable[[Words], str], float], ...] = (
    (repeat, 0.12),
    (pick, 0.06),
    (after, 0.07),
    (lookup, 0.1),
    (replace, 0.06),
    (reverse, 0.03),
    (story, 0.1),
    (records, 0.13),
    (call, 0.33),
)


def exercises(
    rng: np.random.Generator, nouns: list[str], verbs: list[str], count: int
) -> Iterator[str]:
    """Generate `count` documents, drawn from `EXERCISES` by their shares."""
    words = Words(rng, nouns, verbs)
    shares = np.array([share for _, share in EXERCISES])
    for kind in rng.choice(len(EXERCISES), size=count, p=shares / shares.sum()):
        yield EXERCISES[kind][0](words)
