"""Masked sums over the grid: the clear sum of whoever stays, and lies refused on both sides."""

import json
from dataclasses import replace

import pytest
import torch
from fake_grid import FakeGrid, client_of
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, RecordDict
from sides import changed

import clients.masks
from clients.resident import carry_out
from clients.worker_frames import Order
from fedmoe.config import load_experiment
from fedmoe.config.components import for_nodes
from fedmoe.config.faults import parse_faults
from fedmoe.deploy.keys import node_keys
from fedmoe.errors import AggregationError, FedMoEError
from fedmoe.messages.codec import pack_task
from fedmoe.messages.records import Failure
from fedmoe.privacy.masks.identity import owner_of
from fedmoe.privacy.masks.party import Party
from fedmoe.privacy.masks.wire import Request, read_request
from fedmoe.rounds import finish_round, plan_round
from fedmoe.runs.hidden import sight_of
from fedmoe.runs.injection import Faulty
from fedmoe.runs.local.in_process import InProcess
from fedmoe.runs.masked import MaskedMean
from fedmoe.runs.prepare import prepare
from fedmoe.runs.vectors import bounds_of
from server.messages import read_update
from server.private import ErrorCode
from server.settings import Settings
from server.transport import GridTransport

pytestmark = pytest.mark.usefixtures("quick_digest", "undrawn")
BAD = 2
"""The client that is killed, or lies."""
STEPS = ("advertise", "share", "mask", "reveal")
PRIVATE = "privacy={epsilon: 30, delta: 1e-2, clip: 0.05, noise_multiplier: 1, sampling: known}"


