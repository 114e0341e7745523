"""The wording of prompts, as it travels with an export."""

from __future__ import annotations

import json
from typing import Any

from fedmoe.data.templates import chat_template
from fedmoe.data.text import PROMPT, TextSettings
from fedmoe.data.wording import prompt_ids


def chat_wording(tokenizer: Any, text: TextSettings) -> str:
    """Return a chat template that words prompts as they were in training.

    Where they were worded plainly it is made for the purpose: chat endpoints of engines word every
    prompt by the template that they find.

    Example:
        >>> chat_wording(None, TextSettings(template="plain")).splitlines()[-1]
        '{%- endfor %}'
    """
    if template := chat_template(tokenizer, text):
        return template.source
    before, after = (json.dumps(part) for part in PROMPT.split("{prompt}"))
    return f"""{{%- for message in messages %}}
{{%- if message['role'] == 'user' %}}
{{{{- {before} + message['content'] + {after} }}}}
{{%- elif message['role'] == 'assistant' %}}
{{{{- ' ' + message['content'] + eos_token }}}}
{{%- else %}}
{{{{- raise_exception('This adapter was trained on prompts without ' + message['role'] + '.') }}}}
{{%- endif %}}
{{%- endfor %}}"""


def prompt_example(tokenizer: Any, text: TextSettings, form: str) -> dict[str, str]:
    """Return the template's name and digest, and a prompt as the model reads it."""
    template = chat_template(tokenizer, text) if form == "causal" else None
    ids = prompt_ids("How are you?", tokenizer, text, form)
    named = {"template": template.name if template else "no chat template, plainly"}
    digest = {"digest": template.digest} if template else {}
    return named | digest | {"example": tokenizer.decode([*ids], skip_special_tokens=False)}
