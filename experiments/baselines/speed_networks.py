"""The U-Nets that are timed against each other, and the operations of ours."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from vdm_jax.attention.patterns import Spatial, Temporal
from vdm_jax.networks.config import Level, SelfAttention, UNet
from vdm_jax.networks.unet import SpaceTimeUNet
from vdm_jax.parallel.mesh import MeshSpec, make_mesh
from vdm_jax.planning.flops import count

FRAMES, CHANNELS = 10, 3
THEIRS = {"dim": 64, "dim_mults": (1, 2, 4, 8), "channels": CHANNELS}  # of Unet3D in video-diffusion-pytorch
THEIR_PARAMETERS = 35_706_259
IMAGEN = {"dim": 64, "dim_mults": (1, 2, 4, 8), "channels": CHANNELS, "cond_on_text": False, "text_embed_dim": 512}
# Of Unet3D in imagen-pytorch, without text: class, and the same options as above.
_LEVELS = {"block_out_channels": (96, 192, 384), "layers_per_block": 1, "cross_attention_dim": 256}
# Networks of released models, reduced; the same weights on both sides. Class of diffusers, its options.
RELEASED: dict[str, tuple[str, dict[str, Any]]] = {
    "svd": ("UNetSpatioTemporalConditionModel", {
        **_LEVELS, "in_channels": 8, "out_channels": 4, "num_attention_heads": (2, 4, 6), "num_frames": FRAMES,
        "down_block_types": ("CrossAttnDownBlockSpatioTemporal",) * 2 + ("DownBlockSpatioTemporal",),
        "up_block_types": ("UpBlockSpatioTemporal",) + ("CrossAttnUpBlockSpatioTemporal",) * 2,
        "projection_class_embeddings_input_dim": 768, "addition_time_embed_dim": 256}),
    "modelscope": ("UNet3DConditionModel", {
        **_LEVELS, "in_channels": 4, "out_channels": 4, "attention_head_dim": 48,
        "down_block_types": ("CrossAttnDownBlock3D",) * 2 + ("DownBlock3D",),
        "up_block_types": ("UpBlock3D",) + ("CrossAttnUpBlock3D",) * 2}),
    # Two of the 30 blocks of Wan 2.1 1.3B, with its text projection.
    "wan": ("WanTransformer3DModel", {
        "num_attention_heads": 12, "attention_head_dim": 128, "in_channels": 16, "out_channels": 16, "text_dim": 4096,
        "freq_dim": 256, "ffn_dim": 8960, "num_layers": 2}),
}
TOKENS = {"svd": 1, "modelscope": 77, "wan": 512}  # of text; svd has one of a picture
TRAINED = ("vdm", "wan")  # networks of which a train step is timed too


def our_network() -> UNet:
    """Factorised space-time U-Net in the manner of VDM (Ho et al. 2022, 2204.03458), as large as theirs.

    1x3x3 convolutions, temporal attention with relative positions at every level, full spatial attention at the two
    lowest resolutions and in the middle. Ours joins every skip in a residual block of its own and attends with all
    channels, so with a last level of 512 channels it would be larger; with 384 and a wider conditioning vector it has
    as many parameters as theirs, and as many operations per forward pass (both are recorded).
    """
    temporal = SelfAttention(pattern=Temporal(), position="relative")
    spatial = SelfAttention(pattern=Spatial())
    mixers = ((temporal,), (temporal,), (spatial, temporal), (spatial, temporal))
    levels = tuple(Level(channels=channels, blocks=1, mixers=m)
                   for channels, m in zip((64, 128, 256, 384), mixers, strict=True))
    return UNet(levels=levels, middle=(spatial, temporal), embedding_channels=512)


def abstract_inputs(batch: int, size: int) -> tuple[Any, Any, Any]:
    """Shapes of parameters, video and noise level; nothing is allocated."""
    video = jax.ShapeDtypeStruct((batch, FRAMES, size, size, CHANNELS), jnp.float32)
    logsnr = jax.ShapeDtypeStruct((batch,), jnp.float32)
    variables = jax.eval_shape(SpaceTimeUNet(our_network()).init, jax.random.key(0), video, logsnr)
    return variables["params"], video, logsnr


def forward_operations(batch: int, size: int) -> int:
    """Floating-point operations of our forward pass in convolutions and matrix products, counted in the jaxpr."""
    params, video, logsnr = abstract_inputs(batch, size)
    network = SpaceTimeUNet(our_network())
    closed = jax.make_jaxpr(lambda p, z, level: network.apply({"params": p}, z, level))(params, video, logsnr)
    return sum(count(closed.jaxpr))


def over_devices() -> tuple[Mesh, NamedSharding, NamedSharding]:
    """A mesh whose devices share the frames of a clip, and where arrays are that every device has, and videos."""
    mesh = make_mesh(MeshSpec(data=1, context=jax.device_count()))
    return mesh, NamedSharding(mesh, P()), NamedSharding(mesh, P(None, "context"))
