"""Laws of plans: the largest k is chosen, more room never lowers it, and each step is said."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from shapes import SHAPE

from fedmoe.budget.calibrate import calibrated, settings_to_measure
from fedmoe.budget.measure import Sample, measure_in_turns
from fedmoe.budget.model import Constants, memory, step_flops, step_seconds
from fedmoe.budget.plan import options, plan_for, subsets
from fedmoe.budget.probe import Link, Machine
from fedmoe.budget.shape import Setting
from fedmoe.budget.work import Work

WORK = Work(10, 8, 1, False, 4, 64, 16, 32, 8, bytes_down=10**6, bytes_up=10**6)
CONSTANTS = Constants(fixed_bytes=4e7, slack=12.0, seconds_per_flop=3e-11, seconds_per_step=0.01)
ROOM = Machine("m", 10**10, 10**10, False, 1, link=Link(1e6, 0.5e6, 0.1))


def plan(free=10**10, work=WORK, **how):
    return plan_for(SHAPE, work, replace(ROOM, free_bytes=free), CONSTANTS, **how)


def ways():
    """Every way to save memory with every micro-batch, in the order in which they are tried."""
    batches = [WORK, *WORK.smaller()]
    subsets_ = [dict(frozen="int4", subset=s) for s in subsets(SHAPE, ("merge", "drop"))]
    recomputing = [{}, dict(frozen="int8"), dict(frozen="int4"), *subsets_, dict(offload=True)]
    return [*batches, *(replace(b, recompute=True, **how) for how in recomputing for b in batches)]


WAYS = ways()
OPTIONS = [options(SHAPE, work, ROOM, CONSTANTS) for work in WAYS]


def need(k, work=WORK):
    return memory(SHAPE, work.setting(k, longest=True), CONSTANTS).total


@given(st.integers(10**7, 10**9), st.floats(1, 20) | st.none())
def test_the_choice_fits_and_one_more_would_not(free, deadline):
    made = plan(free, deadline_seconds=deadline)
    if made.choice is None:
        return
    assert made.choice.memory.total <= 0.9 * free
    assert deadline is None or made.choice.seconds <= deadline
    if made.top_k < SHAPE.top_k:
        more = made.options[made.top_k]
        assert more.memory.total > 0.9 * free or more.seconds > (deadline or more.seconds)


@settings(max_examples=40)
@given(
    st.integers(10**7, 2 * 10**8),
    st.integers(0, 10**8),
    st.floats(3.1, 6) | st.none(),
    st.integers(1, 4),
)
def test_more_room_never_lowers_k_nor_asks_for_more_saving_at_the_same_k(free, more, seconds, most):
    small, large = (
        plan(room, deadline_seconds=seconds, most_top_k=most) for room in (free, free + more)
    )
    assert large.top_k >= small.top_k
    if small.top_k == large.top_k and small.choice:
        assert WAYS.index(large.choice.work) <= WAYS.index(small.choice.work)


@settings(max_examples=40)
@given(st.integers(10**7, 2 * 10**8), st.floats(3.1, 6) | st.none())
def test_the_choice_is_the_best_of_all_pairs_of_k_and_micro_batch(free, deadline):
    """By brute force: k first, then the way that comes first, and so the larger micro-batch."""
    fits = [
        (option.top_k, -way)
        for way in range(len(WAYS))
        for option in OPTIONS[way]
        if option.memory.total <= 0.9 * free and (deadline is None or option.seconds <= deadline)
    ]
    choice = plan(free, deadline_seconds=deadline).choice
    found = (choice.top_k, -WAYS.index(choice.work)) if choice else None
    assert found == max(fits, default=None)


def test_a_smaller_micro_batch_costs_time_and_is_not_used_against_a_deadline():
    free = round(need(2) / 0.9) + 1
    slow = replace(CONSTANTS, seconds_per_step=0.1)  # a micro-batch takes that however small
    machine = replace(ROOM, free_bytes=free)
    seconds = [o.seconds for o in options(SHAPE, WORK, machine, slow)]
    roomy = plan_for(SHAPE, WORK, machine, slow)
    assert (roomy.top_k, roomy.choice.work) == (4, WORK.with_batch(4))
    tight = plan_for(SHAPE, WORK, machine, slow, deadline_seconds=seconds[2])
    assert (tight.top_k, tight.choice.work) == (2, WORK)
    assert tight.reasons[-2] == "Nothing that saves more memory allows a larger k."


def test_just_enough_memory_for_two_is_two_where_nothing_else_may_change():
    free = round(need(2) / 0.9) + 1
    made = plan(free, settled=True)
    assert (made.top_k, made.choice.work) == (2, WORK)
    assert "k = 3 would need" in made.reasons[-1]
    assert plan(free - 2, settled=True).top_k == 1


def test_the_ladder_goes_by_micro_batch_then_recomputation_and_says_each_step():
    single = WORK.with_batch(1)
    assert (single.batch_size, single.accumulation) == (1, 8)
    made = plan(round(need(4, WORK.with_batch(4)) / 0.9) + 1)
    assert (made.choice.work.batch_size, made.choice.work.accumulation) == (4, 2)
    assert not made.choice.work.recompute
    assert made.top_k == 4
    assert "k = 1" in made.reasons[0]
    assert "smaller micro-batch" in made.reasons[1]
    barely = round(need(4, replace(single, recompute=True)) / 0.9) + 1
    assert barely < need(4, single) / 0.9
    made = plan(barely)
    assert made.choice.work.recompute
    assert any("Recomputation" in reason for reason in made.reasons)


def test_then_by_int8_by_4_bits_by_offload_and_only_then_it_sits_out():
    last = replace(WORK.with_batch(1), recompute=True)
    rungs = [
        last,
        *(replace(last, frozen=f) for f in ("int8", "int4")),
        replace(last, offload=True),
    ]
    needs = [need(4, rung) for rung in rungs]
    assert needs == sorted(needs, reverse=True)
    for rung, needed in zip(rungs, needs, strict=True):
        assert plan(round(needed / 0.9) + 2).choice.work == rung
        assert getattr(plan(round(needed / 0.9) - 2).choice, "work", None) != rung or rung.offload
    made = plan(round(need(1, rungs[-1]) / 0.9) - 2)
    assert (made.top_k, made.choice) == (0, None)
    said = [
        next(i for i, reason in enumerate(made.reasons) if reason.startswith(words))
        for words in (
            "With k = 1",
            "A smaller",
            "Recomputation",
            "Frozen experts in int8, 0.01 GB",
            "Frozen experts in 4 bits",
            "Offload",
            "It sits out",
        )
    ]
    assert said == sorted(said)
    assert "0.03 GB in place" not in made.reasons[said[3]]  # of 25 MB, int8 keeps 6.5


def test_a_smaller_form_takes_its_own_bytes_and_its_own_time():
    experts = SHAPE.num_layers * SHAPE.num_experts * 3 * SHAPE.hidden * SHAPE.width
    rows = SHAPE.num_layers * SHAPE.num_experts * (2 * SHAPE.width + SHAPE.hidden)
    groups = experts // 64
    sizes = {"full": 4 * experts, "int8": experts + 4 * rows, "int4": experts // 2 + 4 * groups}
    constants = replace(CONSTANTS, seconds_per_restored={"int8": 1e-9, "int4": 3e-9})
    setting = Setting(4, 8, 64, 16)
    plain = step_seconds(SHAPE, setting, constants)
    for frozen, size in sizes.items():
        assert SHAPE.experts_bytes(frozen) == size
        smaller = replace(setting, frozen=frozen)
        weights = memory(SHAPE, smaller, constants).weights
        assert weights == SHAPE.weight_bytes - sizes["full"] + size
        # With 2,048 choices every expert is met, forward and backward.
        each = {"full": 0, "int8": 1e-9, "int4": 3e-9}[frozen]
        seconds = plain + each * 2 * experts
        assert step_seconds(SHAPE, smaller, constants) == pytest.approx(seconds)
    away = replace(setting, offload=True, recompute=True)
    assert memory(SHAPE, away, constants).weights == SHAPE.weight_bytes - sizes["full"]
    slow = replace(constants, seconds_per_offloaded_byte=1e-9)
    more = step_seconds(SHAPE, away, slow) - step_seconds(SHAPE, away, constants)
    assert more == pytest.approx(1e-9 * 4 * experts * (2 + 2 / 3))


def test_what_4_bits_cannot_keep_is_left_out_of_the_ladder():
    odd = replace(SHAPE, width=100)
    made = plan_for(odd, WORK, replace(ROOM, free_bytes=10**6), CONSTANTS)
    text = " ".join(made.reasons)
    assert "int8" in text
    assert "4 bits" not in text


def test_a_deadline_counts_computing_and_both_messages():
    seconds = [o.seconds for o in options(SHAPE, WORK, ROOM, CONSTANTS)]
    assert seconds == sorted(seconds)
    assert options(SHAPE, WORK, ROOM, CONSTANTS)[0].link_seconds == pytest.approx(0.1 + 1 + 2)
    made = plan(deadline_seconds=(seconds[1] + seconds[2]) / 2)
    assert made.top_k == 2
    assert "over the deadline" in made.reasons[-1]
    slow = plan(work=replace(WORK, bytes_up=10**9), deadline_seconds=seconds[3])
    assert slow.top_k == 0
    assert "for messages" in slow.reasons[-1]


def test_loaded_weights_are_not_paid_twice_and_a_tier_may_cap_k():
    free = round((need(4) - SHAPE.weight_bytes) / 0.9) + 1
    assert plan(free, loaded=True).top_k == 4
    assert plan(free).top_k < 4 or plan(free).choice.work != WORK
    assert plan(most_top_k=3).top_k == 3


@given(
    st.floats(0, 1e9), st.floats(0, 30), st.floats(0, 1), st.floats(1e-14, 1e-9), st.integers(2, 32)
)
def test_calibration_finds_the_constants_that_made_the_samples(fixed, slack, each, rate, batch):
    truth = Constants(fixed, slack, rate, each)
    longest = Setting(4, batch, 64, 16)
    samples = []
    for s in settings_to_measure(longest, SHAPE.top_k):
        seconds = step_seconds(SHAPE, s, truth)
        peak = round(memory(SHAPE, s, truth).above_weights)
        samples.append(Sample(s, peak, seconds, seconds))
    found = calibrated(SHAPE, samples)
    for setting in (longest, Setting(2, 1, 32, 8, True)):
        right, guess = (memory(SHAPE, setting, c).total for c in (truth, found))
        assert guess == pytest.approx(right, rel=1e-3)
        right, guess = (step_seconds(SHAPE, setting, c) for c in (truth, found))
        assert guess == pytest.approx(right, rel=1e-3)


@given(st.integers(1, 4), st.integers(1, 16), st.integers(2, 128))
def test_memory_and_work_grow_with_everything_and_recomputing_trades_one_for_the_other(k, b, n):
    setting = Setting(k, b, n, n // 2)
    recomputing = replace(setting, recompute=True)
    for name in ("top_k", "batch_size", "length"):
        more = replace(setting, **{name: getattr(setting, name) + 1})
        assert need_of(more) > need_of(setting)
        assert step_flops(SHAPE, more) > step_flops(SHAPE, setting)
    assert need_of(recomputing) < need_of(setting)
    assert step_flops(SHAPE, recomputing) > step_flops(SHAPE, setting)


def need_of(setting):
    return memory(SHAPE, setting, CONSTANTS).total


def test_settings_are_measured_in_turns_and_the_medians_taken():
    calls, settings = [], [Setting(1, 1, 8, 1), Setting(2, 1, 8, 1)]

    def take(setting):
        calls.append(setting.top_k)
        turn = (len(calls) - 1) // 2
        return Sample(setting, (30, 10, 20)[turn] * setting.top_k, (3.0, 9.0, 4.0)[turn], turn)

    found = measure_in_turns(take, settings, turns=3)
    assert calls == [1, 2, 1, 2, 1, 2]
    assert [(s.setting, s.peak_bytes, s.seconds) for s in found] == [
        (settings[0], 20, 4.0),
        (settings[1], 40, 4.0),
    ]
    calls.clear()
    assert len(measure_in_turns(take, settings, turns=3, seconds=0.0)) == len(calls) == 2
