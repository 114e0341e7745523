"""Clip: no update is much larger than the others', and no claim of size beyond theirs counts."""

from __future__ import annotations

from typing import ClassVar, Literal

from fedmoe.aggregation.robust.guarded import Guarded
from fedmoe.section import section


@section
class Clip(Guarded):
    r"""Clip every expert's update to twice the round's median norm, and cap what sizes count.

    $$\Delta_{ce} \leftarrow t_{ce} \Delta_{ce}, \quad
      t_{ce} = \max \{ t \le 1 : \|P_{ce}(t)\| \le \tau\, \mathrm{med}_i \|P_{ie}\| \}, \qquad
      n_c \leftarrow \min(n_c,\ \nu\, \mathrm{med}_i n_i)$$

    with the norm of the product's change P (`geometry`), and the same for dA and for dB alone: a
    large dA behind a B of zero is no change of the product yet, but one of the mean. The median is
    over those that trained the expert, the lower one of an even number. An expert of fewer than
    three takes the median of its layer: over all clients, of each one's median over its experts.
    The size n_c is the weight for shared parts; a client's other weights are lowered like it. With
    a `most_share` nobody then has more than that share of any expert's weight.

    Where nobody is over a limit, the next state is the strategy's, to the bit. In five honest
    rounds of the quickstart no norm was over 1.87 times its median: twice the median touches none
    of 1,300 updates of experts, where the median itself would clip 69 %, and a `most_share` of 0.3
    lower 36 % of FLAME's weights. Of a liar whose number of examples the server knows, the smallest
    of eight, one round then costs 1.5 points at most of 15 lies, and no backdoor is obeyed. If its
    first claim is a million examples, it costs 10: where clients alone know their rows, set
    `admission.most_examples` or weigh by `uniform`. The table is `simulations/attacks.md`.

    It keeps a round's updates until the last has arrived, beyond a gigabyte of them in files
    (`TMPDIR`), and four copies at a time of those that it clips: ten updates of 592 MB take 4.9 GB
    there.

    Source: norm clipping against backdoors is Sun et al. 2019 (arXiv:1911.07963, section 3.3),
    with a fixed bound and on the whole update; ours is relative, per expert and of the product.
    """

    name: Literal["clip"] = "clip"
    withstands: ClassVar[str] = "weight"
