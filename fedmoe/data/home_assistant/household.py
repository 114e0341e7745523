"""The household that commands are about: its words in six languages, its numbers, its domains."""

from functools import cache
from typing import Any, Literal

from fedmoe.system.package_data import package_yaml

PACKAGE = "fedmoe.data.home_assistant"
LANGUAGES = ("en", "de", "fr", "es", "it", "nl")

Domain = Literal[
    "lights", "appliances", "covers", "climate", "media", "timers", "organizer", "robots", "status"
]
"""The natural partition into clients. lights: lamps, their colour and brightness. appliances: fans,
switches, modes, buttons, scenes, scripts. covers: blinds, doors, locks, valves. climate: heating,
cooling, weather. media: players, titles, volume. timers. organizer: lists, broadcasts, date and
time, small talk. robots: vacuums, mowers. status: questions about the state of things."""


@cache
def words(language: str) -> dict[str, list[str]]:
    """Return the values of each list of a language; people and titles are those of English.

    >>> words("de")["zone"]
    ['Arbeit', 'Schule', 'Kindergarten', 'Universität']
    """
    own = package_yaml(PACKAGE, f"words/{language}.yaml")
    if language == "en":
        return own
    english = words("en").items()
    shared = {k: v for k, v in english if k == "person.name" or k.endswith("search_query")}
    return shared | own


def numbers() -> dict[str, range]:
    """Return the values of every number in the intents files, in a household's range."""
    table = _household()["numbers"].items()
    return {name: range(first, last + 1, step) for name, (first, last, step) in table}


def domain_of(intent: str, device: str) -> Domain:
    """Return the domain of an intent, or for TurnOn and TurnOff that of the device.

    >>> domain_of("TurnOn", "valve"), domain_of("ListAddItem", "")
    ('covers', 'organizer')
    """
    domains = _household()["domains"]
    if intent in domains["by_intent"]:
        return domains["by_intent"][intent]
    if intent.endswith(("Timer", "Timers", "TimerStatus")):
        return "timers"
    for stem, domain in domains["by_stem"].items():
        if intent.startswith(stem):
            return domain
    return domains["by_device"][device]


@cache
def _household() -> dict[str, Any]:
    return package_yaml(PACKAGE, "household.yaml")
