"""A run that moves to another kind of processor: the bits would differ, so it is not resumed."""

import json
import multiprocessing
import os
import platform
import signal
import subprocess
import sys

import pytest
import torch

from fedmoe.cli.main import main
from fedmoe.report.ledger import read_ledger
from fedmoe.system.machine import processor

if platform.machine() != "x86_64" or sys.platform != "linux":
    pytest.skip("torch's kernels can be chosen on x86 alone", allow_module_level=True)

HERE = torch.backends.cpu.get_cpu_capability()
FEWER = "avx2" if HERE == "AVX512" else "default"
"""Kernels that this processor has, and torch would not choose."""
RESUMED = """
import sys
import fedmoe.report.plots
from fedmoe.cli.main import main
fedmoe.report.plots.draw_plots = lambda run: []  # they take long
print(*(main([*sys.argv[1:], "--resume", how]) for how in ("auto", "anyway")))
"""


def python(code, *arguments, kernels=None):
    """The end of a Python process whose torch uses these kernels."""
    environment = {k: v for k, v in os.environ.items() if k != "ATEN_CPU_CAPABILITY"}
    environment["OMP_NUM_THREADS"] = "1"  # as in this process: a run names its threads, too
    if kernels:
        environment["ATEN_CPU_CAPABILITY"] = kernels
    command = [sys.executable, "-W", "ignore", *code, *map(str, arguments)]
    return subprocess.run(command, env=environment, capture_output=True, text=True)


def test_here_it_is_what_torch_uses(monkeypatch):
    monkeypatch.delenv("ATEN_CPU_CAPABILITY", raising=False)
    assert processor() == processor(HERE)


@pytest.mark.parametrize(
    "kernels", [pytest.param("default", marks=pytest.mark.slow), FEWER, "none of torch's"]
)
def test_what_a_node_finds_out_without_torch_is_what_torch_uses(kernels):
    code = (
        "import sys; from fedmoe.system.machine import processor; print(processor()); "
        "assert 'torch' not in sys.modules; "
        "import torch; print(processor(torch.backends.cpu.get_cpu_capability()))"
    )
    alone, told = python(["-c", code], kernels=kernels).stdout.splitlines()
    assert alone == told
    assert alone.endswith({"default": " DEFAULT", FEWER: f" {FEWER.upper()}"}.get(kernels, HERE))


def test_architecture_and_vendor_are_named(tmp_path):
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/cpuinfo").write_text("vendor_id\t: AuthenticAMD\nflags\t\t: fpu avx2 fma\n")
    assert processor(root=tmp_path) == "x86_64 AuthenticAMD AVX2"


@pytest.fixture
def config(tmp_path, tiny_folder):
    """Two rounds, after the first of which the process is killed."""
    rows = [{"prompt": f"{a} plus {a}", "response": f"{a + a}"} for a in range(24)]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    path = tmp_path / "run.yaml"
    path.write_text(
        f"""\
name: run
rounds: 2
model: {{path: {tiny_folder}}}
data: {{name: files, path: {tmp_path / "rows.jsonl"}}}
partition: {{num_clients: 2}}
budget: {{tiers: {{high: {{top_k: 4}}}}}}
training: {{steps: 1, batch_size: 2, probe_examples: 2}}
evaluation: {{validation_examples: 2, test_examples: 2, max_new_tokens: 1}}
simulation: {{folder: {tmp_path}}}
faults: kill-server@1
"""
    )
    return path


@pytest.mark.slow
def test_a_run_killed_on_one_kind_of_processor_is_not_resumed_on_another(config, tmp_path):
    words = ["run", str(config), "--quiet"]
    killed = multiprocessing.get_context("fork").Process(target=main, args=(words,))
    killed.start()
    killed.join(120)
    assert killed.exitcode == -signal.SIGKILL
    told = json.loads((tmp_path / "run/environment.json").read_text())["identity"]["processor"]
    assert told.endswith(HERE)
    elsewhere = python(["-c", RESUMED], *words, kernels=FEWER)
    assert elsewhere.stdout.splitlines()[-1:] == ["2 0"], elsewhere.stderr
    now = told.removesuffix(HERE) + FEWER.upper()
    assert f"changed since: processor: {told} then, {now} now. Use --resume" in elsewhere.stderr
    assert read_ledger(tmp_path / "run/ledger.jsonl")[-1]["kind"] == "end"
