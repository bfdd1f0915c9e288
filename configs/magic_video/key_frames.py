"""MagicVideo, key frames: 16 frames of 256x256 from text and a number of frames per second, in latents of 32x32.

Citation: Zhou et al. 2022, arXiv 2211.11018, by its abstract and public notes, since there is no official code: scale
          and shift of each frame after 2-D convolutions, temporal attention that sees no later frame, in parallel with
          spatial attention, and an embedding of the frame rate added to that of the noise level. Not known to us: sizes
          of the network, text encoder, noise, data, batch, steps, rate, guidance and sampling, whether attention is
          masked before or after its softmax (Directed.mask: before here, after in the notes), and the layers of the
          autoencoder with a temporal decoder. Ours, in their place: Stable Diffusion 1.x, its noise and autoencoder;
          adaptors of each channel in residual blocks; temporal attention that begins as zero; rates from 2 to 30 frames
          per second, of which the network receives one less. magic_video/cascade has the networks after this one.
Hardware: not known to us; FLOPs are about 1/64 of those of VDM.
Expected: UCF-101 zero-shot FVD 699 (655 as a later paper quotes it), MSR-VTT FID 36.5 and FVD 998 (1290 as a later
          paper quotes it), with all networks. Not trained by us.
Run:      vdm-jax train magic_video/key_frames     (weights/sd_vae.safetensors and weights/sd1_unet.safetensors by
          vdm-jax convert; captioned videos in data/webvid, captions encoded into data/clip_l by vdm-jax embed)
"""

from vdm_jax.data.embeddings import WithEmbeddings
from vdm_jax.data.frame_rates import FrameRates
from vdm_jax.data.video_folder import VideoFolder
from vdm_jax.networks.autoencoders.config import AUTOENCODER_F8
from vdm_jax.networks.latent_unet import LATENT_UNET_MAGIC_VIDEO
from vdm_jax.stages.latent import Latent
from vdm_jax.stages.options import InitFromFile, Sampling, Training
from vdm_jax.stages.stage import Experiment, Stage, VideoSpec
from vdm_jax_configs.magic_video import _stage

LATENT = Latent(autoencoder=AUTOENCODER_F8, weights="weights/sd_vae.safetensors", encode_frames=1)
TRAINING = Training(
    steps=100_000, batch_size=64, learning_rate=5e-5, weight_decay=0.01, ema_decay=0.0, text_dropout=0.1,
    random_starts=True, frame_rates=FrameRates(lowest=2.0, highest=30.0, first=(1.0, 1.0), last=(1.0, 1.0)),
    init_from=InitFromFile(path="weights/sd1_unet.safetensors"))
SAMPLING = Sampling(sampler=_stage.SAMPLER, steps=50, guidance=6.5, threshold=None)


def get_config() -> Experiment:
    """859.5M parameters of the image network, and those of what it lacks."""
    stage = Stage(
        name="base", video=VideoSpec(frames=16, height=256, width=256, fps=8), process=_stage.PROCESS, latent=LATENT,
        network=_stage.network(LATENT_UNET_MAGIC_VIDEO), training=TRAINING, sampling=SAMPLING)
    videos = VideoFolder(path="data/webvid", captions="data/webvid/captions.csv", frames=16, height=256, width=256,
                         clips="one")
    return Experiment(name="magic_video_key_frames", stages=(stage,),
                      data=WithEmbeddings(data=videos, path="data/clip_l", length=77))
