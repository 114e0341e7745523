"""A request in OpenAI's format, every field of which is followed or refused."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fedmoe.data.conversations import Message, RowFault, checked, of_messages, tools_of
from fedmoe.serving.limits import Limits

EITHER = ("model", "top_k", "max_tokens", "temperature", "top_p", "seed", "stop", "stream")
EITHER += ("stream_options",)
CHAT = (*EITHER, "messages", "tools", "tool_choice", "max_completion_tokens")
TEXT = (*EITHER, "prompt")
WITHOUT_EFFECT = ("user", "safety_identifier", "prompt_cache_key", "metadata")
"""Fields that say who asks, and do not change an answer."""
ONLY: Mapping[str, Any] = {
    "n": 1,
    "best_of": 1,
    "echo": False,
    "suffix": "",
    "logprobs": False,
    "logit_bias": {},
    "frequency_penalty": 0,
    "presence_penalty": 0,
    "response_format": {"type": "text"},
    "parallel_tool_calls": True,
    "modalities": ["text"],
    "store": False,
}
"""Further fields of OpenAI's, each with the one value that means what is done here anyway."""
REASONS = {
    "logprobs": "the probabilities of tokens are not returned",
    "n": "one answer is generated for each request; send several",
    "response_format": "answers are free text; no format is enforced",
    "parallel_tool_calls": "the model itself says how many functions it calls",
}
IN_MESSAGES = {"role", "content", "name", "tool_calls", "tool_call_id", "function_call", "refusal"}
MOST_STOPS = 4
KINDS = {400: "invalid_request_error", 401: "authentication_error", 403: "permission_error"}
KINDS |= {404: "not_found_error", 429: "rate_limit_error"}


class Refused(Exception):
    """The reason why a request is not answered, as OpenAI's clients expect it."""

    def __init__(
        self,
        message: str,
        param: str | None = None,
        *,
        status: int = 400,
        code: str | None = None,
        retry_after: int | None = None,
    ) -> None:
        super().__init__(message)
        self.message, self.param, self.status, self.code = message, param, status, code
        self.retry_after = retry_after
        """Seconds."""

    @property
    def body(self) -> dict[str, Any]:
        """The error as OpenAI's clients read it."""
        server = "server_error" if self.status >= 500 else "invalid_request_error"
        kind = KINDS.get(self.status, server)
        error = {"message": self.message, "type": kind, "param": self.param, "code": self.code}
        return {"error": error}


@dataclass(frozen=True, kw_only=True)
class Request:
    """A request to answer a conversation or to continue a text."""

    model: str
    chat: bool
    prompt: str | tuple[int, ...] | tuple[Message, ...]
    """A text as it is, ids, or the messages of a conversation."""
    tools: tuple[Any, ...] = ()
    top_k: int | None = None
    max_new_tokens: int | None = None
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int | None = None
    stops: tuple[str, ...] = ()
    stream: bool = False
    include_usage: bool = False
    without_effect: tuple[str, ...] = ()
    """Its fields that are read and change nothing."""


@dataclass(frozen=True)
class Started:
    """The first thing that comes of a request: it is answered from now on."""

    top_k: int
    seed: int | None
    """With which tokens are drawn; None where they are not."""


def read_request(body: Any, chat: bool, limits: Limits) -> Request:
    """Return the request in the JSON of a body.

    Raises:
        Refused: it is none, or asks for what is not done here.
    """
    if not isinstance(body, dict):
        raise Refused("the body is no JSON object")
    given = {name: value for name, value in body.items() if value is not None}
    _check_known(given, CHAT if chat else TEXT)
    fields = _Fields(given)
    temperature = fields.number("temperature", 0.0, 0.0, 2.0)
    top_p = fields.number("top_p", 1.0, 0.0, 1.0)
    if top_p == 0:
        raise Refused("top_p is 0: no token is left to draw", "top_p")
    if top_p < 1 and not temperature:
        said = "top_p is for drawn tokens, and temperature is 0, as it is here when omitted"
        raise Refused(f"{said}; set temperature, too", "top_p")
    stream = fields.flag("stream")
    tools = _tools(given) if chat else ()
    return Request(
        model=fields.text("model"),
        chat=chat,
        prompt=_messages(given.get("messages")) if chat else _prompt(given.get("prompt")),
        tools=tools,
        top_k=fields.whole("top_k", 1, 2**31),
        max_new_tokens=_max_new_tokens(fields, limits),
        temperature=temperature,
        top_p=top_p,
        seed=fields.whole("seed", -(2**63), 2**63 - 1),
        stops=_stops(given.get("stop", [])),
        stream=stream,
        include_usage=_include_usage(given, stream),
        without_effect=tuple(name for name in WITHOUT_EFFECT if name in given),
    )


def _check_known(given: Mapping[str, Any], known: tuple[str, ...]) -> None:
    for name, value in given.items():
        if name in ONLY and not _same(value, ONLY[name]):
            reason = REASONS.get(name, f"only {ONLY[name]!r} is supported here")
            raise Refused(f"{name}: {reason}", name, code="unsupported_value")
        if name not in (*known, *ONLY, *WITHOUT_EFFECT):
            said = f"{name!r:.60} is not supported here, so the request is not answered without it"
            raise Refused(said, name[:60], code="unsupported_parameter")


