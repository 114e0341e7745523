"""A template is a part of a run: a node with another file of it gets no task."""

import json
from dataclasses import replace

import pytest
from fake_grid import FakeGrid

from clients.about import about
from fedmoe.errors import FedMoEError, WireError
from fedmoe.messages.records import Update
from fedmoe.rounds import plan_round
from fedmoe.runs.identity import identity
from fedmoe.system.digests import template_digest
from server.about import Expected
from server.settings import Settings
from server.transport import GridTransport

pytestmark = pytest.mark.usefixtures("quick_digest")


@pytest.fixture
def files(tmp_path):
    """The server's template, a copy of it, and another."""
    paths = [tmp_path / f"{name}.jinja" for name in ("server", "copy", "other")]
    for path in paths:
        path.write_text("another" if path.stem == "other" else "the same")
    return [str(path) for path in paths]


def with_template(server, template):
    e = server.setup.experiment
    changed = replace(e, text=replace(e.text, template=template))
    return replace(server, setup=replace(server.setup, experiment=changed))


def test_a_node_says_by_which_template_it_words_rows(files):
    mine, copy, other = files
    for told, overrides, found in (
        (mine, "", template_digest(mine)),
        (mine, f"text.template={copy}", template_digest(mine)),
        (mine, f"text.max_length=9 text.template={other}", template_digest(other)),
        ("gone.jinja", "", "missing"),
        ("auto", "text.template=plain", "plain"),
    ):
        said = about({"overrides": overrides}, {"template": told})
        assert said["template"] == found
        for expected in (template_digest(told), "auto"):
            check = Expected("abc123", 4, template=expected).check
            if expected == found:
                assert check(said).template == found
            else:
                with pytest.raises(WireError, match=rf"text\.template is {expected} here, and"):
                    check(said)


def test_a_node_with_another_file_gets_no_task(prepared, known, files):
    mine, copy, other = files
    server = with_template(prepared.server, mine)
    tasks = plan_round(server.first_state(), server.members, 4, server.setup.experiment.seed)
    grid = FakeGrid({"overrides": f"text.template={copy}"}, known=known)
    transport = GridTransport(grid, server, prepared.scorer, Settings(), grid.clock)
    assert json.loads(transport.content(tasks[0])["config"]["data"])["template"] == mine
    assert all(isinstance(answer, Update) for answer in transport(tasks))
    grid = FakeGrid({"overrides": f"text.template={other}"}, known=known)
    transport = GridTransport(grid, server, prepared.scorer, Settings(), grid.clock)
    with pytest.raises(FedMoEError, match=r"would word its rows otherwise; copy the server's file"):
        list(transport(tasks))


def test_a_runs_identity_changes_with_the_file_and_not_with_its_place(prepared, files):
    mine, copy, other = (identity(with_template(prepared.server, path)) for path in files)
    assert mine["template"] == copy["template"] != other["template"]
    assert "template" not in identity(prepared.server)
