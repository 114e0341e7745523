"""The command line as a user types it, on the built-in model and data, kept small."""

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml
from safetensors import safe_open
from shapes import FULL_TOP_K, MINI

from fedmoe.cli.main import main
from fedmoe.report.ledger import read_ledger
from simulations.benchmarks.__main__ import main as benchmarks

ROOT = Path(__file__).parents[2]
SMALL = [
    "rounds=2",
    "training.steps=1",
    "training.batch_size=2",
    "data.per_domain=40",
    "evaluation.validation_examples=2",
    "evaluation.test_examples=2",
    "evaluation.max_new_tokens=1",
    "training.probe_examples=2",
]
EXPERIMENTS = sorted(p.name for p in (ROOT / "configs").glob("*.yaml"))


@pytest.fixture(scope="module")
def small_run(tmp_path_factory, drawn):
    """One finished run of the quickstart, made small."""
    parent = tmp_path_factory.mktemp("runs")
    config = str(ROOT / "configs/quickstart.yaml")
    assert main(["run", config, *SMALL, f"simulation.folder={parent}", "--quiet"]) == 0
    return parent / "quickstart"


def test_a_run_leaves_everything_a_reader_needs(small_run):
    names = {p.name for p in small_run.iterdir()}
    assert names >= {
        "config.yaml",
        "environment.json",
        "manifest.json",
        "ledger.jsonl",
        "scores.json",
        "adapter-last.safetensors",
        "adapter-best.safetensors",
        "activations.npz",
        "report.html",
        "summary.md",
        "plots",
    }
    rows = read_ledger(small_run / "ledger.jsonl")
    assert rows[-1]["kind"] == "end"
    tested = [
        (r["round"], r["tier"]) for r in rows if r["kind"] == "evaluation" and r["split"] == "test"
    ]
    assert len(tested) == len(set(tested)) == 2 * len(rows[0]["tiers"])
    assert sum(r["kind"] == "client" for r in rows) == 2 * rows[0]["clients_per_round"]


def test_export_proves_itself_and_refuses_to_overwrite(small_run, tmp_path, capsys):
    out = tmp_path / "adapter"
    assert main(["export", str(small_run), str(out)]) == 0
    said = capsys.readouterr()
    assert "computes the same in a fresh process" in said.out
    assert f'PeftModel.from_pretrained(base, "{out}")' in said.out
    assert "fedmoe: exporting, and loading it again in a fresh process, 0 s" in said.err
    proof = json.loads((out / "fedmoe-export.json").read_text())["proof"]
    assert proof["of_the_run"] > 0
    assert proof["largest_difference"] < 1e-4
    with safe_open(out / "adapter_model.safetensors", "pt") as file:
        assert any("experts" in key for key in file.keys())  # noqa: SIM118
    assert main(["export", str(small_run), str(out)]) == 2
    assert "exists already" in capsys.readouterr().err


def test_generate_streams_an_answer_at_every_tier(small_run, capsys):
    for tier in ("high", "lowest"):
        assert (
            main(
                [
                    "generate",
                    "--run",
                    str(small_run),
                    "--tier",
                    tier,
                    "--max-new-tokens",
                    "3",
                    "hello",
                ]
            )
            == 0
        )
    assert main(["generate", "--run", str(small_run), "--tier", "hihg", "hello"]) == 2
    assert "'high'" in capsys.readouterr().err
    assert main(["generate", "--top-k", "99", "hello"]) == 2


def test_a_k_that_the_gating_of_a_run_cannot_choose_is_refused(small_run, tmp_path, capsys):
    folder = shutil.copytree(small_run, tmp_path / "run")
    config = folder / "config.yaml"
    said = yaml.safe_load(config.read_text()) | {"gating": {"name": "hierarchical"}}
    config.write_text(yaml.safe_dump(said))
    ask = ["generate", "--run", str(folder), "--max-new-tokens", "1", "hello", "--top-k"]
    half = MINI["num_experts"] // 2
    assert main([*ask, f"{half}"]) == 0
    assert main([*ask, f"{half + 1}"]) == 2
    assert f"2 of 4 groups hold {half} experts" in capsys.readouterr().err


FEW = {
    "quickstart": ["data.per_domain=20"],
    "home_assistant": ["data.per_domain=20"],
    "fleet_virtual": ["data.per_domain=20"],
    "auto_budget": ["data.per_domain=20"],
    "languages": ["data.languages=[en, nl]", "data.per_domain=20", "partition.num_clients=2"],
    "reasoning": ["data.per_task=20"],
    "many_clients": ["data.per_domain=400", "partition.num_clients=100"],
}
"""What is spared of the data of shipped configs."""


