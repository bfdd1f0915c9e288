"""Video LDM, upscaler: 320x512 to 1280x2048, in the latents of Stable Diffusion's x4 upscaler.

Citation: Blattmann et al. 2023, arXiv 2304.08818, section 3.4: the image upscaler with temporal layers, which are
          trained on windows and run on whole frames. The noise on the low-resolution video is that of the image model,
          timesteps up to 350 of a linear table; ours are uniform in log-SNR. Published are 473M parameters within
          frames, as here, and 449M over frames, where the layers of the other networks have 438M. Ours, as it is not
          published: frames, batch, noise in sampling; what is not published is marked in _stage.py too.
Hardware: not published for this model.
Expected: FVD 45.39 and FID 19.85 of the driving model's upscaler, an image upscaler has 165.98 and 19.71. Not trained
          by us.
Run:      vdm-jax train video_ldm/upscaler     (weights/x4_vae.safetensors and weights/x4_unet.safetensors by vdm-jax
          convert; clips of 1280x2048 made by vdm-jax prepare; 77 states of OpenCLIP ViT-H/14 for each caption)
"""

from vdm_jax.data.array_record import PreparedClips
from vdm_jax.data.embeddings import WithEmbeddings
from vdm_jax.diffusion.augmentation import NoiseAugmentation
from vdm_jax.diffusion.levels import UniformTimestep
from vdm_jax.diffusion.process import Process
from vdm_jax.diffusion.samplers import DDIM
from vdm_jax.diffusion.schedules import LinearBetaSchedule
from vdm_jax.networks.autoencoders.config import AUTOENCODER_F4
from vdm_jax.networks.config import EmbeddedText
from vdm_jax.networks.latent_network import LatentNetwork
from vdm_jax.networks.latent_unet import LATENT_UNET_VIDEO_LDM_UPSCALER
from vdm_jax.stages.latent import Latent
from vdm_jax.stages.options import InitFromFile, Sampling, Training
from vdm_jax.stages.stage import Experiment, LowResolution, Stage, VideoSpec
from vdm_jax_configs.video_ldm import _stage


def get_config() -> Experiment:
    """Windows of 320x320 pixels, 80x80 of the low-resolution video; 84,000 steps are those of the driving model's."""
    noise = LinearBetaSchedule()  # 1000 timesteps, beta from 1e-4 to 0.02
    table = noise.table()  # log-SNR of each timestep
    augmentation = NoiseAugmentation(training_logsnr=(round(float(table[350]), 4), round(float(table[0]), 4)),
                                     sampling_logsnr=round(float(table[20]), 4))
    stage = Stage(
        name="spatial", video=VideoSpec(frames=8, height=1280, width=2048, fps=30),
        source=LowResolution(frames=8, height=320, width=512, augmentation=augmentation),
        network=LatentNetwork(unet=LATENT_UNET_VIDEO_LDM_UPSCALER, timesteps=_stage.BETAS, low_resolution=True,
                              low_resolution_steps=noise, text=EmbeddedText(width=1024)),
        process=Process(schedule=_stage.BETAS, prediction="v", level_sampling=UniformTimestep()),
        latent=Latent(autoencoder=AUTOENCODER_F4, weights="weights/x4_vae.safetensors", encode_frames=1,
                      decode_frames=1, low_resolution="pixels"),
        training=Training(steps=84_000, batch_size=128, learning_rate=1e-5, text_dropout=0.1, ema_decay=0.9999,
                          crop=(320, 320), trainable=_stage.OVER_FRAMES,
                          init_from=InitFromFile(path="weights/x4_unet.safetensors")),
        sampling=Sampling(sampler=DDIM(), steps=50, guidance=6.5, threshold=None))
    return Experiment(name="video_ldm_upscaler", stages=(stage,), data=WithEmbeddings(
        data=PreparedClips(path="data/clips"), path="data/open_clip_h", length=77))
