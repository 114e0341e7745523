"""Scores of an adapter at each budget tier.

- `evaluate`: token loss, and the dataset's score by greedy free-running decoding
- `settings`: when and on how much data
- `metrics`: other scores than the dataset's own
"""
