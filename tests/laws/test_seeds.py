"""Laws of the random streams: named, repeatable, apart, and without any global state."""

import random

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedmoe.seeds import derive, generator, numpy_rng

paths = st.lists(st.integers() | st.text(), max_size=4).map(tuple)


@given(st.integers(), paths, st.integers(), paths)
def test_two_names_share_a_seed_only_if_they_are_the_same_name(seed, path, other_seed, other):
    same_name = (seed, path) == (other_seed, other)
    assert (derive(seed, *path) == derive(other_seed, *other)) == same_name


@pytest.mark.parametrize(
    ("one", "other"),
    [((1,), ("1",)), (("ab", "c"), ("a", "bc")), (("a", ""), ("a",)), (("a,b",), ("a", "b"))],
)
def test_names_that_print_alike_are_apart(one, other):
    assert derive(0, *one) != derive(0, *other)


@given(st.integers(), paths)
def test_a_seed_has_63_bits(seed, path):
    assert 0 <= derive(seed, *path) < 2**63


@pytest.mark.parametrize("part", [True, 1.0, None, b"a", np.int64(1)])
def test_a_part_that_is_no_int_or_text_is_our_mistake(part):
    with pytest.raises(AssertionError):
        derive(0, part)


def test_the_same_name_gives_the_same_stream():
    name = (7, "round", 3, "client", 7)
    one, again = (torch.rand(8, generator=generator(*name)) for _ in range(2))
    assert torch.equal(one, again)
    assert np.array_equal(numpy_rng(*name).random(8), numpy_rng(*name).random(8))


def test_different_names_give_different_streams():
    torch_streams = [torch.rand(8, generator=generator(7, "client", c)) for c in range(50)]
    numpy_streams = [torch.from_numpy(numpy_rng(7, "client", c).random(8)) for c in range(50)]
    for streams in (torch_streams, numpy_streams):
        assert len({tuple(stream.tolist()) for stream in streams}) == 50


def test_streams_are_uncorrelated():
    draws = np.stack([numpy_rng(0, "client", c).standard_normal(4000) for c in range(20)])
    draws_torch = torch.stack([torch.randn(4000, generator=generator(0, c)) for c in range(20)])
    for sample in (draws, draws_torch.numpy()):
        off_diagonal = np.corrcoef(sample) - np.eye(20)
        assert np.abs(off_diagonal).max() < 5 / np.sqrt(4000)


def test_another_process_on_another_machine_derives_the_same_seed():
    """`printf '[1, "round", 2]' | sha256sum`, of which the last 16 digits count but for a bit."""
    assert derive(1, "round", 2) == 0xD2E97F7FFAF905


def global_states():
    numpy_state = np.random.get_state(legacy=False)["state"]["key"].tolist()
    return torch.get_rng_state().tolist(), numpy_state, random.getstate()


def test_global_random_state_is_neither_read_nor_moved():
    before = global_states()
    first = derive(1, "a"), generator(1, "a").initial_seed(), numpy_rng(1, "a").random()
    torch.rand(1, generator=generator(1, "a"))
    assert global_states() == before
    with torch.random.fork_rng():
        torch.manual_seed(99)
        assert (
            derive(1, "a"),
            generator(1, "a").initial_seed(),
            numpy_rng(1, "a").random(),
        ) == first
