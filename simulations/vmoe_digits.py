"""A small V-MoE made from real digits, then trained federated.

    pip install 'fedmoe[vision]'
    python -m simulations.vmoe_digits                  (configs/vmoe_digits.yaml; two minutes)
    python -m simulations.vmoe_digits seed=1 partition.alpha=0.1

The base, a dense ViT upcycled into 8 experts (see `fedmoe.base_models.pretraining.vision`), is made
where `model.path` says, unless it is there. What came of it: `vmoe_digits.md`.
"""

from __future__ import annotations

import sys
from pathlib import Path

from fedmoe.cli.main import main
from fedmoe.config import load_experiment
from fedmoe.errors import FedMoEError

CONFIG = Path(__file__).parents[1] / "configs/vmoe_digits.yaml"


def run(overrides: list[str]) -> int:
    """Make the base if need be and run the experiment; the exit code."""
    try:
        folder = Path(load_experiment(CONFIG, overrides).model.path)
        if not folder.exists():
            from fedmoe.base_models.pretraining.vision import make_base

            print(f"making the base, {folder}: about half a minute", flush=True)
            make_base(folder)
    except FedMoEError as error:
        print(f"fedmoe: error: {error}", file=sys.stderr)
        return error.exit_code
    return main(["run", str(CONFIG), *overrides])


if __name__ == "__main__":
    sys.exit(run(sys.argv[1:]))
