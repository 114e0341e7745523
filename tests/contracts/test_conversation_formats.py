"""Every usual format of conversations is read into the same messages, or refused with its place."""

import json

import pytest

from fedmoe.data import Federated, Memory
from fedmoe.data.conversations import unpacked
from fedmoe.data.federated import LocalData
from fedmoe.data.files import LocalFiles
from fedmoe.errors import DataError

SYSTEM = {"role": "system", "content": " Be brief.\n"}
USER = {"role": "user", "content": "  is it on?"}
AGAIN = {"role": "user", "content": "and now?"}
CALL = {"type": "function", "function": {"name": "State", "arguments": {"lamp": "Ab"}}}
CALLS = {"role": "assistant", "content": "", "tool_calls": [CALL]}
RESULT = {"role": "tool", "content": '{"on": true}'}
YES = {"role": "assistant", "content": "Yes.\n"}
NO = {"role": "assistant", "content": "    No"}
TOOL = {"type": "function", "function": {"name": "State", "parameters": {}}}


def read(row, **settings):
    """The one example of a row."""
    (example,) = Memory(rows=[row], test_share=0, validation_share=0, **settings).load(0).train
    return example


def sharegpt(*pairs):
    return [{"from": role, "value": text} for role, text in pairs]


FORMATS = {
    "messages": (
        {"messages": [SYSTEM, USER, CALLS, RESULT, YES, AGAIN, NO], "tools": [TOOL]},
        [SYSTEM, USER, CALLS, RESULT, YES, AGAIN, NO],
        [TOOL],
    ),
    "assistant first": ({"messages": [YES, USER, NO]}, [YES, USER, NO], None),
    "parts, and arguments as text": (
        {
            "messages": [
                {
                    "role": "user",
                    "content": [{"type": "text", "text": "  is it"}, {"text": " on?"}],
                },
                {
                    "role": "assistant",
                    "content": None,
                    "tool_calls": [{"function": {"name": "State", "arguments": '{"lamp": "Ab"}'}}],
                },
                RESULT,
                YES,
            ],
            "tools": json.dumps([TOOL]),
        },
        [USER, CALLS, RESULT, YES],
        [TOOL],
    ),
    "ShareGPT": (
        {
            "conversations": sharegpt(
                ("system", " Be brief.\n"),
                ("human", "  is it on?"),
                ("function_call", '{"name": "State", "arguments": {"lamp": "Ab"}}'),
                ("observation", '{"on": true}'),
                ("gpt", "Yes.\n"),
            )
        },
        [SYSTEM, USER, CALLS, RESULT, YES],
        None,
    ),
    "Alpaca with a history": (
        {
            "system": " Be brief.\n",
            "history": [["  is it on?", "Yes.\n"]],
            "instruction": "and now?",
            "input": "",
            "output": "    No",
        },
        [SYSTEM, USER, YES, AGAIN, NO],
        None,
    ),
    "a column of the system's text": (
        {"system": " Be brief.\n", "messages": [USER, NO]},
        [SYSTEM, USER, NO],
        None,
    ),
    "functions beside a pair": (
        {"prompt": "  is it on?", "completion": "    No", "tools": [TOOL]},
        [USER, NO],
        [TOOL],
    ),
    "OpenAI's older calls": (
        {
            "messages": [
                {"role": "developer", "content": " Be brief.\n"},
                USER,
                {
                    "role": "assistant",
                    "content": None,
                    "function_call": {"name": "State", "arguments": '{"lamp": "Ab"}'},
                },
                {"role": "function", "content": '{"on": true}'},
                YES,
            ],
            "functions": [TOOL["function"]],
        },
        [SYSTEM, USER, CALLS, RESULT, YES],
        [TOOL],
    ),
    "a list as prompt, text as completion": (
        {"prompt": [SYSTEM, USER], "completion": "    No"},
        [SYSTEM, USER, NO],
        None,
    ),
    "text as prompt, a list as completion": (
        {"prompt": "  is it on?", "completion": [CALLS, RESULT, YES]},
        [USER, CALLS, RESULT, YES],
        None,
    ),
    "lists as prompt and completion": (
        {"prompt": [SYSTEM, USER, YES, AGAIN], "completion": [NO]},
        [SYSTEM, USER, YES, AGAIN, NO],
        None,
    ),
}


