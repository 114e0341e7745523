"""The built-in commands: readable both ways, unseen phrasings in the test, one reading each."""

import hashlib
import json
import re
from collections import defaultdict
from functools import cache
from importlib.metadata import version
from typing import get_args

import pytest
from pydantic import TypeAdapter

from fedmoe.data.examples import Example, check_disjoint, prompt_key
from fedmoe.data.home_assistant.dataset import HomeAssistant, write_response
from fedmoe.data.home_assistant.grammar import english
from fedmoe.data.home_assistant.household import LANGUAGES, PACKAGE, Domain, numbers, words
from fedmoe.errors import DataError
from fedmoe.system.package_data import package_yaml

WRITTEN_OTHERWISE = {"answer", "domain", "device_class", "state", "media_class", "fan_mode"}
"""Slots whose values are Home Assistant's words, not the speaker's."""


def read_response(response):
    """The intent and slots that `write_response` wrote."""
    intent, _, rest = response.partition(" ")
    return intent, dict(pair.split(": ", 1) for pair in rest.split(", ") if pair)


@cache
def commands(language="en", seed=0):
    return HomeAssistant(languages=(language,), per_domain=600).load(seed)


def every(splits):
    return splits.train + splits.validation + splits.test


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_language_loads_without_leaks(language):
    splits = commands(language)
    check_disjoint(splits)
    assert len(splits.train) > 1500
    assert len(splits.test) > 200


@pytest.mark.parametrize("language", LANGUAGES)
def test_responses_parse_back(language):
    for example in every(commands(language)):
        intent, slots = read_response(example.response)
        assert re.fullmatch(r"[A-Z]\w+", intent), example
        assert all(re.fullmatch(r"[a-z_]+", slot) for slot in slots), example
        assert all(slots.values()), example
        assert write_response(intent, slots) == example.response


def test_slots_are_alphabetical_and_follow_the_intent():
    response = write_response("DecreaseTimer", {"seconds": "5", "area": "garage"})
    assert response == "DecreaseTimer area: garage, seconds: 5"
    assert write_response("Nevermind", {}) == "Nevermind"


def test_spoken_values_are_copied_from_the_prompt():
    for example in every(commands()):
        _, slots = read_response(example.response)
        for slot, value in slots.items():
            said = value.lstrip("-") in example.prompt or slot in WRITTEN_OTHERWISE
            inferred = slot == "temperature" and int(value) >= 1900
            inferred |= value in ("1", "100") and slot == "brightness"
            inferred |= value == "30" and "half" in example.prompt
            inferred |= slot == "volume_step" and value in ("up", "down")
            assert said or inferred, example


@pytest.mark.parametrize("language", LANGUAGES)
def test_no_device_name_is_in_two_domains(language):
    domains = defaultdict(set)
    for key, listed in words(language).items():
        if key.endswith(".name") or key == "light_kind":
            for word in listed:
                domains[word].add(key)
    assert {word: keys for word, keys in domains.items() if len(keys) > 1} == {}


@pytest.mark.parametrize("language", LANGUAGES)
def test_words_are_text_that_fits_into_a_response(language):
    tables = TypeAdapter(dict[str, list[str]]).validate_python(words(language), strict=True)
    for key, listed in tables.items():
        assert listed, key
        assert len(listed) == len(set(listed)), key
        assert all(word == word.strip() and not re.search(r"[:,<>{}]", word) for word in listed)


def test_tables_of_the_household_and_of_english_are_whole():
    household = package_yaml(PACKAGE, "household.yaml")
    for table in household["domains"].values():
        TypeAdapter(dict[str, Domain]).validate_python(table, strict=True)
    assert all(len(values) > 1 for values in numbers().values())
    pairs = TypeAdapter(list[tuple[str, str]])
    for name in ("sentences", "inflections", "plurals"):
        for pattern, replacement in pairs.validate_json(json.dumps(english()[name])):
            named = (int(number) for number in re.findall(r"\\(\d)", replacement))
            assert max(named, default=0) <= re.compile(pattern).groups, pattern
    for listed in english()["lists"].values():
        pairs.validate_json(json.dumps(listed))
    TypeAdapter(dict[str, str]).validate_python(english()["rules"], strict=True)
    TypeAdapter(list[str]).validate_python(english()["not_english"], strict=True)


