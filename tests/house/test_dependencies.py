"""No installed dependency has a known vulnerability: needs pip-audit and its advisory service."""

import json
import shutil
import subprocess
import sys

import pytest

SECONDS = 300


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
