"""Benchmarks: `fedmoe bench` prints one table of ratios, each measured in turns in one process.

- `measure`: how figures are taken; `command`: the table
- `layer`: one sparse layer's step, ours against PEFT's, and its memory
- `scaling`: a layer's seconds and memory against tokens, k, rank and experts
- `aggregation`: the server's mean against the memory's speed; factored SVD against dense
- `strategies`: what each strategy's aggregation costs at the shape of OLMoE-1B-7B
- `upload`: bytes and seconds of a client's update, written down in every way
- `simulation`: overhead per client-round, memory per worker, 50 and 1,000 clients

To add one, write a module with `rows(options) -> Iterator[Row]` and name it in `BENCHMARKS`.
"""

BENCHMARKS = ("layer", "scaling", "aggregation", "strategies", "upload", "simulation")
