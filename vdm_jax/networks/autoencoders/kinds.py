"""The kinds of autoencoders whose latents a stage may work in.

A further one is a config and its module (`weights/model_kinds.py: module`), with `encode` to `Moments` and `decode`.
The config says `channels`, `latent_channels`, `factor` (pixels of a side per latent), `time_factor` (frames per
latent), `latent_frames(frames)`, `normalise` and `denormalise`, the `pieces` that are part of the model, and whether it
is `causal`: then also the `multiples` of pieces, and the `first_piece`, or where pieces overlap the `stride`.
"""

from vdm_jax.networks.autoencoders.causal_config import CausalAutoencoder
from vdm_jax.networks.autoencoders.config import Autoencoder
from vdm_jax.networks.autoencoders.hunyuan import HunyuanAutoencoder
from vdm_jax.networks.autoencoders.ltx_config import LTXAutoencoder
from vdm_jax.networks.autoencoders.piecewise import PiecewiseAutoencoder

AnyAutoencoder = Autoencoder | CausalAutoencoder | HunyuanAutoencoder | LTXAutoencoder | PiecewiseAutoencoder
# Fields that come with the weights: how diffusion sees the latents.
NORMALISATION = ("scale", "shift", "mean", "std")
