"""The paths of a saved run are found from any folder, also when all is moved; `~` is a home."""

import json
import os
import shutil

import pytest

import fedmoe
from fedmoe.cli.arguments import FILE
from fedmoe.config import Experiment, load_experiment
from fedmoe.config.load import to_yaml
from fedmoe.config.paths import PATHS, rooted, saved_experiment
from fedmoe.data.federated import Federated, LocalData
from fedmoe.runs.identity import settings_digest
from fedmoe.section import fields
from fedmoe.system.files import expanded
from fedmoe.system.folders import STARTED, started_in

TEXT = """\
model: {path: models/moe}
text: {template: own.jinja}
data:
  name: federated
  path: PATH
  tools: tools.json
  server_test: test.jsonl
"""
FORMS = {
    "folder": "rows",
    "glob": "rows/*.jsonl",
    "list": "[rows/a.jsonl, rows/b.jsonl]",
    "mapping": "{a: rows/a.jsonl, b: rows/b.jsonl}",
}


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A folder with everything that a config names, and the folder of a run."""
    folder = tmp_path / "project"
    for name in ("rows", "models/moe", "runs/run", "deeper/down"):
        (folder / name).mkdir(parents=True)
    for name in ("rows/a.jsonl", "rows/b.jsonl", "own.jinja", "tools.json", "test.jsonl"):
        (folder / name).touch()
    monkeypatch.chdir(folder)
    return folder


def save(project, form):
    run = project / "runs/run"
    (run / "config.yaml").write_text(TEXT.replace("PATH", FORMS[form]))
    (run / "environment.json").write_text(json.dumps({STARTED: started_in(run)}))
    (run / "ledger.jsonl").touch()
    return run


@pytest.mark.parametrize("form", FORMS)
def test_every_path_is_found_from_any_folder_and_after_a_move(project, form, monkeypatch):
    run = save(project, form)
    written = (run / "config.yaml").read_text()
    for here, there in ((project / "deeper/down", project), (project.parent, project.parent / "b")):
        monkeypatch.chdir(here)
        if there != project:
            shutil.move(project, there)
        experiment = fedmoe.open_run(os.path.relpath(there / "runs/run")).experiment
        assert experiment.model.path == str(there / "models/moe")
        assert experiment.text.template == str(there / "own.jinja")
        assert experiment.data.tools == str(there / "tools.json")
        assert experiment.data.server_test == str(there / "test.jsonl")
        assert LocalData(experiment.data).names == ("a", "b")
        assert (there / "runs/run/config.yaml").read_text() == written


def test_a_runs_identity_is_of_its_paths_as_they_were_written(project, monkeypatch):
    run = save(project, "folder")
    before = settings_digest(load_experiment(run / "config.yaml"))
    monkeypatch.chdir(project / "deeper")
    assert settings_digest(load_experiment(run / "config.yaml")) == before
    assert started_in(run) == "../../deeper"


def test_paths_that_are_nowhere_or_of_an_older_run_stay_as_they_are(project):
    run = save(project, "folder")
    (run / "environment.json").unlink()
    assert to_yaml(saved_experiment(run)) == to_yaml(load_experiment(run / "config.yaml"))
    plain = Experiment()
    assert rooted(plain, project) == plain
    assert rooted(Experiment(data=Federated(path="org/data")), project).data.path == "org/data"


def test_every_setting_with_a_path_is_known():
    known = {(section, name) for section, names in PATHS.items() for name in names}
    parts = {"model": Experiment().model, "text": Experiment().text, "data": Federated(path="x")}
    found = {
        (section, name)
        for section, part in parts.items()
        for name, field in fields(type(part)).items()
        if name in ("path", "folder", "file", "tools", "template", "server_test")
    }
    assert found <= known


def test_a_home_is_written_out_wherever_a_path_is_given(project, monkeypatch):
    monkeypatch.setenv("HOME", str(project))
    names = LocalData(Federated(path={"a": "~/rows/a.jsonl"})).sources["a"].train
    assert names == project / "rows/a.jsonl"
    assert LocalData(Federated(path="~/rows")).names == ("a", "b")
    assert FILE.convert("~/rows", None, None) == project / "rows"
    assert rooted(load_experiment(_written(project)), project).data.path == str(project / "rows")
    assert str(expanded("~nobody-here/x")) == "~nobody-here/x"


def _written(project):
    (project / "home.yaml").write_text("data: {name: federated, path: ~/rows}\n")
    return "~/home.yaml"
