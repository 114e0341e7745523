"""Dependencies: imports are declared, installed versions in range and without known faults.

Both ends of the ranges: the newest versions are what pip installs; for the oldest, install what
`uv pip compile --resolution lowest-direct --all-extras pyproject.toml` prints, and run the tests.
The last one needs pip-audit and its advisory service.
"""

import ast
import json
import shutil
import subprocess
import sys
import tomllib
from importlib.metadata import packages_distributions, version
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[2]
SECONDS = 300
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
CORE = [Requirement(text) for text in PROJECT["dependencies"]]
EXTRAS = [Requirement(t) for texts in PROJECT["optional-dependencies"].values() for t in texts]
BELOW = {
    "pydantic_core": "pydantic",
    "pyarrow": "datasets",
    "tokenizers": "transformers",
    "packaging": "transformers",
    "Crypto": "flwr",
}
"""Packages that are imported, and that one of ours requires by necessity."""
ASKED_FOR = {"trackio", "mlflow", "wandb", "pandas", "tensorboard"}
"""Packages that are used where a user has them."""


def imported():
    """The packages that are imported, with a file that does."""
    for package in ("fedmoe", "clients", "server"):
        for path in (ROOT / package).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Import):
                    yield from ((alias.name.partition(".")[0], path) for alias in node.names)
                elif isinstance(node, ast.ImportFrom) and node.module:
                    yield node.module.partition(".")[0], path


def test_what_is_imported_is_declared():
    declared = {requirement.name.replace("_", "-").lower() for requirement in CORE + EXTRAS}
    distributions = packages_distributions()
    known = {*sys.stdlib_module_names, "fedmoe", "clients", "server", *BELOW, *ASKED_FOR}
    missing = {
        f"{name} ({path.relative_to(ROOT)})"
        for name, path in imported()
        if name not in known
        and not declared & {d.replace("_", "-").lower() for d in distributions.get(name, [name])}
    }
    assert missing == set()


@pytest.mark.parametrize("requirement", CORE, ids=lambda requirement: requirement.name)
def test_what_is_installed_is_in_its_range(requirement):
    assert requirement.specifier.contains(version(requirement.name), prereleases=True)


@pytest.mark.slow
def test_no_dependency_has_a_known_vulnerability():
    audit = shutil.which("pip-audit")
    if audit is None:
        pytest.skip("NOT AUDITED: pip-audit is not installed; `pip install pip-audit`")
    done = subprocess.run(
        [
            audit,
            "--format",
            "json",
            "--progress-spinner",
            "off",
            "--skip-editable",
            "--path",
            next(p for p in sys.path if p.endswith("site-packages")),
        ],
        capture_output=True,
        text=True,
        timeout=SECONDS,
    )
    try:
        found = json.loads(done.stdout)["dependencies"]
    except ValueError:
        last = (done.stderr.strip().splitlines() or ["no output"])[-1]
        pytest.skip(f"NOT AUDITED: the advisory service did not answer: {last}")
    audited = [package for package in found if "vulns" in package]
    if not audited:
        pytest.skip("NOT AUDITED: the advisory service knows none of the installed packages")
    known = {
        f"{package['name']} {package['version']}: {vulnerability['id']}"
        for package in audited
        for vulnerability in package["vulns"]
    }
    assert known == set()
