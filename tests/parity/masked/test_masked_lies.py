"""Lies in the steps of masked sums, refused at the server and at the clients."""

import json
from dataclasses import replace

import pytest
import torch
from fake_grid import client_of
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict
from masked_rounds import BAD, PRIVATE, UNIFORM, on_bad, played, step_of, tasks_of

from clients.resident import carry_out
from clients.worker_frames import Order
from fedmoe.config.components import for_nodes
from fedmoe.deploy.keys import node_keys
from fedmoe.errors import FedMoEError, FedMoEWarning
from fedmoe.messages.codec import pack_task
from fedmoe.messages.records import Failure
from fedmoe.privacy.masks.identity import owner_of
from fedmoe.privacy.masks.party import Party
from fedmoe.privacy.masks.wire import Request, read_advert, read_request
from fedmoe.runs.hidden import sight_of
from fedmoe.runs.vectors import bounds_of
from server.messages import read_update

pytestmark = pytest.mark.usefixtures("quick_digest")


def words(change):
    """Change the values of a reply's scalars."""

    def changed(reply):
        values = json.loads(reply["config"]["scalars"])
        change(values)
        return content(json.dumps(values), b"")

    return changed


def once(change):
    """Change the first reply alone."""
    seen = []
    return lambda reply: reply if seen else seen.append(1) or change(reply)


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
    ("advertise", words(lambda v: v.update(sealing="00" * 32)), "a key that nobody can have"),
    ("advertise", words(lambda v: v.update(masking="00" * 32)), "a key that nobody can have"),
    ("share", words(lambda v: v.update({c: "00" * 76 for c in v})), "refused by clients [0, 1, 3"),
    ("share", words(lambda v: (v.clear(), v.update(refused=[0, 1, 3, 4]))), "refused by clients"),
    ("share", words(lambda v: (v.clear(), v.update(refused=[2]))), "which are no neighbours"),
    ("open", words(lambda v: v.update(refused=[0, 1, 3, 4])), "refused by clients [0, 1, 3, 4]"),
    ("open", words(lambda v: v.update(refused=["0"])), "expected numbers of clients"),
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


def test_junk_for_two_neighbours_costs_those_two_nothing(prepared, clear):
    """A false complaint of one of four costs nobody anything."""
    junk = words(lambda v: v.update({c: "00" * 76 for c in ("0", "1")}))
    for step, lie, gone in (
        ("share", junk, {BAD: "its keys or shares are refused by clients [0, 1]"}),
        ("open", once(words(lambda v: v.update(refused=[0]))), {}),
    ):
        answers, state = played(prepared, on_bad(step, lie))
        failed = {a.client: a.reason[:48] for a in answers if isinstance(a, Failure)}
        assert failed == gone, step
        torch.testing.assert_close(state, clear({*range(5)} - {*gone}), atol=1e-7, rtol=1e-6)


def test_who_complains_of_one_after_another_leaves_alone(prepared, clear):
    def complain(request, reply):
        if client_of(request) == BAD and step_of(request) == "open":
            near = min(read_request(request.content["config"]["masks"]).sealed)
            return words(lambda v: v.update(refused=[near]))(reply)
        return reply

    answers, state = played(prepared, complain)
    assert [a.client for a in answers if isinstance(a, Failure)] == [BAD]
    torch.testing.assert_close(state, clear({0, 1, 3, 4}), atol=1e-7, rtol=1e-6)


def test_one_wrong_share_of_a_secret_is_left_out_and_said(prepared, clear):
    lie = words(lambda v: v["seeds"].update({"0": "00" * 16}))
    with pytest.warns(FedMoEWarning, match=r"client 2 revealed shares that do not fit.*\[0\]"):
        _, state = played(prepared, on_bad("reveal", lie))
    torch.testing.assert_close(state, clear(range(5)), atol=1e-7, rtol=1e-6)


def order_of(prepared, task, **changes):
    packed = pack_task(task)
    experiment = for_nodes(prepared.setup.for_clients)
    order = Order(experiment, "", packed.scalars, None, [], "")
    return replace(order, **changes), memoryview(packed.buffer)


def mask_request(prepared, task, about="run|1|a", **changes):
    """What an honest server asks client 0 after the steps before; and client 0 made them."""
    bounds, _ = bounds_of(prepared.server, [task], 5, None)
    others = {c: Party(about.encode(), c, 3) for c in range(1, 5)}

    def answer(request):
        order, nothing = order_of(prepared, task, masks=request.text())
        return carry_out(order, nothing).scalars

    adverts = {c: p.advertise() for c, p in others.items()}
    adverts[0] = read_advert(answer(Request("advertise", about)))
    near = {c: {o: a for o, a in adverts.items() if o != c} for c in adverts}
    answer(Request("share", about, adverts=near[0], threshold=3))
    sealed = {c: p.share(near[c])[0] for c, p in others.items()}
    assert answer(Request("open", about, sealed=sealed)) == '{"refused": []}'
    return Request("mask", about, bounds=replace(bounds, **changes))


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


def test_a_node_insists_on_noise(prepared_of):
    """The experiment comes from the server; what the node's config says does not."""
    for more, noise in (((PRIVATE, UNIFORM), "1"), ((), "0")):
        prepared = prepared_of(*more)
        task = tasks_of(prepared)[0]
        server = prepared.server
        mean = sight_of(server, None, [], 0, lambda *_: None).masked.private if more else None
        bounds, _ = bounds_of(server, [task], 5, mean)
        request = mask_request(prepared, task, **vars(bounds))
        order, buffer = order_of(prepared, task, masks=request.text(), least_noise=1.5)
        with pytest.raises(FedMoEError, match=rf"adds noise {noise} to a sum.*least_noise is 1\.5"):
            carry_out(order, buffer)
        if more:
            assert carry_out(replace(order, least_noise=1.0), buffer).scalars == "{}"
    order, buffer = order_of(prepared_of("secure_aggregation=null"), task, least_noise=1.5)
    with pytest.raises(FedMoEError, match=r"least_noise, 1\.5, says that it adds noise itself"):
        carry_out(order, buffer)


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
    answers, state = played(prepared, nodes=bare)
    assert "refused by clients [0, 1, 2, 3]" in answers[4].reason
    torch.testing.assert_close(state, clear(range(4)), atol=1e-7, rtol=1e-6)
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
