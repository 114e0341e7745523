"""Reading YAML: by YAML 1.2's rules; a broken file is refused with line and column."""

from functools import partial
from pathlib import Path

import pytest
from pydantic import Field

from fedmoe.config.load import load
from fedmoe.errors import ConfigError
from fedmoe.section import section


@section
class Page:
    title: str = "page"
    path: Path = Path("data.json")
    ratio: float = 0.5
    pages: int = 1
    draft: bool = True
    weights: dict[int, float] = Field(default_factory=dict)


@pytest.fixture
def page(demo):
    """Load a Page from YAML text and overrides."""
    return partial(demo, cls=Page)


@pytest.fixture
def faults(faults):
    """The lines printed for a Page that cannot be loaded, without the heading."""
    return partial(faults, cls=Page)


@pytest.mark.parametrize("text", ["", "# only a comment\n", "---\n", "\ufeff{}"])
def test_an_empty_file_is_the_defaults(page, text):
    assert page(text) == Page()


def test_a_missing_file_and_a_directory_are_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"no\.yaml: 1 fault\(s\)\n  no such file$"):
        load(Page, tmp_path / "no.yaml")
    with pytest.raises(ConfigError, match="a directory; expected a YAML file"):
        load(Page, str(tmp_path))


def test_text_that_is_not_utf8_is_refused_with_its_line(tmp_path):
    (tmp_path / "latin.yaml").write_bytes("title: a\npath: é".encode("latin-1"))
    with pytest.raises(ConfigError, match="  line 2: not UTF-8 text"):
        load(Page, tmp_path / "latin.yaml")


@pytest.mark.parametrize(
    ("text", "start"),
    [
        ("title: a\npath: [1, 2", "line 2, column 12: broken YAML: "),
        ("title: a: b", "line 1, column 9: broken YAML: mapping values are not allowed"),
        ("title: a\n\tpages: 1", "line 2, column 1: broken YAML: "),
        ("title: *nobody", "line 1, column 8: broken YAML: found undefined alias"),
        ("title: a\n---\ntitle: b", "line 2, column 1: broken YAML: "),
        ("title: a\npath: \x00", "line 2: broken YAML: "),
        ("title: !!python/name:os.system x", "line 1, column 8: "),
        ("weights:\n  draft: !!bool yes", "line 2, column 10: 'yes' cannot be read as"),
        ("{[a]: 1}", "line 1, column 2: a key must be"),
        ("- 1", "found a list, expected a mapping"),
        ("hello", "found 'hello', expected a mapping"),
        ("title: &a [*a]", "nested too deeply, or inside itself"),
    ],
)
def test_broken_yaml_is_refused_with_its_place(faults, text, start):
    [line] = faults(text)
    assert line.startswith(start)


def test_every_key_set_twice_is_refused(faults):
    assert faults("title: a\nweights:\n  1: 1\n  1: 2\ntitle: b\n") == [
        "line 4, column 3: '1' is set twice; first on line 3",
        "line 5, column 1: 'title' is set twice; first on line 1",
    ]


@pytest.mark.parametrize("text", ["1e-4", "1E-4", "0.0001", ".0001", "+1e-4", "1.0e-4"])
def test_every_way_to_write_a_float_is_a_float(page, text):
    assert page(f"ratio: {text}").ratio == 1e-4


@pytest.mark.parametrize("word", ["no", "off", "on", "y", "Yes", "1:30", "2024-01-01", "1_0"])
def test_words_that_yaml_1_1_reads_as_something_else_stay_text(page, word):
    assert page(f"title: {word}").title == word
    assert page("", f"title={word}").title == word


@pytest.mark.parametrize("word", ["no", "off", "yes", "1"])
def test_only_true_and_false_are_booleans(faults, word):
    [line] = faults(f"draft: {word}")
    assert line.startswith("draft: found ")
    assert line.endswith("expected true or false")


def test_a_leading_zero_is_not_octal(page):
    assert page("pages: 010").pages == 10
    assert page("pages: 0o10").pages == 8
    assert page("pages: 0x10").pages == 16


def test_a_relative_path_stays_as_written(page):
    assert page("path: ../x.json").path == Path("../x.json")


def test_numbers_may_be_keys(page):
    assert page("weights: {1: 0.5, 2: 3}").weights == {1: 0.5, 2: 3.0}
