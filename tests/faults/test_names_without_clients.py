"""A setting that would have no effect is refused, or said where nobody can know."""

import json

import pytest

from fedmoe.config import load_experiment
from fedmoe.errors import ConfigError
from fedmoe.runs.prepare import prepare

LISTED = {"name": "federated", "clients": ["a", "b"]}
WITHOUT_EFFECT = {
    "budget.tiers.low.clients: there is no client 'c'": {
        "data": LISTED,
        "budget": {"tiers": {"low": {"top_k": 1, "clients": ["a", "c"]}}},
    },
    "membership.leaves: there is no client 'c'": {
        "data": LISTED,
        "membership": {"leaves": {"c": 2}},
    },
    "partition: shares out one pooled": {"data": LISTED, "partition": {"name": "iid"}},
    "membership: is for clients with rows": {"membership": {"least": 2}},
    "evaluation.clients: is for clients with": {"evaluation": {"clients": 3}},
    "evaluation.every_tier: is for clients with": {"evaluation": {"every_tier": True}},
}


@pytest.mark.parametrize("said", WITHOUT_EFFECT)
def test_a_setting_without_effect_is_refused(said, tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text(json.dumps(WITHOUT_EFFECT[said]))
    with pytest.raises(ConfigError, match=said):
        load_experiment(path)


def test_a_tier_for_nobody_is_refused_once_the_files_are_known(tmp_path, tiny_folder):
    (tmp_path / "rows").mkdir()
    line = '{"prompt": "p%d", "response": "r"}\n'
    (tmp_path / "rows/a.jsonl").write_text("".join(line % n for n in range(9)))
    path = tmp_path / "run.yaml"
    path.write_text(
        f"model: {{path: {tiny_folder}}}\ndata: {{name: federated, path: {tmp_path}/rows}}\n"
        "budget: {default: low, tiers: {low: {top_k: 1, clients: [typo]}}}\n"
    )
    with pytest.raises(ConfigError, match=r"no client 'typo'; clients are a"):
        prepare(load_experiment(path))
