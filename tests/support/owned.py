"""Ledgers of invented runs whose clients are known by name and hold rows of their own."""

from watched import answered, header

from fedmoe.messages.rows import RowCounts

NAMES = ["attic", "barn", "the-cellar-of-" + "a-very-long-" * 3 + "house", "den"]
TIER = ["low", "high", "high", "low"]
TOP_K = {"high": 4, "low": 1}


def begun(num_rounds=4, **changes):
    """The first lines: a header without clients, and who came to the first round."""
    head = header(num_rounds, per_round=0, num_clients=0, **changes)
    tiers = {name: {**of, "clients": [], "availability": 1.0} for name, of in head["tiers"].items()}
    return [head | {"tiers": tiers}, roster(1, joined=[*range(len(NAMES))])]


def roster(number, joined=(), absent=(), left=()):
    joined = [{"client": c, "name": NAMES[c], "tier": TIER[c]} for c in joined]
    lists = {"absent": [*absent], "joined": joined, "left": [*left]}
    return {"kind": "roster", "round": number, **lists}


def trained(number, client, **changes):
    return answered(number, client) | {
        "tier": TIER[client],
        "top_k": TOP_K[TIER[client]],
        "name": NAMES[client],
        **changes,
    }


def rows(client, **counts):
    counts = RowCounts.of(**(counts or {"train": 8, "validation": 1, "test": 2}))
    line = {"kind": "rows", "round": 1, "client": client, "name": NAMES[client]}
    return line | {"rows": counts.as_json()}


def own_scores(number, split, scores, tier_of=TIER):
    """An evaluation per tier, from scores by client; each on as many examples as its number + 1."""
    lines = []
    for tier in dict.fromkeys(tier_of[c] for c in scores):
        found = [
            {
                "client": c,
                "name": NAMES[c],
                "examples": c + 1,
                "tokens": 2 * c + 2,
                "loss": 3 - score,
                "score": score,
            }
            for c, score in scores.items()
            if tier_of[c] == tier
        ]
        examples = sum(c["examples"] for c in found)
        mean = sum(c["score"] * c["examples"] for c in found) / examples
        line = {"kind": "evaluation", "round": number, "split": split, "tier": tier}
        line |= {"top_k": TOP_K[tier], "loss": 3 - mean, "score": mean}
        more = {"examples": examples, "seconds": 1.0, "by_label": {}, "clients": found}
        lines.append(line | more)
    return lines


def withheld(number, split, *clients):
    return {"kind": "withheld", "round": number, "split": split, "clients": [*clients]}
