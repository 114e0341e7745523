"""Digits as data, and the sparse image classifier that is made of them."""

from dataclasses import replace

import pytest
import torch

pytest.importorskip("sklearn", reason="the extra `vision` is not installed")

from fedmoe.base_models.pretraining.vision import Base, accuracy, encoded, trained_dense
from fedmoe.data.digits import Digits, all_digits, of_pretraining
from fedmoe.data.examples import SPLITS
from fedmoe.data.text import TextSettings
from fedmoe.data.wording import tokenize
from fedmoe.errors import DataError
from fedmoe.models.adapted import AdaptedModel, LoRA
from fedmoe.models.rescaling import NoRescaling
from fedmoe.models.tasks.image import Pixels, as_images
from fedmoe.models.vit import SparseMLP, SparseViT, upcycled

QUICK = Base(steps=8, batch_size=16, num_experts=4, top_k=2)


@pytest.fixture(scope="module")
def dense():
    return trained_dense(of_pretraining(), QUICK)


def test_no_image_of_pretraining_is_trained_on_or_tested_on():
    made = {example.prompt for example in of_pretraining()}
    assert len(made) == 400
    for seed in (0, 1):
        splits = Digits().load(seed)
        prompts = {e.prompt for name in SPLITS for e in getattr(splits, name)}
        assert len(prompts) == 1397
        assert not prompts & made


def test_an_image_arrives_at_the_model_as_scikit_learn_ships_it(dense):
    from sklearn.datasets import load_digits

    examples, published = all_digits()[:20], load_digits()
    _, rows = tokenize(examples, Pixels(dense.config), TextSettings(), "image")
    images = as_images(dense, torch.tensor([row.prompt for row in rows]))
    expected = torch.tensor(published.images[:20]).float().unsqueeze(1) / 8 - 1
    torch.testing.assert_close(images, expected, rtol=0, atol=1.01 / 255)  # rounded to 8 bits
    assert [row.ids[64] for row in rows] == published.target[:20].tolist()


def test_what_is_no_image_or_no_label_of_the_model_is_refused(dense):
    pixels, example = Pixels(dense.config), of_pretraining()[0]
    for prompt, label, match in (
        ("turn on the light", "3", "expected grey values from 0 to 255"),
        ("0 1 2", "3", r"has 3 values from 0 to 2; the model takes 64"),
        (" ".join(["256"] * 64), "3", "64 values from 256 to 256"),
        (example.prompt, "cat", "'cat' is not a label of the model; it has 0, 1"),
    ):
        bad = replace(example, prompt=prompt, response=label)
        with pytest.raises(DataError, match=match):
            tokenize([bad], pixels, TextSettings(), "image")


@torch.no_grad()
def test_an_upcycled_model_is_the_dense_one_at_every_k(dense):
    """To 1e-6; every other layer is sparse; the fast path agrees with the loop."""
    images, _ = encoded(dense, of_pretraining()[:8])
    expected = dense(pixel_values=images).logits
    made = [upcycled(dense, 4, 2, 2, torch.Generator().manual_seed(0)) for _ in range(2)]
    sparse = [isinstance(layer.mlp, SparseMLP) for layer in made[0].vit.layers]
    assert sparse == [False, True, False, True]
    torch.testing.assert_close(made[0](pixel_values=images).logits, expected)
    model = AdaptedModel(made[1], LoRA(rank=2), NoRescaling())
    for k in (1, 2):
        model.set_budget(k)
        torch.testing.assert_close(model.model(pixel_values=images).logits, expected)


def test_pretraining_is_repeatable_learns_and_survives_a_folder(dense, tmp_path):
    again = trained_dense(of_pretraining(), QUICK)
    for a, b in zip(dense.parameters(), again.parameters(), strict=True):
        assert torch.equal(a, b)
    other = trained_dense(of_pretraining(), replace(QUICK, steps=1))
    assert accuracy(dense, of_pretraining()) > accuracy(other, of_pretraining())
    sparse = upcycled(dense, 4, 2, 2, torch.Generator().manual_seed(0))
    sparse.save_pretrained(tmp_path)
    loaded = SparseViT.from_pretrained(tmp_path)
    for a, b in zip(sparse.parameters(), loaded.parameters(), strict=True):
        assert torch.equal(a, b)