@pytest.fixture(scope="module")
def prepared_of(tmp_path_factory, tiny_folder):
    """A function from overrides to a prepared run of five clients."""
    home = tmp_path_factory.mktemp("masked")
    rows = [
        {"prompt": f"what is {n} plus {n}", "response": f"{2 * n}", "site": f"site {n % 5}"}
        for n in range(40)
    ]
    (home / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (home / "masked.yaml").write_text(
        f"""\
rounds: 2
model: {{path: {tiny_folder}}}
adapter: {{rank: 2, alpha: 4.0}}
data: {{name: files, path: {home / "rows.jsonl"}, label: site}}
partition: {{name: natural, num_clients: 5}}
budget: {{tiers: {{high: {{top_k: 2}}, low: {{top_k: 1}}}}}}
aggregation: {{name: flame, temperature: 1}}
secure_aggregation: {{threshold: 0.51}}
training: {{steps: 1, batch_size: 2, probe_examples: 2}}
evaluation: {{every: 0, validation_examples: 2, test_examples: 2, max_new_tokens: 1}}
simulation: {{folder: {home / "runs"}}}
"""
    )
    return lambda *more: prepare(load_experiment(home / "masked.yaml", more), on_nodes=True)


@pytest.fixture(scope="module")
def prepared(prepared_of):
    return prepared_of()


@pytest.fixture(scope="module")
def clear(prepared):
    """A function from clients to the next state of their clear updates."""
    tasks, server = tasks_of(prepared), prepared.server
    updates = list(InProcess(server, prepared.scorer)(tasks))
    strategy = prepared.setup.experiment.aggregation

    def state(clients):
        some = [update for update in updates if update.client in clients]
        return finish_round(server.first_state(), strategy, some).adapter.flat

    return state


def tasks_of(prepared):
    server, seed = prepared.server, prepared.setup.experiment.seed
    return plan_round(server.first_state(), server.members, 5, seed)


def step_of(request):
    """The step that a request asks for; empty for the question who a node is."""
    masks = request.content["config"].get("masks")
    return read_request(masks).step if masks else ""


def played(prepared, spoil=lambda request, reply: reply, nodes=({},) * 5, grid=None, **settings):
    """The answers of a round of masked sums on nodes, and the next state."""
    grid = grid or FakeGrid(*nodes, spoil=spoil)
    transport = GridTransport(
        grid, prepared.server, prepared.scorer, Settings(**settings), grid.clock
    )
    sight = sight_of(prepared.server, transport, [], 0, lambda *_: None)
    mean = sight.transport
    assert isinstance(mean, MaskedMean)
    answers = list(mean(tasks_of(prepared)))
    updates = [answer for answer in answers if not isinstance(answer, Failure)]
    return answers, mean.combine(prepared.server.first_state().adapter, updates).flat


def on_bad(step, change):
    """Change the reply of one client at one step."""

    def spoil(request, reply):
        hit = client_of(request) == BAD and step_of(request) == step
        return change(reply) if hit else reply

    return spoil


def test_the_masked_adapter_is_the_clear_one_and_nothing_else_is_sent(prepared, clear):
    seen = []

    def look(request, reply):
        if step_of(request) == "mask":
            seen.append((reply["config"]["scalars"], [*reply["config"]], len(reply["arrays"])))
        return reply

    answers, state = played(prepared, look)
    torch.testing.assert_close(state, clear(range(5)), atol=1e-7, rtol=1e-6)
    assert seen == [("{}", ["scalars", "crc32", "nonce"], 1)] * 5
    assert all(not answer.counts.any() and answer.withheld for answer in answers)


@pytest.mark.parametrize("step", STEPS)
def test_one_client_is_killed_at_a_step(prepared, clear, step):
    """Its node has lost its keys and is asked nothing more; nobody repeats what it was to do."""
    asked = []

    def look(request, reply):
        asked.append((client_of(request), step_of(request)))
        return on_bad(step, lambda _: Error(ErrorCode.CLIENT_APP_CRASHED, "killed"))(request, reply)

    answers, state = played(prepared, look)
    stayed = [answer.client for answer in answers if not isinstance(answer, Failure)]
    assert stayed == [c for c in range(5) if step == "reveal" or c != BAD]
    torch.testing.assert_close(state, clear(stayed), atol=1e-7, rtol=1e-6)
    ask = {s: asked.count((BAD, s)) for s in STEPS}
    # Before there are keys, a task is repeatable as ever.
    expected = {s: 3 if s == step == "advertise" else 1 for s in STEPS[: STEPS.index(step) + 1]}
    assert {s: n for s, n in ask.items() if n} == expected


def test_a_node_that_leaves_in_the_middle_holds_nobody_up(prepared, clear):
    grid = FakeGrid(*[{"clients": str(c)} for c in range(5)])

    def leave(request, reply):
        if step_of(request) == "share" and client_of(request) == BAD:
            del grid.configs[100 + BAD]
            grid.clock.now += 3  # long enough to look who is there
        return reply

    grid.spoil = leave
    answers, state = played(prepared, grid=grid)
    assert "which alone has its keys for this round, has left" in answers[BAD].reason
    torch.testing.assert_close(state, clear({0, 1, 3, 4}), atol=1e-7, rtol=1e-6)
    assert grid.clock.now < 10


def test_a_node_that_was_restarted_has_no_keys(prepared, clear, monkeypatch):
    def forget(request, reply):
        if step_of(request) == "share" and client_of(request) == BAD:
            parties = clients.masks.parties_of
            monkeypatch.setattr(clients.masks, "parties_of", lambda *a: without(parties(*a)))
        return reply

    def without(parties):
        parties.parties.pop(BAD, None)
        return parties

    answers, state = played(prepared, forget)
    assert "client 2 has no keys for this step" in answers[BAD].reason
    torch.testing.assert_close(state, clear({0, 1, 3, 4}), atol=1e-7, rtol=1e-6)


def test_two_that_leave_are_too_many_and_the_reason_is_said(prepared):
    def spoil(request, reply):
        late = client_of(request) in (1, BAD) and step_of(request) == "reveal"
        return Error(2, "the cable was cut") if late else reply

    with pytest.raises(AggregationError, match=r"round 1: 2 of 3 shares.*cable was cut.*--resume"):
        played(prepared, spoil)

    def early(request, reply):
        return reply if client_of(request) in (None, 0, 1) else Error(2, "no power")

    with pytest.raises(FedMoEError, match=r"2 of 5 clients take part.*no power"):
        played(prepared, early)


def test_a_round_that_is_done_again_has_other_keys(prepared, clear):
    seen = []

    def spoil(request, reply):
        seen.append((step_of(request), reply["config"].get("scalars", "")))
        late = client_of(request) in (1, BAD) and step_of(request) == "reveal" and not again
        return Error(2, "the cable was cut") if late else reply

    again = False
    with pytest.raises(AggregationError):
        played(prepared, spoil)
    again = True
    _, state = played(prepared, spoil)
    torch.testing.assert_close(state, clear(range(5)), atol=1e-7, rtol=1e-6)
    keys = [json.loads(text)["masking"] for step, text in seen if step == "advertise"]
    assert len({*keys}) == 10


def test_injected_faults_strike_masked_clients(prepared, clear):
    faults = parse_faults("kill-client=.2,drop=.2")
    seed, struck = prepared.setup.experiment.seed, []
    for seed in range(100):
        struck = [client for client in range(5) if faults.of(seed, 1, client)]
        if len(struck) == 1:
            break
    server = changed(prepared, experiment=replace(prepared.setup.experiment, seed=seed)).server
    grid = FakeGrid(*({},) * 5)
    transport = GridTransport(grid, prepared.server, prepared.scorer, Settings(), grid.clock)
    faulty = Faulty(transport, faults, server)
    mean = sight_of(prepared.server, faulty, [], 0, lambda *_: None).transport
    answers = list(mean(tasks_of(prepared)))
    assert [answer.client for answer in answers if isinstance(answer, Failure)] == struck
    updates = [answer for answer in answers if not isinstance(answer, Failure)]
    state = mean.combine(prepared.server.first_state().adapter, updates).flat
    torch.testing.assert_close(state, clear({*range(5)} - {*struck}), atol=1e-7, rtol=1e-6)


def test_a_node_without_a_worker_has_nowhere_to_keep_keys(prepared):
    with pytest.raises(FedMoEError, match=r"0 of 5 clients.*worker_idle_seconds=0 leaves no"):
        played(prepared, nodes=({"worker_idle_seconds": "0"},) * 5)


def words(change):
    """Change the values of a reply's scalars."""

    def changed(reply):
        values = json.loads(reply["config"]["scalars"])
        change(values)
        return content(json.dumps(values), b"")

    return changed


def content(scalars, data):
    array = Array("uint8", (len(data),), "bytes", data)
    return RecordDict(
        {"config": ConfigRecord({"scalars": scalars}), "arrays": ArrayRecord({"buffer": array})}
    )


def vector_with(change):
    return lambda reply: change(bytes(read_update(reply).buffer))


LIES = [
    ("advertise", words(lambda v: v.update(sealing="00")), "expected 32 in hexadecimal"),
    ("advertise", words(lambda v: v.update(signer="a\n")), "a signer is"),
    ("share", words(lambda v: v.pop("0")), "3 shares; expected one for each of 4"),
    ("share", words(lambda v: v.update({"0": "00" * 75})), "expected 76 in hexadecimal"),
    ("share", words(lambda v: v.update({"٣": v.pop("3")})), "expected its number"),
    ("mask", vector_with(lambda data: content("{}", data[:-8])), "has no place in this round"),
    ("mask", vector_with(lambda data: content("{}", data[:-1])), "integers of 8 bytes"),
    ("mask", vector_with(lambda data: content('{"loss": 1}', data)), "nothing beside them"),
    ("reveal", words(lambda v: v["keys"].update(v["seeds"])), ""),
    ("reveal", words(lambda v: v["seeds"].pop("0")), ""),
]


@pytest.mark.parametrize(("step", "lie", "reason"), LIES)
def test_a_lie_at_a_step_is_refused_and_its_client_gone(prepared, clear, step, lie, reason):
    answers, state = played(prepared, on_bad(step, lie))
    gone = [answer for answer in answers if isinstance(answer, Failure)]
    assert [answer.client for answer in gone] == ([] if step == "reveal" else [BAD])
    assert all(reason in answer.reason for answer in gone), gone
    stayed = {0, 1, 3, 4, *([BAD] if step == "reveal" else [])}
    torch.testing.assert_close(state, clear(stayed), atol=1e-7, rtol=1e-6)


def order_of(prepared, task, **changes):
    packed = pack_task(task)
    experiment = for_nodes(prepared.setup.for_clients)
    order = Order(experiment, "", packed.scalars, None, [], "")
    return replace(order, **changes), memoryview(packed.buffer)


def mask_request(prepared, task, about="run|1|a", **changes):
    """What an honest server asks client 0 after the steps before; and client 0 made them."""
    bounds, _ = bounds_of(prepared.server, [task], 5, None)
    others = {c: Party(about.encode(), c, 3) for c in range(1, 5)}
    step = dict.fromkeys(("advertise", "share"))
    for name in step:
        adverts = {c: p.advertise() for c, p in others.items()}
        request = Request(name, about, adverts=adverts if name == "share" else {})
        order, nothing = order_of(prepared, task, masks=request.text())
        step[name] = json.loads(carry_out(order, nothing).scalars)
    from fedmoe.privacy.masks.wire import advert_of

    mine = {0: advert_of(step["advertise"])}
    sealed = {
        c: p.share(mine | {o: a for o, a in adverts.items() if o != c})[0]
        for c, p in others.items()
    }
    return Request("mask", about, sealed=sealed, bounds=replace(bounds, **changes))


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"num_clients": 50}, "50 clients take part, it is said; with 4 neighbours expected 5"),
        ({"num_clients": 4}, "expected 5"),
        ({"ranges": "other"}, "both need the same experiment"),
        ({"largest_change": 1e-9}, "both need the same experiment"),
    ],
)
def test_a_client_refuses_a_vector_that_its_experiment_does_not_ask_for(prepared, changes, reason):
    task = tasks_of(prepared)[0]
    request = mask_request(prepared, task, **changes)
    order, buffer = order_of(prepared, task, masks=request.text())
    with pytest.raises(FedMoEError, match=reason):
        carry_out(order, buffer)


