"""fedmoe: federated, budget-adaptive fine-tuning of sparse Mixture-of-Experts language models.

In reading order, the way data flows:
    config/       one YAML file becomes one checked `Experiment`
    data/         examples, how they are shared out among clients, and their tokens
    budget/       each client's tier and its `top_k`; what a tier costs
    models/       the frozen MoE, its expert fast path and its adapter
    prepare.py    all of it, loaded, shared out and checked: a `Prepared` run
    devices/      virtual devices, which give every simulated client a clock of its own
    training/     one local round of one client: Task -> Update
    compression/  how an update's values are written down; residuals.py keeps what that left out
    wire.py       tasks and updates as bytes; door.py refuses what no honest client sends
    aggregation/  updates -> the next global adapter, one strategy a file
    rounds.py     the only round loop
    evaluation/   loss and scores for every tier
    record.py     a run's folder; report/ turns it into plots and a page
    pretraining/  how the built-in base model was made
"""