def _same(value: Any, only: Any) -> bool:
    return isinstance(value, bool) == isinstance(only, bool) and value == only


class _Fields:
    """Values of a request by their kind."""

    def __init__(self, given: Mapping[str, Any]) -> None:
        self.given = given

    def text(self, name: str) -> str:
        if not isinstance(value := self.given.get(name), str):
            raise Refused(f"{name} is {_kind(value)}; expected text", name)
        return value

    def flag(self, name: str) -> bool:
        if not isinstance(value := self.given.get(name, False), bool):
            raise Refused(f"{name} is {_kind(value)}; expected true or false", name)
        return value

    def number(self, name: str, default: float, low: float, high: float) -> float:
        value = self.given.get(name, default)
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not number or not low <= value <= high:  # NaN is in no range
            raise Refused(f"{name} is {value!r:.40}; expected {low:g} to {high:g}", name)
        return float(value)

    def whole(self, name: str, low: int, high: int) -> int | None:
        if (value := self.given.get(name)) is None:
            return None
        if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
            raise Refused(f"{name} is {value!r:.40}; expected an integer from {low}", name)
        return value


def _kind(value: Any) -> str:
    return "missing" if value is None else type(value).__name__


def _max_new_tokens(fields: _Fields, limits: Limits) -> int | None:
    names = [n for n in ("max_tokens", "max_completion_tokens") if n in fields.given]
    found = {fields.whole(name, 1, 2**31) for name in names}
    if len(found) > 1:
        raise Refused("max_tokens and max_completion_tokens differ; give one", names[0])
    most = next(iter(found), None)
    if most is not None and most > limits.new_tokens:
        said = f"{names[0]} is {most}, over this server's {limits.new_tokens}"
        raise Refused(f"{said} (--max-new-tokens)", names[0])
    return most


def _stops(value: Any) -> tuple[str, ...]:
    stops = [value] if isinstance(value, str) else value
    if not isinstance(stops, list) or not all(isinstance(x, str) and x for x in stops):
        raise Refused("stop: expected a text, or a list of texts, none of them empty", "stop")
    if len(stops) > MOST_STOPS:
        raise Refused(f"stop has {len(stops)} texts; expected at most {MOST_STOPS}", "stop")
    return tuple(stops)


def _include_usage(given: Mapping[str, Any], stream: bool) -> bool:
    name = "stream_options"
    if name not in given:
        return False
    if not stream:
        raise Refused("stream_options are for a stream; set stream, too", name)
    options = given[name]
    if not isinstance(options, dict) or {*options} - {"include_usage", "include_obfuscation"}:
        raise Refused("stream_options: expected an object with include_usage", name)
    if options.get("include_obfuscation"):
        raise Refused("stream_options.include_obfuscation is not supported here", name)
    return _Fields(options).flag("include_usage")


def _prompt(value: Any) -> str | tuple[int, ...]:
    if isinstance(value, list) and len(value) == 1 and isinstance(value[0], str | list):
        value = value[0]
    if isinstance(value, str):
        return value
    numbers = isinstance(value, list) and all(type(token) is int for token in value)
    if not numbers or not value:
        raise Refused("prompt: expected one text, or the ids of its tokens", "prompt")
    return tuple(value)


def _messages(value: Any) -> tuple[Message, ...]:
    if not isinstance(value, list) or not value:
        raise Refused("messages: expected a list of messages", "messages")
    for number, message in enumerate(value, 1):
        if isinstance(message, dict) and (odd := [k for k in message if k not in IN_MESSAGES]):
            known = {name for name in odd if message[name] is not None}
            if known:
                said = f"messages {number}: {min(known)!r:.60} is not supported here"
                raise Refused(said, "messages", code="unsupported_parameter")
    try:
        messages = of_messages({"messages": value})
        if messages[-1]["role"] not in ("user", "tool"):
            last = messages[-1]["role"]
            raise RowFault(f"the last message is of the {last}; expected the user's or a tool's")
        checked([*messages, {"role": "assistant", "content": "!"}])
    except RowFault as fault:
        raise Refused(f"messages: {fault}", "messages") from fault
    return tuple(messages)


def _tools(given: Mapping[str, Any]) -> tuple[Any, ...]:
    choice = given.get("tool_choice", "auto")
    if choice not in ("auto", "none"):
        said = "tool_choice: the model itself chooses; expected 'auto' or 'none'"
        raise Refused(said, "tool_choice", code="unsupported_value")
    try:
        tools = tools_of(given.get("tools", []))
    except RowFault as fault:
        raise Refused(f"tools: {fault}", "tools") from fault
    for tool in tools:
        function = tool.get("function")
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise Refused("tools: expected functions, each with a name", "tools")
    return tuple(tools) if choice == "auto" else ()
