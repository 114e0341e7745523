"""Scores that no honest client could send are refused, each with its reason."""

import json
from dataclasses import replace

import pytest
import torch

from fedmoe.adapter import Adapter, Layout
from fedmoe.errors import WireError
from fedmoe.messages.records import Message, Task
from fedmoe.messages.rows import RowCounts
from fedmoe.messages.scores import Scores, pack_scores, unpack_scores

LAYOUT = Layout.of([("experts.A", (4, 2, 3), 0)], 1, num_experts=4, rank=2, alpha=4.0)
TASK = Task(3, 1, "low", 2, torch.ones(1), Adapter(LAYOUT, torch.zeros(24)), "berlin")
ROWS = RowCounts.of(train=9, validation=3, test=4, repeated=1)
HONEST = Scores(
    split="test",
    examples=4,
    tokens=20,
    loss=31.5,
    score=2.5,
    metrics={"token_f1": 3.0},
    labels={"lights": (3, 2.5), "timers": (1, 0.0)},
    rows=ROWS,
    seconds=0.5,
)


BOUNDS = {"metrics": ("exact_match", "token_f1"), "most_examples": 10, "most_tokens": 64}


def read(scores=HONEST, **changes):
    message = pack_scores(scores, TASK)
    values = json.loads(message.scalars) | changes
    given = Message(json.dumps(values), b"")
    return unpack_scores(given, TASK, "test", **BOUNDS)


def test_honest_scores_arrive_whole():
    assert read() == HONEST
    none = Scores(split="test", rows=ROWS, withheld=True)
    assert read(none) == none


LIES = {
    "another round": {"round": 4},
    "another client": {"client": 2},
    "another name": {"name": "paris"},
    "another tier": {"tier": "high"},
    "another split": {"split": "validation"},
    "another metric": {"metric": "token_f1"},
    "a metric that nobody asked for": {"metrics": {"token_f1": 1.0, "rouge_l": 1.0}},
    "a metric that is missing": {"metrics": {}},
    "a metric over one an example": {"metrics": {"token_f1": 4.1}},
    "metrics as a list": {"metrics": [1.0]},
    "more examples than are scored": {"examples": 11},
    "examples, and no row": {"rows": RowCounts.of(train=9, validation=3, repeated=1).as_json()},
    "fewer tokens than examples": {"tokens": 3},
    "more tokens than fit": {"tokens": 4 * 64 + 1},
    "a score over one an example": {"score": 4.01},
    "a negative score": {"score": -0.1},
    "a loss that no report could show": {"loss": 1.7e308},
    "no number for a loss": {"loss": float("nan")},
    "endless seconds": {"seconds": float("inf")},
    "examples as text": {"examples": "4"},
    "examples as truth": {"examples": True},
    "labels that do not add up": {"labels": {"lights": [3, 2.0]}},
    "a label with more than all": {"labels": {"lights": [4, 4.5]}},
    "a label with three sums": {"labels": {"lights": [4, 1.0, 1]}},
    "an endless label": {"labels": {"x" * 201: [4, 1.0]}},
    "too many labels": {"labels": {str(n): [0, 0.0] for n in range(1001)}},
    "labels as a list": {"labels": [1]},
    "withheld and told": {"withheld": True},
    "withheld as a number": {"withheld": 1},
    "an account that does not add up": {"rows": ROWS.as_json() | {"read": 16}},
    "an account with less": {"rows": {"read": 3}},
    "no account": {"rows": None},
    "a word more": {"more": 1},
}


@pytest.mark.parametrize("lie", LIES)
def test_a_lie_is_refused(lie):
    with pytest.raises(WireError):
        read(**LIES[lie])


@pytest.mark.parametrize("text", ["", "[]", "[" * 10**5, "{", '"x"', "x" * 2**19])
def test_what_is_no_message_of_scores_is_refused(text):
    with pytest.raises(WireError):
        unpack_scores(
            Message(text, b""),
            TASK,
            "test",
            metrics=("exact_match", "token_f1"),
            most_examples=10,
            most_tokens=64,
        )


def test_scores_come_without_a_buffer():
    message = replace(pack_scores(HONEST, TASK), buffer=b"x")
    with pytest.raises(WireError, match="buffer of 1 bytes"):
        unpack_scores(
            message,
            TASK,
            "test",
            metrics=("exact_match", "token_f1"),
            most_examples=10,
            most_tokens=64,
        )
