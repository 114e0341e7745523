"""A small file of rows for runs of a few steps."""

import json


def said_rows(folder):
    """Write 40 rows of unlike lengths, and return the file."""
    path = folder / "rows.jsonl"
    rows = [{"prompt": f"say {'la ' * (i % 5)}{i}", "response": f"ok {i}"} for i in range(40)]
    path.write_text("\n".join(map(json.dumps, rows)))
    return path
