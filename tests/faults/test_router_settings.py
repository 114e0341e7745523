"""Settings that need softmax routers are refused by name before anything is trained."""

from pathlib import Path

import pytest
from family_models import save, tiny_family

from fedmoe.cli.main import main
from fedmoe.models.families import FAMILIES

QUICKSTART = str(Path(__file__).parents[2] / "configs/quickstart.yaml")
SMALL = ["data.per_domain=20", "evaluation.validation_examples=2", "evaluation.test_examples=2"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model whose routers take sigmoids, with groups."""
    path = tmp_path_factory.mktemp("deepseek")
    return save(tiny_family(FAMILIES["deepseek_v3"], vocab_size=4096), path)


def checked(capsys, folder, *overrides):
    """The exit code of `fedmoe check`, and what it said."""
    code = main(["check", QUICKSTART, f"model.path={folder}", *SMALL, *overrides])
    captured = capsys.readouterr()
    return code, " ".join((captured.out + captured.err).split())


def test_losses_and_modulation_are_refused_by_check(capsys, folder):
    code, said = checked(
        capsys, folder, "losses.z=0.1", "losses.load_balance=0.01", "aggregation={name: ub_smoe}"
    )
    assert code == 2
    for text in (
        "losses.z: 0.1 needs routers that take a softmax",
        "losses.load_balance: 0.01 needs",
        "aggregation.name: 'ub_smoe' needs",
        "those of 'deepseek_v3' models do not (sigmoid",
        "olmoe, mixtral",
        "use 0",
        "use another strategy",
    ):
        assert text in said, text


@pytest.mark.slow
def test_without_them_the_same_model_is_planned(capsys, folder):
    code, said = checked(capsys, folder)
    assert code == 0, said
