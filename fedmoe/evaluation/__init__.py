"""How good an adapter is, for each budget tier.

- `evaluate`: token loss, and the dataset's score by greedy free-running decoding
- `metrics`: other scores than the dataset's own
"""
