"""Generated question-answer pairs that teach a small model to read a request and copy from it.

A model of this size learns from plain text to imitate, but not to carry words from a prompt into
an answer. Each exercise below draws its words from WordNet's frequent nouns and verbs; none of
them shares a template with a fine-tuning task.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

from fedmoe.base_models.pretraining.sources import pair

NAMES = [
    "Anna",
    "Ben",
    "Carla",
    "David",
    "Emma",
    "Frank",
    "Grace",
    "Henry",
    "Ines",
    "Jack",
    "Kate",
    "Liam",
    "Maria",
    "Noah",
    "Olga",
    "Paul",
    "Rosa",
    "Sam",
    "Tara",
    "Umar",
    "Vera",
    "Walt",
    "Yara",
    "Zoe",
    "Omar",
    "Lena",
    "Hugo",
    "Mila",
    "Ivan",
    "Nora",
]
DEEDS = ("put", "left", "hid", "kept", "found")
PLACES = ("in", "near", "behind", "under")
ORDINALS = ("first", "second", "third", "fourth", "fifth")
UNITS = (
    "hours",
    "minutes",
    "days",
    "percent",
    "dollars",
    "miles",
    "degrees",
    "pounds",
    "boxes",
    "pages",
)


class Words(NamedTuple):
    """What the exercises draw from."""

    rng: np.random.Generator
    nouns: list[str]
    verbs: list[str]

    def one(self, items):
        return items[int(self.rng.integers(len(items)))]

    def noun(self) -> str:
        # Zipf-like: half of the draws from the 500 most frequent words, half from all of them.
        return self.one(self.nouns[:500] if self.rng.random() < 0.5 else self.nouns)

    def phrase(self, most: int = 3) -> str:
        return " ".join(self.noun() for _ in range(int(self.rng.integers(1, most + 1))))

    def distinct(self, count: int) -> list[str]:
        return list(dict.fromkeys(self.noun() for _ in range(count * 2)))[:count]

    def number(self) -> str:
        return str(int(self.rng.integers(1, self.one((10, 60, 100, 1000)))))

    def shuffled(self, items: list) -> list:
        return [items[i] for i in self.rng.permutation(len(items))]


def repeat(w: Words) -> str:
    text = " ".join(
        w.noun() if w.rng.random() < 0.8 else w.number() for _ in range(w.rng.integers(1, 9))
    )
    return pair(f"{w.one(('repeat', 'copy', 'say', 'echo'))}: {text}", text)


def pick(w: Words) -> str:
    items = w.distinct(int(w.rng.integers(2, 6)))
    where = int(w.rng.integers(len(items)))
    which = "last" if where == len(items) - 1 and w.rng.random() < 0.5 else ORDINALS[where]
    return pair(f"{', '.join(items)}. what is the {which}?", items[where])


def after(w: Words) -> str:
    items = w.distinct(int(w.rng.integers(3, 8)))
    where = int(w.rng.integers(1, len(items)))
    side, key, answer = w.one((("after", where - 1, where), ("before", where, where - 1)))
    return pair(f"{' '.join(items)}. what comes {side} {items[key]}?", items[answer])


def lookup(w: Words) -> str:
    table = {
        k: w.number() if w.rng.random() < 0.3 else w.phrase(2)
        for k in w.distinct(int(w.rng.integers(2, 6)))
    }
    key = w.one(list(table))
    listed = ", ".join(f"{k}: {v}" for k, v in table.items())
    return pair(f"{listed}. {w.one(('what is', 'find', 'give'))} {key}?", table[key])


def replace(w: Words) -> str:
    items = w.distinct(int(w.rng.integers(2, 6)))
    old, new = w.one(items), w.noun()
    return pair(
        f"replace {old} with {new} in: {' '.join(items)}",
        " ".join(new if i == old else i for i in items),
    )


def reverse(w: Words) -> str:
    items = w.distinct(int(w.rng.integers(2, 5)))
    return pair(f"reverse: {' '.join(items)}", " ".join(items[::-1]))


def story(w: Words) -> str:
    people, things, places = w.shuffled(NAMES)[:3], w.distinct(3), w.distinct(6)[3:]
    lines = [
        f"{p} {w.one(DEEDS)} the {t} {w.one(PLACES)} the {o}."
        for p, t, o in zip(people, things, places, strict=True)
    ]
    i = int(w.rng.integers(len(places)))
    question, answer = w.one(
        (
            (f"where is the {things[i]}?", places[i]),
            (f"who had the {things[i]}?", people[i]),
            (f"what is at the {places[i]}?", things[i]),
            (f"what did {people[i]} have?", things[i]),
        )
    )
    return pair(f"{' '.join(lines)} {question}", answer)


def records(w: Words) -> str:
    """A sentence of facts to `field: value` form, fields in alphabetical order."""
    table = {k: w.phrase() for k in w.distinct(int(w.rng.integers(1, 5)))}
    facts = w.shuffled(
        [
            w.one((f"the {k} is {v}", f"{k} {v}", f"{v} as the {k}", f"{k} to {v}"))
            for k, v in table.items()
        ]
    )
    ask = w.one(("note that", "list", "write down", "record:", "fields:"))
    return pair(
        f"{ask} {w.one((', ', ' and ', ' '))}".strip() + " " + w.one((" and ", ", ")).join(facts),
        fields(table),
    )


def fields(table: dict[str, str]) -> str:
    return ", ".join(f"{k}: {table[k]}" for k in sorted(table))


ROLES: dict[str, tuple[str, ...]] = {
    "person": ("for {}", "with {}", "and tell {}"),
    "place": ("in {}", "at {}", "in the {}", "from the {}"),
    "tool": ("using {}", "by means of a {}", "using the {}"),
    "title": ("called {}", "named {}", "titled {}"),
    "amount": ("{} times", "up to {}", "by {}"),
    "kind": ("as {}", "like a {}"),
}


def call(w: Words) -> str:
    """One to three requests of one made-up command, answered as `VerbNoun field: value, ...`.

    Each request words the command and orders its fields anew, so that the answer has to follow the
    meaning of the words and copy the values.
    """
    verb, noun = w.one(w.verbs), w.noun()
    roles = w.shuffled(list(ROLES))[: int(w.rng.integers(1, 4))]
    own = w.distinct(int(w.rng.integers(0, 3)))
    return "\n".join(_request(w, verb, noun, roles, own) for _ in range(int(w.rng.integers(1, 4))))


def _request(w: Words, verb: str, noun: str, roles: list[str], own: list[str]) -> str:
    table: dict[str, str] = {}
    parts = []
    for role in roles:
        if w.rng.random() < 0.75:
            table[role] = {"person": w.one(NAMES), "amount": w.number()}.get(role) or w.phrase(2)
            parts.append(w.one(ROLES[role]).format(table[role]))
    for field in own:
        if w.rng.random() < 0.75:
            unit = w.one(UNITS)
            if w.rng.random() < 0.4:
                table[unit] = w.number()
                parts.append(w.one(("{} {}", "to {} {}", "of {} {}")).format(table[unit], unit))
            else:
                table[field] = w.phrase()
                parts.append(
                    w.one(
                        ("{k} {v}", "{k} to {v}", "with {k} {v}", "the {k} {v}", "{v} {k}")
                    ).format(k=field, v=table[field])
                )
    head = w.one(
        (
            f"{verb} the {noun}",
            f"{verb} {noun}",
            f"please {verb} my {noun}",
            f"can you {verb} the {noun}",
            f"{noun} {verb}",
        )
    )
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
    """`count` documents, drawn from `EXERCISES` by their shares."""
    words = Words(rng, nouns, verbs)
    shares = np.array([share for _, share in EXERCISES])
    for kind in rng.choice(len(EXERCISES), size=count, p=shares / shares.sum()):
        yield EXERCISES[kind][0](words)
