"""The work of a run's experts: `explained.explain` measures it, `page.write_explained` shows it.

In reading order:
    sample.py       rows of the run that are here, with their owners and labels
    measured.py     passes of those rows through the model: routing, hidden states, confidence
    lift.py         the experts that carry a group of rows, with intervals; information on groups
    recorded.py     the run's own record: tokens by owner and by round
    redundancy.py   similarity of experts' outputs, and candidates for leaving out
    calibration.py  expected calibration error
    explained.py    all of it as one value
    page.py         the same as explain.json and explain.html; plots.py draws
"""
