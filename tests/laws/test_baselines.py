"""Baselines: what a comparison makes of an experiment, and how its result is read."""

import json
from dataclasses import replace
from pathlib import Path

import conformance as c
import conformance_sent as sent
import pytest
from shapes import FULL_TOP_K as K

from fedmoe.aggregation import FedAvg, FlexLoRA
from fedmoe.budget import Levels, Tier
from fedmoe.budget.cost import cost
from fedmoe.cli.main import main
from fedmoe.comparison.baselines import ARMS, BASELINES, LocalOnly, scored
from fedmoe.config import load_experiment
from fedmoe.config.load import to_yaml
from fedmoe.errors import ConfigError
from fedmoe.models.memory.meta import meta_model

ROOT = Path(__file__).parents[2]
FLEET = ROOT / "configs/fleet_virtual.yaml"


@pytest.fixture(scope="module")
def fleet():
    """Eight clients in four tiers, the highest of all K experts, four of them in a round."""
    return load_experiment(FLEET, ["clients_per_round=4", "devices.high.availability=0.5"])


@pytest.fixture(scope="module")
def mixed(fleet):
    """The same with a strategy that combines unlike ranks."""
    return replace(fleet, aggregation=FlexLoRA())


def test_without_rounds_only_the_number_of_rounds_changes(fleet):
    assert BASELINES["zero_rounds"](fleet, None) == replace(fleet, rounds=0)


def test_all_data_is_one_client_that_trains_as_long_as_a_rounds_clients(fleet):
    made = BASELINES["all_data"](fleet, K)
    assert made.training.steps == 4 * fleet.training.steps
    assert made.partition.num_clients == 1
    assert made.budget.assign(1, K, made.seed) == ("full budget",)
    assert scored("all_data", fleet, K) == dict.fromkeys(fleet.budget.tiers, ())


def test_at_full_budget_all_clients_train_with_k_experts_and_are_scored_at_their_own(fleet):
    made = BASELINES["full_budget"](fleet, K)
    assert set(made.budget.assign(8, K, made.seed)) == {"full budget"}
    assert made.budget.resolved(K)["full budget"].top_k == K
    assert {n: t.top_k for n, t in made.budget.tiers.items() if n != "full budget"} == {
        n: t.top_k for n, t in fleet.budget.tiers.items()
    }
    assert made.devices["full budget"].availability == 1.0
    own = fleet.budget.assign(8, K, fleet.seed)
    for tier, clients in scored("full_budget", fleet, K).items():
        assert clients == tuple(n for n in range(8) if own[n] == tier)


@pytest.mark.parametrize(
    ("overrides", "full_top_k", "said"),
    [
        ([], None, "model.path: 'mini' is not there yet"),
        (["rescaling.name=learned"], K, "rescaling.name: 'learned' learns a factor per tier"),
        (["budget={name: auto, tiers: {high: {}, medium: {}, low: {}, lowest: {}}}"], K, "'auto'"),
    ],
)
def test_a_full_budget_that_cannot_be_added_is_refused(overrides, full_top_k, said):
    experiment = load_experiment(FLEET, overrides)
    with pytest.raises(ConfigError, match=said):
        BASELINES["full_budget"](experiment, full_top_k)


def test_clients_that_train_alone_send_nothing_and_go_on_from_what_they_had(tmp_path):
    for check in (c.check_personal, sent.check_messages, c.check_continues, c.check_routers):
        check(LocalOnly())
    sent.check_saved(LocalOnly(), tmp_path / "state")
    state = LocalOnly().first_state(c.INITIAL)
    assert c.start_of(LocalOnly(), state)[0].adapter.layout.size == 0
    updates = c.clients(LocalOnly(), state, 3)[0]
    assert LocalOnly().combine(state, updates, 3) is state
    assert all(update.delta.layout.size == 0 for update in updates)


def test_a_baseline_is_written_down_and_read_again(fleet, mixed, tmp_path):
    for number, (name, make) in enumerate(BASELINES.items()):
        made = make(mixed if name in ARMS else fleet, K)
        path = tmp_path / f"{number}.yaml"
        path.write_text(to_yaml(made))
        assert load_experiment(path) == made


