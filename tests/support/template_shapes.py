"""Shapes of the chat templates that model families have, each with a slow wording by hand."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from tests.support import chat_templates as basic
from tests.support.chat_templates import as_json

HERMES = """
{%- if tools %}
    {{- '<|im_start|>system\\n' }}
    {%- if messages[0].role == 'system' %}{{ messages[0].content + '\\n\\n' }}{% endif %}
    {{- '<tools>' }}{% for tool in tools %}{{ '\\n' + tool | tojson }}{% endfor %}
    {{- '\\n</tools><|im_end|>\\n' }}
{%- endif %}
{%- for m in messages %}
    {%- if m.role == 'tool' %}
        {{- '<|im_start|>user\\n<tool_response>\\n' + m.content + '\\n</tool_response>' }}
        {{- '<|im_end|>\\n' }}
    {%- elif not (m.role == 'system' and tools) %}
        {{- '<|im_start|>' + m.role + '\\n' + m.content }}
        {%- for call in m.tool_calls or [] %}
            {{- '\\n<tool_call>\\n' + call.function | tojson + '\\n</tool_call>' }}
        {%- endfor %}
        {{- '<|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"""

MISTRAL = """
{%- set system = messages[0].content if messages[0].role == 'system' else '' %}
{%- set turns = messages[1:] if system else messages %}
{%- set last = namespace(user=-1) %}
{%- for m in turns %}{% if m.role == 'user' %}{% set last.user = loop.index0 %}{% endif %}
{%- endfor %}
{{- bos_token }}
{%- for m in turns %}
    {%- if m.role == 'user' %}
        {%- if tools and loop.index0 == last.user %}
            {{- '[AVAILABLE_TOOLS] ' + tools | tojson + '[/AVAILABLE_TOOLS]' }}
        {%- endif %}
        {{- '[INST] ' + (system + '\\n\\n' if system and loop.first else '') + m.content }}
        {{- '[/INST]' }}
    {%- elif m.role == 'tool' %}
        {{- '[TOOL_RESULTS] ' + m.content + '[/TOOL_RESULTS]' }}
    {%- elif m.tool_calls %}
        {{- '[TOOL_CALLS] ' + m.tool_calls | map(attribute='function') | list | tojson }}
        {{- eos_token }}
    {%- else %}{{ ' ' + m.content + eos_token }}{% endif %}
{%- endfor %}"""

LLAMA = """
{{- bos_token }}
{%- for m in messages %}
    {{- '<|start_header_id|>' + m.role + '<|end_header_id|>\\n\\n' + m.content | trim }}
    {{- '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}"""

GEMMA = """
{%- set system = messages[0].content if messages[0].role == 'system' else '' %}
{%- set turns = messages[1:] if system else messages %}
{{- bos_token }}
{%- for m in turns %}
    {%- if (m.role == 'user') != (loop.index0 % 2 == 0) %}
        {{- raise_exception('user and assistant must take turns') }}
    {%- endif %}
    {{- '<start_of_turn>' + ('model' if m.role == 'assistant' else m.role) + '\\n' }}
    {{- (system + '\\n\\n' if system and loop.first else '') + m.content | trim }}
    {{- '<end_of_turn>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<start_of_turn>model\\n' }}{% endif %}"""

CHANNELS = """
{%- for m in messages %}
    {%- if m.role != 'assistant' %}
        {{- '<|start|>' + ('developer' if m.role == 'system' else m.role) }}
        {{- '<|message|>' + m.content + '<|end|>' }}
    {%- else %}
        {%- if loop.last and m.reasoning_content %}
            {{- '<|start|>assistant<|channel|>analysis<|message|>' + m.reasoning_content }}
            {{- '<|end|>' }}
        {%- endif %}
        {{- '<|start|>assistant<|channel|>final<|message|>' + m.content }}
        {{- '<|return|>' if loop.last else '<|end|>' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|start|>assistant' }}{% endif %}"""

SWITCHED = """
{%- set where = namespace(user=0) %}
{%- for m in messages %}{% if m.role == 'user' %}{% set where.user = loop.index0 %}{% endif %}
{%- endfor %}
{%- for m in messages %}
    {{- '<|im_start|>' + m.role + '\\n' }}
    {%- if m.role == 'assistant' and loop.index0 > where.user %}
        {{- '<think>\\n' + (m.reasoning_content or '') + '\\n</think>\\n\\n' }}
    {%- endif %}
    {{- m.content + '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is false %}{{ '<think>\\n\\n</think>\\n\\n' }}{% endif %}
{%- endif %}"""

BARS = """
{{- bos_token }}
{%- for m in messages %}
    {%- if m.role == 'user' %}{{ '<\uff5cUser\uff5c>' + m.content }}
    {%- elif m.role == 'assistant' %}{{ '<\uff5cAssistant\uff5c>' + m.content + eos_token }}
    {%- else %}{{ m.content }}{% endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<\uff5cAssistant\uff5c>' }}{% endif %}"""

PHI = """
{%- for m in messages %}{{ '<|' + m.role + '|>\\n' + m.content + '<|end|>\\n' }}{% endfor %}
{{- '<|assistant|>\\n' if add_generation_prompt else eos_token }}"""

ZEPHYR = """
{%- for m in messages %}{{ '<|' + m.role + '|>\\n' + m.content + eos_token + '\\n' }}{% endfor %}
{%- if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% endif %}"""

TULU = """
{{- bos_token }}
{%- for m in messages %}
    {{- '<|' + m.role + '|>\\n' + m.content }}
    {{- eos_token if m.role == 'assistant' and loop.last else '\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% endif %}"""


def hermes(messages, tools=None):
    pieces = []
    if tools:
        system = messages[0]["content"] + "\n\n" if messages[0]["role"] == "system" else ""
        listed = "".join("\n" + as_json(tool) for tool in tools)
        said = f"<|im_start|>system\n{system}<tools>{listed}\n</tools><|im_end|>\n"
        pieces.append((said, False))
    for m in messages:
        if m["role"] == "tool":
            said = f"<tool_response>\n{m['content']}\n</tool_response>"
            pieces.append((f"<|im_start|>user\n{said}<|im_end|>\n", False))
        elif not (m["role"] == "system" and tools):
            calls = "".join(
                f"\n<tool_call>\n{as_json(c['function'])}\n</tool_call>"
                for c in m.get("tool_calls", ())
            )
            pieces.append((f"<|im_start|>{m['role']}\n", False))
            pieces.append((f"{m['content']}{calls}<|im_end|>", m["role"] == "assistant"))
            pieces.append(("\n", False))
    return pieces


def mistral(messages, tools=None):
    system, turns = split_system(messages)
    users = [n for n, m in enumerate(turns) if m["role"] == "user"]
    pieces = [("<bos>", False)]
    for n, m in enumerate(turns):
        if m["role"] == "user":
            listed = f"[AVAILABLE_TOOLS] {as_json(tools)}[/AVAILABLE_TOOLS]"
            said = f"[INST] {system if n == 0 else ''}{m['content']}[/INST]"
            pieces.append(((listed if tools and n == users[-1] else "") + said, False))
        elif m["role"] == "tool":
            pieces.append((f"[TOOL_RESULTS] {m['content']}[/TOOL_RESULTS]", False))
        elif m.get("tool_calls"):
            calls = as_json([call["function"] for call in m["tool_calls"]])
            pieces.append((f"[TOOL_CALLS] {calls}<eos>", True))
        else:
            pieces.append((f" {m['content']}<eos>", True))
    return pieces


def split_system(messages):
    """A system prompt with a blank line after it, and the other messages."""
    has = messages[0]["role"] == "system"
    return (messages[0]["content"] + "\n\n" if has else ""), messages[has:]


def llama(messages, tools=None):
    pieces = [("<bos>", False)]
    for m in messages:
        pieces.append((f"<|start_header_id|>{m['role']}<|end_header_id|>\n\n", False))
        pieces.append((f"{m['content'].strip()}<|eot_id|>", m["role"] == "assistant"))
    return pieces


def gemma(messages, tools=None):
    system, turns = split_system(messages)
    pieces = [("<bos>", False)]
    for n, m in enumerate(turns):
        role = "model" if m["role"] == "assistant" else "user"
        pieces.append((f"<start_of_turn>{role}\n{system if n == 0 else ''}", False))
        pieces.append((f"{m['content'].strip()}<end_of_turn>", role == "model"))
        pieces.append(("\n", False))
    return pieces


def channels(messages, tools=None):
    pieces = []
    for n, m in enumerate(messages):
        last, role = n == len(messages) - 1, m["role"].replace("system", "developer")
        if role != "assistant":
            pieces.append((f"<|start|>{role}<|message|>{m['content']}<|end|>", False))
            continue
        thought = f"<|channel|>analysis<|message|>{m.get('reasoning_content')}<|end|>"
        thought += "<|start|>assistant"
        thought = thought if last and m.get("reasoning_content") else ""
        said = f"<|channel|>final<|message|>{m['content']}"
        pieces.append(("<|start|>assistant", False))
        pieces.append((thought + said + ("<|return|>" if last else "<|end|>"), last))
    return pieces


def switched(thinking):
    """With or without thoughts: without, the empty ones are the prompt's."""

    def word(messages, tools=None):
        last_user = max(n for n, m in enumerate(messages) if m["role"] == "user")
        pieces = []
        for n, m in enumerate(messages):
            thought = f"<think>\n{m.get('reasoning_content', '')}\n</think>\n\n"
            thought = thought if m["role"] == "assistant" and n > last_user else ""
            pieces.append((f"<|im_start|>{m['role']}\n", False))
            learnt = m["role"] == "assistant" and n == len(messages) - 1
            pieces.append((thought, learnt and thinking))
            pieces.append((f"{m['content']}<|im_end|>", learnt))
            pieces.append(("\n", False))
        joined = []
        for text, learnt in pieces:
            if joined and joined[-1][1] == learnt:
                text = joined.pop()[0] + text
            joined.append((text, learnt))
        return joined

    return word


def bars(messages, tools=None):
    pieces = [("<bos>", False)]
    for m in messages:
        if m["role"] == "assistant":
            pieces += [("<\uff5cAssistant\uff5c>", False), (m["content"] + "<eos>", True)]
        else:
            pieces.append(("<\uff5cUser\uff5c>" * (m["role"] == "user") + m["content"], False))
    return pieces


def phi(messages, tools=None):
    pieces = [(f"<|{m['role']}|>\n{m['content']}<|end|>\n", False) for m in messages[:-1]]
    m = messages[-1]
    pieces.append((f"<|{m['role']}|>\n", False))
    return [*pieces, (f"{m['content']}<|end|>\n<eos>", m["role"] == "assistant")]


def zephyr(messages, tools=None):
    pieces = []
    for m in messages:
        pieces.append((f"<|{m['role']}|>\n", False))
        pieces.append((f"{m['content']}<eos>", m["role"] == "assistant"))
        pieces.append(("\n", False))
    return pieces


def tulu(messages, tools=None):
    pieces = [("<bos>", False)]
    pieces += [(f"<|{m['role']}|>\n{m['content']}\n", False) for m in messages[:-1]]
    m = messages[-1]
    pieces.append((f"<|{m['role']}|>\n", False))
    says = m["role"] == "assistant"
    return [*pieces, (f"{m['content']}{'<eos>' if says else chr(10)}", says)]


@dataclass(frozen=True)
class Shape:
    """A template with its slow wording, and what it can say."""

    template: str
    slow: Callable
    """The text in pieces, each with whether it is learnt."""
    control: tuple[str, ...] = basic.SPECIAL
    eos: str = "<|im_end|>"
    rewrites: Callable = lambda tools: False
    """Whether earlier turns change once others follow."""
    system: bool = True
    calls: bool = False
    reasoning: bool = False
    arguments: Mapping = field(default_factory=dict)

    def tokenizer(self):
        """The built-in tokenizer with the shape's control tokens and template."""
        return basic.tokenizer(self.template, self.control, self.eos)


def always(tools):
    return True


NAMED = ("<|user|>", "<|assistant|>", "<|system|>", "<|end|>")
LISTS = [
    f"[{end}{name}]" for name in ("INST", "AVAILABLE_TOOLS", "TOOL_RESULTS") for end in ("", "/")
]
BRACKETS = (*LISTS, "[TOOL_CALLS]", "<bos>")
HEADERS = ("<bos>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
TURNS = ("<bos>", "<start_of_turn>", "<end_of_turn>")
WIDE = ("<bos>", "<\uff5cUser\uff5c>", "<\uff5cAssistant\uff5c>")
OFF = {"enable_thinking": False}

SHAPES = {
    "ChatML": Shape(basic.CHATML, basic.chatml, calls=True),
    "ChatML with <tool_call>": Shape(HERMES, hermes, calls=True),
    "generation marks": Shape(basic.MARKED, basic.chatml),
    "INST": Shape(basic.INST, basic.inst, system=False),
    "Mistral": Shape(MISTRAL, mistral, BRACKETS, "<eos>", bool, calls=True),
    "Llama 3": Shape(LLAMA, llama, HEADERS, "<|eot_id|>"),
    "Gemma": Shape(GEMMA, gemma, TURNS, "<eos>"),
    "harmony": Shape(CHANNELS, channels, eos="<|return|>", rewrites=always, reasoning=True),
    "thinking": Shape(basic.THINKING, basic.thinking, rewrites=always, reasoning=True),
    "Qwen 3": Shape(SWITCHED, switched(True), rewrites=always, reasoning=True),
    "Qwen 3, no thoughts": Shape(SWITCHED, switched(False), rewrites=always, arguments=OFF),
    "DeepSeek": Shape(BARS, bars, WIDE, "<eos>"),
    "Phi": Shape(PHI, phi, NAMED, "<eos>", always),
    "Zephyr": Shape(ZEPHYR, zephyr, (), "<eos>"),
    "Tulu": Shape(TULU, tulu, ("<bos>",), "<eos>", always),
}
