"""Generated question-answer pairs that teach a small model to read a request and copy from it.

A model of this size learns from plain text to imitate, but not to carry words from a prompt into
an answer. Each exercise below draws its words from WordNet's frequent nouns and verbs. None of
them shares a template with a fine-tuning task, or answers in its form: no `VerbNoun`, and no
`field: value` outside of JSON; several values stand in the order in which they are mentioned.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from fedmoe.base_models.pretraining.sources import conversation, pair
from fedmoe.system.package_data import package_yaml

PLAIN = 0.7
"""Share of exercises that are plain pairs; the others are conversations."""


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

    def filler(self, role: str) -> str:
        """Draw what stands in a role of a request."""
        drawn = {"person": lambda: self.one("names"), "number": self.number}
        return drawn.get(role, lambda: self.phrase(2))()

    def asked(self, *turns: str) -> str:
        """Return questions, each before its answer, in plain pairs or as a conversation."""
        if self.rng.random() < PLAIN:
            return "\n".join(map(pair, turns[::2], turns[1::2]))
        return conversation(*turns)

    def shuffled(self, items: list) -> list:
        """Return the items in random order."""
        return [items[i] for i in self.rng.permutation(len(items))]


def repeat(w: Words) -> str:
    """Ask to repeat some words."""
    text = " ".join(
        w.noun() if w.rng.random() < 0.8 else w.number() for _ in range(w.rng.integers(1, 9))
    )
    return w.asked(f"{w.one('repeat')}: {text}", text)


def pick(w: Words) -> str:
    """Ask which word of a list is at a place."""
    items = w.distinct(int(w.rng.integers(2, 6)))
    where = int(w.rng.integers(len(items)))
    last = where == len(items) - 1 and w.rng.random() < 0.5
    which = "last" if last else w.tables["ordinals"][where]
    return w.asked(f"{', '.join(items)}. what is the {which}?", items[where])


def after(w: Words) -> str:
    """Ask for a word's neighbour in a list."""
    items = w.distinct(int(w.rng.integers(3, 8)))
    where = int(w.rng.integers(1, len(items)))
    side, key, answer = w.one((("after", where - 1, where), ("before", where, where - 1)))
    return w.asked(f"{' '.join(items)}. what comes {side} {items[key]}?", items[answer])


def lookup(w: Words) -> str:
    """Ask for the value of a key."""
    table = {
        k: w.number() if w.rng.random() < 0.3 else w.phrase(2)
        for k in w.distinct(int(w.rng.integers(2, 6)))
    }
    key = w.one(list(table))
    listed = ", ".join(w.one("entry").format(k=k, v=v) for k, v in table.items())
    return w.asked(f"{listed}. {w.one('lookup')} {key}?", table[key])


def replace(w: Words) -> str:
    """Ask to replace a word in a list."""
    items = w.distinct(int(w.rng.integers(2, 6)))
    old, new = w.one(items), w.noun()
    return w.asked(
        f"replace {old} with {new} in: {' '.join(items)}",
        " ".join(new if i == old else i for i in items),
    )


def reverse(w: Words) -> str:
    """Ask for a list in reverse order."""
    items = w.distinct(int(w.rng.integers(2, 5)))
    return w.asked(f"reverse: {' '.join(items)}", " ".join(items[::-1]))


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
    return w.asked(f"{' '.join(lines)} {question.format(**told)}", told[answer])


def records(w: Words) -> str:
    """Ask for the facts of a text, in their order, in one of several forms."""
    table = {k: w.phrase() for k in w.distinct(int(w.rng.integers(1, 5)))}
    facts = w.one((" and ", ", ", ". ")).join(
        w.one("fact").format(k=k, v=v) for k, v in table.items()
    )
    form = w.one(list(FORMS))
    wish = w.one(w.tables["forms"][form])
    request = w.one((f"{wish}: {facts}", f"{facts}. {wish}"))
    return w.asked(request, FORMS[form](table))


def errand(w: Words) -> str:
    """Ask for parts of a request, by name and in a form; further requests are answered alike."""
    wanted = w.shuffled(["task", *w.tables["roles"]])[: int(w.rng.integers(1, 4))]
    form = w.one(list(FORMS))
    wish = f". {w.one('wish')} {' and '.join(wanted)} {w.one(w.tables['as'][form])}"
    turns: list[str] = []
    for _ in range(int(w.rng.integers(1, 4))):
        request, told = _request(w, wanted)
        turns += [request + wish, FORMS[form]({name: told[name] for name in wanted})]
        wish = ""
    return w.asked(*turns)


def _request(w: Words, wanted: list[str]) -> tuple[str, dict[str, str]]:
    """Return a request with the wanted parts and others, and its parts by name."""
    verb, noun = w.one(w.verbs), w.phrase(2)
    told, said = {"task": f"{verb} {noun}"}, [w.one("command").format(verb=verb, noun=noun)]
    others = w.shuffled([role for role in w.tables["roles"] if role not in wanted])
    roles = [role for role in wanted if role != "task"] + others[: int(w.rng.integers(3))]
    for role in w.shuffled(roles):
        told[role] = w.filler(role)
        said.append(w.one(w.tables["roles"][role]).format(told[role]))
    return " ".join(said), told


def quote(w: Words) -> str:
    """Ask for the words between two others."""
    items = w.distinct(8)
    start = int(w.rng.integers(1, 4))
    stop = int(w.rng.integers(start + 1, min(start + 4, len(items) - 1)))
    asked = w.one("between").format(items[start - 1], items[stop])
    return w.asked(f"{' '.join(items)}. {asked}", f'"{" ".join(items[start:stop])}"')


def _sentence(table: Mapping[str, str]) -> str:
    return f"The {' and the '.join(f'{k} is {v}' for k, v in table.items())}."


FORMS: dict[str, Callable[[Mapping[str, str]], str]] = {
    "json": lambda table: json.dumps(dict(table)),
    "sentence": _sentence,
    "list": lambda table: "; ".join(table.values()),
    "quotes": lambda table: " ".join(f'{k} "{v}"' for k, v in table.items()),
    "pairs": lambda table: " | ".join(f"{v} ({k})" for k, v in table.items()),
}
"""How facts by name are answered, by the name of the form."""

EXERCISES: tuple[tuple[Callable[[Words], str], float], ...] = (
    (repeat, 0.1),
    (pick, 0.05),
    (after, 0.06),
    (lookup, 0.1),
    (replace, 0.05),
    (reverse, 0.02),
    (story, 0.12),
    (quote, 0.07),
    (records, 0.18),
    (errand, 0.25),
)


def exercises(
    rng: np.random.Generator, nouns: list[str], verbs: list[str], count: int
) -> Iterator[str]:
    """Generate `count` documents, drawn from `EXERCISES` by their shares."""
    words = Words(rng, nouns, verbs)
    shares = np.array([share for _, share in EXERCISES])
    for kind in rng.choice(len(EXERCISES), size=count, p=shares / shares.sum()):
        yield EXERCISES[kind][0](words)
