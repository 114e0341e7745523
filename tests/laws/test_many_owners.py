"""Many clients with rows of their own: each file is opened at its client's turn, or never."""

import json
import sys
from pathlib import Path

import pytest

import fedmoe
from fedmoe.report.run import read_run
from fedmoe.runs.display import Display

OWNERS, CHOSEN, SCORING = 200, 5, 3

EXPERIMENT = """\
name: many
rounds: 1
clients_per_round: {chosen}
model: {{path: {model}}}
adapter: {{rank: 2, alpha: 4.0}}
data: {{name: federated, path: {rows}}}
budget: {{default: low, tiers: {{low: {{top_k: 1}}}}}}
training: {{steps: 1, batch_size: 2, probe_examples: 4}}
evaluation: {{every: 0, clients: {scoring}, max_new_tokens: 1}}
simulation: {{folder: {runs}}}
"""


class Turns(Display):
    """Whose files were opened up to each event: at a client's turn, or at nobody's."""

    def __init__(self):
        self.opened, self.found = [], []

    def note(self, kind, *names):
        opened, self.opened = self.opened, []
        self.found.append((kind, {*names}, opened))

    def met(self, attendance):
        self.note("met")

    def planned(self, tasks):
        self.note("planned")

    def answered(self, task, answer):
        self.note("answered", task.name)

    def finished(self, state):
        self.note("finished")

    def evaluated(self, evaluations):
        self.note("evaluated", *(c.name for e in evaluations for c in e.clients))


@pytest.fixture(scope="module")
def turns(tmp_path_factory, tiny_folder):
    """The turns of a run, and its folder."""
    folder = tmp_path_factory.mktemp("many")
    (rows := folder / "rows").mkdir()
    for n in range(OWNERS):
        lines = [{"prompt": f"owner {n} asks {i}", "response": f"{i} is {i}"} for i in range(20)]
        (rows / f"owner-{n:03}.jsonl").write_text("\n".join(map(json.dumps, lines)))
    config = folder / "many.yaml"
    settings = {"model": tiny_folder, "rows": rows, "runs": folder / "runs"}
    config.write_text(EXPERIMENT.format(chosen=CHOSEN, scoring=SCORING, **settings))
    turns, active = Turns(), [True]

    def hook(event, arguments):
        # Python keeps a hook for good.
        if active and event == "open" and str(arguments[0]).startswith(f"{rows}/"):
            turns.opened.append(Path(arguments[0]).stem)

    sys.addaudithook(hook)
    turns.folder = fedmoe.run(config, display=turns).folder
    active.clear()
    turns.note("ended")
    return turns


def test_a_file_is_opened_at_its_clients_turn_alone(turns):
    assert [
        (kind, n) for kind, whose, opened in turns.found for n in opened if n not in whose
    ] == []
    read = [name for _, _, opened in turns.found for name in opened]
    assert len(read) == len({*read})  # none is read again, as few are


def test_files_of_clients_that_were_not_chosen_are_never_opened(turns):
    trained = [n for kind, whose, _ in turns.found if kind == "answered" for n in whose]
    scored = {n for kind, whose, _ in turns.found if kind == "evaluated" for n in whose}
    assert (len(trained), len(scored)) == (CHOSEN, SCORING)
    opened = {name for _, _, names in turns.found for name in names}
    assert opened == {*trained, *scored}


def test_the_summary_of_many_clients_stays_short(turns):
    assert len(read_run(turns.folder).names) == OWNERS
    assert len((turns.folder / "summary.md").read_text().splitlines()) < 100
