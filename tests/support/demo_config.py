"""A configuration of every shape that a setting can have."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from fedmoe.section import section


@section
class FedAvg:
    """Weighted mean."""

    name: Literal["fedavg"] = "fedavg"
    momentum: float = 0.0


@section
class Flame:
    """Weighted by activation."""

    name: Literal["flame"] = "flame"
    temperature: Annotated[float, Field(gt=0)] = 1.0
    """The sharpness of the weights' differences."""
    floor: int = 0
    warmup: FedAvg = FedAvg(momentum=0.5)


@section
class Tier:
    top_k: Annotated[int, Field(ge=1)] = 4
    device: str = "cpu"


@section
class Training:
    learning_rate: float = 1e-3
    epochs: Annotated[int, Field(ge=1, le=9)] = 1
    shuffle: bool = True
    tokens: Literal["all"] | Annotated[int, Field(ge=0)] = "all"
    dtype: Literal["float32", "bfloat16"] = "float32"
    sizes: tuple[int, ...] = (1, 2, 3)
    widths: int | list[int] = 1
    clip: float | None = None

    def __post_init__(self) -> None:
        if self.epochs == 7:
            raise ValueError("seven epochs are unlucky; choose another number")


@section
class Budget:
    tiers: dict[str, Tier] = Field(
        default_factory=lambda: {"low": Tier(top_k=1), "high": Tier(device="gpu")}
    )
    by_rank: dict[int, float] = Field(default_factory=dict)
    order: tuple[Tier, ...] = (Tier(top_k=2), Tier(top_k=3))


FLAME = Flame(floor=5, warmup=FedAvg(momentum=0.25))


@section
class Demo:
    title: str = "demo"
    path: Path = Path("data.json")
    training: Training = Training(epochs=2)
    budget: Budget = Budget()
    aggregation: Annotated[FedAvg | Flame, Field(discriminator="name")] = FLAME
    second: Annotated[FedAvg | Flame, Field(discriminator="name")] | None = None
    extra: Training | None = None
