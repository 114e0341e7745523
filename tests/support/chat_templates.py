"""Chat templates of several shapes, each with a slow wording in Python that a reader can check."""

import json
from pathlib import Path

import fedmoe.models

CHATML = """
{%- if tools %}{{ '<|im_start|>tools\\n' + tools | tojson + '<|im_end|>\\n' }}{% endif %}
{%- for m in messages %}
    {{- '<|im_start|>' + m.role + '\\n' + m.content }}
    {%- for call in m.tool_calls or [] %}{{ '<call>' + call.function | tojson }}{% endfor %}
    {{- '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"""

MARKED = """
{%- for m in messages %}
    {{- '<|im_start|>' + m.role + '\\n' }}
    {%- if m.role == 'assistant' %}
        {%- generation %}{{ m.content + '<|im_end|>' }}{% endgeneration %}
    {%- else %}{{ m.content + '<|im_end|>' }}{% endif %}
    {{- '\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"""

INST = """
{%- for m in messages %}
    {%- if (m.role == 'user') != (loop.index0 % 2 == 0) %}
        {{- raise_exception('roles must alternate user/assistant') }}
    {%- endif %}
    {%- if m.role == 'user' %}{{ '<|im_start|>[INST] ' + m.content + ' [/INST]' }}
    {%- else %}{{ ' ' + m.content + '<|im_end|>' }}{% endif %}
{%- endfor %}"""

HARMONY = """
{%- for m in messages %}
    {{- '<|start|>' + m.role }}
    {{- ('<|channel|>final' if m.role == 'assistant' else '') + '<|message|>' + m.content }}
    {{- '<|return|>' if loop.last and m.role == 'assistant' else '<|end|>' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|start|>assistant' }}{% endif %}"""

THINKING = """
{%- set where = namespace(user=0) %}
{%- for m in messages %}
    {%- if m.role == 'user' %}{% set where.user = loop.index0 %}{% endif %}
{%- endfor %}
{%- for m in messages %}
    {{- '<|im_start|>' + m.role + '\\n' }}
    {%- if m.role == 'assistant' and loop.index0 > where.user %}
        {{- '<think>\\n' + (m.reasoning_content or '') + '\\n</think>\\n' }}
    {%- endif %}
    {{- m.content + '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"""

SPECIAL = ("<|im_start|>", "<|im_end|>", "<|start|>", "<|message|>", "<|channel|>")
SPECIAL += ("<|end|>", "<|return|>")


def tokenizer(template, control=SPECIAL, eos="<|im_end|>"):
    """The built-in tokenizer with control tokens, and one of the templates."""
    from transformers import AutoTokenizer

    made = AutoTokenizer.from_pretrained(Path(fedmoe.models.__file__).parent / "mini")
    begin = {"bos_token": "<bos>"} if "<bos>" in control else {}
    made.add_special_tokens({"additional_special_tokens": [*control], "eos_token": eos} | begin)
    made.chat_template = template
    return made


def chatml(messages, tools=None):
    """The text in pieces, each with whether it is learnt."""
    pieces = [(f"<|im_start|>tools\n{as_json(tools)}<|im_end|>\n", False)] if tools else []
    for m in messages:
        calls = "".join("<call>" + as_json(c["function"]) for c in m.get("tool_calls", ()))
        pieces.append((f"<|im_start|>{m['role']}\n", False))
        pieces.append((f"{m['content']}{calls}<|im_end|>", m["role"] == "assistant"))
        pieces.append(("\n", False))
    return pieces


def inst(messages, tools=None):
    return [
        (f"<|im_start|>[INST] {m['content']} [/INST]", False)
        if m["role"] == "user"
        else (f" {m['content']}<|im_end|>", True)
        for m in messages
    ]


def thinking(messages, tools=None):
    last_user = max(n for n, m in enumerate(messages) if m["role"] == "user")
    pieces = []
    for n, m in enumerate(messages):
        says = m["role"] == "assistant"
        think = f"<think>\n{m.get('reasoning_content', '')}\n</think>\n"
        pieces.append((f"<|im_start|>{m['role']}\n", False))
        text = think * (says and n > last_user) + m["content"] + "<|im_end|>"
        pieces.append((text, says and n == len(messages) - 1))
        pieces.append(("\n", False))
    return pieces


def as_json(value):
    return json.dumps(value, ensure_ascii=False)
