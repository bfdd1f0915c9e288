"""Animate Anyone, first stage: a character in a given pose, single frames of 768x768 with a reference network.

Citation: Hu et al. 2023, arXiv 2311.17117, sections 3.2 and 3.3: batch 64, 30,000 steps, rate 1e-5. Its code is not
          public; of the open code MooreThreads/Moore-AnimateAnyone are the pose guider's kernels, the prediction v with
          a last timestep of pure noise, the loss's weights, and dropping the picture in a tenth of the samples. Ours:
          one reference picture for each video, not a random frame of it; the weight of guidance; no decay of weights.
          Not here: the offset noise of the open code.
Hardware: 4 A100.
Expected: UBC fashion SSIM 0.931, PSNR 38.49, LPIPS 0.044, FVD 81.6 with both stages; FVD 89.3 where these were trained
          as one. Not trained by us.
Run:      vdm-jax train animate_anyone/images     (weights/sd_vae.safetensors and weights/sd1_unet.safetensors by
          vdm-jax convert; videos with skeletons by vdm-jax annotate --kind pose, a picture of each and what the command
          embed makes of it by a CLIP ViT-L/14, such as the folder sd-image-variations-diffusers/image_encoder)
"""

from dataclasses import replace

from vdm_jax.data.video_folder import VideoFolder
from vdm_jax.networks.autoencoders.config import AUTOENCODER_F8
from vdm_jax.networks.latent_unet import LATENT_UNET_SD1
from vdm_jax.networks.pose_guider import PoseGuider
from vdm_jax.stages.latent import Latent
from vdm_jax.stages.options import InitFromFile, Sampling, Training
from vdm_jax.stages.stage import Experiment, Stage, VideoSpec
from vdm_jax_configs.animate_anyone import _stage

LATENT = Latent(autoencoder=AUTOENCODER_F8, weights="weights/sd_vae.safetensors", encode_frames=1)
DATA = VideoFolder(path="data/dance", references="data/dance_pictures", image_prompts="data/dance_vectors",
                   controls="data/dance-pose", clips="one")


def get_config() -> Experiment:
    """859.5M parameters of the U-Net, as many of the reference network, and 0.5M of the pose guider."""
    network = _stage.network(LATENT_UNET_SD1, PoseGuider())
    stage = Stage(
        name="base", video=VideoSpec(frames=1, height=768, width=768), network=network, process=_stage.PROCESS,
        latent=LATENT,
        training=Training(steps=30_000, batch_size=64, learning_rate=1e-5, text_dropout=0.1, weight_decay=0.0,
                          random_starts=True, trainable=_stage.of_images(network.unet),
                          init_from=InitFromFile(path="weights/sd1_unet.safetensors")),
        sampling=Sampling(sampler=_stage.SAMPLER, steps=20, guidance=2.5, threshold=None))
    return Experiment(name="animate_anyone_images", stages=(stage,),
                      data=replace(DATA, frames=1, height=768, width=768))
