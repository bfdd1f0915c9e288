"""Video diffusion in JAX and Flax: pixel-space cascades, attention variants, sharding.

Shapes are named the same way everywhere: `B` batch, `T` frames, `H` `W` height and width, `C` channels, `K` heads,
`D` head dimension, `N = H*W` tokens per frame, `S = T*N` tokens, `Q` those that ask, `L` text tokens in `G` groups.
Besides: `O` channels of an output, `E` of an embedding, `D` of a feature, `F` frames (of a device) that see `G` frames,
`N` things or `M` others, `P` positions, `V` vectors, `R` rows or runs, `Z` places in a block. `H2` is `H` after a
change, and a number that an argument or the text names is a word in lower case. Videos are `B T H W C` float32 in
[-1, 1] (uint8 on disk and on the way to the device). Noise levels are log-SNR, `log(alpha^2 / sigma^2)`. Time `t` runs
from 0 (clean) to 1 (noise). Guidance weights are in the `1 + w` form, so 0 means off.
"""

from vdm_jax.versions import VERSION as __version__  # noqa: F401


def load(run, devices=None, damaged="refuse"):
    """A generator from a run directory, a name in `runs/`, or an exported folder; see `vdm_jax.runs.directory.load`."""
    from vdm_jax.runs.directory import load

    return load(run, devices, damaged)


def from_pretrained(folder, *, dtype=None, variant=None, mesh=None, scheduler=None):
    """A released latent model from its local folder, as a callable; see `vdm_jax.pipelines.loading.from_pretrained`."""
    from vdm_jax.pipelines.loading import from_pretrained

    return from_pretrained(folder, dtype=dtype, variant=variant, mesh=mesh, scheduler=scheduler)
