"""Rounds of masked sums over a fake grid, of which one client is killed or lies."""

from fake_grid import FakeGrid, client_of

from fedmoe.messages.records import Failure
from fedmoe.privacy.masks.wire import read_request
from fedmoe.rounds import plan_round
from fedmoe.runs.hidden import sight_of
from fedmoe.runs.masked import MaskedMean
from server.settings import Settings
from server.transport import GridTransport

BAD = 2
"""The client that is killed, or lies."""
STEPS = ("advertise", "share", "open", "mask", "reveal")
PRIVATE = "privacy={epsilon: 30, delta: 1e-2, clip: 0.05, noise_multiplier: 1, sampling: known}"

UNIFORM = "aggregation={name: fedavg, weighting: uniform}"


def tasks_of(prepared):
    server, seed = prepared.server, prepared.setup.experiment.seed
    return plan_round(server.first_state(), server.members, 5, seed)


def step_of(request):
    """The step that a request asks for; empty for the question who a node is."""
    masks = request.content["config"].get("masks")
    return read_request(masks).step if masks else ""


def played(
    prepared,
    spoil=lambda request, reply: reply,
    nodes=({},) * 5,
    grid=None,
    write=lambda *_: None,
    **settings,
):
    """The answers of a round of masked sums on nodes, and the next state."""
    grid = grid or FakeGrid(*nodes, spoil=spoil)
    transport = GridTransport(
        grid, prepared.server, prepared.scorer, Settings(**settings), grid.clock
    )
    sight = sight_of(prepared.server, transport, [], 0, write)
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
