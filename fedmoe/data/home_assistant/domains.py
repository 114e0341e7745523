"""Which household client a command belongs to: nine device domains, the natural partition."""

from typing import Literal

Domain = Literal[
    "lights", "appliances", "covers", "climate", "media", "timers", "organizer", "robots", "status"
]
"""lights: lamps, their colour and brightness. appliances: fans, switches, modes, buttons, scenes,
scripts. covers: blinds, doors, locks, valves. climate: heating, cooling, weather. media: players,
titles, volume. timers. organizer: lists, broadcasts, date and time, small talk. robots: vacuums,
mowers. status: questions about the state of things."""

_BY_INTENT: dict[str, Domain] = {
    "Broadcast": "organizer",
    "ClimateGetTemperature": "climate",
    "ClimateSetFanMode": "climate",
    "ClimateSetTemperature": "climate",
    "FanSetSpeed": "appliances",
    "GetCurrentDate": "organizer",
    "GetCurrentTime": "organizer",
    "GetState": "status",
    "GetWeather": "climate",
    "LightSet": "lights",
    "Nevermind": "organizer",
    "Respond": "organizer",
    "SetPosition": "covers",
    "SetVolume": "media",
    "SetVolumeRelative": "media",
}

_BY_STEM: dict[str, Domain] = {
    "LawnMower": "robots",
    "List": "organizer",
    "Media": "media",
    "ShoppingList": "organizer",
    "Vacuum": "robots",
}

_BY_DEVICE: dict[str, Domain] = {
    "button": "appliances",
    "climate": "climate",
    "cover": "covers",
    "fan": "appliances",
    "input_boolean": "appliances",
    "light": "lights",
    "lock": "covers",
    "media_player": "media",
    "scene": "appliances",
    "script": "appliances",
    "switch": "appliances",
    "valve": "covers",
}


def domain_of(intent: str, device: str) -> Domain:
    """Return the domain of an intent, or for TurnOn and TurnOff that of the device."""
    if intent in _BY_INTENT:
        return _BY_INTENT[intent]
    if intent.endswith(("Timer", "Timers", "TimerStatus")):
        return "timers"
    for stem, domain in _BY_STEM.items():
        if intent.startswith(stem):
            return domain
    return _BY_DEVICE[device]
