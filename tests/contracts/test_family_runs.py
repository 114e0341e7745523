"""Whole families: a federated run lowers each one's loss; `fedmoe models` lists sizes."""

import json
import re

import pytest
from family_contract import KINDS, NO_ATTENTION, slow_but
from family_models import save, tiny_family, tiny_settings

from fedmoe.budget.levels import Levels, Tier
from fedmoe.cli.main import main
from fedmoe.config import Experiment
from fedmoe.data.files import LocalFiles
from fedmoe.data.partition import Iid
from fedmoe.models.adapted import LoRA
from fedmoe.models.build import ModelSettings
from fedmoe.models.families import FAMILIES, refused_families
from fedmoe.models.families.parameters import rounded
from fedmoe.rounds import run_rounds
from fedmoe.runs.local.in_process import InProcess
from fedmoe.runs.prepare import prepare
from fedmoe.training.settings import Training

RUN_BY_DEFAULT = ["deepseek_v3", "gpt_oss"]
LISTED_BY_DEFAULT = ["mixtral", "gpt_oss"]
PUBLISHED = [kind for kind, family in FAMILIES.items() if family.sizes]


@pytest.mark.parametrize("kind", slow_but(RUN_BY_DEFAULT, KINDS))
def test_a_federated_run_of_two_rounds_lowers_the_loss(kind, tmp_path):
    """Every client's loss falls, at full budget and at k = 1, before it trains a second time."""
    family = FAMILIES[kind]
    sizes = {n: 4096 for n in ("vocab_size", "unpadded_vocab_size") if n in tiny_settings(family)}
    folder = save(tiny_family(family, **sizes), tmp_path / "base")
    rows = [{"prompt": f"say {i}", "response": f"ok {i % 3}"} for i in range(40)]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    prepared = prepare(
        Experiment(
            seed=3,
            rounds=2,
            clients_per_round=4,
            model=ModelSettings(path=str(folder)),
            adapter=LoRA(rank=4, attention=kind not in NO_ATTENTION),
            data=LocalFiles(path=str(tmp_path / "rows.jsonl")),
            partition=Iid(num_clients=4),
            budget=Levels(tiers={"high": Tier(top_k=2), "low": Tier(top_k=1)}),
            training=Training(steps=4, batch_size=4, learning_rate=1e-2),
        )
    )
    transport, answers = InProcess(prepared.server, prepared.scorer), []

    def kept(tasks):
        for answer in transport(tasks):
            answers.append(answer)
            yield answer

    run_rounds(
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
        assert (first.counts.sum(1) == first.tokens * first.top_k).all()


def listed(capsys, *names):
    assert main(["models", *names, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def in_numbers(stated):
    """'46.7 B, 12.9 B active' as numbers."""
    units = {"B": 1e9, "M": 1e6}
    return [float(n) * units[unit] for n, unit in re.findall(r"([\d.]+) ([BM])", stated)]


def embeddings(name):
    """Weights of a published model's input embeddings, from its config."""
    sizes = (size for family in FAMILIES.values() for size in family.sizes if size.name == name)
    config = next(sizes).config
    return config["vocab_size"] * config["hidden_size"]


def check_sizes(row):
    """Totals within 1.5 % of what a model's makers state, active ones within 12 %.

    Some makers round to whole billions, count without embeddings, or state the total alone.
    """
    for size in row["sizes"]:
        total, *active = in_numbers(size["stated"])
        most = size["active"][str(size["top_k"])]
        if size["stated"].endswith("without embeddings"):
            most -= embeddings(size["name"])
        assert size["total"] == pytest.approx(total, rel=0.015)
        assert all(most == pytest.approx(number, rel=0.12) for number in active)
        steps = [size["active"][str(k)] for k in range(1, size["top_k"] + 1)]
        assert steps == sorted(set(steps))


@pytest.mark.parametrize("kind", slow_but(LISTED_BY_DEFAULT, PUBLISHED))
def test_published_sizes_are_counted_from_their_configs_alone(kind, capsys):
    (row,) = listed(capsys, kind)
    assert row["status"] == "trained"
    assert len(row["sizes"]) == len(FAMILIES[kind].sizes)
    check_sizes(row)
    if kind == "mixtral":
        assert row["sizes"][0]["total"] == 46_702_792_704  # of Mixtral 8x7B's safetensors


@pytest.mark.slow
def test_models_lists_every_family_and_every_refusal(capsys):
    rows = listed(capsys)
    assert len(rows) == len(FAMILIES) + len(refused_families())
    assert all(row["reason"] for row in rows if row["status"] == "refused")


def test_models_prints_tables_and_refuses_an_unknown_name(capsys, tmp_path):
    assert main(["models", "mixtral", "dbrx", "jetmoe"]) == 0
    out = capsys.readouterr().out
    for text in ("Mixtral 8x7B", "46.7 B", "132 B", "no export for PEFT", "also in attention"):
        assert text in out
    assert main(["models", "Mixtral", "GLaM", "--json"]) == 0
    assert [row["family"] for row in json.loads(capsys.readouterr().out)] == ["Mixtral", "GLaM"]
    assert main(["models", str(tmp_path)]) == 2
    assert "is a folder" in capsys.readouterr().err
    assert main(["models", "mixtrall", "grok", "qwen4"]) == 2
    error = capsys.readouterr().err
    assert "no family 'mixtrall'; did you mean 'mixtral'" in error
    assert "no family 'grok'; did you mean 'grok-1'" in error
    assert "no family 'qwen4'; did you mean 'qwen4 experimental'" in error


def test_parameters_are_rounded_as_people_write_them():
    numbers = (671_026_419_200, 46_702_792_704, 6_919_161_856, 800_000_000, 1_000_000)
    assert [rounded(n) for n in numbers] == ["671 B", "46.7 B", "6.92 B", "800 M", "1.00 M"]
