"""Make-A-Video's image networks: 64x64, 256x256 and 768x768 pixels, which initialise its video networks.

Citation: Singer et al. 2022, arXiv 2209.14792, section 3.1. The paper publishes what the stages make, no widths, no
          optimiser settings and no compute: ours are choices (_stages.py).
Hardware: a pod slice; what each stage needs is answered by vdm-jax compile.
Expected: no published result of their own. Not trained by us. The prior, which makes a CLIP image embedding of a text
          (2.3 B English pairs of LAION), is out of this pixel cascade: the first stage takes embeddings that a data set
          has to bring, and when sampling those that a prior gives.
Run:      vdm-jax train make_a_video/images --run runs/make_a_video_images
"""

from vdm_jax.data.array_record import PreparedClips
from vdm_jax.data.embeddings import WithEmbeddings
from vdm_jax.stages.stage import Experiment
from vdm_jax_configs.make_a_video._stages import Sizes, image_stages


def get_config() -> Experiment:
    """Three stages on pictures with CLIP embeddings, prepared as clips of one frame."""
    return Experiment(name="make_a_video_images", stages=image_stages(Sizes()),
                      data=WithEmbeddings(data=PreparedClips(path="data/images"), path="data/clip", length=77))
