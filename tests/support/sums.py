"""A small run of clients that learn sums on a tiny model."""

import json


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
