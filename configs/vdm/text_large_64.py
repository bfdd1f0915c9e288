"""VDM text to video, the large model: 16 frames of 64x64.

Citation: Ho et al. 2022, arXiv 2204.03458, section 4.3. Hyperparameters are those of appendix A; what the paper leaves
          open is marked in _network.py. The number of parameters is not published.
Hardware: 128 TPU v4 chips, 700,000 steps of 128 clips.
Expected: FVD 41.65 (train) at frame skip 1 without guidance (table 5), on data that is not public. Not trained by us.
Run:      vdm-jax compile vdm/text_large_64 --topology v4-256     (training: clips made by vdm-jax prepare in
          data/clips, their captions as BERT-large embeddings made by write_embeddings in data/bert_large)
"""

from vdm_jax.data.array_record import PreparedClips
from vdm_jax.data.embeddings import WithEmbeddings
from vdm_jax.diffusion.process import Process
from vdm_jax.diffusion.samplers import DDPM
from vdm_jax.diffusion.schedules import CosineSchedule
from vdm_jax.networks.config import EmbeddedText
from vdm_jax.stages.options import Sampling, StaticThreshold, Training
from vdm_jax.stages.stage import Experiment, Stage, VideoSpec
from vdm_jax_configs.vdm._network import network


def get_config() -> Experiment:
    """Texts arrive as BERT-large embeddings; how many tokens were kept is not published, here 64.
    Trained at frame skips 1 and 4, which is a matter of the clips."""
    stage = Stage(
        name="base", video=VideoSpec(frames=16, height=64, width=64, fps=8),
        network=network(256, (1, 2, 4, 8), size=64, dropout=0.0, text=EmbeddedText(width=1024)),
        process=Process(schedule=CosineSchedule(), prediction="eps"),
        training=Training(steps=700_000, batch_size=128, learning_rate=3e-4, b1=0.9, b2=0.99, ema_decay=0.9999,
                          images_per_clip=8),
        sampling=Sampling(sampler=DDPM(gamma=0.3), steps=256, guidance=1.0,
                          threshold=StaticThreshold()))
    return Experiment(name="vdm_text_large_64", stages=(stage,), data=WithEmbeddings(
        data=PreparedClips(path="data/clips"), path="data/bert_large", length=64))
