"""How far a federation scales: many owners, many nodes, large updates, regions of owners.

    python -m simulations.scale.owners     1,000 owners' files, 50 a round, in one process
    python -m simulations.scale.nodes      30 SuperNodes on one machine
    python -m simulations.scale.link       one SuperLink's messages and bytes a second
    python -m simulations.scale.regions    sums of regional servers against the flat federation

`fleet` makes the deployments that `nodes` and `link` measure, `echo_app` is the app of `link`.
Results and limits: `README.md`.
"""
