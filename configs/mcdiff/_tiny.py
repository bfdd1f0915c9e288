"""MCDiff in miniature, on the clips of the folder `videos`, with their optical flow in `flow`, for tests and for trying
it out. The weights of its autoencoder are a file in the current folder."""

from dataclasses import replace

from vdm_jax.conditions.strokes import DrawnStrokes
from vdm_jax.data.video_folder import VideoFolder
from vdm_jax.networks.autoencoders.config import Autoencoder
from vdm_jax.networks.config import Level, UNet
from vdm_jax.networks.flow_predictor import FlowPredictor
from vdm_jax.stages.latent import Latent
from vdm_jax.stages.options import InitFrom, Sampling, Training
from vdm_jax.stages.stage import Experiment
from vdm_jax_configs.mcdiff import _stage

NETWORK = FlowPredictor(
    completion=UNet(levels=(Level(channels=16, blocks=1), Level(channels=16, blocks=1)), out_channels=2),
    unet=UNet(levels=(Level(channels=16, blocks=1),), out_channels=4),
    strokes=DrawnStrokes(moving=3, general=1, radius=0.1))
DATA = VideoFolder(path="videos", controls="flow", frames=2, height=16, width=16, fractions=(0.8, 0.2, 0.0),
                   cache="cache")


def apart(autoencoder: Autoencoder, steps: int = 160) -> Experiment:
    """Both networks by themselves."""
    stage = _stage.stage(
        16, 8, Latent(autoencoder=autoencoder, weights="autoencoder.safetensors"), NETWORK,
        Training(steps=steps, batch_size=8, learning_rate=1e-2, warmup_steps=2, ema_decay=0.0, text_dropout=0.0,
                 masking=_stage.GIVEN, log_every=1, checkpoint_every=steps, sample_every=0, validate_every=0,
                 random_starts=True),
        Sampling(sampler=_stage.SAMPLER, steps=2, threshold=None, batch_size=1))
    return Experiment(name="tiny_mcdiff_apart", stages=(stage,), data=DATA)


def joined(autoencoder: Autoencoder, run: str, steps: int = 30) -> Experiment:
    """Both as one, begun as a run of the former."""
    experiment = apart(autoencoder, steps)
    stage, = experiment.stages
    stage = replace(stage, network=replace(stage.network, joined=True), training=replace(
        stage.training, learning_rate=1e-3, init_from=InitFrom(stage="base", run=run)))
    return replace(experiment, name="tiny_mcdiff_joined", stages=(stage,))
