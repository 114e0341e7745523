"""Every relative link in a Markdown page leads to a file, and to a heading where it names one."""

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CODE = re.compile(r"```.*?```|`[^`\n]*`", re.DOTALL)
LINK = re.compile(r"\]\(([^()\s]+)\)")
TEMPLATES = "fedmoe/deploy/templates/"
"""Their links are those of the folder that is made from them."""


def pages():
    """The tracked pages; all where this is no checkout."""
    command = ["git", "ls-files", "-co", "--exclude-standard", "*.md"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    found = done.stdout.split() or [str(p.relative_to(ROOT)) for p in ROOT.rglob("*.md")]
    return sorted(p for p in found if not p.startswith(TEMPLATES) and (ROOT / p).exists())


def faults(path):
    """The links of a page that lead nowhere."""
    for link in LINK.findall(CODE.sub("", path.read_text(encoding="utf-8"))):
        if re.match(r"[a-z]+:", link):
            continue
        file, _, heading = link.partition("#")
        target = path.parent / file if file else path
        if not target.exists() or (heading and heading not in headings(target)):
            yield link


def headings(path):
    """The anchors of a page's headings, as GitHub makes them."""
    text = re.sub(r"```.*?```", "", path.read_text(encoding="utf-8"), flags=re.DOTALL)
    titles = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", pages())
def test_links_of_a_page_lead_somewhere(page):
    assert [*faults(ROOT / page)] == []


def test_a_broken_link_is_found(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(
        "# One more thing\n[a](page.md) [b](page.md#one-more-thing) [c](https://example.org)\n"
        "`[d](none.md)` [e](none.md) [f](#nothing)\n![g](none.png)\n"
    )
    assert [*faults(page)] == ["none.md", "#nothing", "none.png"]
