"""Faults on purpose: read as written, drawn alike every time, and never more than a failure."""

import math
import os
import signal
import sys
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from uploads import LAYOUT, counts_of, deltas_of, task_for, update_of

from fedmoe.config.faults import Faults, parse_faults
from fedmoe.errors import ConfigError, WireError
from fedmoe.messages.codec import pack_update, unpack_update
from fedmoe.messages.compression import Bf16, Int4, NoCompression
from fedmoe.messages.records import Failure, Update
from fedmoe.runs.injection import Faulty, ServerKiller, flipped
from fedmoe.runs.local.pool import Pool

ALL = "drop=.1,slow=3x,corrupt=.01,nan=.02,kill-client=.05,kill-server@3"


def prepared(upload=None, seed=0):
    """A run as far as its door: what is read is checked as in any run."""
    upload = upload or NoCompression()

    def read(message, task):
        return unpack_update(message, LAYOUT, task, upload)

    experiment = SimpleNamespace(seed=seed, upload=upload, devices={"t": None})
    return SimpleNamespace(setup=SimpleNamespace(experiment=experiment), read=read)


def update_at(round, client):
    return update_of(deltas_of(3), counts_of([[0, 1, 2], [1, 3]]), round=round, client=client)


def tasks_at(round, num_clients):
    return [task_for(update_at(round, client)) for client in range(num_clients)]


class Honest:
    """Workers on which nothing goes wrong, which record whom they were asked for, and their end."""

    def __init__(self):
        self.asked, self.ended, self.lost = [], 0, 0

    def lose_worker(self):
        self.lost += 1

    def __call__(self, tasks):
        for task in tasks:
            self.asked.append(task.client)
            yield update_at(task.round, task.client)
        self.ended += 1


def carried_out(faults, *, rounds=1, clients=40, upload=None, seed=0):
    """Answers, what was told, and the transport."""
    told, transport = [], Honest()
    watch = SimpleNamespace(injected=told.append)
    faulty = Faulty(cast(Any, transport), faults, prepared(upload, seed), [cast(Any, watch)])
    answers = [list(faulty(tasks_at(r, clients))) for r in range(1, rounds + 1)]
    return [a for per_round in answers for a in per_round], told, transport


def test_all_faults_are_read_as_they_are_written():
    assert parse_faults(ALL) == Faults(
        drop=0.1, slow=3.0, corrupt=0.01, nan=0.02, kill_client=0.05, kill_server=3
    )
    assert parse_faults("slow=1.5x@.25") == Faults(slow=1.5, slow_share=0.25)
    assert parse_faults(" drop=1 , nan=0.5 ") == Faults(drop=1.0, nan=0.5)
    assert parse_faults("") == Faults()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("dorp=.1", "did you mean 'drop'"),
        ("drop", "a probability"),
        ("drop=", "a probability"),
        ("drop=2", "from 0 to 1"),
        ("drop=-.1", "a probability"),
        ("nan=nan", "a probability"),
        ("drop=1e-3", "a probability"),
        ("slow=3", "3x"),
        ("slow=.5x", "1 or more"),
        ("slow=2x@3", "share"),
        ("slow=x", "factor"),
        ("kill-server=3", "kill-server@N"),
        ("kill-server@0", "kill-server@N"),
        ("kill-client@3", "a probability"),
        ("drop=.1,drop=.2", "twice"),
        ("=", "is not one of"),
        ("drop=\u0663", "a probability"),
    ],
)
def test_a_fault_in_the_faults_is_said_with_what_is_allowed(text, words):
    with pytest.raises(ConfigError, match="--faults: 1 fault") as caught:
        parse_faults(text)
    assert words in str(caught.value)


def test_all_that_is_wrong_is_said_at_once():
    with pytest.raises(ConfigError) as caught:
        parse_faults("dorp=.1,slow=3,nan=.5,kill-server@x")
    assert [fault.path for fault in caught.value.faults] == ["dorp=.1", "slow=3", "kill-server@x"]


def test_the_same_seed_strikes_the_same_clients_and_another_seed_others():
    faults = parse_faults("drop=.3,corrupt=.3,nan=.2,kill-client=.2,slow=2x@.5")
    places = [(r, c) for r in range(1, 9) for c in range(40)]
    first, again, other = ([faults.of(s, *place) for place in places] for s in (0, 0, 1))
    assert first == again
    assert first != other
    told = [carried_out(faults, clients=12)[1] for _ in range(2)]
    assert told[0] == told[1]
    assert told[0]


def test_one_rate_changes_nothing_about_the_others():
    alone, beside = parse_faults("corrupt=.3"), parse_faults("corrupt=.3,nan=.9,slow=2x@.5")
    for client in range(300):
        hit = "corrupt" in alone.of(0, 1, client)
        assert hit == ("corrupt" in beside.of(0, 1, client))


