"""What the experts of a run do: `explain` measures it, and `write_explained` makes a page of it.

In reading order:
    sample.py       rows of the run that are here, with their owners and labels
    measured.py     passes of those rows through the model: routing, hidden states, confidence
    lift.py         the experts that carry a group of rows, with intervals; information on groups
    recorded.py     what the run itself recorded: tokens by owner and by round
    redundancy.py   similarity of experts' outputs, and candidates for leaving out
    calibration.py  expected calibration error
    explained.py    all of it as one value
    page.py         the same as explain.json and explain.html; plots.py draws
"""

from fedmoe.explain.explained import Explained, explain
from fedmoe.explain.page import write_explained

__all__ = ["Explained", "explain", "write_explained"]
