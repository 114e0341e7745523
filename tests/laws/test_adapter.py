"""An adapter holds as many values as its layout says."""

import pytest
import torch

from fedmoe.adapter import Adapter, Layout
from fedmoe.errors import WireError

LAYOUT = Layout.of([("a.A", (4, 2, 3), 0), ("q.B", (3, 2), None)], 2, 4, 2, 4.0)


def test_an_adapter_of_another_size_is_refused():
    with pytest.raises(WireError, match="its layout has"):
        Adapter(LAYOUT, torch.zeros(LAYOUT.size + 1))
