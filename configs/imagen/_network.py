"""The networks of Imagen (Saharia et al. 2022, arXiv 2205.11487, appendix F), over one U-Net."""

from collections.abc import Sequence

from vdm_jax.attention.patterns import Spatial, WithExtraKeys
from vdm_jax.networks.config import CrossAttention, EmbeddedText, Level, Mixer, SelfAttention, UNet

T5_XXL = 4096  # channels


def text(project: int) -> EmbeddedText:
    """T5-XXL embeddings, layer-normed, projected as the open port in JAX does it; pooled by attention."""
    return EmbeddedText(width=T5_XXL, project=project, pooling="attention")


def fused(head_dim: int) -> SelfAttention:
    """Self-attention whose keys and values are followed by those of the text. Positions: none are published."""
    return SelfAttention(pattern=WithExtraKeys(inner=Spatial()), head_dim=head_dim, position="none")


def base() -> UNet:
    """Appendix F.1: 512 channels, multipliers 1-2-3-4, three blocks, attention at 32, 16 and 8 with 64 channels per
    head, residual blocks that resample, scale and shift. Width of the vector: four times the channels, as in its
    authors' other networks."""
    mixers = (fused(64),)
    levels = tuple(Level(channels=512 * m, blocks=3, mixers=mixers if m > 1 else ()) for m in (1, 2, 3, 4))
    return UNet(levels=levels, middle=mixers, embedding_channels=2048, resample="biggan", groups=32,
                text=text(project=2048), dtype="bfloat16", remat="full")


def efficient(channels: Sequence[int], blocks: Sequence[int], mixers: Sequence[tuple[Mixer, ...]],
              first_stride: tuple[int, int] = (2, 2)) -> UNet:
    """The Efficient U-Net of figures A.27 to A.30: convolutions reduce before a level's blocks and grow after them,
    every shortcut has a 1x1 convolution, attention follows a level's last block. Whether its 1/sqrt(2) is on the long
    skips (here) or on the shortcuts (`residual_scale`, as in an open port) is not clear."""
    levels = tuple(Level(channels=c, blocks=n, mixers=m, mixers_after="last", stride=first_stride if i == 0 else (2, 2))
                   for i, (c, n, m) in enumerate(zip(channels, blocks, mixers, strict=True)))
    return UNet(levels=levels, resample_order="before", shortcut="always", skip_scale=2**-0.5, groups=32,
                embedding_channels=4 * channels[0], text=text(project=1024), low_resolution=True, dtype="bfloat16",
                remat="full")


def sr_256() -> UNet:
    """Appendix F.2 as printed; 8 heads. It has fewer parameters than the 600 M of the text; see sr_256_600m.py."""
    return efficient((128, 256, 512, 1024), (2, 4, 8, 8), ((), (), (), (fused(128),)))


def sr_1024() -> UNet:
    """Appendix F.3 as printed: the same with cross-attention alone."""
    return efficient((128, 256, 512, 1024), (2, 4, 8, 8), ((), (), (), (CrossAttention(head_dim=128),)))


def sr_256_five_blocks() -> UNet:
    """Five levels of 128 x 1-2-4-8-8 channels with 2-4-8-8-2 blocks, the first at full resolution, attention at the
    last two (the open port in JAX, which comes to the published 600 M)."""
    mixers = ((), (), (), (fused(128),), (fused(128),))
    return efficient((128, 256, 512, 1024, 1024), (2, 4, 8, 8, 2), mixers, first_stride=(1, 1))
