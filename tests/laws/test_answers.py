"""An answer's pieces make up its text, stop texts cut it, and tokens are drawn by their shares."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedmoe.export.generate import Pieces
from fedmoe.models.decode import Sampling


def decode(ids):
    """Bytes as text; those of a character that is not whole yet are the replacement character."""
    return bytes(ids).decode(errors="replace")


texts = st.text("ab .\n€ü", max_size=12)


def all_of(pieces, text):
    made = [pieces.add(token) for token in text.encode()]
    return [*made, pieces.rest()]


@given(texts)
def test_the_pieces_of_an_answer_make_up_its_text(text):
    pieces = Pieces(decode)
    parts = all_of(pieces, text)
    assert "".join(parts) == pieces.text == text
    assert not any("\ufffd" in part for part in parts)


@given(texts)
def test_a_bare_answer_has_no_space_around_it_in_any_piece(text):
    pieces = Pieces(decode, bare=True)
    assert "".join(all_of(pieces, text)) == pieces.text == text.strip()


@given(texts, st.lists(st.text("ab .\n", min_size=1, max_size=3), min_size=1, max_size=3))
def test_an_answer_ends_before_the_first_stop_text(text, stops):
    pieces = Pieces(decode, stops)
    parts = all_of(pieces, text)
    ends = [place + len(stop) for stop in stops if (place := text.find(stop)) >= 0]
    assert pieces.stopped == bool(ends)
    # Of stop texts that end at the same token, the one that begins first counts.
    end = min(ends, default=len(text))
    cut = min([text[:end].find(s) for s in stops if s in text[:end]], default=len(text))
    assert "".join(parts) == pieces.text == text[:cut]


def draws(logits, count, **settings):
    sampling = Sampling(**({"temperature": 1.0, "top_p": 1.0} | settings), generator=seeded(0))
    return [sampling.draw(logits) for _ in range(count)]


def seeded(seed):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_tokens_are_drawn_by_their_shares(temperature):
    logits = torch.tensor([0.0, 2.0, 1.0, -30.0])
    found = torch.tensor(draws(logits, 3000, temperature=temperature)).bincount(minlength=4) / 3000
    expected = [2.718281828 ** (x / temperature) for x in logits.tolist()]
    expected = torch.tensor([x / sum(expected) for x in expected])
    torch.testing.assert_close(found, expected, atol=0.03, rtol=0)


def test_top_p_leaves_the_likeliest_tokens_that_reach_it():
    logits = torch.tensor([0.1, 0.5, 0.3, 0.1]).log()
    assert {*draws(logits, 200, top_p=0.5)} == {1}
    assert {*draws(logits, 200, top_p=0.51)} == {1, 2}
    assert {*draws(logits, 200)} == {0, 1, 2, 3}


def test_a_tiny_temperature_and_a_tiny_top_p_are_greedy():
    logits = torch.tensor([1.0, float("-inf"), 700.0, 699.0])
    assert {*draws(logits, 50, temperature=1e-12)} == {*draws(logits, 50, top_p=1e-12)} == {2}
