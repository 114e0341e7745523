"""Metrics of clients' own cross the wire, or are refused with the reason."""

import math
import re
import sys
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_wire import LAYOUT, received, update_of, values, with_scalars

from fedmoe.errors import WireError
from fedmoe.messages.codec import LOSSLESS, MOST_METRIC_BYTES, most_bytes, pack_update
from fedmoe.messages.records import METRIC_NAME, MOST_METRICS


def test_own_metrics_cost_nothing_where_there_are_none_and_at_most_what_is_said():
    plain = pack_update(update_of())
    assert "metrics" not in plain.scalars
    largest = most_bytes(LAYOUT, LAYOUT, LOSSLESS)[1]
    assert plain.num_bytes <= largest
    for number in (1, MOST_METRICS):
        own = {f"m{i:0>39}": -sys.float_info.min * (1 + 2**-52) for i in range(number)}
        message = pack_update(update_of(metrics=own))
        assert received(message).metrics == own
        assert message.num_bytes <= plain.num_bytes + number * MOST_METRIC_BYTES
        assert message.num_bytes <= largest + number * MOST_METRIC_BYTES


OWN_REFUSED = [
    ({f"m{i}": 1.0 for i in range(MOST_METRICS + 1)}, "metrics are 17; expected at most 16"),
    ({"m" * 41: 1.0}, "a metric is called 'mmm"),
    ({"m" * 10**5: 1.0}, "a metric is called 'mmm"),
    ({"": 1.0}, "a metric is called ''"),
    ({"1st": 1.0}, "a metric is called '1st'"),
    ({"é": 1.0}, "a metric is called 'é'"),
    ({"a b": 1.0}, "a metric is called 'a b'"),
    ({"a\n": 1.0}, "a metric is called"),
    ({"m": math.nan}, "metric m is nan; expected a number up to 1e\\+12 in size"),
    ({"m": -math.inf}, "metric m is -inf"),
    ({"m": 10**400}, "metric m is 1000"),
    ({"m": 2**53}, "metric m is 9007199254740992"),
    ({"m": -1.1e12}, "metric m is -1100000000000"),
    ({"m": True}, "metric m is True"),
    ({"m": None}, "metric m is None"),
    ({"m": "1"}, "metric m is '1'"),
    ({"m": {"n": 1.0}}, "metric m is {'n'"),
    ({"m": [1.0]}, "metric m is "),
    ([["m", 1.0]], "metrics are list"),
    (None, "metrics are NoneType"),
    ("m", "metrics are str"),
]


@pytest.mark.parametrize(("own", "reason"), OWN_REFUSED, ids=lambda v: repr(v)[:12])
def test_metrics_that_are_no_few_finite_numbers_by_name_are_refused(own, reason):
    with pytest.raises(WireError, match=reason) as caught:
        received(with_scalars(pack_update(update_of()), metrics=own))
    assert caught.value.code == "scalars"
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize(
    ("old", "new"), [('"m": 1.0', '"m": 1.0, "m": 2.0'), ('"steps": 4', '"steps": 4, "steps": 5')]
)
def test_a_name_that_is_there_twice_is_refused(old, new):
    message = pack_update(update_of(metrics={"m": 1.0}))
    with pytest.raises(WireError, match="two values of one name") as caught:
        received(replace(message, scalars=message.scalars.replace(old, new)))
    assert caught.value.code == "scalars"


@given(st.dictionaries(st.from_regex(METRIC_NAME) | st.text(max_size=50), values, max_size=20))
def test_any_metrics_are_refused_or_few_finite_numbers_by_name(own):
    try:
        found = received(with_scalars(pack_update(update_of()), metrics=own)).metrics
    except WireError:
        return
    assert found == own
    assert len(found) <= MOST_METRICS
    for name, value in found.items():
        assert re.fullmatch(r"[A-Za-z][A-Za-z0-9_.-]{0,39}", name)
        assert type(value) is float
        assert math.isfinite(value)
