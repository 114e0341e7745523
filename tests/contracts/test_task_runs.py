"""Families that are no causal language models in a whole: runs, refusals, the command line."""

import json

import pytest
import torch
from family_contract import SETTINGS, random_rows
from family_models import save, tiny_family

from fedmoe.budget import Auto
from fedmoe.budget.levels import Levels, Tier
from fedmoe.cli.main import main
from fedmoe.config import Experiment
from fedmoe.data.files import LocalFiles
from fedmoe.data.partition import Iid
from fedmoe.devices import Device
from fedmoe.errors import ConfigError, ModelError, WireError
from fedmoe.evaluation.evaluate import evaluate
from fedmoe.evaluation.settings import EvaluationSettings
from fedmoe.messages.records import Task
from fedmoe.messages.validation import Limits, check_counts
from fedmoe.models.adapted import AdaptedModel, LoRA
from fedmoe.models.build import ModelSettings, build_model
from fedmoe.models.families import FAMILIES
from fedmoe.models.rescaling import NoRescaling
from fedmoe.rounds import run_rounds
from fedmoe.runs.local.in_process import InProcess
from fedmoe.runs.prepare import prepare
from fedmoe.training.settings import Training

KINDS = [kind for kind, family in FAMILIES.items() if family.task != "causal"]
every_kind = pytest.mark.parametrize("kind", KINDS)


