"""A run that starts from an adapter: the product is the saved one's, whatever form it is in."""

import json
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from conformance import INITIAL, PLAIN, made, start_of
from fake_grid import FakeGrid
from family_models import save, tiny_family
from peft import LoraConfig
from safetensors.torch import save_file
from sides import run_over

from fedmoe.adapter import Adapter, initial_adapter
from fedmoe.aggregation import STRATEGIES
from fedmoe.aggregation.ffa_lora import FFALoRA
from fedmoe.aggregation.products import pairs
from fedmoe.comparison.baselines import LocalOnly
from fedmoe.config import Experiment, load_experiment
from fedmoe.config.load import to_yaml
from fedmoe.errors import CheckpointError, ConfigError
from fedmoe.export.peft import to_peft
from fedmoe.models.adapted import AdaptedModel, LoRA
from fedmoe.models.build import ModelSettings
from fedmoe.models.families import FAMILIES
from fedmoe.models.peft_experts import FUSED
from fedmoe.models.rescaling import NoRescaling
from fedmoe.rounds import ServerState
from fedmoe.runs import resume
from fedmoe.runs import start as starts
from fedmoe.runs.identity import identity
from fedmoe.runs.local.in_process import InProcess
from fedmoe.runs.prepare import prepare
from fedmoe.runs.recorder import adapter_parts
from fedmoe.runs.start import read_start
from server.settings import Settings
from server.transport import GridTransport

KINDS = [kind for kind in [*STRATEGIES, LocalOnly] if kind.warm != "never"]
ROWS = [{"prompt": f"say {word} {n}", "response": word} for n in range(8) for word in ("a", "b")]


def products(adapter):
    """Every change of a weight, by the name of its `A`."""
    views, scale = adapter.views(), adapter.layout.scale
    return {p.A: scale * views[p.B].double() @ views[p.A].double() for p in pairs(adapter.layout)}


def assert_same_products(one, other, **tolerance):
    found, wanted = products(one), products(other)
    assert found.keys() == wanted.keys()
    for name, product in found.items():
        torch.testing.assert_close(product, wanted[name], **tolerance)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind().name)
def test_a_strategys_first_round_computes_with_the_start(kind, monkeypatch, random_adapter):
    strategy = made(kind)
    start = random_adapter(PLAIN)
    fitted = initial_adapter(strategy.start_layout(PLAIN), torch.Generator().manual_seed(0))
    list(starts._fill(fitted, starts._parts(start, [])))
    if strategy.warm == "here":
        monkeypatch.setattr("conformance.INITIAL", start)
    _, local = start_of(strategy, strategy.warm_state(INITIAL, fitted))
    assert_same_products(local.start, start, atol=1e-6, rtol=1e-5)
    assert torch.equal(local.start["0.gate.shift"], start["0.gate.shift"])


@pytest.fixture(scope="module")
def prepared_by(tmp_path_factory, tiny_folder):
    """A function that prepares an experiment of four clients."""
    home = tmp_path_factory.mktemp("start")
    (home / "rows.jsonl").write_text("\n".join(map(json.dumps, ROWS)))
    (home / "start.yaml").write_text(
        f"""\
model: {{path: {tiny_folder}}}
adapter: {{rank: 4, alpha: 8.0}}
data: {{name: files, path: {home / "rows.jsonl"}}}
partition: {{name: iid, num_clients: 2}}
training: {{steps: 1, batch_size: 2, probe_examples: 2}}
aggregation: {{name: fedavg}}
evaluation: {{validation_examples: 2, test_examples: 2, max_new_tokens: 1}}
"""
    )
    return lambda *overrides: prepare(load_experiment(home / "start.yaml", overrides))


@pytest.fixture(scope="module")
def plain(prepared_by):
    return prepared_by()


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory, plain, random_adapter):
    """A run's folder as far as a start needs it, and its adapter."""
    folder, adapter = tmp_path_factory.mktemp("before"), random_adapter(plain.setup.model.layout)
    state = ServerState(3, adapter, plain.server.first_state().rescalers)
    (folder / "config.yaml").write_text(to_yaml(plain.setup.experiment))
    (folder / "environment.json").write_text(json.dumps({"identity": identity(plain.server)}))
    (folder / "adapter-best.safetensors").write_bytes(b"".join(adapter_parts(adapter, state)))
    return folder, adapter


def started(plain, start, **adapter):
    """What an experiment reads that differs in its adapter from the prepared one."""
    e = plain.setup.experiment
    e = replace(e, adapter=replace(e.adapter, start=str(start), **adapter))
    layout = plain.setup.model.layout.with_rank(e.adapter.rank, e.adapter.alpha / e.adapter.rank)
    model = SimpleNamespace(layout=layout, full_top_k=4)
    return read_start(e, model, plain.setup.base)