def test_a_client_masks_once_and_never_in_clear(prepared):
    task = tasks_of(prepared)[0]
    request = mask_request(prepared, task)
    order, buffer = order_of(prepared, task, masks=request.text())
    assert carry_out(order, buffer).scalars == "{}"
    with pytest.raises(FedMoEError, match="second vector under the same masks"):
        carry_out(order, buffer)
    with pytest.raises(FedMoEError, match="asks for an update in clear"):
        carry_out(replace(order, masks=""), buffer)
    other = mask_request(prepared, task, about="run|2|b")
    with pytest.raises(FedMoEError, match=r"no keys for this step of run\|1\|a"):
        carry_out(order, buffer)
    assert other.about == "run|2|b"


def test_an_owner_who_knows_the_others_sends_nothing_in_clear(prepared_of):
    prepared = prepared_of("secure_aggregation=null")
    order, buffer = order_of(prepared, tasks_of(prepared)[0], known="/keys")
    with pytest.raises(FedMoEError, match="known_keys say that its updates are masked"):
        carry_out(order, buffer)


@pytest.fixture
def signed(tmp_path):
    """Node configs of five owners, who know each other's keys."""
    known, configs = tmp_path / "owners.pub", []
    public_keys = []
    for client in range(5):
        private, public = node_keys(f"owner-{client}")
        path = tmp_path / f"{client}.key"
        path.write_bytes(private)
        public_keys.append(public)
        keys = {"signing_key": str(path), "known_keys": str(known)}
        configs.append({"name": f"owner-{client}", "clients": str(client), **keys})
    known.write_bytes(b"".join(public_keys))
    return configs


