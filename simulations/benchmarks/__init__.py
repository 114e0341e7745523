"""Speed and memory as ratios, each measured in turns within one process; see `__main__`.

- `measure`, `memory`: how figures are taken
- `layer`: a step of one `sparse_layer`, against PEFT's and against no LoRA; its memory
- `passes`: several clients in one pass against one after another
- `limits`: the least time a device could take for such a step; every figure is a multiple of it
- `gpu`: a whole step on a GPU: waits, kernels started, graphs, memory of the loss
- `aggregation`: the server's mean against the memory's speed; factored SVD against dense
- `strategies`: what each strategy's aggregation costs at the shape of OLMoE-1B-7B
- `masks`: what secure aggregation costs a client and the server; named alone, for its 4 GB
- `upload`: bytes and seconds of a client's update under every compression
- `round_size`: a round at OLMoE-1B-7B's size beside its training, in copies of the adapter's bytes
- `simulation`: overhead per client-round, with `idle` clients
- `many_clients`: memory and time of 1,000 clients against 50
- `inference`: answers with experts in full, in 8 or 4 bits, or on disk, by processes of `answering`
- `whole_run`: the quickstart's rounds, and the same in Flower's simulation and a loop by `peers`
- `trace`: where the time of a step and of a round goes, by part and by operator

What was found: `speed.md`, `trace.md`, `gpu.md`, `strategies.md`, `masks.md`, `inference.md`. To
add one, write a module with `rows(options) -> Iterator[Row]` and name it in `BENCHMARKS`.
"""

BENCHMARKS = (
    "layer",
    "passes",
    "gpu",
    "aggregation",
    "strategies",
    "masks",
    "upload",
    "round_size",
    "simulation",
    "many_clients",
    "inference",
    "whole_run",
    "trace",
)