def test_a_run_starts_from_another_ones_best_adapter_to_the_bit(prepared_by, run_folder):
    folder, adapter = run_folder
    prepared = prepared_by(f"adapter.start={folder}")
    assert torch.equal(prepared.server.first_state().adapter.flat, adapter.flat)
    assert prepared.setup.start.notes == (f"starts from {folder}",)
    assert identity(prepared.server)["start"] == adapter.digest()
    file = prepared_by(f"adapter.start={folder}/adapter-best.safetensors")
    assert torch.equal(file.server.first_state().adapter.flat, adapter.flat)


def test_a_run_is_not_resumed_from_another_start(prepared_by, run_folder):
    folder, _ = run_folder
    prepared = prepared_by(f"adapter.start={folder}")
    mine = identity(prepared.server)
    resume._check_same(folder, prepared.server, mine, mine)
    for before in (mine | {"start": "another"}, {k: v for k, v in mine.items() if k != "start"}):
        with pytest.raises(CheckpointError, match="changed since: start"):
            resume._check_same(folder, prepared.server, before, mine)


def test_a_file_by_itself_must_be_of_the_same_layout(plain, run_folder, tmp_path):
    folder, adapter = run_folder
    alone = tmp_path / "mine.safetensors"
    alone.write_bytes((folder / "adapter-best.safetensors").read_bytes())
    assert torch.equal(started(plain, alone).adapter.flat, adapter.flat)
    with pytest.raises(ConfigError, match="another model, rank or alpha"):
        started(plain, alone, alpha=4.0)


@pytest.mark.parametrize(("rank", "alpha"), [(4, 2.0), (6, 8.0), (9, 3.0)])
def test_another_scale_or_a_higher_rank_keeps_the_product(plain, run_folder, rank, alpha):
    folder, adapter = run_folder
    start = started(plain, folder, rank=rank, alpha=alpha)
    assert_same_products(start.adapter, adapter)
    assert "B is rescaled" in " ".join(start.notes)
    for pair in pairs(start.adapter.layout):  # or what was added would never learn
        assert (start.adapter[pair.A] != 0).any(-1).all()


def test_a_lower_rank_is_the_nearest_product_and_says_what_is_lost(plain, run_folder):
    folder, adapter = run_folder
    start = started(plain, folder, rank=2, alpha=1.0)
    lost = whole = 0.0
    cut = products(start.adapter)
    for name, product in products(adapter).items():
        values = torch.linalg.svdvals(product)
        left = torch.linalg.matrix_norm(product - cut[name]).square().sum()
        torch.testing.assert_close(left, values[..., 2:].square().sum(), rtol=1e-4, atol=1e-9)
        lost, whole = lost + left, whole + values.square().sum()
    assert f"{(lost / whole).sqrt():.2%} of its size is lost" in start.notes[1]


def test_a_cut_that_loses_nothing_says_so_and_leaves_nothing_dead(plain, run_folder, tmp_path):
    folder, adapter = run_folder
    low = Adapter(adapter.layout, adapter.flat.clone())
    for pair in pairs(low.layout):
        low[pair.B][..., 1:] = 0
    for name in ("config.yaml", "environment.json"):
        (tmp_path / name).write_text((folder / name).read_text())
    state = ServerState(1, low, {})
    (tmp_path / "adapter-last.safetensors").write_bytes(b"".join(adapter_parts(low, state)))
    start = started(plain, tmp_path, rank=2)
    assert_same_products(start.adapter, low, atol=1e-6, rtol=1e-5)
    assert "no adapter was the best yet" in start.notes[1]
    assert "nothing is lost" in start.notes[2]
    for pair in pairs(start.adapter.layout):
        assert (start.adapter[pair.A] != 0).any(-1).all()


def test_parts_that_the_run_does_not_adapt_are_refused_and_missing_ones_said(
    prepared_by, run_folder, tmp_path, random_adapter
):
    folder, _ = run_folder
    with pytest.raises(ConfigError, match=r"it adapts 8 parts .*; set adapter.attention"):
        prepared_by("adapter.attention=false", f"adapter.start={folder}")
    bare = prepared_by("adapter.attention=false")
    adapter = random_adapter(bare.setup.model.layout)
    (tmp_path / "config.yaml").write_text(to_yaml(bare.setup.experiment))
    (tmp_path / "environment.json").write_text(json.dumps({"identity": identity(bare.server)}))
    blob = b"".join(adapter_parts(adapter, ServerState(1, adapter, {})))
    (tmp_path / "adapter-best.safetensors").write_bytes(blob)
    prepared = prepared_by(f"adapter.start={tmp_path}")  # the same base, less wrapped
    assert prepared.setup.start.notes[1].startswith("8 parts begin fresh")


