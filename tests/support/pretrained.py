"""Tiny recipes of `fedmoe pretrain` whose corpus is there, for its tests."""

import json
import shutil
from pathlib import Path

import numpy as np

from fedmoe.base_models.pretraining.recipe import Pretrain, claim
from fedmoe.config.load import load
from fedmoe.models.build import model_folder

TEXT = """\
sources: s
work: {folder}/w
out: {folder}/o
model: {{hidden_size: 16, intermediate_size: 8, num_hidden_layers: 2, num_experts: 8, top_k: 2}}
tokens: 1280
block: 16
batch_size: 8
workers: {workers}
"""
STEPS = 10


def tiny_recipe(folder, workers=1, *overrides) -> Pretrain:
    """Ten steps on random tokens; `folder/p.yaml` is its file, `folder/w` its work folder."""
    (folder / "p.yaml").write_text(TEXT.format(folder=folder, workers=workers))
    recipe = load(Pretrain, folder / "p.yaml", list(overrides))
    claim(recipe)
    work = Path(recipe.work)
    rng = np.random.default_rng(0)
    np.save(work / "tokens.npy", rng.integers(0, 4096, 20_000).astype(np.uint16))
    row = {"documents": 1, "bytes": 10, "tokens": 20_000, "conversation_tokens": 0}
    (work / "sources.json").write_text(json.dumps({"exercises": row}))
    (work / "tokenizer").mkdir()
    for path in Path(model_folder("mini")).glob("tokenizer*"):
        shutil.copy(path, work / "tokenizer")
    return recipe
