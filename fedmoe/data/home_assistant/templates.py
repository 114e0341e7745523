"""The sentence templates of `home-assistant-intents`, each with its meaning and its slots."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

from hassil.expression import Expression
from hassil.parse_expression import parse_sentence

from fedmoe.data.home_assistant.grammar import english, rewrite
from fedmoe.data.home_assistant.household import Domain, domain_of, numbers, words
from fedmoe.data.home_assistant.sampler import Choice

_QUESTIONS = ("any", "all", "which", "how_many")


@dataclass(frozen=True)
class Template:
    """One line of the intents file, as one domain uses it."""

    intent: str
    """Without the `Hass` prefix, which is in all of them."""
    group: str
    """language/intent/slot_combination/number: the line, whatever domain uses it."""
    domain: Domain
    expression: Expression
    devices: tuple[str, ...]
    """Home Assistant's kinds of device it may be about; one empty string when it is about none."""
    fixed: tuple[tuple[str, str], ...]
    """Slots the line fills without saying them."""


@cache
def templates(language: str) -> tuple[Template, ...]:
    """Return every usable template of a language in the file's order."""
    return tuple(_templates(language))


def _templates(language: str) -> Iterator[Template]:
    for intent, blocks in _intents(language)["intents"].items():
        intent = intent.removeprefix("Hass")
        used: dict[str, int] = {}
        for block in blocks["data"]:
            combination = f"{language}/{intent}/{block['metadata']['slot_combination']}"
            for sentence in block["sentences"]:
                used[combination] = number = used.get(combination, -1) + 1
                if sentence := rewrite(sentence) if language == "en" else sentence:
                    yield from _uses(intent, f"{combination}/{number}", block, sentence)


def _uses(intent: str, group: str, block: dict[str, Any], sentence: str) -> Iterator[Template]:
    """Yield the line once for each domain that uses it: a lamp and a radio are turned on alike."""
    expression = parse_sentence(sentence).expression
    by_domain: dict[Domain, list[str]] = {}
    for device in _devices(block, sentence):
        by_domain.setdefault(domain_of(intent, device), []).append(device)
    for domain, devices in by_domain.items():
        yield Template(intent, group, domain, expression, tuple(devices), _fixed(intent, block))


def _devices(block: dict[str, Any], sentence: str) -> list[str]:
    """Return the kinds of device the sentence is about; one empty string when it is none."""
    if "{bs_open_states:" in sentence:
        return ["open_sensor"]
    required = block.get("requires_context", {}).get("domain")
    kinds = required or [block.get("slots", {}).get("domain", "")]
    # The file asks for input_button beside button: the words for both are the same.
    return [kind for kind in kinds if kind != "input_button"]


def _fixed(intent: str, block: dict[str, Any]) -> tuple[tuple[str, str], ...]:
    """Keep the slots that tell two responses apart.

    `domain: cover` is dropped beside a device class, and the domain of an intent that has but one
    (LightSet, SetPosition). Which question a GetState asks ("are any", "which") is not a slot in
    the file but its choice of reply, so we add it as `answer`; the same for Respond.
    """
    fixed = {slot: str(value) for slot, value in block.get("slots", {}).items()}
    named = "device_class" in block["metadata"]["slot_combination"]
    if named or intent in ("LightSet", "SetPosition"):
        fixed.pop("domain", None)
    if intent == "Respond" or (intent == "GetState" and block["response"] in _QUESTIONS):
        fixed["answer"] = block["response"]
    return tuple(fixed.items())


def rules(language: str) -> dict[str, Expression]:
    """Return the meaning of each `<rule>` of a language."""
    text = _intents(language)["expansion_rules"]
    if language == "en":
        text = text | english()["rules"]
    return {name: parse_sentence(body).expression for name, body in text.items()}


def choices(language: str) -> dict[str, list[Choice]]:
    """Return the values of each `{list}` of a language: the file's, our numbers and words."""
    said: dict[str, list[tuple[str, str]]] = {}
    for name, body in _intents(language)["lists"].items():
        for value in body.get("values", ()):
            # French gives one word two device classes; the first is the usual one.
            written = value["out"][0] if isinstance(value["out"], list) else str(value["out"])
            said.setdefault(name, []).append((value["in"], written))
            if name.startswith("media_class"):
                said.setdefault(f"{written}.{name}", []).append((value["in"], written))
    if language == "en":
        said |= english()["lists"]
    for name, values in numbers().items():
        sign = -1 if name == "volume_step_down" else 1
        said[name] = [(str(n), str(sign * n)) for n in values]
    for name, listed in words(language).items():
        said[name] = [(word, word) for word in listed]
    return {name: [_choice(*value) for value in values] for name, values in said.items()}


def _choice(spoken: str, written: str) -> Choice:
    return parse_sentence(spoken).expression, written


@cache
def _intents(language: str) -> Mapping[str, Any]:
    package = resources.files("home_assistant_intents")
    return json.loads((package / "data" / f"{language}.json").read_text(encoding="utf-8"))