@pytest.mark.slow
def test_the_shipped_data_have_enough_for_a_thousand_clients(capsys):
    assert main(["check", str(ROOT / "configs/many_clients.yaml")]) == 0


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_shipped_config_is_valid(name, tmp_path, capsys):
    if name == "pretrain_mini.yaml":
        from fedmoe.base_models.pretraining.recipe import Pretrain
        from fedmoe.config.load import load

        assert load(Pretrain, ROOT / "configs" / name).steps > 0
        return
    if name == "upcycle_smollm2.yaml":
        from fedmoe.base_models.upcycling.recipe import Upcycle
        from fedmoe.config.load import load

        assert load(Upcycle, ROOT / "configs" / name).source
        return
    if name.startswith("compare_"):
        from fedmoe.comparison import planned

        assert len(planned(ROOT / "configs" / name, [])) >= 4
        return
    if name.startswith(("olmoe_", "smollm2_", "commonsense_", "financial_")):
        pytest.skip("needs its model: test_olmoe_configs has it, small")
    overrides = FEW.get(Path(name).stem, [])
    if name == "own_rows.yaml":
        rows = [{"instruction": f"say {i}", "output": str(i)} for i in range(200)]
        (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
        overrides = [f"data.path={tmp_path / 'rows.jsonl'}"]
    assert main(["check", str(ROOT / "configs" / name), *overrides]) == 0
    assert "top_k" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (
            ["budget.tiers.high.top_k=99"],
            f"budget.tiers.high.top_k: 99 is over the model's top_k of {FULL_TOP_K}",
        ),
        (["adapter.rank=0"], "adapter.rank"),
        (["partition.num_clients=0"], "partition.num_clients"),
        (["model.path=nowhere"], "'nowhere'"),
        (["model.path=./tets"], "model.path './tets': no such folder"),
        (["adapter.frobnicate=0.1"], "adapter.frobnicate: unknown key\n"),
        (["data.prompt={a} {b}"], "a text that begins with { needs quotes of its own"),
        (["text.wording=U: {prompt} A: {response}"], "a text with signs of YAML needs quotes"),
        (["model.device=tpu"], "model.device"),
        (["training.betas=[0.9, 1.5]"], "training.betas"),
        (["agregation.name=flame"], "did you mean aggregation"),
        (["data.name=files", "data.path=none.jsonl"], "none.jsonl: no such file"),
        (["partition.num_clients=100000", "data.per_domain=20"], "100000"),
    ],
)
def test_a_users_mistake_is_explained_with_exit_code_2(overrides, expected, capsys, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.chdir(ROOT)
    assert main(["check", str(ROOT / "configs/quickstart.yaml"), *overrides]) == 2
    error = capsys.readouterr().err
    assert expected in error
    assert "Traceback" not in error


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_said(capsys):
    assert main(["check", str(ROOT / "configs/quickstart.yaml"), "model.device=cuda"]) == 2
    assert "torch finds no GPU here" in capsys.readouterr().err


@pytest.mark.parametrize("words", [["layr"], ["layer", "--repeats", "2"], ["--threads", "0"]])
def test_a_benchmark_that_cannot_be_is_refused(words, capsys):
    assert benchmarks([*words]) == 2
    assert "benchmarks: error" in capsys.readouterr().err


def test_a_benchmark_prints_its_figures_as_json(capsys):
    assert benchmarks(["layer", "--quick", "--json"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert {row["benchmark"] for row in rows} == {"layer"}
    assert all(row["figure"].endswith("x") for row in rows)
    assert {"fedmoe, recompute" in row["what"] for row in rows} == {True, False}


@pytest.mark.slow
def test_an_interrupted_run_leaves_a_readable_folder(tmp_path):
    small = [o for o in SMALL if not o.startswith("rounds")]
    command = [
        sys.executable,
        "-m",
        "fedmoe.cli.main",
        "run",
        str(ROOT / "configs/quickstart.yaml"),
    ]
    command += [*small, "rounds=500", "simulation.workers=1", f"simulation.folder={tmp_path}"]
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"HF_HUB_OFFLINE": "1"},
        start_new_session=True,
    )
    folder = tmp_path / "quickstart"
    deadline = time.monotonic() + 240
    try:
        while not (folder / "adapter-last.safetensors").exists():
            assert process.poll() is None, process.stderr.read()
            assert time.monotonic() < deadline, shlex.join(command)
            time.sleep(0.1)
        process.send_signal(signal.SIGTERM)
        _, error = process.communicate(timeout=120)
    finally:
        process.kill()
    assert process.returncode == 130, error
    assert "Traceback" not in error
    assert "interrupted" in (folder / "report.html").read_text().lower()
    assert main(["generate", "--run", str(folder), "--max-new-tokens", "2", "hello"]) == 0
