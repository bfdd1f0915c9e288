"""MCDiff, first phase: flow completion from strokes, and next frames from the flow, each trained by itself, 256x256.

Citation: Chen et al. 2023, arXiv 2304.14404, sections 3 and 4, by a review of the paper; its code is not public. Both
          networks for 400,000 steps of 40 pairs, the completion by equation 1, the prediction by the squared error of
          the noise. They share no parameter, so one run trains both. Published flow is that of tracked keypoints
          (HRNet) and points (PIPs); here it is DIS optical flow, from which 5 moving points, in place of 30 % of the
          keypoints, and 4 others are drawn. Not known to us, so ours: size of the frames, autoencoder, betas, the
          layers and widths of both U-Nets, their numbers of parameters, learning rate, averaged weights, lambda and
          lambda_F, radius of strokes, steps of the sampler.
Hardware: not known.
Expected: TaiChi-HD FVD 142.57, 126.69, 113.12 and average displacement error 2.77, 2.72, 2.90 with 1, 5, 9 strokes;
          Human3.6M FVD 117.60, 114.82, 111.38; MPII Human Pose FVD 194.30, without completion 273.86, all after
          mcdiff/joined. Not trained by us.
Run:      vdm-jax train mcdiff/apart     (weights/sd_vae.safetensors by vdm-jax convert; videos in data/people, their
          flow by vdm-jax annotate data/people --kind flow)
"""

from vdm_jax.data.video_folder import VideoFolder
from vdm_jax.networks.autoencoders.config import AUTOENCODER_F8
from vdm_jax.networks.config import Level, SelfAttention, UNet
from vdm_jax.networks.flow_predictor import FlowPredictor
from vdm_jax.stages.latent import Latent
from vdm_jax.stages.options import Sampling, Training
from vdm_jax.stages.stage import Experiment
from vdm_jax_configs.mcdiff import _stage

WITHIN = (SelfAttention(head_dim=64, position="none"),)
COMPLETION = UNet(
    levels=tuple(Level(channels=width) for width in (64, 128, 256, 256, 512)), middle=WITHIN, out_channels=2,
    embedding_channels=256, groups=32)
PREDICTION = UNet(
    levels=(Level(channels=256), Level(channels=512, mixers=WITHIN), Level(channels=1024, mixers=WITHIN)),
    middle=WITHIN, out_channels=4, embedding_channels=1024, groups=32)
LATENT = Latent(autoencoder=AUTOENCODER_F8, weights="weights/sd_vae.safetensors")
DATA = VideoFolder(path="data/people", controls="data/people-flow", frames=2, height=256, width=256)


def get_config() -> Experiment:
    """The prediction sees the flow of the clips."""
    stage = _stage.stage(
        256, 8, LATENT, FlowPredictor(completion=COMPLETION, unet=PREDICTION),
        Training(steps=400_000, batch_size=40, learning_rate=1e-4, text_dropout=0.0, masking=_stage.GIVEN,
                 random_starts=True),
        Sampling(sampler=_stage.SAMPLER, steps=50, threshold=None))
    return Experiment(name="mcdiff_apart", stages=(stage,), data=DATA)
