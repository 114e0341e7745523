"""The gating by which a base model that was pretrained here chooses experts."""

from __future__ import annotations

import json
from pathlib import Path

from pydantic import TypeAdapter

from fedmoe.errors import FedMoEError
from fedmoe.models.build import model_folder
from fedmoe.models.gating import Gating, Rule, TopKGating
from fedmoe.section import Imports


def gating_of(folder: Path) -> Rule:
    """Return the gating by which a model that was pretrained here chooses outside training.

    It is the model's own top-k where its folder does not name another, and where the other acts in
    training alone.

    Raises:
        FedMoEError: its `pretraining.json` is damaged.
    """
    path, said = folder / "pretraining.json", None
    try:
        said = json.loads(path.read_text(encoding="utf-8"))["recipe"].get("gating")
        # As JSON: a strict reader takes no mapping for a section. The file may be anyone's, so that
        # it names no code to import.
        adapter, nothing = TypeAdapter[Rule](Gating), Imports(())
        found = adapter.validate_json(json.dumps(said), context=nothing) if said else TopKGating()
    except (FileNotFoundError, NotADirectoryError):
        return TopKGating()
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        what = f"recipe.gating is {said!r}" if said else f"{error!r}"
        raise FedMoEError(f"{path} does not say how its model chooses experts: {what}") from error
    return found if found.serves else TopKGating()


def unlike_gating(gating: Rule, model: str) -> str | None:
    """Return a warning where a model pretrained here under a gating is to answer under another.

    It also warns where `pretraining.json` does not name one: a file of that name may be anyone's.
    `model` is as in a config: a folder, a Hub id, or the built-in one.
    """
    folder = Path(model_folder(model))
    try:
        before = gating_of(folder)
    except FedMoEError as error:
        return str(error)
    now = gating if gating.serves else TopKGating()
    if before.own or now == before:
        return None
    learned = TypeAdapter[Rule](Gating).dump_json(before).decode()
    return (
        f"{folder} was pretrained under the gating {learned}, and outside training this run "
        f"chooses experts by {now.name!r}; give `gating` the same settings, unless the change is "
        "intended"
    )
