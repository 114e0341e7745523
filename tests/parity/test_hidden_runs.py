"""Runs whose server sees sums alone: the same adapter under masks, and an account under noise."""

import json

import pytest
import torch
from safetensors.torch import load_file
from sums import sums_config

from fedmoe.config import load_experiment
from fedmoe.errors import ConfigError, FedMoEError
from fedmoe.report.ledger import read_ledger
from fedmoe.report.plots_scores import client_losses
from fedmoe.report.privacy import epsilon_per_round
from fedmoe.report.run import read_run
from fedmoe.runs.recorder import Recorder
from fedmoe.runs.session import run

BUDGET = "privacy={epsilon: 30, delta: 1e-2, clip: 0.05, noise_multiplier: 1}"
UNIFORM = "aggregation={name: fedavg, weighting: uniform}"


@pytest.fixture(scope="module")
def experiment_of(tmp_path_factory, tiny_folder):
    """A function from a name and overrides to an experiment of five clients."""
    home = tmp_path_factory.mktemp("hidden")
    rest = f"""\
rounds: 2
partition: {{name: natural, num_clients: 5}}
budget: {{tiers: {{high: {{top_k: 2}}, low: {{top_k: 1}}}}}}
training: {{steps: 2, batch_size: 2, probe_examples: 2}}
evaluation: {{every: 0, validation_examples: 2, test_examples: 2, max_new_tokens: 1}}
simulation: {{folder: {home / "runs"}}}
"""
    config = sums_config(home, tiny_folder, rest, rows=40, sites=5)
    return lambda name, *overrides: load_experiment(config, [f"name={name}", *overrides])


def adapter_of(folder):
    return load_file(folder / "adapter-last.safetensors")


def lines_of(folder, kind):
    return [line for line in read_ledger(folder / "ledger.jsonl") if line["kind"] == kind]


@pytest.mark.parametrize(
    "overrides",
    [
        ["aggregation={name: flame, temperature: 1}"],
        [UNIFORM, "faults='kill-client=.15,drop=.1'", "seed=8"],
        ["aggregation={name: fedavg}", "secure_aggregation={neighbours: 4}", "clients_per_round=4"],
    ],
)
def test_the_adapter_under_masks_is_the_one_in_clear(experiment_of, overrides):
    overrides = ["secure_aggregation={threshold: .51}", *overrides]
    masked = run(experiment_of("masked", *overrides))
    plain = ["secure_aggregation=null", "robust={name: none}"]
    clear = run(experiment_of("clear", *overrides, *plain))
    for name, values in adapter_of(clear).items():
        torch.testing.assert_close(adapter_of(masked)[name], values, atol=1e-7, rtol=1e-6)
    ok = [line for line in lines_of(clear, "client") if line["status"] == "ok"]
    hidden = [line for line in lines_of(masked, "client") if line["status"] == "ok"]
    assert [line["client"] for line in ok] == [line["client"] for line in hidden]
    assert not {"examples", "loss_before", "tokens", "flops"} & {*hidden[0]}
    mean = sum(line["loss_after"] for line in ok if line["round"] == 2)
    number = sum(line["round"] == 2 for line in ok)
    page = (masked / "report.html").read_text()
    assert "masked: the server saw sums alone" in page
    assert page.count("<td>withheld</td>") + page.count(">withheld<") > 2
    assert lines_of(masked, "private")[-1]["loss_after"] == pytest.approx(mean / number, abs=1e-6)


