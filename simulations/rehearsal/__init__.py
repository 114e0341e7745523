"""A deployment on loopback whose processes are killed one after another; see `__main__`.

`deployment` starts and submits, on `processes`; `kills` says who is killed when, `watching` looks
after one run, `table` says what came of each kill. The result: `kills.md`.
"""
