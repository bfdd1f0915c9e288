"""The ways down and up of a U-Net, joined by skip connections, and what lies inside one of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from jaxtyping import Array

Through = Callable[[Callable[[], Array]], Array]  # makes features by calling its argument, or has them already


class Deep(NamedTuple):
    """Where the features inside a skip connection come from (DeepCache: Ma et al. 2023, arXiv 2312.00858)."""

    branch: int  # number of the skip connection, 0 the outermost; of a transformer, of first blocks that are computed
    features: Through  # called once; what it does not call is not computed


def through_skips(
    x: Array, down: Sequence[Callable[[Array], Array]], middle: Callable[[Array], Array],
    up: Sequence[Callable[[Array, Array], Array]], deep: Deep | None = None,
) -> Array:
    """A U-Net between its first and its last convolution.

    Args:
      x: features of the first skip connection.
      down: from the features of each skip connection to those of the next.
      middle: what follows the last of them.
      up: `(x, skip) -> x` for each skip connection, the last one first.
      deep: where what one of them passes over comes from; None: it is computed.
    """
    def joined(number: int, skip: Array) -> Array:
        def inside() -> Array:
            return middle(skip) if number == len(down) else joined(number + 1, down[number](skip))

        kept = deep is not None and deep.branch == number
        return up[len(down) - number](deep.features(inside) if kept else inside(), skip)

    return joined(0, x)
