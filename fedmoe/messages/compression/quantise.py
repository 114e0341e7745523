r"""Small integers with one float32 scale per rank component.

$$s = \max_i |v_i| / m, \qquad q_i = \mathrm{round}(v_i / s), \qquad \hat v_i = s\,q_i$$

over the values $v_i$ of one row of A or one column of B of one expert, $m$ the largest integer;
halves round to even. $|\hat v_i - v_i| \le s / 2$ but for float32's own rounding; an $s$ below
the smallest normal float32 is taken as 0. Components differ in size by more than the values inside
one do, so a scale shared more widely would be coarser.
"""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float32, Int8

from fedmoe.errors import WireError
from fedmoe.messages.compression.parts import Parts, num_values

TINY = float(np.finfo(np.float32).tiny)
"""The smallest normal float32."""


def num_scales(parts: Parts) -> int:
    """Return the number of rank components in all parts."""
    return sum(part.num_scales for part in parts)


def quantise(
    values: Float32[np.ndarray, " values"], parts: Parts, largest: int
) -> tuple[Float32[np.ndarray, " scales"], Int8[np.ndarray, " values"]]:
    """Return the scales, part by part, and integers from `-largest` to `largest`.

    Raises:
        WireError: a value is not finite.
    """
    scales = np.empty(num_scales(parts), np.float32)
    whole = np.empty(values.size, np.int8)
    start = 0
    for part in parts:
        if not part.num_scales:
            continue
        # torch: numpy takes twice as long along the columns of a narrow matrix.
        v = torch.from_numpy(values[part.start : part.stop]).view(part.shape)
        low, high = v.aminmax(dim=part.axis, keepdim=True)
        scale = torch.maximum(high, -low) / largest
        if not scale.isfinite().all():
            raise WireError("delta has a value that is not finite; training diverged", "not_finite")
        # A subnormal scale would itself be rounded, and the quotient could exceed `largest`.
        scale[scale < TINY] = 0
        q = (v / scale.where(scale > 0, 1)).round_()
        whole[part.start : part.stop] = q.to(torch.int8).view(-1)
        scales[start : start + part.num_scales] = scale.view(-1)
        start += part.num_scales
    return scales, whole


def restore(
    scales: Float32[np.ndarray, " scales"], whole: Int8[np.ndarray, " values"], parts: Parts
) -> Float32[np.ndarray, " values"]:
    """Return the values of integers and their scales; validation refuses those not finite."""
    values = np.empty(num_values(parts), np.float32)
    start = 0
    for part in parts:
        if not part.num_scales:
            continue
        shape = list(part.shape)
        shape[part.axis] = 1
        scale = scales[start : start + part.num_scales].reshape(shape)
        q = whole[part.start : part.stop].reshape(part.shape)
        with np.errstate(over="ignore", invalid="ignore"):
            np.multiply(q, scale, out=values[part.start : part.stop].reshape(part.shape))
        start += part.num_scales
    return values
