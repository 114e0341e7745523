"""What a client claims is held against what the server knows: one liar's share stays its own."""

import json
import re
from dataclasses import replace

import pytest
import torch
from sides import changed

from fedmoe.adapter import Adapter
from fedmoe.config import load_experiment
from fedmoe.errors import ConfigError, WireError
from fedmoe.messages.codec import pack_update
from fedmoe.messages.records import Failure, Update
from fedmoe.rounds import plan_round
from fedmoe.runs.local.answers import read
from fedmoe.runs.prepare import prepare
from fedmoe.runs.roster import Roster

LONG = 10**6


@pytest.fixture(scope="module")
def experiment_of(tmp_path_factory, tiny_folder):
    """A function from overrides to a small experiment, whose rows are shared out or brought."""
    home = tmp_path_factory.mktemp("claims")
    rows = [{"prompt": f"what is {n} plus 1", "response": f"{n + 1}"} for n in range(60)]
    (home / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    for name, part in (("a", rows[:30]), ("b", rows[30:])):
        (home / "own").mkdir(exist_ok=True)
        (home / "own" / f"{name}.jsonl").write_text("\n".join(map(json.dumps, part)))
    (home / "claims.yaml").write_text(
        f"""\
name: claims
rounds: 6
model: {{path: {tiny_folder}}}
adapter: {{rank: 4, alpha: 8.0}}
text: {{max_length: 32}}
budget: {{tiers: {{high: {{top_k: 4}}, low: {{top_k: 1}}}}}}
training: {{steps: 3, batch_size: 4, probe_examples: 4}}
"""
    )
    pooled = [f"data={{name: files, path: {home / 'rows.jsonl'}}}"]
    pooled += ["partition={name: iid, num_clients: 4}"]
    own = [f"data={{name: federated, path: {home / 'own'}}}"]
    return lambda *overrides, federated=False: load_experiment(
        home / "claims.yaml", [*(own if federated else pooled), *overrides]
    )


@pytest.fixture(scope="module")
def pooled(experiment_of):
    """The run, a task of round 6, and the honest update that answers it."""
    return asked(prepare(experiment_of()), 6)


def asked(run, number, **changes):
    state = replace(run.server.first_state(), round=number - 1)
    task = plan_round(state, run.server.members, 1, 0, run.server.send_to)[0]
    return run, task, run.client.train(task)


def said(run, task, update, **changes):
    """What becomes of the update with other numbers: it, or the failure that it is."""
    return read(run.server, pack_update(replace(update, **changes)), task)


def test_an_honest_update_is_taken(pooled):
    assert isinstance(said(*pooled), Update)


LIES = {
    "a million examples": ({"examples": 10**6}, "examples", "expected at most 1. .its part of"),
    "one example more": ({"examples": ...}, "examples", "its part of the partition"),
    "steps by the trillion": ({"steps": 2**40}, "scalars", "expected 3 for .*training.steps"),
    "fewer steps": ({"steps": 2}, "scalars", "2 steps; expected 3"),
    "a loss that no plot can show": ({"loss_before": 1.7e308}, "scalars", "-1000000 to 1000000"),
    "a loss after": ({"loss_after": -1.1e6}, "scalars", "-1000000 to 1000000"),
    "endless seconds": ({"seconds": 1.7e308}, "scalars", "0 to 1000000000"),
    "an own metric": ({"metrics": {"m": 1.7e308}}, "scalars", "up to 1e\\+12"),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_claim_beyond_what_is_known_is_refused(pooled, lie):
    change, code, why = LIES[lie]
    if change == {"examples": ...}:
        change = {"examples": pooled[2].examples + 1}
    heard = said(*pooled, **change)
    assert isinstance(heard, Failure)
    assert heard.code == code
    assert re.search(why, heard.reason)


def test_tokens_are_no_more_than_the_steps_hold(pooled):
    run, task, update = pooled
    most = 3 * 4 * 32
    assert update.tokens <= most
    counts = torch.zeros_like(update.counts)
    counts[:, : task.top_k] = most
    whole = Adapter(update.delta.layout, torch.zeros_like(update.delta.flat))
    full = replace(update, tokens=most, counts=counts, delta=whole)
    assert isinstance(said(run, task, full), Update)
    counts = counts.clone()
    counts[:, : task.top_k] = 2**50
    heard = said(run, task, full, tokens=2**50, counts=counts)
    assert isinstance(heard, Failure)
    assert "1125899906842624 tokens; expected at most 384" in heard.reason


@pytest.mark.parametrize("number", [1, 6])
@pytest.mark.parametrize("how", ["flip", "sign"])
def test_no_lie_moves_more_than_a_few_honest_updates(pooled, number, how):
    """The attack of one client that turns its update round and scales it to the bound."""
    run, task, update = asked(pooled[0], number)
    flat = update.delta.flat
    turned = -flat / flat.abs().max() if how == "flip" else -flat.sign()
    steps = run.setup.training
    before = 10 * replace(steps, warmup_steps=0).reach()  # the bound that let the score fall to 0
    for size, taken in ((before, False), (5 * flat.norm() / turned.norm(), False), (1e-6, True)):
        lie = Adapter(update.delta.layout, turned * size)
        assert isinstance(said(run, task, update, delta=lie), Update) == taken, size


def test_a_text_from_outside_is_quoted_short(pooled):
    run, task, update = pooled
    message = pack_update(update)
    scalars = json.loads(message.scalars)
    changes = [{n: "x" * LONG} for n in scalars]
    changes += [{"x" * LONG: 1}, {"metrics": {"x" * LONG: 1}}, {"rows": {"x" * LONG: 1}}]
    changes += [{n: 10**4000} for n in scalars]
    for change in changes:
        try:
            lie = replace(message, scalars=json.dumps(scalars | change))
        except ValueError:  # Python writes no longer number
            continue
        heard = read(run.server, lie, task)
        assert isinstance(heard, Failure), change
        assert len(heard.reason) <= 500
    assert len(str(WireError("x" * LONG))) == len(Failure(1, 0, "y" * LONG).reason) == 500
    assert Failure(1, 0, "a\x1b[2J\u202eb\ud800").reason == "a?[2J?b?"


def test_a_client_with_rows_of_its_own_may_not_outgrow_its_first_claim(experiment_of, tmp_path):
    e = experiment_of(federated=True)
    run = changed(prepare(e), state_folder=tmp_path)
    roster = Roster(run.setup)
    roster.meet(1, lambda wanted, least, seconds: ["a", "b"])
    run = replace(run, server=replace(run.server, members=roster))
    _, task, update = asked(run, 1)
    n = update.examples
    assert isinstance(said(run, task, update, examples=n + 5), Update)  # nobody knows better yet
    roster.heard(task.client, n)
    assert isinstance(said(run, task, update), Update)
    heard = said(run, task, update, examples=n + 1)
    assert isinstance(heard, Failure)
    assert heard.code == "examples"
    assert f"expected at most {n} (after {n} in its first update" in heard.reason
    assert "admission.most_growth" in heard.reason
    wide = replace(e, admission=replace(e.admission, most_growth=1.5))
    roster.setup = replace(roster.setup, experiment=wide)
    assert isinstance(said(run, task, update, examples=int(1.5 * n)), Update)
    assert isinstance(said(run, task, update, examples=int(1.5 * n) + 1), Failure)


def test_what_a_client_said_is_known_after_a_resume_until_it_joins_again(experiment_of):
    setup = prepare(experiment_of("membership.most_absent=0", federated=True)).setup

    def line(number, joined=(), left=()):
        joined = [{"client": c, "name": "ab"[c], "tier": "low"} for c in joined]
        return {"kind": "roster", "round": number, "absent": [], "joined": joined, "left": [*left]}

    def update(number, client, examples):
        of = {"round": number, "client": client, "examples": examples}
        return {"kind": "client", "status": "ok"} | of

    records = [line(1, joined=(0, 1)), update(1, 0, 20), update(1, 1, 7)]
    records += [line(2, left=[0]), update(2, 1, 6), line(3, joined=[0]), update(3, 0, 50)]
    for rounds, known in ((1, {0: 20, 1: 7}), (2, {0: 20, 1: 7}), (3, {0: 50, 1: 7})):
        roster = Roster(setup, records)
        roster.skip(rounds)
        assert roster.said == known


def test_growth_is_for_clients_with_rows_of_their_own(experiment_of):
    with pytest.raises(ConfigError, match=r"admission\.most_growth.*rows of their own"):
        experiment_of("admission.most_growth=2")