@pytest.fixture
def experiment(tmp_path):
    """A function that gives a small experiment on a tiny random model of a family."""

    def make(kind, **changes):
        base = tiny_family(FAMILIES[kind], vocab_size=4096)
        folder = save(base, tmp_path / "base")
        rows = [{"prompt": f"say {i}", "response": f"ok {i % 3}"} for i in range(40)]
        (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
        top_k = {"switch_transformers": 1, "nllb-moe": 2}[kind]
        settings = {
            "seed": 3,
            "rounds": 2,
            "clients_per_round": 4,
            "model": ModelSettings(path=str(folder)),
            "adapter": LoRA(rank=4),
            "data": LocalFiles(path=str(tmp_path / "rows.jsonl")),
            "partition": Iid(num_clients=4),
            "budget": Levels(tiers={"high": Tier(top_k=top_k), "low": Tier(top_k=1)}),
            "training": Training(steps=4, batch_size=4, learning_rate=1e-2),
            "evaluation": EvaluationSettings(
                validation_examples=6, test_examples=6, max_new_tokens=4
            ),
        }
        return Experiment(**(settings | changes))

    return make


@every_kind
def test_a_federated_run_of_two_rounds_lowers_the_loss_and_is_scored(kind, experiment):
    """Updates cross the wire and the server's door; counts are exact in every stack."""
    prepared = prepare(experiment(kind))
    transport, answers = InProcess(prepared.server, prepared.scorer), []

    def kept(tasks):
        for answer in transport(tasks):
            answers.append(answer)
            yield answer

    state = run_rounds(
        prepared.server.first_state(),
        prepared.server.members,
        prepared.setup.experiment.aggregation,
        kept,
        [],
        num_rounds=2,
        clients_per_round=4,
        seed=3,
    )
    assert len(answers) == 8
    for first, second in zip(answers[:4], answers[4:], strict=True):
        assert first.client == second.client
        assert second.loss_before < first.loss_before
        stacks = dict(zip(prepared.setup.model.stacks, first.counts.sum(1).tolist(), strict=True))
        assert sum(stacks.values()) == first.tokens * first.top_k
    tiers = {tier: (k, state.rescalers[tier]) for tier, k in prepared.setup.top_ks.items()}
    found = evaluate(
        prepared.setup.model,
        prepared.setup.tokenizer,
        prepared.scorer.sets["validation"],
        state.adapter,
        tiers,
        prepared.setup.experiment.evaluation.batch_size,
        2,
    )
    rows = prepared.scorer.sets["validation"].rows
    assert all(0 <= e.score <= 1 and e.loss > 0 and e.examples == len(rows) for e in found)


@pytest.mark.usefixtures("proved_here")
def test_the_command_line_runs_exports_and_answers(experiment, tmp_path, capsys):
    """An encoder-decoder from a YAML file to an answer."""
    e = experiment("switch_transformers")
    (tmp_path / "run.yaml").write_text(
        f"model: {{path: {e.model.path}}}\ndata: {{name: files, path: {tmp_path}/rows.jsonl}}\n"
        f"name: small\nrounds: 1\nsimulation: {{folder: {tmp_path}}}\n"
        "partition: {name: iid, num_clients: 2}\nbudget: {tiers: {all: {top_k: 1}}}\n"
        "training: {steps: 2, batch_size: 4}\n"
        "evaluation: {every: 0, test_examples: 4, max_new_tokens: 3}\n"
    )
    assert main(["check", str(tmp_path / "run.yaml")]) == 0
    assert main(["run", str(tmp_path / "run.yaml"), "--quiet"]) == 0
    assert main(["export", str(tmp_path / "small"), str(tmp_path / "adapter")]) == 0
    about = json.loads((tmp_path / "adapter/adapter_config.json").read_text())
    assert about["task_type"] == "SEQ_2_SEQ_LM"
    answer = ["generate", "--run", str(tmp_path / "small"), "--max-new-tokens", "3"]
    capsys.readouterr()
    assert main([*answer, "say 1"]) == 0
    assert capsys.readouterr().out.strip()
    assert main([*answer, "--top-k", "2", "say 1"]) == 2
    assert "a second has no meaning" in capsys.readouterr().err


def test_a_run_accepts_tokens_that_met_no_expert_since_theirs_was_full(experiment, tmp_path):
    folder = tmp_path / "crowded"
    save(tiny_family(FAMILIES["switch_transformers"], vocab_size=4096, expert_capacity=1), folder)
    prepared = prepare(experiment("switch_transformers", model=ModelSettings(path=str(folder))))
    task = Task(
        1, 0, "high", 1, torch.ones(prepared.setup.model.layout.num_layers), prepared.setup.initial
    )
    update = prepared.server.read(prepared.client.answer(task), task)
    assert 0 < update.counts.sum(1).max() < update.tokens


def test_two_experts_of_a_switch_are_refused_before_any_training(experiment):
    model, _ = build_model(experiment("switch_transformers").model, SETTINGS, NoRescaling())
    with pytest.raises(ModelError, match=r"top_k = 2: it is trained with one expert per token"):
        model.check_top_ks({1, 2})


@every_kind
def test_plans_that_reckon_with_causal_models_are_refused(kind, experiment):
    with pytest.raises(ConfigError, match=r"budget\.name: 'auto' is for causal language models"):
        prepare(experiment(kind, budget=Auto()))
    device = Device(
        peak_flops=1e12,
        memory_bytes=2**30,
        downlink_bytes_per_second=1e6,
        uplink_bytes_per_second=1e6,
    )
    devices = {"high": device, "low": device}
    with pytest.raises(ConfigError, match=r"devices: a virtual clock is for causal"):
        prepare(experiment(kind, devices=devices))


def test_a_family_that_drops_second_experts_by_chance_is_refused():
    base = tiny_family(FAMILIES["nllb-moe"], second_expert_policy="random")
    with pytest.raises(ModelError, match="leaves out second experts by chance"):
        AdaptedModel(base, SETTINGS, NoRescaling())


def test_nllbs_single_expert_weighs_as_its_flag_says():
    """1 where shares are normalised after dropping, else its share of both; 0.8 of that is kept."""
    rows = random_rows(20, 32)
    for before in (False, True):
        flag = {"normalize_router_prob_before_dropping": before}
        base = tiny_family(FAMILIES["nllb-moe"], **flag)
        model = AdaptedModel(base, SETTINGS, NoRescaling())
        router = model.layers[0].router
        logits, both, pair = router(rows)
        router.top_k = 1
        _, one, index = router(rows)
        assert torch.equal(index, pair[:, :1])
        shares = logits.softmax(-1).sort(dim=-1, descending=True).values
        expected = shares[:, :1] / shares[:, :2].sum(1, keepdim=True)
        torch.testing.assert_close(both[:, :1], 0.8 * expected)
        torch.testing.assert_close(one, 0.8 * (expected if before else torch.ones(20, 1)))


@pytest.mark.parametrize(
    ("counts", "fine"),
    [
        ([[3, 1], [1, 3], [2, 4]], True),
        ([[3, 1], [2, 3], [2, 4]], False),
        ([[3, 1], [1, 3], [1, 4]], False),
        ([[3, 1], [1, 3], [3, 4]], False),
        ([[5, 5], [5, 5], [0, 0]], True),
    ],
)
def test_the_door_holds_the_counts_of_stacks_together(counts, fine):
    """Two layers of an encoder and one of a decoder, five tokens with two experts each."""
    limits, counts = Limits(stacks=(2, 1)), torch.tensor(counts)
    if fine:
        check_counts(counts, 5, 2, limits)
        return
    with pytest.raises(WireError, match="tokens \\* top_k = 10 over all stacks"):
        check_counts(counts, 5, 2, limits)


@pytest.mark.slow
def test_models_counts_the_published_sizes_of_encoder_decoders(capsys):
    assert main(["models", *KINDS, "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["status"] for row in rows] == ["trained"] * 2
    totals = {size["name"]: size["total"] for row in rows for size in row["sizes"]}
    assert totals["Switch-Base-128"] == pytest.approx(7.4e9, rel=0.015)
    assert totals["NLLB-MoE-54B"] == pytest.approx(54.5e9, rel=0.015)
