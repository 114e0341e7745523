"""Scores of an adapter at each budget tier.

- `evaluate`: token loss, answers by greedy free-running decoding, and what metrics make of them
- `settings`: when and on how much data
- `metric`, `metrics`: the base of metrics, those that a configuration may name, and the default
- `overlap`, `likelihoods`, `tool_calls`: the metrics

To add a metric, write a @section that derives from `Metric` and name it in `METRICS`. From outside
this package a function of (example, answer) will do, given in Python or as `package.module:name`.
"""
