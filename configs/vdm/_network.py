"""What the six networks of Video Diffusion Models share (Ho et al. 2022, arXiv 2204.03458, section 3, appendix A)."""

from collections.abc import Sequence

from vdm_jax.attention.patterns import Spatial, Temporal
from vdm_jax.networks.config import Level, SelfAttention, TextInput, UNet

ATTENTION_AT = (8, 16, 32)  # rows of a level


def network(
    channels: int, multipliers: Sequence[int], *, size: int, blocks: int = 2, head_dim: int = 64, mlp_layers: int = 4,
    dropout: float = 0.1, text: TextInput | None = None,
) -> UNet:
    """Convolutions of 1x3x3; at 8, 16 and 32 rows spatial attention, each followed by temporal attention with relative
    positions in the style of Shaw et al.

    The conditioning vector is added in the residual blocks, as the paper says; the same authors' image network scales
    and shifts with it instead (`modulation="scale_shift"`). Its encoding of log-SNR, the groups of group norm and the
    kind of resampling are not published: those of that image network.
    """
    mixers = (SelfAttention(pattern=Spatial(), head_dim=head_dim, position="none"),
              SelfAttention(pattern=Temporal(), head_dim=head_dim, position="shaw"))
    levels = tuple(
        Level(channels=channels * multiplier, blocks=blocks, dropout=dropout,
              mixers=mixers if size // 2**i in ATTENTION_AT else ())
        for i, multiplier in enumerate(multipliers))
    return UNet(levels=levels, middle=mixers, embedding_channels=1024, embedding_layers=mlp_layers, modulation="add",
                groups=32, text=text, dtype="bfloat16")