def test_what_is_no_adapter_or_another_models_is_refused(plain, run_folder, tmp_path):
    folder, _ = run_folder
    with pytest.raises(ConfigError, match="holds no adapter; expected the folder of a run"):
        started(plain, tmp_path)
    e = plain.setup.experiment
    e = replace(e, adapter=replace(e.adapter, start=str(folder)))
    with pytest.raises(ConfigError, match="adapts another base model"):
        read_start(e, plain.setup.model, "another")


def test_a_strategy_between_bases_of_its_own_refuses_a_start(prepared_by, run_folder):
    with pytest.raises(ConfigError, match="trains between bases of its own"):
        prepared_by(f"adapter.start={run_folder[0]}", "aggregation=fed_sb")


EVERY = ["olmoe", "gpt_oss", "nllb-moe"]


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
@pytest.mark.parametrize("kind", EVERY)
def test_a_peft_folder_gives_the_adapter_that_was_exported(kind, tmp_path, random_adapter):
    family = FAMILIES[kind]
    router = kind == "olmoe"
    base = save(tiny_family(family), tmp_path / "base")
    settings = LoRA(rank=4, alpha=8.0, router=router, start=str(tmp_path / "peft"))
    model = AdaptedModel(tiny_family(family), settings, NoRescaling())
    adapter = random_adapter(model.layout)
    to_peft(adapter, tiny_family(family)).save_pretrained(str(tmp_path / "peft"))
    e = Experiment(model=ModelSettings(path=str(base)), adapter=settings)
    start = read_start(e, model, "")
    torch.testing.assert_close(start.adapter.flat, adapter.flat, atol=1e-6, rtol=0)
    if not router:
        assert torch.equal(start.adapter.flat, adapter.flat)


def test_a_peft_folder_of_experts_one_by_one_gives_their_products(tmp_path, tiny_model):
    """As PEFT saved it before transformers fused experts: gate and up with factors of their own."""
    model = tiny_model(adapter=LoRA(rank=4, alpha=4.0))
    tensors, wanted, g = {}, {}, torch.Generator().manual_seed(0)
    for n in range(2):
        path = f"model.layers.{n}.mlp.experts"
        for weight, names in FUSED.items():
            wanted[f"{path}.{weight}.A"] = torch.stack(
                [
                    torch.cat([product(tensors, f"{path}.{e}.{name}", g) for name in names])
                    for e in range(8)
                ]
            )
        for name in ("q_proj", "o_proj"):
            q = f"model.layers.{n}.self_attn.{name}"
            wanted[f"{q}.A"] = product(tensors, q, g, (32, 32))
    save_file(tensors, tmp_path / "adapter_model.safetensors")
    names = ["gate_proj", "up_proj", "down_proj", "q_proj", "o_proj"]
    LoraConfig(r=2, lora_alpha=6, target_modules=names).save_pretrained(str(tmp_path))
    e = Experiment(adapter=LoRA(rank=4, alpha=4.0, start=str(tmp_path)))
    start = read_start(e, model, "")
    found = products(start.adapter)
    for name, product_ in wanted.items():
        torch.testing.assert_close(found[name], product_.double(), rtol=1e-5, atol=1e-6)
    assert "4 parts begin fresh" in start.notes[-1]
    one = next(key for key in tensors if ".3.up_proj.lora_A" in key)
    save_file(
        {k: t for k, t in tensors.items() if k[:-8] != one[:-8]},
        tmp_path / "adapter_model.safetensors",
    )
    with pytest.raises(ConfigError, match="some experts have factors, and not all"):
        read_start(e, model, "")


def product(tensors, layer, g, shape=None):
    """Factors of rank 2 of a layer, put among the tensors by PEFT's names; three times `B A`."""
    out, into = shape or ((32, 16) if "down" in layer else (16, 32))
    a, b = torch.randn(2, into, generator=g), torch.randn(out, 2, generator=g)
    for factor, value in (("A", a), ("B", b)):
        tensors[f"base_model.model.{layer}.lora_{factor}.weight"] = value
    return 3 * b @ a


def test_nodes_of_a_grid_need_no_start_and_give_the_same_bits(prepared_by, run_folder):
    prepared = prepared_by(f"adapter.start={run_folder[0]}")
    alone = run_over(
        prepared, InProcess(prepared.server, prepared.scorer), num_rounds=1, clients_per_round=2
    )
    grid = FakeGrid({})
    transport = GridTransport(grid, prepared.server, prepared.scorer, Settings(), grid.clock)
    assert str(run_folder[0]) not in transport.experiment
    there = run_over(prepared, transport, num_rounds=1, clients_per_round=2)
    assert there.adapter.digest() == alone.adapter.digest() != run_folder[1].digest()
    with pytest.raises(ConfigError, match="clients of 'ffa_lora' need it"):
        prepare(
            replace(prepared.setup.experiment, aggregation=FFALoRA()),
            on_nodes=True,
            loaded=(prepared.setup.model, prepared.setup.tokenizer),
        )