@pytest.mark.parametrize("name", FORMATS)
def test_formats_give_the_messages_as_they_are(name):
    row, messages, tools = FORMATS[name]
    example = read(row)
    assert unpacked(example.conversation) == (messages, tools)
    assert example.response == messages[-1]["content"]
    assert all(m["content"] in example.prompt for m in messages[:-1])


def test_pairs_are_left_as_they_are():
    row = {"prompt": "def f(x):\n", "completion": "    return X \n"}
    assert (read(row).prompt, read(row).response) == (row["prompt"], row["completion"])
    assert read({"instruction": " a ", "input": "", "output": "b"}).prompt == " a "
    assert read({"instruction": "a", "input": " c ", "output": "b"}).prompt == "a\n\n c "
    ends = read({"a": " x ", "b": "", "output": "y"}, prompt=" {a} \n {b} ", response="output")
    assert ends.prompt == " x "


@pytest.mark.parametrize(
    ("messages", "fault"),
    [
        ([USER, SYSTEM, YES], "message 2 (system) comes after user; expected it first"),
        ([USER, RESULT, YES], "message 2 (tool) follows user; expected a call"),
        ([RESULT, YES], "message 1 (tool) follows nothing"),
        ([USER], "no message of the assistant"),
        ([YES, USER], "no message of the user before the last answer"),
        ([USER, {"role": "assistant", "content": None}], "message 2 (assistant) is empty"),
        ([{"role": "bot", "content": "x"}], "messages 1: role is 'bot'; expected system, user"),
        ([{"role": "user", "content": [{"type": "image"}]}], "content has {'type': 'image'}"),
        ([{"role": "user", "content": 3}], "content is int; expected text"),
        ([USER, {"role": "assistant", "tool_calls": [3]}], "a tool call is 3"),
        ("hi", "'messages' is no JSON"),
        (None, "'messages' is missing"),
    ],
)
def test_conversations_that_cannot_be_are_refused_or_counted(messages, fault):
    good = [{"messages": [{"role": "user", "content": f"{n}"}, YES]} for n in range(9)]
    rows = [*good, {"messages": messages}]
    with pytest.raises(DataError) as error:
        Memory(rows=rows).load(0)
    assert "rows[9]: " in str(error.value)
    assert fault in str(error.value)
    dropped = Memory(rows=rows, unusable="drop").load(0).rows.dropped
    assert dropped in ({"refused": 1}, {"empty": 1})


def test_conversations_are_repeated_only_if_all_of_them_is_equal():
    row = {"messages": [SYSTEM, USER, YES], "tools": [TOOL]}
    other = [row, row | {"tools": []}, row | {"messages": [USER, YES]}]
    other.append(row | {"messages": [SYSTEM, USER, YES, AGAIN, YES]})
    rows = Memory(rows=[*other, *other], test_share=0, validation_share=0).load(0)
    assert len(rows.train) == 4
    assert rows.dropped.repeated == 4


def test_tools_lie_beside_the_rows_or_are_named(tmp_path):
    line = json.dumps({"messages": [USER, CALLS, RESULT, YES]})
    path, other = tmp_path / "rows" / "berlin.jsonl", tmp_path / "other.json"
    path.parent.mkdir()
    path.write_text(line)
    path.with_name("berlin.tools.json").write_text(json.dumps([TOOL]))
    other.write_text(json.dumps([TOOL, TOOL]))
    whole = {"test_share": 0, "validation_share": 0}
    for tools, count in ("", 1), (str(other), 2):
        for splits in (
            LocalFiles(path=str(path), tools=tools, **whole).load(0),
            LocalData(Federated(path=str(path.parent), tools=tools, **whole)).splits("berlin", 0),
        ):
            assert unpacked(splits.train[0].conversation)[1] == [TOOL] * count
    other.write_text("{}")
    with pytest.raises(DataError, match=r"other\.json is dict \{\}; expected a list"):
        LocalFiles(path=str(path), tools=str(other)).load(0)


def test_the_format_is_said():
    said = {
        "conversations, in the column 'messages'": FORMATS["messages"][0],
        "conversations as of ShareGPT": FORMATS["ShareGPT"][0],
        "after 'system' and 'history'": FORMATS["Alpaca with a history"][0],
    }
    for words, row in said.items():
        data = Memory(rows=[row], test_share=0, validation_share=0)
        assert words in data.form("rows", [*row])
