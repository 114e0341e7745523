"""Answers, whole and as pieces of a stream, in OpenAI's format."""

from __future__ import annotations

import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from fedmoe.export.generate import Answer
from fedmoe.serving.functions import Calls, OneCall
from fedmoe.serving.request import Request, Started
from fedmoe.system.json_text import json_text

DONE = "data: [DONE]\n\n"


def sse(value: Any) -> str:
    """Return one event of a stream."""
    return f"data: {json_text(value)}\n\n"


@dataclass(frozen=True)
class Wording:
    """The format of the answer to one request."""

    request: Request
    started: Started
    id: str = field(default_factory=lambda: secrets.token_hex(12))
    created: int = field(default_factory=lambda: int(time.time()))

    def whole(self, answer: Answer, calls: Sequence[OneCall]) -> dict[str, Any]:
        """Return an answer as one object."""
        finish = "tool_calls" if calls else answer.finish
        if self.request.chat:
            message: dict[str, Any] = {"role": "assistant", "content": answer.text, "refusal": None}
            if calls:
                message |= {"content": None, "tool_calls": self._calls(calls)}
            choice = {"message": message}
        else:
            choice = {"text": answer.text}
        return self._object("chat.completion", [self._choice(choice, finish)]) | {
            "usage": usage(answer)
        }

    def opening(self) -> list[str]:
        """Return the events with which a stream begins."""
        if not self.request.chat:
            return []
        return [self._event({"delta": {"role": "assistant", "content": ""}})]

    def piece(self, text: str) -> str:
        """Return the event of a piece of text."""
        return self._event({"delta": {"content": text}} if self.request.chat else {"text": text})

    def closing(self, answer: Answer, calls: Sequence[OneCall]) -> list[str]:
        """Return the events with which a stream ends."""
        events = []
        if calls:
            listed = [{"index": n} | call for n, call in enumerate(self._calls(calls))]
            events.append(self._event({"delta": {"tool_calls": listed}}))
        finish = "tool_calls" if calls else answer.finish
        events.append(self._event({"delta": {}} if self.request.chat else {"text": ""}, finish))
        if self.request.include_usage:
            last = self._object("chat.completion.chunk", [])
            events.append(sse(last | {"usage": usage(answer)}))
        return [*events, DONE]

    def _event(self, choice: dict[str, Any], finish: str | None = None) -> str:
        made = self._object("chat.completion.chunk", [self._choice(choice, finish)])
        return sse(made | ({"usage": None} if self.request.include_usage else {}))

    def _choice(self, choice: dict[str, Any], finish: str | None) -> dict[str, Any]:
        return {"index": 0, **choice, "logprobs": None, "finish_reason": finish}

    def _object(self, kind: str, choices: list[dict[str, Any]]) -> dict[str, Any]:
        chat, started = self.request.chat, self.started
        return {
            "id": f"{'chatcmpl' if chat else 'cmpl'}-{self.id}",
            "object": kind if chat else "text_completion",
            "created": self.created,
            "model": self.request.model,
            "choices": choices,
            "fedmoe": {
                "top_k": started.top_k,
                "seed": started.seed,
                "without_effect": [*self.request.without_effect],
            },
        }

    def _calls(self, calls: Sequence[OneCall]) -> list[dict[str, Any]]:
        return [
            {"id": f"call_{self.id}_{n}", "type": "function", "function": call}
            for n, call in enumerate(calls)
        ]


def usage(answer: Answer) -> dict[str, int]:
    """Return the tokens of a prompt and its answer, with the one that ends it."""
    return {
        "prompt_tokens": answer.prompt_tokens,
        "completion_tokens": answer.new_tokens,
        "total_tokens": answer.prompt_tokens + answer.new_tokens,
    }


def calls_in(answer: Answer, form: Calls | None) -> Sequence[OneCall]:
    """Return the function calls that an answer is; none where it is text or was cut."""
    return form.read(answer.text) if form is not None and answer.finish == "stop" else ()
