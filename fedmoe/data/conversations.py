"""Rows as conversations: the usual formats, read into the messages that chat templates take."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

ROLES = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "model": "assistant",
    "function_call": "assistant",
    "tool": "tool",
    "function": "tool",
    "observation": "tool",
}
"""Roles by the names that formats give them."""

Message = dict[str, Any]


class RowFault(ValueError):
    """Why a row is no conversation; `empty` if all that is wrong is that something is missing."""

    def __init__(self, fault: str, empty: bool = False) -> None:
        super().__init__(fault)
        self.empty = empty


def loads(text: str) -> Any:
    """Return the value of a JSON text.

    Raises:
        json.JSONDecodeError: it is none.
        RowFault: an object has a name twice, of which one would be lost.

    Example:
        >>> loads('{"prompt": "a", "prompt": "b"}')
        Traceback (most recent call last):
        fedmoe.data.conversations.RowFault: 'prompt' is there twice in one object
    """
    return json.loads(text, object_pairs_hook=_once)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise RowFault(f"{twice!r} is there twice in one object")
    return made


def without_nulls(value: Any) -> Any:
    """Return values of Arrow without the empty fields that it gives every object of a column.

    Example:
        >>> without_nulls([{"arguments": {"city": "Paris", "day": None}}])
        [{'arguments': {'city': 'Paris'}}]
    """
    if isinstance(value, dict):
        return {name: without_nulls(one) for name, one in value.items() if one is not None}
    return [without_nulls(one) for one in value] if isinstance(value, list) else value


def packed(messages: Sequence[Message], tools: Sequence[Any] = ()) -> str:
    """Return a conversation as JSON text, by which two are the same if nothing differs.

    Example:
        >>> packed([{"role": "user", "content": "hi"}])
        '{"messages": [{"role": "user", "content": "hi"}]}'
    """
    parts = {"messages": [*messages]} | ({"tools": [*tools]} if tools else {})
    return json.dumps(parts, ensure_ascii=False)


def unpacked(conversation: str) -> tuple[list[Message], list[Any] | None]:
    """Return the messages of a packed conversation, and its tools, None if it has none."""
    parts = json.loads(conversation)
    return parts["messages"], parts.get("tools")


def words_of(message: Message) -> str:
    """Return the text of a message; of one that only calls functions, the calls as JSON."""
    said = message["content"]
    if said.strip() or not message.get("tool_calls"):
        return said
    return json.dumps([call["function"] for call in message["tool_calls"]], ensure_ascii=False)


def exchange(messages: Sequence[Message]) -> tuple[str, str]:
    """Return what comes before the last answer as one text, and that answer.

    Example:
        >>> exchange([{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}])
        ('hi', 'ho')
    """
    last = max(n for n, message in enumerate(messages) if message["role"] == "assistant")
    return "\n\n".join(map(words_of, messages[:last])), words_of(messages[last])


def of_messages(row: Mapping[str, Any]) -> list[Message]:
    """Return the messages of a row with a column `messages`, after its column `system`, if any."""
    return [*_system(row), *_messages(row.get("messages"), "messages", "role", "content")]


def of_sharegpt(row: Mapping[str, Any]) -> list[Message]:
    """Return the messages of a row with a column `conversations`, of `from` and `value`."""
    turns = row.get("conversations")
    old = isinstance(turns, list) and any(isinstance(t, dict) and "from" in t for t in turns)
    keys = ("from", "value") if old else ("role", "content")
    return [*_system(row), *_messages(turns, "conversations", *keys)]


def of_alpaca(row: Mapping[str, Any], prompt: str, response: str) -> list[Message]:
    """Return the messages of an instruction with a system text, or a history of exchanges."""
    history = _parsed(row.get("history") or [], "'history'")
    messages = _system(row)
    for number, pair in enumerate(_list(history, "'history'"), 1):
        if not (isinstance(pair, list | tuple) and [type(p) for p in pair] == [str, str]):
            raise RowFault(f"'history' {number} is {pair!r:.40}; expected a prompt and a response")
        messages += _pair(*pair)
    return [*messages, *_pair(prompt, response)]


def of_lists(prompt: Any, response: Any) -> list[Message]:
    """Return the messages of a prompt and a response, one of which is a list of messages."""
    both = ((prompt, "prompt", "user"), (response, "response", "assistant"))
    messages: list[Message] = []
    for part, name, role in both:
        text = isinstance(part, str)
        messages += [_said(role, part)] if text else _messages(part, name, "role", "content")
    return messages


def checked(messages: Sequence[Message]) -> Sequence[Message]:
    """Return a conversation whose roles follow each other as they can, with an answer at least.

    Raises:
        RowFault: no answer or nothing before it; a system text or a tool's result out of place; a
            message that says nothing.
    """
    roles = [message["role"] for message in messages]
    for number, (role, message) in enumerate(zip(roles, messages, strict=True)):
        where = f"message {number + 1} ({role})"
        if role == "system" and number > 0:
            raise RowFault(f"{where} comes after {roles[number - 1]}; expected it first")
        if role == "tool" and (number == 0 or roles[number - 1] not in ("assistant", "tool")):
            before = roles[number - 1] if number else "nothing"
            raise RowFault(f"{where} follows {before}; expected a call by the assistant before it")
        if (weight := message.get("weight", 1)) not in (0, 1):
            raise RowFault(f"{where} has weight {weight!r}; expected 0 (not learnt) or 1")
        if role in ("user", "assistant") and not words_of(message).strip():
            raise RowFault(f"{where} is empty", empty=True)
    if "assistant" not in roles:
        raise RowFault("no message of the assistant; expected one at least", empty=True)
    if not any(role in ("user", "tool") for role in roles[: _last(roles)]):
        raise RowFault("no message of the user before the last answer", empty=True)
    return messages


def tools_of(value: Any, what: str = "'tools'") -> list[Any]:
    """Return the descriptions of functions in a column or a file; empty where there are none.

    Raises:
        RowFault: no list of objects.
    """
    tools = _list(_parsed(value or [], what), what)
    # Functions as OpenAI's older format lists them, without their kind.
    tools = [_function(tool) if _is_bare(tool) else tool for tool in tools]
    if odd := [tool for tool in tools if not isinstance(tool, dict)]:
        raise RowFault(f"{what} holds {odd[0]!r:.40}; expected objects that describe functions")
    return tools


def _is_bare(tool: Any) -> bool:
    return isinstance(tool, dict) and "name" in tool and not {"type", "function"} & {*tool}


def _function(function: Any) -> dict[str, Any]:
    return {"type": "function", "function": function}


def _last(roles: Sequence[str]) -> int:
    return max(n for n, role in enumerate(roles) if role == "assistant")


def _pair(prompt: str, response: str) -> list[Message]:
    return [_said("user", prompt), _said("assistant", response)]


def _said(role: str, text: str) -> Message:
    return {"role": role, "content": text}


def _system(row: Mapping[str, Any]) -> list[Message]:
    if not (said := row.get("system")):
        return []
    if not isinstance(said, str):
        raise RowFault(f"'system' is {type(said).__name__}; expected text")
    return [_said("system", said)]


def _messages(found: Any, column: str, role: str, content: str) -> list[Message]:
    if found is None:
        raise RowFault(f"{column!r} is missing; expected a list of messages", empty=True)
    found = _list(_parsed(found, f"{column!r}"), f"{column!r}")
    return [_message(m, f"{column} {n}", role, content) for n, m in enumerate(found, 1)]


def _message(found: Any, where: str, role: str, content: str) -> Message:
    if not isinstance(found, dict):
        raise RowFault(f"{where} is {type(found).__name__}; expected an object")
    if (said := found.get(role)) not in ROLES:
        names = "system, user, assistant or tool"
        raise RowFault(f"{where}: {role} is {said!r:.40}; expected {names}")
    value = found.get(content)
    if said == "function_call":
        calls = _parsed(value, f"{where}: {content}")
        calls = [{"function": call} for call in (calls if isinstance(calls, list) else [calls])]
        found, value = found | {"tool_calls": calls}, ""
    if found.get("function_call"):  # OpenAI's older format, of one call
        found = found | {"tool_calls": [_function(found["function_call"])]}
    known = {role, content, "tool_calls", "function_call"}
    others = {k: v for k, v in found.items() if k not in known and v is not None}
    message = {"role": ROLES[said], "content": _text(value, where)} | others
    if calls := found.get("tool_calls"):
        calls = _list(_parsed(calls, f"{where}: tool_calls"), f"{where}: tool_calls")
        message["tool_calls"] = [_call(call, where) for call in calls]
    return message


def _text(value: Any, where: str) -> str:
    """Return content that is text, a list of text parts, or null."""
    if value is None or isinstance(value, str):
        return value or ""
    if not isinstance(value, list):
        raise RowFault(f"{where}: content is {type(value).__name__}; expected text")
    parts = []
    for part in value:
        text = part.get("text") if isinstance(part, dict) else part
        if not isinstance(text, str):
            raise RowFault(f"{where}: content has {part!r:.40}; expected parts of text")
        parts.append(text)
    return "".join(parts)


def _call(call: Any, where: str) -> dict[str, Any]:
    named = call.get("function", call) if isinstance(call, dict) else None
    if not isinstance(named, dict) or not isinstance(named.get("name"), str):
        raise RowFault(f"{where}: a tool call is {call!r:.40}; expected a name and arguments")
    arguments = _parsed(named.get("arguments") or {}, f"{where}: arguments of {named['name']}")
    if not isinstance(arguments, dict):
        raise RowFault(f"{where}: arguments of {named['name']} are no object: {arguments!r:.40}")
    function = {"name": named["name"], "arguments": arguments}
    identity = {"id": call["id"]} if call.get("id") is not None else {}
    return identity | _function(function)


def _parsed(value: Any, what: str) -> Any:
    if not isinstance(value, str):
        return value
    try:
        return loads(value)
    except RowFault as fault:
        raise RowFault(f"{what}: {fault}") from fault
    except (ValueError, RecursionError) as error:
        raise RowFault(f"{what} is no JSON: {json_fault(error)}: {value!r:.40}") from error


def json_fault(error: Exception) -> str:
    """Return why JSON cannot be read, whatever Python raised of it.

    An integer of more than 4,300 digits is a plain ValueError, a deep nesting a RecursionError.
    """
    return getattr(error, "msg", None) or str(error).partition(";")[0]


def _list(value: Any, what: str) -> list[Any]:
    if isinstance(value, list | tuple):
        return [*value]
    raise RowFault(f"{what} is {type(value).__name__} {value!r:.40}; expected a list")
