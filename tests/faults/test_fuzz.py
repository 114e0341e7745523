"""Spoilt messages of every kind that crosses a boundary, a few hundred each; see `fuzz.py`."""

import warnings

import pytest

with warnings.catch_warnings():
    # flwr 1.42 pins a typer that uses what click 8.4 calls deprecated, and warnings are errors.
    warnings.simplefilter("ignore", DeprecationWarning)
    from simulations import crossings, fuzz

KINDS = {"task", "update", "scores", "greeting", "node's reply", "worker frame", "page request"}
KINDS |= {"masks: share", "masks: open", "masks: mask", "masks: reveal"}
KINDS |= {"advert", "sealed shares", "refused", "revealed"}
KINDS |= {"masked vector"}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fuzz")
    (folder / "ledger.jsonl").write_text("{}\n")
    return dict(crossings.kinds(folder))


def test_all_kinds_are_there(made):
    assert made.keys() == KINDS


@pytest.mark.parametrize("name", sorted(KINDS))
def test_a_spoilt_message_is_taken_or_refused_and_changes_nothing(made, name):
    taken, refused = fuzz.fuzz(made[name], 300, "fast")
    assert taken + refused == 300
    assert refused > 100 or name == "page request"  # which is answered by a page without a fault


def test_what_is_neither_ends_the_program(made):
    def crash(text, data):
        if "x" in text:
            raise KeyError(text)

    with pytest.raises(KeyError):
        fuzz.fuzz(made["task"]._replace(receive=crash), 300, "fast")
    counter = iter(range(10**6))
    with pytest.raises(AssertionError):
        fuzz.fuzz(made["task"]._replace(state=lambda: next(counter)), 300, "fast")
