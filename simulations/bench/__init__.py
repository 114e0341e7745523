"""Benchmarks: `fedmoe bench` prints one table of ratios, each measured in turns in one process.

- `measure`: how figures are taken
- `layer`: one sparse layer's step, ours against PEFT's

To add one, write a module with `rows(options) -> Iterator[Row]` and name it in `BENCHMARKS`.
"""