def test_a_private_run_keeps_account_and_shows_nobody(experiment_of):
    folder = run(experiment_of("private", UNIFORM, BUDGET, "clients_per_round=3"))
    spent = [line["epsilon"] for line in lines_of(folder, "private")]
    assert len(spent) == 2
    assert 0 < spent[0] < spent[1] <= 30
    for line in lines_of(folder, "client"):
        assert {*line} <= {
            "kind", "round", "client", "name", "tier", "top_k", "bytes_down", "bytes_up", "status",
        }  # fmt: skip
    page = (folder / "summary.md").read_text()
    assert f"epsilon {spent[1]:.3f} of 30" in page
    assert "## Rounds in sums" in page
    assert page.count("| withheld | withheld |") == 2  # of two tiers' costs
    assert "masked" not in page
    assert epsilon_per_round(read_run(folder)) is not None
    assert client_losses(read_run(folder)) is None
    sizes = {(line["tier"], line["bytes_up"]) for line in lines_of(folder, "client")}
    assert len(sizes) == len({tier for tier, _ in sizes}), "a size tells which experts were used"
    assert not json.loads((folder / "manifest.json").read_text())["clients"]
    again = run(experiment_of("again", UNIFORM, BUDGET, "clients_per_round=3"))
    pairs = zip(adapter_of(folder).values(), adapter_of(again).values(), strict=True)
    assert all(not torch.equal(a, b) for a, b in pairs if a.numel() > 2), "noise from the seed"


def test_noise_under_masks_is_as_large_as_the_servers(experiment_of):
    """Four of five clients suffice, so that five add 5/4 of the variance: no less than is asked."""
    shared = [UNIFORM, BUDGET, "rounds=1", "training.learning_rate=1e-9", "adapter.rank=32"]
    central = adapter_of(run(experiment_of("central", *shared)))
    masked = ["secure_aggregation={threshold: 1}"]
    folder = run(experiment_of("shared", *shared, *masked))
    values = [torch.cat([v.flatten() for n, v in found.items() if n.endswith("B")])
              for found in (central, adapter_of(folder))]  # fmt: skip
    # The ratio of n values each is known to 1 / sqrt(n), here 0.7 %: 1 instead would be 11 % off.
    assert len(values[0]) > 20_000
    assert values[1].std() / values[0].std() == pytest.approx((5 / 4) ** 0.5, rel=0.03)
    # It is written down before it is known; what it tells comes later, and costs nothing more.
    lines = lines_of(folder, "private")
    assert [line.get("charged", True) for line in lines] == [True, False]
    assert lines[0]["epsilon"] == lines[1]["epsilon"]


def test_a_resumed_run_counts_what_it_has_spent_and_stops_in_time(experiment_of, monkeypatch):
    """A state that was made and then lost in a crash has been paid for."""
    named = ["resumed", UNIFORM, "privacy={epsilon: 9, delta: 1e-2, clip: .1, noise_multiplier: 1}"]
    experiment = experiment_of(*named, "clients_per_round=3")
    written = []

    def dying(folder, checkpoint):
        if len(written) == 1:
            raise FedMoEError("the power is gone")
        written.append(write(folder, checkpoint))

    write = __import__("fedmoe.runs.session", fromlist=["x"]).write_checkpoint
    monkeypatch.setattr("fedmoe.runs.session.write_checkpoint", dying)
    with pytest.raises(FedMoEError, match="power"):
        run(experiment)
    monkeypatch.undo()
    monkeypatch.setattr("fedmoe.runs.session.sight_of", killed)  # the ledger is cut by then
    with pytest.raises(FedMoEError, match="killed"):
        run(experiment, resume="auto")
    monkeypatch.undo()
    folder = run(experiment, resume="auto")
    spent = lines_of(folder, "private")
    assert [line["round"] for line in spent if line.get("again")] == [1]
    assert [line["round"] for line in spent if not line.get("again")] == [1, 2]
    alone = run(experiment_of("alone", *named[1:], "clients_per_round=3"))
    assert spent[-1]["epsilon"] > lines_of(alone, "private")[-1]["epsilon"]


def killed(*_):
    raise FedMoEError("killed")


