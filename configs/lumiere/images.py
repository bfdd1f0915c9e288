"""The text-to-image cascade that initialises Lumiere's networks: 128x128 from text, then 1024x1024.

Citation: Bar-Tal et al. 2024, arXiv 2401.12945, which inflates a text-to-image cascade in pixel space and does not give
          its sizes; configs/lumiere/cascade.py says what ours follow. Batch, rate and warm-up are those of Imagen
          (Saharia et al. 2022, arXiv 2205.11487, appendix F); steps, EMA and AdamW for both are ours.
Hardware: 256 and 128 TPU v4 chips for the two stages of Imagen's, which are larger.
Expected: nothing published for this size. Not trained by us. Fine-tuned on a few pictures of a style, a run of it is
          what vdm-jax sample --style takes.
Run:      vdm-jax train lumiere/images --run runs/lumiere_images
"""

from vdm_jax.data.array_record import PreparedClips
from vdm_jax.data.embeddings import WithEmbeddings
from vdm_jax.diffusion.samplers import DDIM
from vdm_jax.networks.config import UNet
from vdm_jax.stages.options import DynamicThreshold, Sampling, Training
from vdm_jax.stages.stage import Experiment, LowResolution, Stage, VideoSpec
from vdm_jax_configs.lumiere.cascade import PROCESS, image_base, image_super_resolution


def image_stage(name: str, size: int, network: UNet, source: LowResolution | None, guidance: float) -> Stage:
    """A stage that makes single frames."""
    return Stage(
        name=name, video=VideoSpec(frames=1, height=size, width=size), source=source, network=network, process=PROCESS,
        training=Training(steps=1_000_000, batch_size=2048, learning_rate=1e-4, warmup_steps=10_000, ema_decay=0.9999),
        sampling=Sampling(sampler=DDIM(eta=1.0), steps=256, guidance=guidance,
                          threshold=DynamicThreshold(per="frame"), batch_size=64))


def get_config() -> Experiment:
    """The two stages, on images with embedded captions."""
    low = LowResolution(frames=1, height=128, width=128)
    stages = (image_stage("base", 128, image_base(), None, 8.0),
              image_stage("spatial", 1024, image_super_resolution(), low, 4.0))
    return Experiment(name="lumiere_images", stages=stages, data=WithEmbeddings(
        data=PreparedClips(path="data/images"), path="data/t5_xxl", length=128))
