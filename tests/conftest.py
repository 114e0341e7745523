"""Tiny random models, and adapters for them, that the tests share."""

import gc
import os
import shutil
import signal
from functools import partial
from pathlib import Path

# Before transformers is imported: no test may reach for a network.
os.environ["HF_HUB_OFFLINE"] = "1"
# Before Triton is: its kernels run on a processor, where it is installed at all.
os.environ["TRITON_INTERPRET"] = "1"

import pytest
import torch
from hypothesis import settings
from jaxtyping import install_import_hook

# Before rich and typer are imported: what tests look at is as wide, and as plain, in any terminal.
for _name in (
    "COLUMNS",
    "LINES",
    "TERM",
    "NO_COLOR",
    "FORCE_COLOR",
    "TTY_COMPATIBLE",
    "TTY_INTERACTIVE",
):
    os.environ.pop(_name, None)

# Before fedmoe is imported: the shapes and dtypes its signatures promise are checked.
install_import_hook(["fedmoe.adapter", "fedmoe.aggregation"], "beartype.beartype")

settings.register_profile("fedmoe", deadline=None, derandomize=True, database=None)
settings.load_profile("fedmoe")
torch.set_num_threads(1)

# What a test forks ends at once, as anywhere else; see `_end`.
os.register_at_fork(after_in_child=lambda: signal.signal(signal.SIGTERM, signal.SIG_DFL))

TINY = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "num_experts_per_tok": 4,
    "max_position_embeddings": 512,
    "pad_token_id": 0,
    "eos_token_id": 1,
    "bos_token_id": None,
}
FAMILIES = {
    "olmoe": {"num_experts": 8},
    "mixtral": {"num_local_experts": 8},
    "qwen2_moe": {"num_experts": 8, "moe_intermediate_size": 16},
    "qwen3_moe": {"num_experts": 8, "moe_intermediate_size": 16, "head_dim": 8},
}


def pytest_collection_finish():
    """What is imported by now stays: no collection of garbage looks through it again."""
    from fedmoe.system.digests import code_digest

    code_digest()  # processes that tests fork have it, too
    gc.collect()
    gc.freeze()


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item):
    """Ended by SIGTERM, as by `timeout`, the tests take along what their fixtures have started.

    Anew for every test: some commands that tests call have SIGTERM do what Ctrl-C does.
    """
    signal.signal(signal.SIGTERM, partial(_end, item.session))


def _end(session, number, _):
    signal.signal(number, signal.SIG_IGN)  # `timeout` says it twice
    session.shouldstop = "ended by SIGTERM"
    raise SystemExit(128 + number)


@pytest.fixture(scope="session")
def tiny_base():
    """A function that makes a tiny random base of a family, on transformers' eager experts."""
    from transformers import AutoConfig, AutoModelForCausalLM

    def make(family="olmoe", **changes):
        config = AutoConfig.for_model(family, **(TINY | FAMILIES[family] | changes))
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = AutoModelForCausalLM.from_config(config, experts_implementation="eager")
            for name, parameter in model.named_parameters():
                if parameter.dim() > 1:
                    # Decided routers and no value near zero: no test hangs on a tie or a rounding.
                    torch.nn.init.normal_(parameter, std=1.0 if "gate." in name else 0.2)
        return model.eval().requires_grad_(False)

    return make


@pytest.fixture(scope="session")
def tiny_model(tiny_base):
    """A function that makes a tiny AdaptedModel of a family, on the expert fast path."""
    from fedmoe.models import experts
    from fedmoe.models.adapted import AdaptedModel, LoRA
    from fedmoe.models.rescaling import NoRescaling

    def make(family="olmoe", adapter=None, rescaling=None, **changes):
        experts.register()
        base = tiny_base(family, **changes)
        base.set_experts_implementation(experts.IMPLEMENTATION)
        adapter = adapter or LoRA(rank=4, alpha=8.0)
        return AdaptedModel(base, adapter, rescaling or NoRescaling())

    return make


@pytest.fixture
def proved_here(monkeypatch):
    """Exports whose consumer computes in this process: a fresh one takes seconds."""
    from fedmoe.export.reload import logits_of

    monkeypatch.setattr("fedmoe.export.exported.in_fresh_process", logits_of)


@pytest.fixture(scope="session", autouse=True)
def undrawn():
    """Reports are written without plots, which take a second; yields what draws them."""
    with pytest.MonkeyPatch.context() as patch:
        from fedmoe.report.plots import draw_plots

        patch.setattr("fedmoe.report.plots.draw_plots", lambda run: [])
        yield draw_plots


@pytest.fixture(scope="module")
def drawn(undrawn):
    """Reports of a module whose tests look at plots have them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fedmoe.report.plots.draw_plots", undrawn)
        yield


@pytest.fixture
def undrawn_here(monkeypatch):
    """Reports without plots, for one test of a module whose other tests look at them."""
    monkeypatch.setattr("fedmoe.report.plots.draw_plots", lambda run: [])


@pytest.fixture
def uncharted(monkeypatch):
    """Pages of comparisons are written without plots, which take seconds to draw."""
    monkeypatch.setattr("fedmoe.comparison.files.draw_case", lambda case: [])


@pytest.fixture(scope="session")
def random_adapter():
    """A function that fills every factor of a layout, B too, with random values."""
    from fedmoe.adapter import Adapter

    def make(layout, seed=0, std=0.1):
        generator = torch.Generator().manual_seed(seed)
        return Adapter(layout, torch.randn(layout.size, generator=generator) * std)

    return make


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory, tiny_base):
    """The folder of a tiny random OLMoE with the built-in model's tokenizer."""
    import fedmoe.models

    folder = tmp_path_factory.mktemp("tiny-olmoe")
    tiny_base(vocab_size=4096).save_pretrained(folder)
    for source in (Path(fedmoe.models.__file__).parent / "mini").glob("tokenizer*"):
        shutil.copy(source, folder)
    return folder