def test_a_lost_round_costs_one_of_those_that_were_planned(experiment_of, monkeypatch):
    """The noise is chosen for two rounds: the run ends after one that counts, and says why."""
    experiment = experiment_of("planned", UNIFORM, "privacy={epsilon: 9, delta: 1e-2, clip: .1}")
    finish = Recorder.finished

    def dying(recorder, state):
        monkeypatch.undo()
        raise FedMoEError("the power is gone")

    monkeypatch.setattr(Recorder, "finished", dying)
    with pytest.raises(FedMoEError, match="power"):
        run(experiment)
    assert Recorder.finished is finish
    folder = run(experiment, resume="auto")
    assert [line["round"] for line in lines_of(folder, "private")] == [1, 1]
    assert lines_of(folder, "private")[-1]["epsilon"] <= 9
    assert "epsilon" in lines_of(folder, "stopped")[0]["reason"]


def test_a_masked_sum_that_was_known_when_the_power_went_is_paid_for(experiment_of, monkeypatch):
    settings = [UNIFORM, BUDGET, "rounds=1", "secure_aggregation={}"]
    experiment = experiment_of("unmasked", *settings)
    monkeypatch.setattr("fedmoe.privacy.vector.Vector.next_state", killed)
    with pytest.raises(FedMoEError, match="killed"):
        run(experiment)
    monkeypatch.undo()
    lines = lines_of(run(experiment, resume="auto"), "private")
    assert [line.get("charged", True) for line in lines] == [True, True, False]
    assert 0 < lines[0]["epsilon"] < lines[1]["epsilon"] == lines[2]["epsilon"]


def test_owners_scores_and_rows_stay_with_them(experiment_of, tmp_path):
    """No noise is on either; the server's own rows have scores, and choose the best adapter."""
    rows = [json.dumps({"prompt": f"is {n} odd", "response": str(n % 2)}) for n in range(9)]
    for name in ("ash", "elm", "oak", "server"):
        (tmp_path / f"{name}.jsonl").write_text("\n".join(rows))
    owned = [
        f"data={{name: federated, path: {tmp_path}, clients: [ash, elm, oak], "
        f"server_test: {tmp_path}/server.jsonl}}",
        "partition={name: natural}",
        "evaluation={best: server, every: 1, test_examples: 2, max_new_tokens: 1}",
    ]
    folder = run(experiment_of("owned", UNIFORM, BUDGET, "rounds=1", *owned))
    assert lines_of(folder, "withheld")
    assert not lines_of(folder, "rows")
    scores = lines_of(folder, "evaluation")
    assert scores
    assert not any(line["clients"] for line in scores)
    assert lines_of(folder, "private")[0]["probability"] == 1
    assert all(v.isfinite().all() for v in adapter_of(folder).values())


def test_a_budget_that_does_not_suffice_is_refused_before_training(experiment_of):
    short = "privacy={epsilon: 1, delta: 1e-2, clip: .1, noise_multiplier: 0.5}"
    with pytest.raises(ConfigError, match=r"privacy.epsilon: 1 is less than"):
        run(experiment_of("short", UNIFORM, short))
    with pytest.raises(ConfigError, match=r"privacy.delta"):
        run(experiment_of("wide", UNIFORM, "privacy={epsilon: 1, delta: .5, clip: .1}"))


def test_clients_must_know_how_many_others_to_insist_on(experiment_of):
    masked, part = "secure_aggregation={}", "clients_per_round=4"
    few = ["partition.num_clients=20", masked, part, UNIFORM, BUDGET]
    with pytest.raises(ConfigError, match=r"privacy.sampling: 'secret' leaves some round"):
        experiment_of("secret", *few)
    experiment_of("known", *few, "privacy.sampling=known")
    owned = [masked, "data={name: federated, path: /srv}", "partition={name: natural}"]
    with pytest.raises(ConfigError, match=r"clients_per_round: missing: by it clients know"):
        experiment_of("owned", *owned)
    for more in (part, "data.clients=[a, b, c]", "secure_aggregation.neighbours=4"):
        experiment_of("owned", *owned, more)


def test_two_clients_hide_nobody(experiment_of):
    with pytest.raises(FedMoEError, match="fewer than 3"):
        run(experiment_of("two", "secure_aggregation={}", "clients_per_round=2"))
