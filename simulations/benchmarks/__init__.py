"""Benchmarks: `fedmoe bench` prints one table of ratios, each measured in turns in one process.

- `measure`: how figures are taken; `command`: the table
- `layer`: one sparse layer's step, ours against PEFT's, and its memory
- `scaling`: a layer's seconds and memory against tokens, k, rank and experts; a round's against
  the number of clients
- `aggregation`: the server's mean against the memory's speed; factored SVD against dense
- `strategies`: what each strategy's aggregation costs at the shape of OLMoE-1B-7B
- `upload`: bytes and seconds of a client's update, written down in every way
- `levers`: bytes of frozen experts, quantised or a subset of them, against the score reached with
  them (an hour or two: when named); `book`: what it and `routers` have measured already
- `resident`: a node's second task, with its model in a worker, against one without a worker
- `simulation`: overhead per client-round, memory per worker, 50 and 1,000 clients
- `routers`: score, load and collapse of each gating and each loss on routing (hours: when named)

To add one, write a module with `rows(options) -> Iterator[Row]` and name it in `BENCHMARKS`.
"""

BENCHMARKS = (
    "layer",
    "scaling",
    "aggregation",
    "strategies",
    "upload",
    "levers",
    "resident",
    "simulation",
    "routers",
)
LONG = ("levers", "routers")
"""Those that run only when they are named."""
