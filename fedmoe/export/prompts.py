"""The wording of prompts, as it travels with an export."""

from __future__ import annotations

import json
import re
from typing import Any

from fedmoe.data.templates import Plain, template_of
from fedmoe.data.text import TextSettings
from fedmoe.data.wording import prompt_ids

PLAIN = """{{- BEGIN }}
{%- for message in messages %}
{%- if message['role'] == 'user' %}
{{- ('' if loop.first else '\\n') + FIRST + message['content'] + OPENED }}
{%- elif message['role'] == 'assistant' %}
{{- CLOSED + message['content'] + LAST }}
{%- elif message['role'] == 'system' and loop.first %}
{{- message['content'] }}
{%- else %}
{{- raise_exception('It was trained on prompts without messages of ' + message['role'] + '.') }}
{%- endif %}
{%- endfor %}"""
"""A chat template for a plain wording, whose parts are put in for the names in capitals."""


def chat_wording(tokenizer: Any, text: TextSettings) -> str:
    """Return a chat template that words prompts as they were in training.

    Where they were worded plainly it is made for the purpose: chat endpoints of engines word every
    prompt by the template that they find.
    """
    template = template_of(tokenizer, text)
    if not isinstance(template, Plain):
        return template.source
    (first, opened), (closed, last) = (part.split("\0") for part in template.pair("\0", "\0"))
    parts = {"BEGIN": template.record["begin"], "FIRST": first, "OPENED": opened}
    parts |= {"CLOSED": closed, "LAST": last}
    text_of = {name: json.dumps(part, ensure_ascii=False) for name, part in parts.items()}
    return re.sub("|".join(parts), lambda found: text_of[found[0]], PLAIN)


def prompt_facts(tokenizer: Any, text: TextSettings, form: str) -> dict[str, Any]:
    """Return the template, all that it depends on, and a prompt as the model reads it."""
    ids = prompt_ids("How are you?", tokenizer, text, form)
    example = {"example": tokenizer.decode([*ids], skip_special_tokens=False)}
    if form != "causal":
        return {"template": "none", "wording": {}} | example
    template = template_of(tokenizer, text)
    named = {"template": template.name, "digest": template.digest, "wording": template.record}
    return named | example
