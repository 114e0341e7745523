"""`fedmoe plan` as a user types it, and automatic budgets in a run."""

import json
import re
from pathlib import Path

import pytest
import torch
from shapes import FULL_TOP_K, OLMOE

from fedmoe.budget import Auto, Levels, Tier
from fedmoe.budget.measure import Sample
from fedmoe.budget.work import Work
from fedmoe.cli.main import main
from fedmoe.config import load_experiment
from fedmoe.config.load import to_yaml
from fedmoe.errors import ConfigError, ModelError
from fedmoe.rounds import plan_round
from fedmoe.runs import machine_plan
from fedmoe.runs.machine_plan import held_out, roomiest
from fedmoe.runs.prepare import prepare
from fedmoe.training.trial import trial_steps

ROOT = Path(__file__).parents[2]
CONFIG = str(ROOT / "configs/auto_budget.yaml")
SMALL = ["data.per_domain=40", "evaluation.validation_examples=2", "evaluation.test_examples=2"]


@pytest.fixture
def olmoe(tmp_path):
    """A folder with the configuration of OLMoE-1B-7B, and nothing else."""
    (tmp_path / "olmoe").mkdir()
    (tmp_path / "olmoe/config.json").write_text(json.dumps(OLMOE))
    return tmp_path / "olmoe"


def chosen(text):
    return re.findall(r"^plan: (.*)$", text, re.MULTILINE)


def test_profiles_are_planned_from_the_config_alone(olmoe, capsys):
    names = ("rtx_3060_12gb", "rtx_4090", "l40s", "a100_80gb")
    devices = [
        x for name in names for x in ("--device", str(ROOT / f"configs/devices/{name}.yaml"))
    ]
    config = str(ROOT / "configs/olmoe_dolly.yaml")
    assert main(["plan", config, f"model.path={olmoe}", *devices]) == 0
    out = capsys.readouterr().out
    settled = "training.batch_size=4 training.accumulation=4 training.recompute=false"
    # 13.8 GB of weights do not fit 12 GB; with 2.3 GB of adapter and 4.2 of the rest they fit 24.
    small = settled.replace("recompute=false", "recompute=true frozen=int4")
    assert chosen(out) == [f"top_k=8 {small}", *[f"top_k=8 {settled}"] * 3]
    assert "Frozen experts in int8, 6.45 GB in place of 12.88 GB" in out
    assert "Frozen experts in 4 bits, 3.42 GB in place of 12.88 GB" in out


def test_a_larger_batch_makes_the_smallest_of_the_three_cards_choose(olmoe, capsys):
    config = str(ROOT / "configs/olmoe_dolly.yaml")
    device = ["--device", str(ROOT / "configs/devices/rtx_4090.yaml")]
    assert main(["plan", config, f"model.path={olmoe}", "training.batch_size=16", *device]) == 0
    out = capsys.readouterr().out
    assert "A smaller micro-batch" in out
    assert chosen(out)[0].startswith("top_k=8 training.batch_size=4 training.accumulation=16")
    assert re.search(r"With k = 3 and a micro-batch of 8 x 512 tokens a step needs", out)


def test_this_machine_is_planned_with_real_steps(tiny_folder, capsys):
    small = [f"model.path={tiny_folder}", "budget.tiers.high.top_k=4"]
    small += ["training.batch_size=2", "training.steps=2", *SMALL]
    assert main(["plan", str(ROOT / "configs/quickstart.yaml"), *small]) == 0
    out = capsys.readouterr().out
    assert "this machine (processor" in out
    assert re.match(r"top_k=[1-4] training.batch_size=[12]", chosen(out)[0]), "by what is free now"


def test_a_machine_without_memory_for_the_largest_step_is_planned_with_a_smaller_one(
    capsys, monkeypatch
):
    """No step of two examples fits, and none of more than two experts."""

    def measured(step, setting, repeats, device, weight_bytes):
        if setting.top_k > 2 or setting.batch_size > 1:
            raise MemoryError("its process was killed")
        return Sample(setting, 10**6 * setting.top_k, 0.01, 0.01)

    monkeypatch.setattr(machine_plan, "measure", measured)
    small = ["training.batch_size=2", "training.steps=2", *SMALL]
    assert main(["plan", str(ROOT / "configs/quickstart.yaml"), *small]) == 0
    out = capsys.readouterr().out
    said = (
        r"with k = 2 and a micro-batch of 2 x \d+ tokens; it was done with k = 2 and a micro-batch"
    )
    assert re.search(f"Calibration ran out of memory {said} of 1 x", " ".join(out.split()))
    assert chosen(out)[0].startswith("top_k=2 training.batch_size=1 training.accumulation=2")


