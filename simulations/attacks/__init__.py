"""Lying clients against robust rules, on the quickstart's households.

In reading order: `lies` (what a liar sends), `catalogue` (the attacks by name), `lab` (a federation
and its liars), `rounds` (one round through the server's own checks and a rule), `cases` (what is
run), `page` and `picture` (what came of it).
"""
