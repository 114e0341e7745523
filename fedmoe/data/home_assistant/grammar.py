"""English repairs: the intents file is made to recognise speech, so much of it is not good English.

Rules and sentences are rewritten before they are expanded, sentences are inflected afterwards, and
what is still not English is refused. Only the surface changes: an intent keeps its slots.
"""

import re

RULES: dict[str, str] = {
    "all": "all [[of] (the|my)]",
    "are": "are",
    "are_all": "are <all>",
    "are_any": "(are (any|some)|any) [of <the>]",
    "close": "(close|shut|lower)",
    "everywhere": "(everywhere|all over the house|in the whole (house|apartment)|in every room)",
    "here": "(here|in here|in this room)",
    "how_is": "(how is|how's)",
    "in": "in",
    "is": "are",
    "light": "(light|lights|lamp|lamps)",
    "lockable": "(lock|door|window|gate|garage door|shutter)[s]",
    "numeric_value_set": "(set|change|turn (up|down)|increase|decrease)",
    "open": "(open|raise)",
    "turn": "(turn|switch)",
    "what_is": "(what's|what is|tell me)",
    "where_is": "(where's|where is)",
}
"""Replace the file's rules of the same name, which also match "bring off" and "lower up"."""

LISTS: dict[str, tuple[tuple[str, str], ...]] = {
    "bs_open_states": (("open", "on"), ("(closed|shut)", "off")),
    "bs_occupancy_states": (("triggered", "on"), ("clear", "off")),
    "volume_step": (("up", "up"), ("down", "down")),
    "volume_verb": (("increase", "up"), ("decrease", "down")),
    "timer_half": (("half", "30"),),
    "indoor_cover": tuple(
        (f"{noun}[s]", noun) for noun in ("blind", "curtain", "door", "shade", "shutter", "window")
    ),
}
"""Replace or add to the file's lists."""

_SENTENCES: tuple[tuple[str, str], ...] = (
    (r"^\[<the>\] \{name\}$", ""),
    (r"\{floor\}( \[floor\])?", "{floor} floor"),
    (r"\{name\} <light>", "{light_kind:name} <light>"),
    (r"^<is> ", "is "),
    (r"\{area\} \[<the>\] \{name\}", "{area} {name}"),
    (r"\[(?:<in>|in)\] (?=\[<the>\] \{(?:area|floor)\})", "in "),
    (r"\[<in>\] \[<the>\] \{zone:state\}", "at {zone:state}"),
    (r"\(people\|persons\)", "people"),
    (r"^\[<(numeric_value_set|set)>\]", r"<\1>"),
    (r"\(in\|on\) (?=\[<the>\] \{area\})", "in "),
    (r"\{name\} \[list\]", "{name} list"),
    (r"\[to\] (?=\[the\] \{brightness_level|\{(fan_speed|brightness|color_temp))", "to "),
    (r"\[\(\[ \]°\)\|\( degree\[s\]\)\]", "[ degrees]"),
    (r"\[\(\[ \]%\)\| percent\]", "[%| percent]"),
    (r"\[\[ \]\(k\|kelvin\)\]", "[ kelvin]"),
    (r" \[to\] (on|off)$", r" \1"),
    (r"\[volume\] \(up\|down\) to", "volume (up|down) to"),
    (r"\(\[<the>\] \{(\w+)\}( floor)?;volume ([^)]*)\)", r"[<the>] {\1}\2 volume \3"),
    (r"^\{volume_step\}", "{volume_verb:volume_step}"),
    (r"\[on\|for\]|\[on\](?= \[<the>\] \{name\})", "on"),
    (r"^\((pause|\(unpause\|resume\));\[<the>\] \{name\}\)$", r"\1 [<the>] {name}"),
    (r"\[a\|an\|the\|my\]", "[a]"),
    (r"<light> \{floor\}", "<light> on the {floor}"),
    (
        r"\((?:check\|complete)(?:\|delete\|remove)?\) \(off;(.*?)\) \(from\|on\|in\)",
        r"check (off;\1) (from|on)",
    ),
    (r"\(check\|complete\) (\{\w+:item\}) \(off\|from\|on\|in\)", r"(check \1 off|complete \1 on)"),
    (
        r"\(check\|complete\|delete\|remove\) (\{\w+:item\}) \(off\|from\|on\|in\)",
        r"(check \1 off|complete \1 on|(delete|remove) \1 from)",
    ),
    (r"\(delete\|remove\) (\{\w+:item\}) \(off\|from\|on\|in\)", r"(delete|remove) \1 (off|from)"),
    (r"\[the \[current\] \(state\|value\) of\]", "the [current] state of"),
    (r"^\[\(activate\|run\|start\|<turn>\)\] (.*) \[on\]$", r"(activate|run|start) \1"),
)
"""Pattern and replacement on the text of a sentence template, in this order."""

