"""How far a federation scales: many owners, many nodes, large updates, regions of owners.

    python -m simulations.scale.owners     1,000 owners' files, 50 a round, in one process
    python -m simulations.scale.nodes      30 SuperNodes on one machine
    python -m simulations.scale.link       one SuperLink's messages and bytes a second
    python -m simulations.scale.regions    sums of regional servers against the flat federation

Results and limits: `README.md`.
"""
