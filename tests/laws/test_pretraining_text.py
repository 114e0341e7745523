"""The text that base models are pretrained on: its exercises, their tables, its licences."""

import hashlib
import re
from itertools import product

import numpy as np
import pytest
from pydantic import TypeAdapter

from fedmoe.base_models.pretraining.card import PACKAGE
from fedmoe.base_models.pretraining.corpus import SOURCES
from fedmoe.base_models.pretraining.exercises import EXERCISES, Words, exercises
from fedmoe.system.package_data import package_yaml

NOUNS = ["".join(letters) for letters in product("bdkl", "aeiou", "mnrst", "aeiou")]
VERBS = ["".join(letters) for letters in product("fgp", "aeiou", "mnrst")]


@pytest.mark.parametrize(("seed", "digest"), [(0, "8e7927b3d6dab3dd"), (1, "d5118f94276a2250")])
def test_exercises_do_not_change_unnoticed(seed, digest):
    """A change of words or phrasings changes the digest on purpose."""
    documents = exercises(np.random.default_rng(seed), NOUNS, VERBS, 5000)
    assert hashlib.sha256("\0".join(documents).encode()).hexdigest()[:16] == digest


@pytest.mark.parametrize(("exercise", "_share"), EXERCISES)
def test_every_exercise_is_questions_with_answers(exercise, _share):
    words = Words(np.random.default_rng(0), NOUNS, VERBS)
    for _ in range(200):
        assert re.fullmatch(r"(Q: .+\nA: .+\n?)+", exercise(words))


def test_tables_of_exercises_are_whole():
    tables = package_yaml(PACKAGE, "exercises.yaml")
    roles = TypeAdapter(dict[str, list[str]]).validate_python(tables.pop("roles"), strict=True)
    assert all(phrase.count("{}") == 1 for phrases in roles.values() for phrase in phrases)
    assert all(set(answer) <= set("pto") for _, answer in tables.pop("story"))
    assert all(TypeAdapter(dict[str, list[str]]).validate_python(tables, strict=True).values())


def test_every_source_has_a_licence():
    licences = package_yaml(PACKAGE, "licences.yaml")
    assert set(licences) == {*SOURCES, "exercises"}
    TypeAdapter(dict[str, tuple[str, str]]).validate_python(licences)
