"""Configs of models that are not here, dry: tiny random weights of their kind, on a CPU."""

import json
import shutil
from pathlib import Path

import pytest
from family_models import tiny_family

from fedmoe.cli.main import main
from fedmoe.models.families import FAMILIES
from fedmoe.report.facts import facts, published
from fedmoe.report.ledger import read_ledger
from fedmoe.report.run import read_run

PROJECT = Path(__file__).parents[2]
TINY = [
    "model.dtype=float32",
    "model.device=cpu",
    "rounds=1",
    "clients_per_round=4",
    "partition.num_clients=4",
    "adapter.rank=4",
    "training.steps=1",
    "training.batch_size=2",
    "training.accumulation=1",
    "training.probe_examples=2",
    "evaluation.test_examples=2",
    "evaluation.validation_examples=2",
    "evaluation.max_new_tokens=2",
]


@pytest.fixture(scope="module")
def small_olmoe(tmp_path_factory, tiny_base):
    """64 experts, top-8, as OLMoE-1B-7B has; two layers of 32 wide."""
    import fedmoe.models

    folder = tmp_path_factory.mktemp("olmoe")
    tiny_base(vocab_size=4096, num_experts=64, num_experts_per_tok=8).save_pretrained(folder)
    for source in (Path(fedmoe.models.__file__).parent / "mini").glob("tokenizer*"):
        shutil.copy(source, folder)
    return folder


@pytest.fixture(scope="module")
def small_dense_split(tmp_path_factory, tiny_base):
    """16 experts, all active, as the split SmolLM2 has."""
    import fedmoe.models

    folder = tmp_path_factory.mktemp("split")
    sizes = {
        "num_experts": 16,
        "num_experts_per_tok": 16,
        "moe_intermediate_size": 4,
        "shared_expert_intermediate_size": 16,
    }
    tiny_base("qwen2_moe", vocab_size=4096, **sizes).save_pretrained(folder)
    for source in (Path(fedmoe.models.__file__).parent / "mini").glob("tokenizer*"):
        shutil.copy(source, folder)
    return folder


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    """Rows with the columns of AlpaGasus and of Dolly."""
    path = tmp_path_factory.mktemp("rows") / "rows.json"
    made = [
        {
            "instruction": f"Add {a} and {b}.",
            "input": "",
            "output": str(a + b),
            "category": f"kind {b % 2}",
        }
        for a in range(8)
        for b in range(8)
    ]
    path.write_text(json.dumps(made))
    return path


@pytest.mark.parametrize("name", ["olmoe_alpagasus", "olmoe_dolly"])
def test_the_config_is_valid_and_runs_dry(name, small_olmoe, rows, tmp_path, capsys):
    config = str(PROJECT / "configs" / f"{name}.yaml")
    data = f"data={{name: files, path: {rows}" + (", label: category}" if "dolly" in name else "}")
    overrides = [*TINY, f"model.path={small_olmoe}", data, f"simulation.folder={tmp_path}"]
    assert main(["check", config, *overrides]) == 0
    plan = capsys.readouterr().out
    assert "64 experts, top_k 8" in " ".join(plan.split())
    assert main(["run", config, *overrides, "--quiet"]) == 0
    lines = read_ledger(tmp_path / name / "ledger.jsonl")
    clients = [line for line in lines if line["kind"] == "client"]
    assert {line["status"] for line in clients} == {"ok"}
    assert sorted(line["top_k"] for line in clients) == [1, 2, 4, 8]


def test_the_config_of_the_real_base_is_valid_and_runs_dry(small_dense_split, rows, tmp_path):
    config = str(PROJECT / "configs" / "smollm2_dolly.yaml")
    overrides = [
        f"model.path={small_dense_split}",
        f"data.path={rows}",
        f"simulation.folder={tmp_path}",
        "simulation.workers=1",
        "rounds=1",
        "partition.num_clients=4",
        "adapter.rank=4",
        "training.steps=1",
        "evaluation.test_examples=3",
        "evaluation.validation_examples=2",
    ]
    assert main(["run", config, *overrides, "--quiet"]) == 0
    lines = read_ledger(tmp_path / "smollm2_dolly" / "ledger.jsonl")
    scores = [line["score"] for line in lines if line["kind"] == "evaluation"]
    assert all(0 < score < 1 for score in scores)


def test_the_published_setting_on_commonsense_rows_runs_dry(small_olmoe, tmp_path):
    rows = [
        {
            "instruction": f"Is {n} even? Please answer with true or false.",
            "input": "",
            "output": f"the correct answer is {str(n % 2 == 0).lower()}",
            "answer": str(n % 2 == 0).lower(),
        }
        for n in range(64)
    ]
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    config = str(PROJECT / "configs/commonsense_ub_smoe.yaml")
    own = [f"model.path={small_olmoe}", f"data.path={tmp_path}/rows.json"]
    overrides = [*TINY, *own, f"simulation.folder={tmp_path}"]
    assert main(["run", config, *overrides, "--quiet"]) == 0
    run = read_run(tmp_path / "commonsense_ub_smoe")
    assert {line["status"] for line in run.clients} == {"ok"}
    assert ("Published", "UB-SMoE, lowest: 0.394") in facts(run)


def test_the_published_example_on_nemotron_runs_dry(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    small = tiny_family(FAMILIES["nemotron_h"], vocab_size=4096, num_experts_per_tok=6)
    small.save_pretrained("base")
    for source in (PROJECT / "fedmoe/models/mini").glob("tokenizer*"):
        shutil.copy(source, "base")
    data = Path("data")
    labels = ("neutral", "positive", "negative")
    for name in ("site-1", "site-2", "site-3", "test"):
        made = [{"sentence": f"{name}: {n} sold .", "label": labels[n % 3]} for n in range(20)]
        place = data / ("bank_test.jsonl" if name == "test" else f"split/alpha10.0_{name}.jsonl")
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text("".join(json.dumps(row) + "\n" for row in made))
    config = str(PROJECT / "configs/financial_nemotron.yaml")
    paths = ["data.path=data/split", "data.server_test=data/bank_test.jsonl", "model.path=base"]
    own = ["model.dtype=float32", "model.device=cpu", "rounds=1", "training.steps=1"]
    assert main(["run", config, *paths, *own, "evaluation.test_examples=4", "--quiet"]) == 0
    run = read_run(Path("runs/financial_nemotron"))
    assert {line["status"] for line in run.clients} == {"ok"}
    assert run.score_name == "choice"
    assert published(run) == {"NVFlare, after 3 rounds": 0.8454, "NVFlare, base": 0.4031}


def test_without_the_file_of_rows_it_says_which_is_missing(small_olmoe, capsys):
    config = str(PROJECT / "configs" / "olmoe_alpagasus.yaml")
    assert main(["check", config, *TINY, f"model.path={small_olmoe}"]) == 2
    assert "chatgpt_9k.json" in capsys.readouterr().err
