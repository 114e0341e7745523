"""Every row that a dataset reads is kept or counted, and only exact repeats are dropped."""

import json
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedmoe.data import Example, Memory, load_splits
from fedmoe.data.examples import SPLITS, Splits, prompt_key
from fedmoe.data.files import LocalFiles
from fedmoe.data.text import TextSettings
from fedmoe.data.wording import tokenize_splits
from fedmoe.errors import DataError
from fedmoe.messages.rows import RowCounts

PROMPTS = ["go left", "Go left", "go  left", "go\n  left", "stop", "wait", "turn", "", None, 7]
RESPONSES = ["yes", "Yes", "no", "", None]
ROWS = st.lists(
    st.fixed_dictionaries(
        {
            "prompt": st.sampled_from(PROMPTS),
            "response": st.sampled_from(RESPONSES),
            "kind": st.sampled_from(["a", "b"]),
        }
    ),
    min_size=1,
    max_size=60,
)


def all_of(splits):
    return [example for name in SPLITS for example in getattr(splits, name)]


def became_of(rows):
    """One row after the other: the examples to be kept, and how many rows have each fault."""
    kept, lost = [], Counter()
    for row in rows:
        prompt, response = row["prompt"], row["response"]
        if not isinstance(prompt, str | None) or not isinstance(response, str | None):
            lost["refused"] += 1
        elif not prompt or not response:
            lost["empty"] += 1
        elif (example := Example(prompt, response, row["kind"])) in kept:
            lost["repeated"] += 1
        else:
            kept.append(example)
    return kept, lost


@given(ROWS, st.integers(0, 3))
def test_every_row_is_kept_or_counted(rows, seed):
    kept, lost = became_of(rows)
    data = Memory(rows=rows, label="kind", unusable="drop", test_share=0.3, validation_share=0.2)
    if not kept:
        with pytest.raises(DataError, match="cannot be used"):
            data.load(seed)
        return
    splits = load_splits(data, seed)
    assert Counter(all_of(splits)) == Counter(kept)
    parts = {name: len(getattr(splits, name)) for name in SPLITS}
    assert splits.rows == RowCounts(read=len(rows), **parts, **lost)
    where = {}
    for name in SPLITS:
        for example in getattr(splits, name):
            assert where.setdefault(prompt_key(example.prompt), name) == name


@given(
    st.lists(
        st.builds(
            Example,
            st.sampled_from(["a", "A", "b", "c", "d", "e"]),
            st.sampled_from(["x", "y"]),
            st.just(""),
            st.sampled_from(["", "", "g", "h", "i"]),
        ),
        min_size=1,
        max_size=30,
    )
)
def test_groups_that_share_a_prompt_stay_together_and_lose_nothing(rows):
    splits = load_splits(Memory(rows=rows, test_share=0.4, validation_share=0.3), 0)
    assert Counter(all_of(splits)) == Counter(set(rows))


def test_files_and_memory_give_one_account(tmp_path):
    rows = [{"prompt": f"say {n // 2}", "response": f"{n // 4}"} for n in range(80)]
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    found = LocalFiles(path=str(path)).load(0)
    assert found == Memory(rows=rows).load(0)
    assert (found.rows.read, found.rows.dropped) == (80, {"repeated": 40})


def test_equal_rows_of_two_clients_are_both_kept():
    clients = {"a": [("hi", "ho"), ("hi", "ho"), ("hi", "HO")], "b": [("hi", "ho"), ("by", "")]}
    with pytest.raises(DataError, match=r"rows of client 'b'\[1\]: \('by', ''\)"):
        Memory.of_clients(clients)
    shares = {"test_share": 0, "validation_share": 0}
    splits = Memory.of_clients(clients, unusable="drop", **shares).load(0)
    assert [(e.label, e.response) for e in splits.train] == [("a", "ho"), ("a", "HO"), ("b", "ho")]
    assert splits.rows == RowCounts(read=5, train=3, repeated=1, empty=1)


class Words:
    """A tokenizer of words."""

    eos_token_id, eos_token = 0, " <end>"

    def __call__(self, text, *, add_special_tokens, verbose=False):
        return {"input_ids": [[1] * len(words.split()) for words in text]}


@given(st.lists(st.integers(1, 12), min_size=3, max_size=40), st.integers(8, 14))
def test_rows_that_are_too_long_move_to_their_count(lengths, most):
    examples = tuple(Example("w " * n, "ok", "") for n in lengths)
    loaded = Splits(examples[2:], examples[:1], examples[1:2], RowCounts.of(repeated=3))
    # "Q:", "A:", the response and the end are four more.
    fits = {
        name: [e for e in getattr(loaded, name) if len(e.prompt) / 2 + 4 <= most] for name in SPLITS
    }
    settings = TextSettings(max_length=most, too_long="drop")
    if not all(fits.values()):
        with pytest.raises(DataError, match=f"text.max_length = {most} tokens"):
            tokenize_splits(loaded, Words(), settings)
        return
    found, tokens = tokenize_splits(loaded, Words(), settings)
    assert {name: list(getattr(found, name)) for name in SPLITS} == fits
    assert {name: len(ids) for name, ids in tokens.items()} == {
        n: len(es) for n, es in fits.items()
    }
    assert found.rows.read == loaded.rows.read == len(lengths) + 3
    assert found.rows.too_long == len(lengths) - len(all_of(found))
    assert sum(found.rows.as_json().values()) == 2 * found.rows.read


def test_a_dataset_that_counts_nothing_has_read_what_it_gives():
    row = Example("a", "b", "")
    assert Splits((row, row), (row,), ()).rows == RowCounts(read=3, train=2, validation=1)
