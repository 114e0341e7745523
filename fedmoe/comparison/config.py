"""The configuration of a comparison: variants, cases, seeds, and the search for settings."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from fedmoe.comparison.baselines import Baseline
from fedmoe.section import section

Overrides = tuple[str, ...]
"""Settings as on the command line: `rounds=8`."""
Grid = dict[str, Annotated[tuple[float | int | bool | str, ...], Field(min_length=1)]]
TEST_EXAMPLES = 600
"""So many, a score of 50 % has a binomial error of 2 points."""


@section
class Search:
    """The same settings tried once for every variant, in the first case; the best is kept.

    The best point has the lowest validation loss, mean of the tiers, then the highest score, then
    comes first. Test data are not used. Where a variant's best number is the least or the greatest
    of its values, all variants get one more value beyond it.
    """

    grid: Annotated[Grid, Field(min_length=1)]
    """Values to try by setting, as in `training.learning_rate: [1e-3, 5e-3]`; all combinations."""
    variants: dict[str, Grid] = Field(default_factory=dict)
    """By variant, values of settings of its strategy alone, such as
    `FedProx: {aggregation.mu: [0.001, 0.01, 0.1]}`, in combination with the others. The report says
    how many points each variant had."""
    widened: Annotated[int, Field(ge=0, le=4)] = 2
    """How often at most values are added; what is then still at an edge is said in the report."""
    seed: int = 1000
    """The seed of the search, which the comparison must not use."""
    overrides: Overrides = ()
    """Settings of the search alone, such as `rounds=4` or `evaluation.test_examples=1`."""


@section
class BaselineVariant:
    """A variant that is made from the experiment: what methods are read against, or an arm.

    The first four do not compete.
    """

    baseline: Baseline
    """`zero_rounds`: no training. `alone`: every client trains by itself. `all_data`: one client
    holds all data and trains at full budget, as many steps as a round's clients. `full_budget`: all
    clients train at full budget. The last two are scored at the tiers' own budgets.
    Arms, for a strategy of mixed ranks in `overrides`, where a tier's rank is in proportion to its
    k: `lower_rank`: with all K experts. `equal_inference`: with the tier's k, so that an answer
    costs what it costs a variant of fewer experts. `equal_flops`: with all K experts, and so many
    fewer steps that training costs the same."""
    overrides: Overrides = ()
    """Its settings, as of any variant."""


@section
class Comparison:
    """Variants of one experiment over several seeds and cases."""

    name: Annotated[str, Field(pattern=r"^[\w.-]+$")] = "comparison"
    """Name of its folder under `folder`."""
    folder: str = "runs"
    experiment: str
    """A YAML file of one experiment; a relative path starts at this file."""
    overrides: Overrides = ()
    """Settings of all variants, as on the command line: `rounds=8`. Unless one of them says
    otherwise, `evaluation.test_examples` is 600, or all that there are."""
    seeds: Annotated[tuple[int, ...], Field(min_length=1)] = (0, 1, 2)
    variants: Annotated[dict[str, Overrides | BaselineVariant], Field(min_length=1)]
    """Name and overrides of each variant, or `{baseline: alone}` of a baseline."""
    reference: str
    """The variant that the others are compared with."""
    cases: Annotated[dict[str, Overrides], Field(min_length=1)] | None = None
    """Name and overrides of each setting in which all variants are compared, such as
    `alpha 0.1: [partition.alpha=0.1]`; a single one without overrides when omitted."""
    target: Annotated[float, Field(gt=0, le=1)] | None = None
    """Validation score whose cost is reported, if it takes five right answers or more."""
    target_loss: Annotated[float, Field(gt=0)] | None = None
    """Validation loss whose cost is reported; with `target`, both must be reached."""
    search: Search | None = None
    """A search for settings before the comparison, with one budget for all variants."""

    def __post_init__(self) -> None:
        if self.reference not in self.variants:
            names = ", ".join(map(repr, self.variants))
            raise ValueError(f"reference {self.reference!r} is not one of the variants: {names}")
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"seeds {list(self.seeds)} repeat")
        if self.search and self.search.seed in self.seeds:
            raise ValueError(
                f"search.seed {self.search.seed} is one of the seeds {list(self.seeds)}; results "
                "on a seed that settings were chosen on are too good: take another"
            )
        if unknown := [
            v for v in (self.search.variants if self.search else ()) if v not in self.variants
        ]:
            raise ValueError(f"search.variants: {unknown[0]!r} is not one of the variants")

    @property
    def settings(self) -> dict[str, Overrides]:
        """The overrides of each variant."""
        return {
            name: variant.overrides if isinstance(variant, BaselineVariant) else variant
            for name, variant in self.variants.items()
        }

    @property
    def baselines(self) -> dict[str, Baseline]:
        """The variants that are baselines or arms."""
        variants = self.variants.items()
        return {name: v.baseline for name, v in variants if isinstance(v, BaselineVariant)}

    @property
    def in_cases(self) -> dict[str, Overrides]:
        """The cases; without any, a single one without a name."""
        return self.cases if self.cases is not None else {"": ()}


def slug(name: str) -> str:
    """Return a name as part of a path.

    >>> slug("alpha 0.1")
    'alpha-0-1'
    """
    return "".join(c if c.isalnum() else "-" for c in name)