@pytest.mark.slow
def test_a_comparison_reads_methods_against_all_baselines(tmp_path, tiny_folder, capsys):
    fields = {
        "experiment": str(ROOT / "configs/quickstart.yaml"),
        "folder": str(tmp_path),
        "seeds": [3],
        "reference": "plain",
        "overrides": [
            f"model.path={tiny_folder}",
            "rounds=1",
            "training.steps=1",
            "training.batch_size=2",
            "training.probe_examples=2",
            "data.per_domain=40",
            "evaluation.every=0",
            "evaluation.test_examples=8",
            "evaluation.max_new_tokens=1",
            "clients_per_round=3",
            "budget.tiers.high.top_k=4",
        ],
        "variants": {
            "plain": ["aggregation.name=fedavg"],
            "none": {"baseline": "zero_rounds"},
            "alone": {"baseline": "alone"},
            "all": {"baseline": "all_data", "overrides": ["aggregation.name=fedavg"]},
            "full": {"baseline": "full_budget", "overrides": ["aggregation.name=fedavg"]},
        },
    }
    (tmp_path / "compare.yaml").write_text(json.dumps(fields))  # JSON is YAML
    assert main(["compare", str(tmp_path / "compare.yaml"), "--quiet"]) == 0, capsys.readouterr()
    written = json.loads((tmp_path / "comparison/comparison.json").read_text())
    runs = {run["variant"]: run for run in written["cases"][0]["runs"]}
    assert list(runs) == ["plain", "none", "alone", "all", "full"]
    assert len({tuple(run["scores"]) for run in runs.values()}) == 1, "the same tiers"
    assert {name: len(run["clients"]) for name, run in runs.items()} == {
        "plain": 8,
        "none": 8,
        "alone": 8,
        "all": 0,
        "full": 8,
    }
    assert runs["none"]["bytes_up"] == 0
    page = (tmp_path / "comparison/comparison.html").read_text()
    assert "No training: the base model at every tier." in page
    assert "Clients' data alike per seed</dt><dd>yes" in page.replace("&#39;", "'")
    for folder in sorted(tmp_path.glob("comparison/*/")):
        if (folder / "ledger.jsonl").exists():
            assert (folder / "report.html").exists()
    capsys.readouterr()
    assert main(["compare", str(tmp_path / "compare.yaml"), "--quiet"]) == 0  # nothing is repeated


def test_an_arm_lowers_the_rank_in_proportion_to_k(mixed):
    lower, same_k, same_work = (
        BASELINES[name](mixed, K).budget.tiers
        for name in ("lower_rank", "equal_inference", "equal_flops")
    )
    own_k = [t.top_k for t in mixed.budget.tiers.values()]
    ranks = [mixed.adapter.rank * k // K for k in own_k]
    assert [t.rank for t in lower.values()] == [t.rank for t in same_k.values()] == ranks
    assert [t.top_k for t in lower.values()] == [t.top_k for t in same_work.values()] == [K] * 4
    assert [t.top_k for t in same_k.values()] == own_k
    own = replace(mixed, devices={}, budget=Levels(tiers={"a": Tier(top_k=1, rank=5)}))
    assert BASELINES["equal_inference"](own, K).budget.tiers["a"].rank == 5


def test_equal_flops_are_equal_but_for_a_step(mixed):
    """The steps of a tier times a step's work are those of a client that activates k experts."""
    long = replace(mixed, training=replace(mixed.training, steps=1000))
    made, model = BASELINES["equal_flops"](long, K), meta_model(mixed.model, mixed.adapter)
    for name, tier in made.budget.tiers.items():
        layouts = [FedAvg().layouts(model.layout, 1)]
        layouts.append(FedAvg().layouts(model.layout.with_rank(tier.rank), 1))
        own, full = (
            cost(model, layout, k, 64, mixed.upload, target_share=0.5).train_flops_per_token
            for layout, k in zip(layouts, (mixed.budget.tiers[name].top_k, K), strict=True)
        )
        assert tier.steps * full == pytest.approx(1000 * own, rel=5e-3)


def test_an_arm_needs_fixed_tiers_and_steps(mixed):
    with pytest.raises(ConfigError, match="K is not known"):
        BASELINES["lower_rank"](mixed, None)
    epochs = replace(mixed, training=replace(mixed.training, epochs=1.0))
    with pytest.raises(ConfigError, match="leave out training"):
        BASELINES["equal_flops"](epochs, K)
