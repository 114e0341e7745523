"""Whole runs in which no client holds the experts in full: report, resume, export, generation."""

from pathlib import Path

import pytest
from family_models import tiny_family
from sums import write_sums

from fedmoe.cli.main import main
from fedmoe.config import load_experiment
from fedmoe.models.families import FAMILIES
from fedmoe.models.memory.frozen import frozen_digest
from fedmoe.report.ledger import read_ledger
from fedmoe.runs.prepare import prepare

QUICKSTART = Path(__file__).parents[2] / "configs/quickstart.yaml"
FORMS = {
    "int8": "frozen: int8",
    "offloaded": "offload: true",
    "int4_offloaded": "frozen: int4, offload: true",
    "merged_int8": "frozen: int8, subset: {keep: 4, left_out: merge}",
}


@pytest.mark.usefixtures("proved_here")
@pytest.mark.parametrize("name", FORMS)
def test_a_run_without_full_experts_ends_goes_on_and_is_exported(name, tiny_folder, tmp_path):
    write_sums(tmp_path, 6, 6)
    config = tmp_path / "run.yaml"
    config.write_text(
        f"""\
name: held
rounds: 2
model: {{path: {tiny_folder}}}
adapter: {{rank: 4, alpha: 8.0}}
data: {{name: files, path: {tmp_path / "rows.jsonl"}}}
partition: {{name: iid, num_clients: 2}}
budget: {{tiers: {{all: {{top_k: 2, {FORMS[name]}}}}}}}
training: {{steps: 1, batch_size: 2, probe_examples: 4}}
evaluation: {{validation_examples: 2, test_examples: 2, max_new_tokens: 2}}
simulation: {{folder: {tmp_path / "runs"}}}
"""
    )
    assert main(["run", str(config), "--quiet"]) == 0
    folder = tmp_path / "runs" / "held"
    ledger = read_ledger(folder / "ledger.jsonl")
    assert ledger[-1]["kind"] == "end"
    assert {r["status"] for r in ledger if r["kind"] == "client"} == {"ok"}
    assert main(["run", str(config), "--quiet", "--resume", "auto"]) == 0
    assert main(["export", str(folder), str(tmp_path / "adapter")]) == 0
    assert (tmp_path / "adapter" / "adapter_model.safetensors").exists()
    assert main(["generate", "--run", str(folder), "--max-new-tokens", "2", "one"]) == 0


def test_the_digest_of_the_model_does_not_depend_on_what_is_held_of_it(tiny_folder, tiny_base):
    def made(form):
        overrides = [f"budget.tiers={{all: {{top_k: 2, frozen: {form}}}}}", "data.per_domain=20"]
        config = load_experiment(QUICKSTART, [f"model.path={tiny_folder}", *overrides])
        return prepare(config)

    full = made("full")
    assert made("int8").setup.base == full.setup.base == frozen_digest(full.setup.model.model)
    base = tiny_base()
    before = frozen_digest(base)
    base.model.layers[0].mlp.experts.down_proj.data[0, 0, 0] += 1
    assert frozen_digest(base) != before


def test_the_digest_has_the_settings_and_every_small_buffer():
    base = tiny_family(FAMILIES["deepseek_v3"])
    found = {frozen_digest(base)}
    base.config.norm_topk_prob = not base.config.norm_topk_prob
    found.add(frozen_digest(base))
    name, bias = next((n, b) for n, b in base.named_buffers() if "bias" in n)
    bias[-1] += 1
    found.add(frozen_digest(base))
    assert len(found) == 3, name
