"""The text that base models are pretrained on: its exercises, their tables, its licences."""

import hashlib
import json
import re
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from jinja2 import Environment
from pydantic import TypeAdapter

from fedmoe.base_models.pretraining.corpus import PACKAGE, SOURCES
from fedmoe.base_models.pretraining.exercises import EXERCISES, FORMS, Words, exercises, records
from fedmoe.base_models.pretraining.sources import (
    CONVERSATION_TURNS,
    END,
    conversation,
    is_conversation,
    parts,
)
from fedmoe.data.home_assistant.dataset import write_response
from fedmoe.models.build import model_folder
from fedmoe.system.package_data import package_text, package_yaml

NOUNS = ["".join(letters) for letters in product("bdkl", "aeiou", "mnrst", "aeiou")]
VERBS = ["".join(letters) for letters in product("fgp", "aeiou", "mnrst")]


@pytest.mark.parametrize(("seed", "digest"), [(0, "6c8e55d16bb97301"), (1, "17d7fcc4adc3c27e")])
def test_exercises_do_not_change_unnoticed(seed, digest):
    """A change of words or phrasings changes the digest on purpose."""
    documents = exercises(np.random.default_rng(seed), NOUNS, VERBS, 5000)
    assert hashlib.sha256("\0".join(documents).encode()).hexdigest()[:16] == digest


def answers(document):
    """The answers of an exercise in either wording, each after a question."""
    plain = re.fullmatch(r"(Q: .+\nA: .+\n?)+", document)
    said = re.fullmatch(r"(user\n.+<eos>\nassistant\n.+(<eos>\n)?)+", document)
    assert plain or said, document
    return re.findall(r"\nA: (.+)" if plain else r"\nassistant\n(.+?)(?:<eos>|$)", document)


@pytest.mark.parametrize(("exercise", "_share"), EXERCISES)
def test_every_exercise_is_questions_with_answers(exercise, _share):
    words = Words(np.random.default_rng(0), NOUNS, VERBS)
    documents = [exercise(words) for _ in range(200)]
    assert all(answers(document) for document in documents)
    assert {is_conversation(document) for document in documents} == {False, True}


@pytest.mark.parametrize(("exercise", "_share"), EXERCISES)
def test_no_exercise_answers_in_the_form_of_the_built_in_task(exercise, _share):
    """That is `SetVolume name: projector, volume_level: 90`: a joined name, fields in order."""
    words = Words(np.random.default_rng(1), NOUNS, VERBS)
    for document in (exercise(words) for _ in range(300)):
        assert not re.search(r"[a-z][A-Z]", document)
        assert not any(re.search(r"[\w ]: ", answer) for answer in answers(document))


def test_the_form_that_no_exercise_may_have_is_that_of_the_task():
    """The two patterns above find the task's own answers, or they would guard nothing."""
    call = write_response("SetVolume", {"volume_level": "90", "name": "projector"})
    assert re.search(r"[a-z][A-Z]", call)
    assert re.search(r"[\w ]: ", call)


def test_records_are_answered_in_the_order_of_the_text():
    words = Words(np.random.default_rng(2), NOUNS, VERBS)
    told = [answers(records(words))[0] for _ in range(400)]
    several = [list(json.loads(a)) for a in told if a.startswith("{") and a.count(":") > 1]
    assert 0.2 < np.mean([names == sorted(names) for names in several]) < 0.6


def test_tables_of_exercises_are_whole():
    tables = package_yaml(PACKAGE, "exercises.yaml")
    named = TypeAdapter(dict[str, list[str]])
    roles = named.validate_python(tables.pop("roles"), strict=True)
    assert all(phrase.count("{}") == 1 for phrases in roles.values() for phrase in phrases)
    for wishes in (tables.pop("forms"), tables.pop("as")):
        assert set(named.validate_python(wishes, strict=True)) == set(FORMS)
    assert all(set(answer) <= set("pto") for _, answer in tables.pop("story"))
    assert all(named.validate_python(tables, strict=True).values())


def test_conversations_are_worded_by_the_chat_template():
    """The template puts a line break after each end of a turn; the corpus ends documents itself."""
    template = Environment().from_string(package_text(PACKAGE, "chat_template.jinja"))
    turns = ["Hello.", "Hi!\nHow are you?", "Well."]
    messages = [
        {"role": role, "content": said}
        for role, said in zip(("user", "assistant", "user"), turns, strict=True)
    ]
    worded = template.render(messages=messages, eos_token=END)
    assert worded == f"{conversation(*turns)}{END}\n"
    assert is_conversation(worded)


def test_the_built_in_model_words_conversations_as_the_corpus_does():
    built_in = Path(model_folder("mini")) / "chat_template.jinja"
    assert built_in.read_text() == package_text(PACKAGE, "chat_template.jinja")


def test_a_long_conversation_is_cut_where_the_user_speaks():
    turns = [str(n) for n in range(2 * CONVERSATION_TURNS + 1)]
    cut = list(parts(turns))
    assert len(cut) == 2  # the last turn has no answer
    assert cut[1].startswith(f"user\n{CONVERSATION_TURNS}{END}\nassistant\n")


def test_every_source_has_a_licence():
    licences = package_yaml(PACKAGE, "licences.yaml")
    assert set(licences) == {*SOURCES, "exercises"}
    TypeAdapter(dict[str, tuple[str, str]]).validate_python(licences)
