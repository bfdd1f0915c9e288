"""What the two Stable Video Diffusion models share."""

import dataclasses

from vdm_jax.data.array_record import PreparedClips
from vdm_jax.data.embeddings import WithEmbeddings
from vdm_jax.diffusion.levels import LogNormalSigma
from vdm_jax.diffusion.process import Process
from vdm_jax.diffusion.samplers import Euler
from vdm_jax.diffusion.schedules import EDMSchedule
from vdm_jax.networks.autoencoders.config import AUTOENCODER_SVD
from vdm_jax.networks.config import EmbeddedText
from vdm_jax.networks.latent_network import LatentNetwork
from vdm_jax.networks.latent_unet import LATENT_UNET_SVD
from vdm_jax.stages.latent import Latent
from vdm_jax.stages.options import Sampling, Training
from vdm_jax.stages.stage import Experiment, FirstFrame, Stage, VideoSpec


def experiment(name: str, frames: int, guidance: tuple[float, float], steps: int) -> Experiment:
    """A picture animated at 576x1024; `guidance` of the first and the last frame and `steps` of sampling are those of
    the authors' configs, whose scale is 1 + w.

    The last phase of training, 50,000 steps. The tokens are one CLIP embedding of the clip's first frame, kept by
    caption, so that each clip needs a caption of its own. Ours, as it is not published: how often picture and embedding
    are dropped; the motion bucket of training clips, here always 127.
    """
    network = LatentNetwork(
        unet=dataclasses.replace(LATENT_UNET_SVD, dtype="bfloat16"), timesteps=None, text=EmbeddedText(width=1024),
        scalars=("fps", "motion", "noise"), first_frame=True)
    stage = Stage(
        name="base", video=VideoSpec(frames=frames, height=576, width=1024, fps=7), source=FirstFrame(),
        network=network,
        process=Process(schedule=EDMSchedule(sigma_min=0.002, sigma_max=700.0, rho=7.0), prediction="edm",
                        sigma_data=1.0, level_sampling=LogNormalSigma(mean=1.0, std=1.6)),
        latent=Latent(autoencoder=AUTOENCODER_SVD, weights="weights/svd_vae.safetensors", encode_frames=1,
                      decode_frames=14),
        training=Training(steps=50_000, batch_size=768, learning_rate=3e-5, text_dropout=0.1, ema_decay=0.9999),
        sampling=Sampling(sampler=Euler(), steps=steps, guidance=guidance[0], last_frame_guidance=guidance[1],
                          threshold=None))
    return Experiment(name=name, stages=(stage,), data=WithEmbeddings(
        data=PreparedClips(path="data/clips"), path="data/clip_pictures", length=1))