_FLOOR = r"(?:first|second|third|ground|top|lower|upper|main|middle|bottom) floor"
_NOUNS = "light|lamp|fan|lock|door|window|gate|shutter|awning|blind|curtain|shade"
_QUESTION = re.compile(r"(are )?(any|some|all|which|what|how many)\b")

_INFLECTIONS: tuple[tuple[str, str], ...] = (
    (r"\b(\d+)([ -])(hour|minute|second)s?(?= timer)", r"\1\2\3"),
    (r"\b1[ -](hour|minute|second)s?(?! timer)\b", r"1 \1"),
    (r"\b(?!1[ -])(\d+)[ -](hour|minute|second)s?\b(?! timer)", r"\1 \2s"),
    (r"\band (?:a )?half (hour|minute)s?\b", r"and a half \1s"),
    (r"\bhalf (an hour|a minute)s\b", r"half \1"),
    (rf"\bin ((?:the |my |our )?{_FLOOR})", r"on \1"),
    (r"\ba (?=(?:8|11|18)\b)", "an "),
    (rf"\b(all\b.*?) ({_NOUNS})\b", r"\1 \2s"),
)

_DOUBLED = re.compile(r"(?i)\b(\w+) \1\b|(\w{4,})\2")

_NOT_ENGLISH = re.compile(
    r"\b(?:the|my|our) (?:the|my|our)\b"
    r"|\b(?:the|my|our) [A-Z]"
    r"|^make .* to "
    r"|^(?:raise|lower) .*(?:valve|water main|drip line|tap|inlet|barrel)\b"
    r"|^tell me\b.*\blike\b"
    r"|^(?:what is|what's|tell me) weather"
)


def rewrite(sentence: str) -> str:
    """Return the template of better English, empty where it is best left out."""
    for pattern, replacement in _SENTENCES:
        sentence = re.sub(pattern, replacement, sentence)
    if "{area}" in sentence or "{floor}" in sentence:
        sentence = sentence.replace("{cover_classes:", "{indoor_cover:")
    if "{position}" in sentence:
        sentence = sentence.replace("<numeric_value_set>", "(set|change|move)")
    return sentence


def inflect(prompt: str) -> str:
    """Make units and nouns agree with their numbers: "1 hour", "a 5-minute timer", "all lights"."""
    for pattern, replacement in _INFLECTIONS:
        prompt = re.sub(pattern, replacement, prompt)
    if _QUESTION.match(prompt):
        prompt = re.sub(rf"\b({_NOUNS})\b", r"\1s", prompt)
        prompt = re.sub(r"\bswitch\b", "switches", prompt)
    return prompt


def is_sensible(prompt: str, language: str) -> bool:
    """Refuse doubled words, and in English doubled determiners, "the Anna", "lower the valve"."""
    if _DOUBLED.search(prompt):
        return False
    return language != "en" or _NOT_ENGLISH.search(prompt) is None
