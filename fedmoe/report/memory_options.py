"""The table of memory options: bytes of each tier's frozen experts against its score."""

from fedmoe.report.run import Run
from fedmoe.report.tables import Table
from fedmoe.report.units import DASH, bytes_text, count_text, percent_text


def memory_options_table(run: Run) -> Table:
    """Return a row per tier: memory options, bytes of frozen experts, test score; or no rows.

    There are none where no tier uses a memory option.
    """
    rows = []
    for tier in run.tiers if any(tier.memory_options for tier in run.tiers) else ():
        curve = run.curve("test", tier.name)
        score = curve[-1]["score"] if curve and curve[-1]["round"] > 0 else None
        saved = 1 - tier.expert_bytes / tier.full_expert_bytes if tier.full_expert_bytes else None
        rows.append(
            [
                tier.name,
                tier.memory_options or DASH,
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
    return Table("Memory options", columns, rows, num_words=2, note=note)
