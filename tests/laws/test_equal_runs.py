"""Two equal runs write equal files: what differs is time, memory, and the run's own name."""

import json

import pytest
from sums import sums_config

from fedmoe.config import load_experiment
from fedmoe.runs import session

MEASURED = {"seconds", "peak_bytes", "busy_seconds", "makespan_seconds", "ideal_seconds"} | {
    "phases",
    "training_share",
    "started",
    "started_in",
}
TELL_OF_TIME = {"report.html", "summary.md"}
NAMED = {"run-id", "config.yaml", "seal.json"}
"""They hold the name that a run draws for itself, or the folder in which it is."""


@pytest.fixture(scope="module")
def runs(tmp_path_factory, tiny_folder):
    """The files of two runs, by name; their clients keep something between rounds."""
    home = tmp_path_factory.mktemp("equal")
    rest = """\
name: run
rounds: 2
partition: {name: iid, num_clients: 2}
budget: {tiers: {high: {top_k: 4}, low: {top_k: 1}}}
aggregation: {name: scaffold}
rescaling: {name: learned}
training: {steps: 1, batch_size: 2, probe_examples: 2}
evaluation: {validation_examples: 2, test_examples: 2, max_new_tokens: 1}
"""
    config = sums_config(home, tiny_folder, rest)
    folders = [home / name / "run" for name in ("one", "two")]
    for folder in folders:
        changes = [f"simulation.folder={folder.parent}"]
        session.run(load_experiment(config, changes))
    return [
        {str(p.relative_to(f)): p.read_bytes() for p in f.rglob("*") if p.is_file()}
        for f in folders
    ]


def unmeasured(value):
    """JSON without what is measured."""
    if isinstance(value, dict):
        return {k: unmeasured(v) for k, v in value.items() if k not in MEASURED}
    return [unmeasured(v) for v in value] if isinstance(value, list) else value


def test_they_write_the_same_files_byte_for_byte(runs):
    one, two = runs
    assert {*one} == {*two}
    assert any(name.startswith("clients/client-1/") for name in one)
    read = {"ledger.jsonl", "scores.json", "environment.json", ".lock"}
    differ = {name for name in one if one[name] != two[name]}
    assert differ - read - TELL_OF_TIME - NAMED == set()
    assert len([name for name in {*one} - differ if name.endswith(".safetensors")]) >= 6


def test_what_they_write_down_differs_in_measured_values_alone(runs):
    for name in ("scores.json", "environment.json"):
        one, two = (unmeasured(json.loads(files[name])) for files in runs)
        assert one == two, name
    lines = [files["ledger.jsonl"].splitlines() for files in runs]
    one, two = ([unmeasured(json.loads(line)) for line in half] for half in lines)
    assert one == two
    assert any("bytes_up" in line for line in one), "the size of a message is no measured value"