@pytest.mark.parametrize("name", ["drop", "corrupt", "nan", "kill-client"])
def test_rates_come_true_over_many_draws(name):
    """4,000 draws at 0.2: five standard deviations are 0.032."""
    faults, n = parse_faults(f"{name}=.2"), 4000
    hits = sum(faults.of(7, r, c) == (name,) for r in range(40) for c in range(100))
    assert abs(hits / n - 0.2) < 5 * math.sqrt(0.2 * 0.8 / n)
    assert all(parse_faults(f"{name}=0").of(7, 1, c) == () for c in range(100))
    assert all(parse_faults(f"{name}=1").of(7, 1, c) == (name,) for c in range(100))


def test_without_faults_every_update_passes_untouched():
    answers, told, transport = carried_out(Faults(), clients=5)
    assert [a.client for a in answers] == [0, 1, 2, 3, 4]
    assert all(isinstance(a, Update) for a in answers)
    assert (told, transport.ended) == ([], 1)


def test_dropped_and_killed_clients_fail_in_their_places_and_the_killed_are_never_asked():
    faults = parse_faults("drop=.3,kill-client=.3")
    answers, told, transport = carried_out(faults)
    assert [a.client for a in answers] == [*range(40)]
    by_reason = {}
    for a in answers:
        if isinstance(a, Failure):
            by_reason.setdefault(a.reason, []).append(a.client)
    killed, dropped = by_reason["killed by --faults"], by_reason["dropped by --faults"]
    assert transport.asked == [c for c in range(40) if c not in killed]
    assert transport.ended == 1, "what a transport does after its last answer"
    assert transport.lost == len(killed)
    assert [(t.fault, t.client) for t in told] == sorted(
        [("kill-client", c) for c in killed] + [("drop", c) for c in dropped], key=lambda p: p[1]
    )


def test_a_slow_client_loses_virtual_time_and_nothing_else():
    faults = parse_faults("slow=3x@.5")
    answers, told, _ = carried_out(faults)
    plain, _, _ = carried_out(Faults())
    for slow, fast in zip(answers, plain, strict=True):
        assert slow.seconds == fast.seconds
        assert torch.equal(slow.delta.flat, fast.delta.flat)
    factors = [faults.slowdown(0, 1, c) for c in range(40)]
    assert set(factors) == {1.0, 3.0}
    assert [t.client for t in told] == [c for c in range(40) if factors[c] == 3.0]
    assert parse_faults("slow=3x").slowdown(0, 1, 5) == 3.0


@pytest.mark.parametrize("upload", [NoCompression(), Bf16(), Int4()], ids=lambda u: u.name)
def test_a_nan_is_refused_at_the_door(upload):
    answers, told, _ = carried_out(parse_faults("nan=1"), clients=6, upload=upload)
    assert [(a.client, a.code) for a in answers] == [(c, "not_finite") for c in range(6)]
    assert [t.outcome for t in told] == ["refused"] * 6


@pytest.mark.parametrize("upload", [NoCompression(), Bf16(), Int4()], ids=lambda u: u.name)
def test_a_damaged_message_is_refused_whatever_was_flipped(upload):
    answers, told, _ = carried_out(parse_faults("corrupt=1"), rounds=10, clients=20, upload=upload)
    assert {a.code for a in answers} == {"damaged"}
    assert [t.outcome for t in told] == ["refused"] * 200


@pytest.mark.parametrize("upload", [NoCompression(), Bf16(), Int4()], ids=lambda u: u.name)
def test_without_a_checksum_damage_may_be_believed_but_never_crashes(upload):
    rng, run, refused = np.random.default_rng(0), prepared(upload), 0
    for client in range(200):
        update = update_at(1, client)
        try:
            read = run.read(flipped(pack_update(update, upload), rng), task_for(update))
        except WireError:
            refused += 1
        else:
            assert read.delta.flat.isfinite().all()
    assert 0 < refused < 200, "a flipped byte of a value may be a value"


def test_a_server_dies_after_its_round_as_in_a_power_cut():
    killer, (reader, writer) = ServerKiller(Faults(kill_server=3)), os.pipe()
    if (child := os.fork()) == 0:
        for number in (1, 2, 3, 4):
            killer.finished(SimpleNamespace(round=number))
            os.write(writer, b"%d" % number)
        os._exit(0)
    os.close(writer)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    assert os.read(reader, 9) == b"12"
    os.close(reader)


def doubled(_, number):
    """A job for a worker."""
    return 2 * number


@pytest.mark.skipif(sys.platform != "linux", reason="workers are forked")
def test_a_worker_that_is_killed_on_purpose_is_replaced_and_its_job_done_again(tmp_path):
    told = []
    watch = SimpleNamespace(replaced=told.append, scheduled=told.append)
    pool = Pool(cast(Any, None), cast(Any, None), 2, folder=tmp_path, watches=[cast(Any, watch)])
    try:
        pool.lose_worker()
        assert list(pool.map(doubled, range(5))) == [0, 2, 4, 6, 8]
    finally:
        pool.close()
    assert [event.ended_by for event in told] == ["SIGKILL"]
