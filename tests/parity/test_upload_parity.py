"""A lossy upload gives the same adapter on any number of workers and over Flower's grid."""

import sys
from dataclasses import replace

import pytest
from fake_grid import FakeGrid
from sides import changed

from fedmoe.messages.codec import pack_task
from fedmoe.messages.compression import Int8, NoCompression, TopK
from fedmoe.messages.records import Failure
from fedmoe.report.ledger import read_ledger
from fedmoe.rounds import plan_round, run_rounds
from fedmoe.runs.costs import tier_costs
from fedmoe.runs.local.in_process import InProcess, make_transport
from fedmoe.runs.recorder import Recorder
from server.settings import Settings
from server.transport import GridTransport

UPLOADS = [Int8(), TopK(share=0.05)]
every_upload = pytest.mark.parametrize("upload", UPLOADS, ids=lambda upload: upload.name)


def with_upload(prepared, upload, folder, workers=1):
    """The prepared run with another upload, and clients' state in `folder`."""
    e = prepared.setup.experiment
    simulation = replace(e.simulation, workers=workers)
    experiment = replace(e, upload=upload, simulation=simulation)
    return changed(prepared, experiment=experiment, state_folder=folder)


def heard(transport):
    """The transport, but a client that fails says why: a round without it has other bits."""

    def through(tasks):
        for answer in transport(tasks):
            assert not isinstance(answer, Failure), answer.reason
            yield answer

    return through


def digest_of(prepared, transport):
    """The digest of the last adapter over a transport, which is closed."""
    e = prepared.setup.experiment
    try:
        state = run_rounds(
            prepared.server.first_state(),
            prepared.server.members,
            e.aggregation,
            heard(transport),
            [],
            num_rounds=e.rounds,
            clients_per_round=len(prepared.server.members),
            seed=e.seed,
        )
    finally:
        transport.close()
    return state.adapter.digest()


@pytest.mark.skipif(sys.platform != "linux", reason="workers are forked")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
@every_upload
def test_two_workers_give_the_adapter_of_one(prepared, plain_digest, upload, tmp_path):
    digests = {
        digest_of(run, make_transport(run.server, run.scorer))
        for run in (
            with_upload(prepared, upload, tmp_path / "one"),
            with_upload(prepared, upload, tmp_path / "two", workers=2),
        )
    }
    assert len(digests) == 1
    assert digests != {plain_digest}
    assert (tmp_path / "two").exists() == upload.error_feedback
    if upload.error_feedback:
        forgetful = with_upload(prepared, replace(upload, error_feedback=False), None)
        assert digests != {digest_of(forgetful, InProcess(forgetful.server, forgetful.scorer))}


@every_upload
def test_the_grid_gives_the_plain_loops_adapter(prepared, upload, tmp_path):
    here = with_upload(prepared, upload, tmp_path / "here")
    state = {"state": str(tmp_path / "nodes")}
    grid = GridTransport(FakeGrid(state, state), here.server, here.scorer, Settings(num_nodes=2))
    assert digest_of(here, grid) == digest_of(here, InProcess(here.server, here.scorer))
    assert (tmp_path / "nodes" / "run").exists() == upload.error_feedback


def test_a_node_without_a_folder_refuses_error_feedback_in_plain_words(prepared, tmp_path):
    here = with_upload(prepared, TopK(), tmp_path)
    tasks = plan_round(
        here.server.first_state(), here.server.members, 1, here.setup.experiment.seed
    )
    (answer,) = GridTransport(FakeGrid({}), here.server, here.scorer, Settings(num_nodes=1))(tasks)
    assert isinstance(answer, Failure)
    assert "On a Flower node name one" in answer.reason


@pytest.mark.parametrize("upload", [NoCompression(), *UPLOADS], ids=lambda upload: upload.name)
def test_the_ledger_holds_the_sizes_of_the_messages_and_the_plan_the_most_they_can_be(
    prepared, upload, tmp_path
):
    run = with_upload(prepared, upload, tmp_path / "state")
    costs = tier_costs(run.server)
    (tmp_path / "run").mkdir()
    recorder = Recorder(tmp_path / "run", run.server)
    tasks = plan_round(run.server.first_state(), run.server.members, 4, run.setup.experiment.seed)
    sizes = []
    for task in tasks:
        message = run.client.answer(task)
        recorder.answered(task, run.server.read(message, task))
        sizes.append((pack_task(task).num_bytes, message.num_bytes))
        most = costs[task.tier]
        assert 0.5 * most.bytes_down < sizes[-1][0] <= most.bytes_down
        assert 0.2 * most.bytes_up < sizes[-1][1] <= most.bytes_up
    recorder.close()
    lines = [r for r in read_ledger(tmp_path / "run" / "ledger.jsonl") if r["kind"] == "client"]
    assert [(line["bytes_down"], line["bytes_up"]) for line in lines] == sizes
