"""The result of a run in one sentence."""

from collections.abc import Sequence

from fedmoe.report.ledger import Record
from fedmoe.report.run import Run
from fedmoe.report.units import percent_text


def status(run: Run) -> str:
    """`finished`, or how far an interrupted run got."""
    done, planned = run.num_finished, run.header["num_rounds"]
    if run.complete:
        return "finished"
    if done == 0:
        return f"interrupted before round 1 of {planned} was finished"
    return f"interrupted after round {done} of {planned}"


def headline(run: Run) -> str:
    """What fine-tuning did to the score, averaged over tiers; test before validation."""
    for split in ("test", "validation"):
        curves = [run.curve(split, tier.name) for tier in run.tiers]
        if all(len(curve) > 1 for curve in curves):
            return _change(run, split, curves)
        if not run.header["num_rounds"] and all(curves):
            return _base(run, split, curves)
    return "The adapter has no scores yet."


def _base(run: Run, split: str, curves: Sequence[Sequence[Record]]) -> str:
    score = percent_text(sum(curve[0]["score"] or 0 for curve in curves) / len(curves))
    return f"Without training, the {split} {run.score_name} is {score} (mean of budget tiers)."


def _change(run: Run, split: str, curves: Sequence[Sequence[Record]]) -> str:
    before = sum(curve[0]["score"] or 0 for curve in curves) / len(curves)
    after = sum(curve[-1]["score"] or 0 for curve in curves) / len(curves)
    first, last = curves[0][0]["round"], curves[0][-1]["round"]
    verb = "rose" if after > before else "fell" if after < before else "went"
    tiers = f", averaged over {len(curves)} budget tiers," if len(curves) > 1 else ""
    since = "without an adapter" if first == 0 else f"after round {first}"
    return (
        f"{split.capitalize()} {run.score_name}{tiers} {verb} from {percent_text(before)} {since} "
        f"to {percent_text(after)} after round {last}."
    )