def test_owners_sign_and_a_neighbour_without_is_refused(prepared, clear, signed, caplog):
    _, state = played(prepared, nodes=signed)
    torch.testing.assert_close(state, clear(range(5)), atol=1e-7, rtol=1e-6)
    assert "do not sign" not in caplog.text
    bare = [*signed[:4], {"name": "owner-4", "clients": "4"}]
    with pytest.raises(FedMoEError, match=r"1 of 5 clients.*client 4's keys are not signed"):
        played(prepared, nodes=bare)
    assert "1 of 5 clients do not sign their keys" in caplog.text


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda c: c.pop("known_keys"), "signing_key is of no use without known_keys"),
        (lambda c: c.update(known_keys="/nowhere"), "No such file"),
        (lambda c: c.update(signing_key=c["known_keys"]), "signing_key"),
    ],
)
def test_faults_of_the_key_files(signed, spoil, said):
    spoil(config := dict(signed[0]))
    with pytest.raises(FedMoEError, match=said):
        owner_of(config.get("signing_key", ""), config.get("known_keys", ""))


def test_clients_add_the_noise_that_their_experiment_asks_for(prepared_of):
    """One round of clients that hardly learn: the noise on the mean is as large as it should be."""
    prepared = prepared_of(
        PRIVATE,
        "aggregation={name: fedavg, weighting: uniform}",
        "training.learning_rate=1e-9",
        "secure_aggregation={threshold: 1}",
    )
    _, state = played(prepared)
    start = prepared.server.first_state().adapter.flat
    # 5 of at least 5 - 1 stayed; the mean divides their sum by 5.
    expected = 0.05 / (1 - 0.02) ** 0.5 * (5 / 4) ** 0.5 / 5
    assert (state - start).std().item() == pytest.approx(expected, rel=0.1)