def test_what_no_step_fits_into_is_refused_and_other_faults_are_raised():
    work, said, tried = Work(1, 4, 1, False, 1, 8, 2, 8, 2), [], []

    def starved(work, k):
        tried.append((work.batch_size, k))
        raise MemoryError

    with pytest.raises(ModelError, match="down to k = 1 and a micro-batch of 1 x 8 tokens"):
        roomiest(starved, work, 2, said.append)
    assert tried == [(4, 2), (2, 2), (1, 2), (4, 1), (2, 1), (1, 1)]

    def broken(work, k):
        raise RuntimeError("a shape")

    with pytest.raises(RuntimeError, match="a shape"):
        roomiest(broken, work, 2, said.append)


def test_measuring_a_profile_is_refused(capsys):
    assert main(["plan", CONFIG, "--measure"]) == 2
    assert "--measure is about this machine" in capsys.readouterr().err


def test_a_tiers_k_follows_its_device_and_the_deadline():
    experiment = load_experiment(CONFIG, SMALL)
    assert isinstance(experiment.budget, Auto)
    prepared = prepare(experiment)
    assert isinstance(prepared.setup.experiment.budget, Levels)
    k = prepared.setup.top_ks
    assert (k["gpu"], k["laptop"], k["desktop"]) == (FULL_TOP_K,) * 3
    assert 1 <= k["phone"] < FULL_TOP_K
    assert {m.top_k for m in prepared.server.members if m.tier == "phone"} == {k["phone"]}
    capped = load_experiment(CONFIG, [*SMALL, "budget.tiers.gpu.most_top_k=3"])
    assert prepare(capped).setup.top_ks["gpu"] == 3


def test_a_tiers_own_steps_count_in_its_time():
    few, many = (
        prepare(load_experiment(CONFIG, [*SMALL, "budget.deadline_seconds=3", f"{key}={steps}"]))
        for key, steps in (("budget.tiers.laptop.steps", 1), ("budget.tiers.laptop.steps", 10**5))
    )
    assert few.setup.top_ks["laptop"] == FULL_TOP_K
    assert many.setup.experiment.budget.tiers["laptop"].skipped


def test_a_device_too_small_for_a_micro_batch_trains_in_smaller_ones():
    experiment = load_experiment(CONFIG, [*SMALL, "devices.phone.memory_bytes=660000000"])
    prepared = prepare(experiment)
    phone, gpu = prepared.setup.training_of("phone"), prepared.setup.training_of("gpu")
    assert phone.batch_size < gpu.batch_size == 8
    assert phone.batch_size * phone.accumulation == 8


def test_who_has_no_time_is_left_out_and_the_runs_config_can_be_run_again(tmp_path):
    prepared = prepare(load_experiment(CONFIG, [*SMALL, "budget.deadline_seconds=6"]))
    tasks = plan_round(prepared.server.first_state(), prepared.server.members, 8, 0)
    assert {task.tier for task in tasks} == {"gpu", "laptop", "desktop"}
    (tmp_path / "config.yaml").write_text(to_yaml(prepared.setup.experiment))
    again = load_experiment(tmp_path / "config.yaml")
    assert again == prepared.setup.experiment
    assert again.budget.tiers["phone"].skipped
    assert again.budget.tiers["gpu"] == Tier(
        top_k=FULL_TOP_K, batch_size=8, accumulation=1, recompute=False
    )


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("devices={}", "budget.name 'auto' plans for devices"),
        ("budget.deadline_seconds=0.001", "budget.tiers.phone: It sits out: with k = 1 a round"),
    ],
)
def test_a_plan_that_cannot_be_is_refused(override, expected):
    with pytest.raises(ConfigError) as caught:
        prepare(load_experiment(CONFIG, [*SMALL, override]))
    assert expected in str(caught.value)


def test_settings_held_out_are_twelve_or_more_and_none_is_calibrated_with(tiny_model):
    from fedmoe.budget.calibrate import settings_to_measure
    from fedmoe.budget.shape import Setting
    from fedmoe.data.text import Tokens

    longest = Setting(8, 8, 64, 16)
    settings = held_out(longest, 8)
    assert len(settings) >= 12
    assert not set(settings) & set(settings_to_measure(longest, 8))
    model = tiny_model()
    step = trial_steps(model, [Tokens(tuple(range(2, 12)), 5)], 0)(Setting(2, 2, 16, 4))
    before = model.flat.clone()
    step()
    assert not torch.equal(model.flat, before)
    assert not model.grad.any()
