"""Aggregation of clients' updates into the next global adapter.

One strategy a file, its paper's formula in the docstring; in reading order:

- `strategy`: the hooks, with FedAvg's answers
- `mean`: averaging per expert, on `streaming` sums over cache-sized `blocks`; `fedavg`, `flame`,
  `a3smoe`, `ub_smoe`, `hfedmoe`, `flux`, `fedprox`, `scaffold`, `fedbuff`;
  `narrow_backward`: which experts learn, where not all that tokens reach do
- means of one factor, or of what lies between two: `ffa_lora`, `rolora`, `fedsa_lora`, `fed_sb`
- `slices`: means over unlike ranks; `raflora`, `replication`, `hetlora`
- `products`: means of BA, on the best low-rank factors of a sum (`factored`), never forming it;
  `flexlora`, `lora_fair`, and with a `merged` part `flora`, `florist`, `fedex_lora`
- `robust`: rules that wrap a mean and withstand lying clients
- `server_optimizer`: momentum, Adagrad, Adam and Yogi on the change that a strategy proposes;
  `product_optimizer`: the same where a state means products

To add one: a file with a `@section` that derives from `Strategy` or `Mean` and overrides the hooks
in which it differs, the traits whose laws it claims, and its name in `STRATEGIES`. It then is a
choice in YAML, and `tests/support/conformance.py` holds it to those laws. One from outside this
package needs no list: give an instance, or `package.module:Name` in YAML.
"""

from typing import Annotated

from fedmoe.aggregation.a3smoe import A3SMoE
from fedmoe.aggregation.fed_sb import FedSB
from fedmoe.aggregation.fedavg import FedAvg
from fedmoe.aggregation.fedbuff import FedBuff
from fedmoe.aggregation.fedex_lora import FedExLoRA
from fedmoe.aggregation.fedprox import FedProx
from fedmoe.aggregation.fedsa_lora import FedSALoRA
from fedmoe.aggregation.ffa_lora import FFALoRA
from fedmoe.aggregation.flame import Flame
from fedmoe.aggregation.flexlora import FlexLoRA
from fedmoe.aggregation.flora import FLoRA
from fedmoe.aggregation.florist import FLoRIST
from fedmoe.aggregation.flux import FLUX
from fedmoe.aggregation.hetlora import HetLoRA
from fedmoe.aggregation.hfedmoe import HFedMoE
from fedmoe.aggregation.lora_fair import LoRAFair
from fedmoe.aggregation.raflora import RaFLoRA
from fedmoe.aggregation.replication import Replication
from fedmoe.aggregation.robust import ROBUST_RULES, RobustRule, rule_for, unfit
from fedmoe.aggregation.rolora import RoLoRA
from fedmoe.aggregation.scaffold import Scaffold
from fedmoe.aggregation.server_optimizer import SERVER_OPTIMIZERS, NoOptimizer, ServerOptimizer
from fedmoe.aggregation.strategy import Strategy
from fedmoe.aggregation.ub_smoe import UBSMoE
from fedmoe.section import Open

STRATEGIES: tuple[type[Strategy], ...] = (
    FedAvg,
    Flame,
    A3SMoE,
    UBSMoE,
    HFedMoE,
    FLUX,
    FedProx,
    Scaffold,
    FFALoRA,
    RoLoRA,
    FedExLoRA,
    FedSB,
    FedSALoRA,
    HetLoRA,
    FlexLoRA,
    FLoRA,
    FLoRIST,
    Replication,
    RaFLoRA,
    LoRAFair,
    FedBuff,
)
Aggregation = Annotated[Strategy, Open("fedmoe.strategies", Strategy, STRATEGIES)]
"""Components that `aggregation` in a configuration may name."""
MIXED_RANKS = tuple(s.name for s in STRATEGIES if s.mixed_ranks)
"""The strategies that can combine clients of unlike ranks."""

__all__ = [
    "MIXED_RANKS",
    "ROBUST_RULES",
    "SERVER_OPTIMIZERS",
    "STRATEGIES",
    "Aggregation",
    "FedAvg",
    "FedBuff",
    "Flame",
    "NoOptimizer",
    "RobustRule",
    "ServerOptimizer",
    "Strategy",
    "rule_for",
    "unfit",
]
