"""A configuration as text, loaded, and the lines that say what is wrong with it."""

import pytest
from demo_config import Demo

from fedmoe.config.load import load
from fedmoe.errors import ConfigError


@pytest.fixture
def demo(tmp_path):
    """Load a Demo from YAML text and overrides."""

    def load_text(text: str, *overrides: str, cls: type = Demo):
        path = tmp_path / "demo.yaml"
        path.write_text(text, encoding="utf-8")
        return load(cls, path, overrides)

    return load_text


@pytest.fixture
def faults(demo, tmp_path):
    """The lines printed for a Demo that cannot be loaded, without the heading."""

    def lines_of(text: str, *overrides: str, cls: type = Demo) -> list[str]:
        with pytest.raises(ConfigError) as caught:
            demo(text, *overrides, cls=cls)
        head, *lines = str(caught.value).splitlines()
        assert head == f"{tmp_path / 'demo.yaml'}: {len(lines)} fault(s)"
        assert all(line.startswith("  ") for line in lines)
        return [line[2:] for line in lines]

    return lines_of