@pytest.mark.skipif(version("home-assistant-intents") != "2026.11.25", reason="of another version")
@pytest.mark.parametrize(
    ("language", "seed", "digest"),
    [
        ("en", 0, "0419a3977ef47c8e"),
        ("en", 1, "9658ee356b19160b"),
        ("fr", 0, "fc3dd70094e17966"),
        ("nl", 1, "4cf789954af8f35f"),
    ],
)
def test_examples_do_not_change_unnoticed(language, seed, digest):
    """The digest covers all splits; a change of words or templates changes it on purpose."""
    found = hashlib.sha256()
    for e in every(commands(language, seed)):
        found.update(repr((e.prompt, e.response, e.label, e.group)).encode())
    assert found.hexdigest()[:16] == digest


def test_every_domain_is_in_every_split():
    splits = commands()
    for examples in (splits.train, splits.validation, splits.test):
        assert {e.label for e in examples} == set(get_args(Domain))


def test_the_test_asks_for_intents_seen_in_training():
    def meanings(examples):
        return {e.group.rpartition("/")[0] for e in examples}

    assert meanings(commands().test) <= meanings(commands().train)


def test_a_prompt_has_one_response():
    prompts = [prompt_key(e.prompt) for e in every(commands())]
    assert len(prompts) == len(set(prompts))


def test_of_two_readings_the_first_in_the_file_is_kept(monkeypatch):
    # "open the garage door": a door in the area garage, or a device of the class garage door.
    rows = []
    for reading in ("area: garage", "device_class: garage"):
        group = f"en/TurnOn/{reading}"
        rows.append(Example("open the garage door", f"TurnOn {reading}", "covers", f"{group}/0"))
        rows += [Example(f"{reading} {n}", "TurnOn", "covers", f"{group}/{n}") for n in (1, 2)]
    monkeypatch.setattr(HomeAssistant, "_examples", lambda self, language, seed: rows)
    for seed in range(10):
        splits = HomeAssistant(test_share=0.4, validation_share=0.0).load(seed)
        responses = {e.prompt: e.response for e in every(splits)}
        assert responses["open the garage door"] == "TurnOn area: garage"


def test_a_named_device_belongs_to_its_domain():
    vacuums = words("en")["vacuum.name"]
    named = [
        read_response(e.response)[1]["name"]
        for e in every(commands())
        if e.response.startswith("Vacuum") and "name:" in e.response
    ]
    assert named
    assert set(named) <= set(vacuums)


def test_titles_match_their_class():
    for example in every(commands()):
        _, slots = read_response(example.response)
        if "media_class" in slots:
            titles = words("en")[f"{slots['media_class']}.search_query"]
            assert slots["search_query"] in titles, example


@pytest.mark.parametrize(
    "broken",
    [
        r"\b(\w+) \1\b",
        r"\b(the|my|our) (the|my|our)\b",
        r"  |^ | $",
        r"[\[\](){}<>|;]",
        r"\b1 (hours|minutes|seconds)\b",
        r"\b(?:[2-9]|\d\d+) (hour|minute|second)\b(?! timer)",
        r"\ban? \d+s\b|\ba 8|\ba 11\b",
        r"\bin (the |my |our )?\w+ floor\b",
    ],
)
def test_prompts_are_fair_english(broken):
    bad = [e.prompt for e in every(commands()) if re.search(broken, e.prompt)]
    assert bad == []


def test_a_domain_filter_keeps_those_domains_and_their_examples():
    only = HomeAssistant(domains=("climate", "robots"), per_domain=600).load(0)
    assert {e.label for e in every(only)} == {"climate", "robots"}
    # Other domains can no longer take a prompt first, so a few more may be left.
    everything = {e.prompt for e in every(commands()) if e.label in ("climate", "robots")}
    assert everything <= {e.prompt for e in every(only)}


def test_counts_are_bounded():
    splits = HomeAssistant(per_template=3, per_domain=10_000).load(0)
    per_use = defaultdict(int)
    for example in every(splits):
        per_use[example.group, example.label] += 1
    assert max(per_use.values()) == 3


def test_the_seed_decides():
    def small(seed):
        return HomeAssistant(domains=("robots",)).load(seed)

    first = small(0)
    assert first == small(0)
    assert first != small(1)


def test_labels_may_be_languages():
    splits = HomeAssistant(languages=("de", "nl"), label="language", domains=("robots",)).load(0)
    assert {e.label for e in splits.train} == {"de", "nl"}


def test_an_unknown_language_is_refused_with_the_supported_ones():
    with pytest.raises(DataError, match=r"'pt'.*supported: en, de, fr, es, it, nl"):
        HomeAssistant(languages=("en", "pt")).load(0)
