"""The `privacy` section: what a run may spend on its clients' privacy, and on which numbers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import Field

from fedmoe.errors import Fault
from fedmoe.section import section

Share = Annotated[float, Field(ge=0, lt=1)]


@section
class AdaptiveClip:
    """A bound on updates that follows a quantile of their norms, which noise hides, too.

    Source: Andrew et al. 2021 (arXiv:1905.03871, Alg. 1). Here the indicator of "my norm was within
    the bound" is one more number of the client's vector, with a share of its norm; the paper gives
    it a noise of its own and takes that from the rest, which comes to the same.
    """

    quantile: Annotated[float, Field(gt=0, lt=1)] = 0.5
    """Share of the clients whose updates should be within the bound."""
    rate: Annotated[float, Field(gt=0)] = 0.2
    """Step of the bound's logarithm; the paper's 0.2."""
    share: Annotated[float, Field(gt=0, lt=1)] = 0.02
    """Part of the vector's squared norm that the indicator may take."""


@section
class Privacy:
    r"""Differential privacy of whole clients: what a run publishes hardly depends on one of them.

    Each client's round becomes one vector: its weighted change of every value, its weights if they
    are needed, and its losses and sizes. Each part is scaled so that its bound takes a share of a
    norm of 1; Gaussian noise of `z` times that norm is added to the sum over clients. What is made
    of the sum costs nothing more: the adapter, its scores, the page.

    Source: McMahan et al. 2018 (arXiv:1710.06963, Alg. 1, fixed denominator). We differ in that
    weights and reports are in the same clipped vector, and in the denominators below.

    Example:
        >>> Privacy(epsilon=8, delta=1e-4, clip=0.5).noise_multiplier is None
        True
    """

    epsilon: Annotated[float, Field(gt=0)]
    """The most that the whole run may spend; a round that would exceed it is not begun."""
    delta: Annotated[float, Field(gt=0, lt=1)]
    """Probability with which the guarantee may fail; below one over the number of clients."""
    clip: Annotated[float, Field(gt=0)]
    """The largest L2 norm of a client's weighted change; larger ones are scaled down."""
    noise_multiplier: Annotated[float, Field(gt=0)] | None = None
    """The noise's standard deviation over the vector's norm of 1; chosen so that `rounds` rounds
    spend `epsilon` when omitted."""
    sampling: Literal["secret", "known"] = "secret"
    """`secret`: each client takes part with the same probability, drawn from the system's
    randomness, which hides it and costs less. `known`: drawn from the run's seed as without
    privacy, and counted as if every client took part."""
    adaptive: AdaptiveClip | None = None
    """Let the bound follow the updates; fixed when omitted."""
    denominators: Literal["public", "noised"] = "public"
    """The divisor of a sum of weighted changes. `public`: the weights that clients would have
    if they used all experts alike. `noised`: the sum of their weights, with noise of its own."""
    most_size: Annotated[int, Field(ge=1)] = 100
    """Size (`aggregation.weighting`) from which on clients weigh alike; with `uniform` without
    effect."""
    weights_share: Share = 0.1
    """Part of the vector's squared norm for weights, with `noised` denominators."""
    reports_share: Share = 0.02
    """Part of the vector's squared norm for losses and sizes; 0 reports none."""

    def __post_init__(self) -> None:
        if self.taken >= 1:
            raise ValueError(
                f"weights_share, reports_share and adaptive.share take {self.taken:g} of the "
                "vector's squared norm; expected less than 1, the rest is for the changes"
            )

    @property
    def taken(self) -> float:
        """Return the part of the squared norm that is not left for the changes."""
        weights = self.weights_share if self.denominators == "noised" else 0.0
        return weights + self.reports_share + (self.adaptive.share if self.adaptive else 0.0)

    def faults(self, experiment: Any, model: Any = None) -> Iterator[Fault]:
        """Yield what cannot be private, or would be without a word."""
        e, strategy = experiment, experiment.aggregation
        if not strategy.maskable or strategy.asynchronous:
            said = f"aggregation.name {strategy.name!r} needs single updates, which noise on a sum "
            yield Fault("privacy", said + "cannot hide; use one that is a mean")
            return
        if self.denominators == "public" and strategy.weighting != "uniform":
            said = "'public' needs sizes that are known, and aggregation.weighting is "
            said += f"{strategy.weighting!r}; use 'uniform' there, or 'noised' here"
            yield Fault("privacy.denominators", said)
        if e.data.name == "federated":
            yield from _owned(e)
        if e.rescaling.learned:
            yield Fault("rescaling.name", f"{e.rescaling.name!r} sends factors that no noise hides")
        if e.upload.error_feedback:
            said = "carries one round's change into another, so that a client counts more than once"
            yield Fault("upload.error_feedback", said)


def _owned(experiment: Any) -> Iterator[Fault]:
    """Yield what is not private where clients hold rows of their own."""
    if not experiment.data.clients:
        said = "missing: the probability of taking part needs their number; list who may ever join"
        yield Fault("data.clients", said)
    if experiment.early_stopping and experiment.evaluation.best != "server":
        said = "goes by scores on clients' rows, which privacy withholds; set evaluation.best to "
        yield Fault("early_stopping", said + "'server', with rows in data.server_test")
