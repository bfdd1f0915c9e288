"""Follow Your Pose, first stage: an encoder of skeletons for Stable Diffusion 1.4, on pictures of 512x512.

Citation: Ma et al. 2023, arXiv 2304.01186: a T2I-Adapter is trained alone, on pictures with skeletons (LAION-Pose). The
          authors' code (mayuelala/FollowYourPose) has the encoder's sizes and not this stage; a review of the paper has
          100,000 steps. Ours: batch, rate, a twentieth of the captions dropped, no averaged weights, and single frames
          of videos in the place of LAION-Pose, which is not released in full.
Hardware: 8 A100 for both stages.
Expected: no numbers are known to us. Not trained by us.
Run:      vdm-jax train follow_your_pose/images     (weights/sd_vae.safetensors and weights/sd1_unet.safetensors by
          vdm-jax convert; videos of people with captions.csv, their skeletons by vdm-jax annotate --kind pose, and
          captions encoded into data/clip_l by vdm-jax embed)
"""

from vdm_jax.data.embeddings import WithEmbeddings
from vdm_jax.data.video_folder import VideoFolder
from vdm_jax.networks.autoencoders.config import AUTOENCODER_F8
from vdm_jax.networks.latent_unet import LATENT_UNET_SD1
from vdm_jax.networks.t2i_adapter import T2I_ADAPTER_SD1
from vdm_jax.stages.latent import Latent
from vdm_jax.stages.options import InitFromFile, Sampling, Training
from vdm_jax.stages.stage import Experiment, Stage, VideoSpec
from vdm_jax_configs.follow_your_pose import _stage

LATENT = Latent(autoencoder=AUTOENCODER_F8, weights="weights/sd_vae.safetensors", encode_frames=1)


def get_config() -> Experiment:
    """Stable Diffusion, frozen, and 77.4M parameters of the encoder."""
    stage = Stage(
        name="base", video=VideoSpec(frames=1, height=512, width=512), process=_stage.PROCESS, latent=LATENT,
        network=_stage.network(LATENT_UNET_SD1, T2I_ADAPTER_SD1),
        training=Training(steps=100_000, batch_size=8, learning_rate=1e-5, weight_decay=0.01, ema_decay=0.0,
                          text_dropout=0.05, random_starts=True, trainable=_stage.POSES,
                          init_from=InitFromFile(path="weights/sd1_unet.safetensors")),
        sampling=Sampling(sampler=_stage.SAMPLER, steps=50, guidance=6.5, threshold=None))
    people = VideoFolder(path="data/people", captions="data/people/captions.csv", controls="data/people-pose",
                         frames=1, height=512, width=512, clips="one")
    return Experiment(name="follow_your_pose_images", stages=(stage,),
                      data=WithEmbeddings(data=people, path="data/clip_l", length=77))
