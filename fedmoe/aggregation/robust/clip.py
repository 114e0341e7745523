"""Clip: no update is much larger than the others', and no client is most of a mean."""

from __future__ import annotations

from typing import ClassVar, Literal

from fedmoe.aggregation.robust.guarded import Guarded
from fedmoe.section import section


@section
class Clip(Guarded):
    r"""Clip every expert's update to a multiple of the round's median norm, and cap shares.

    $$\Delta_{ce} \leftarrow t_{ce} \Delta_{ce}, \quad
      t_{ce} = \max \{ t \le 1 : \|P_{ce}(t)\| \le \tau\, \mathrm{med}_i \|P_{ie}\| \}, \qquad
      \gamma_{ce} \leftarrow \min\big(\gamma_{ce},\ \sigma \sum_i \gamma_{ie}\big)$$

    with the norm of the product's change P (`geometry`), and the same for dA and for dB alone: a
    large dA behind a B of zero is no change of the product yet, but one of the mean. The last sum
    is over the lowered weights, so that nobody has more than the share sigma. The median is over
    those that trained the expert, the lower one of an even number. An expert of fewer than three
    takes the median of its layer: over all clients, of each one's median over its experts.

    Where nobody is over a limit, the next state is the strategy's, to the bit. A liar within the
    limits moves an expert by at most `most_share` times `most_norm` times the median norm.

    It keeps a round's updates until the last has arrived, beyond a gigabyte of them in files
    (`TMPDIR`), and four clipped copies at a time.

    Source: norm clipping against backdoors is Sun et al. 2019 (arXiv:1911.07963, section 3.3),
    with a fixed bound and on the whole update; ours is relative, per expert and of the product.
    """

    name: Literal["clip"] = "clip"
    withstands: ClassVar[str] = "weight"
