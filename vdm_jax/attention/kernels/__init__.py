"""Attention kernels: how softmax(q k^T) v is computed for a pattern on a video.

Each takes queries, keys and values `[B, T, H, W, K, D]`, the `SequenceLayout` of the pattern, and what may restrict or
widen it: a bias `[*, K, Q, S]` in the view's layout, validity of frames `[B, T]`, extra keys and values. What a kernel
does not take is listed in `capability.py` and refused there.
"""

from collections.abc import Callable

from vdm_jax.attention.kernels import chunked, cudnn, gather, xla


def _splash(*arguments, **options):
    from vdm_jax.attention.kernels import splash  # Pallas is imported where it is used

    return splash.attention(*arguments, **options)


KERNELS: dict[str, Callable] = {"xla": xla.attention, "chunked": chunked.attention, "gather": gather.attention,
                                "cudnn": cudnn.attention, "splash": _splash}

__all__ = ["KERNELS"]
