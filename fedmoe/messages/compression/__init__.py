"""Compressions of an update's values: in full, rounded, or only the largest of them.

- `parts`: which values an update carries: all shared parts, and the experts that tokens reached
- `none`, `bf16`, `int8`, `int4`, `top_k`: one way a file
- `quantise`: the small integers with a scale that `int8` and `int4` share
- `positions`: where the values that `top_k` keeps lie

Every way turns the same values into the same bytes, and any bytes of the right number into
values: the number follows from the counts alone, so nothing is decoded before its size is known.

To add one: a `@section` that derives from `Compression`, named in `COMPRESSIONS`; from outside this
package no list is needed.
"""

from fedmoe.messages.compression.bf16 import Bf16
from fedmoe.messages.compression.int4 import Int4
from fedmoe.messages.compression.int8 import Int8
from fedmoe.messages.compression.none import NoCompression
from fedmoe.messages.compression.parts import Compression
from fedmoe.messages.compression.top_k import TopK
from fedmoe.section import Open

COMPRESSIONS = Open("fedmoe.compressions", Compression, (NoCompression, Bf16, Int8, Int4, TopK))
"""What `upload` in a configuration may name."""

__all__ = ["COMPRESSIONS", "Bf16", "Compression", "Int4", "Int8", "NoCompression", "TopK"]
