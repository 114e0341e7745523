"""Splits share no prompt and no group, and every stratum can be learned from."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedmoe.data.examples import (
    Example,
    Splits,
    check_disjoint,
    drop_conflicts,
    exact_match,
    split_by_group,
)
from fedmoe.errors import DataError


@st.composite
def grouped(draw):
    """Examples in a few groups and strata; prompts often coincide across groups."""
    rows = draw(
        st.lists(
            st.tuples(st.integers(0, 30), st.integers(0, 11), st.booleans()),
            min_size=1,
            max_size=80,
        )
    )
    # A group lies in one stratum, here its number modulo 3.
    return [
        Example(f"prompt {p}", f"answer {answer}", str(g % 3), f"group {g}")
        for p, g, answer in rows
    ]


def split(examples, seed=0, validation_share=0.2, test_share=0.3):
    return split_by_group(examples, seed, validation_share=validation_share, test_share=test_share)


@given(grouped(), st.integers(0, 5))
def test_no_prompt_and_no_group_is_in_two_splits(examples, seed):
    check_disjoint(split(examples, seed))


@given(grouped(), st.integers(0, 5))
def test_every_prompt_is_kept_once(examples, seed):
    splits = split(examples, seed)
    kept = [e.prompt for e in splits.train + splits.validation + splits.test]
    assert sorted(kept) == sorted({e.prompt for e in examples})


@given(grouped(), st.integers(0, 5))
def test_every_stratum_keeps_a_group_in_train(examples, seed):
    # Each group has a prompt of its own, so that none loses all its examples as repeats.
    own = [Example(e.group, "x", e.label, e.group) for e in examples]
    splits = split(own, seed)
    assert {e.label for e in splits.train} == {e.label for e in own}


@given(grouped(), st.integers(0, 5))
def test_the_same_seed_gives_the_same_split(examples, seed):
    assert split(examples, seed) == split(examples, seed)


def test_another_seed_gives_another_split():
    examples = [Example(str(i), "x", "one") for i in range(100)]
    assert split(examples, 0) != split(examples, 1)


def test_shares_are_kept_over_many_strata():
    examples = [Example(f"{s} {i}", "x", str(s), f"{s}/{i}") for s in range(40) for i in range(5)]
    splits = split(examples, 0, validation_share=0.1, test_share=0.15)
    assert len(splits.test) == pytest.approx(30, abs=1)
    assert len(splits.validation) == pytest.approx(20, abs=1)
    assert max(Counter(e.label for e in splits.test).values()) <= 1


def test_a_share_of_zero_holds_nothing_out():
    splits = split([Example(str(i), "x", "one") for i in range(50)], 0, 0.0, 0.0)
    assert (len(splits.train), splits.validation, splits.test) == (50, (), ())


def test_a_prompt_with_two_responses_keeps_the_first():
    rows = [Example("Hi", "a", ""), Example("hi ", "b", ""), Example("hi", "a", "")]
    assert drop_conflicts(rows) == (rows[0], rows[2])


@pytest.mark.parametrize(
    ("train", "test", "fault"),
    [
        (
            Example("hi", "a", ""),
            Example("HI", "b", ""),
            "prompt 'HI' is in train and again in test",
        ),
        (Example("a", "a", "", "g"), Example("b", "b", "", "g"), "group 'g' straddles"),
    ],
)
def test_check_disjoint_names_what_is_shared(train, test, fault):
    with pytest.raises(DataError, match=fault):
        check_disjoint(Splits((train,), (), (test,)))


def test_exact_match_forgives_only_spacing():
    example = Example("p", "TurnOn area: hall", "")
    assert exact_match(example, " TurnOn  area: hall\n") == 1.0
    assert exact_match(example, "TurnOn area: Hall") == 0.0
