"""A small run of clients that learn sums on a tiny model."""

import json

DEVICE = (
    "{peak_flops: 1e9, memory_bytes: 1000, downlink_bytes_per_second: 1e6, "
    "uplink_bytes_per_second: 1e6}"
)
"""A slow one, on which time is modelled."""


def write_sums(home, first, second, said="{}", kinds=False):
    """Write rows that ask for sums of numbers below two limits, with a label if asked for."""
    rows = [
        {"prompt": f"what is {a} plus {b}", "response": said.format(a + b)}
        | ({"kind": f"by {b % 3}"} if kinds else {})
        for a in range(first)
        for b in range(second)
    ]
    (home / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))


def sums_config(home, model, rest, rows=24, sites=0):
    """Write rows, of so many sites if any, and a config of them; return the config's path.

    `rest` is the YAML that the rows, the model and its adapter leave open.
    """
    sums = [{"prompt": f"what is {n} plus {n}", "response": f"{2 * n}"} for n in range(rows)]
    if sites:
        sums = [row | {"site": f"site {n % sites}"} for n, row in enumerate(sums)]
    (home / "rows.jsonl").write_text("\n".join(map(json.dumps, sums)))
    label = ", label: site" if sites else ""
    (home / "sums.yaml").write_text(
        f"""\
model: {{path: {model}}}
adapter: {{rank: 2, alpha: 4.0}}
data: {{name: files, path: {home / "rows.jsonl"}{label}}}
{rest}"""
    )
    return home / "sums.yaml"
