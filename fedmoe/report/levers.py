"""The table of memory levers: what each tier saves of its frozen experts, and what it scores."""

from fedmoe.report.run import Run
from fedmoe.report.tables import Table
from fedmoe.report.units import DASH, bytes_text, count_text, percent_text


def levers(run: Run) -> Table:
    """Per tier, its levers, the bytes of its frozen experts, and its test score; or no rows.

    There are none where no tier uses a lever.
    """
    rows = []
    for tier in run.tiers if any(tier.levers for tier in run.tiers) else ():
        curve = run.curve("test", tier.name)
        score = curve[-1]["score"] if curve and curve[-1]["round"] > 0 else None
        saved = 1 - tier.expert_bytes / tier.full_expert_bytes if tier.full_expert_bytes else None
        rows.append(
            [
                tier.name,
                tier.levers or DASH,
                count_text(tier.top_k),
                bytes_text(tier.expert_bytes),
                percent_text(saved),
                percent_text(score),
            ]
        )
    columns = ["tier", "frozen experts", "k", "bytes on the client", "saved", run.score_name]
    note = (
        "Bytes: planned, of frozen experts alone. Score: of the test, with the experts that the "
        "tier trains with; tiers of unlike k differ by that, too."
    )
    return Table("Memory levers", columns, rows, num_words=2, note=note)
