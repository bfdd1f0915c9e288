"""Make-A-Video: 16 frames of 64x64 from an embedding, 76 by interpolation, then 256x256 and 768x768 pixels.

Citation: Singer et al. 2022, arXiv 2209.14792, section 3. Stages, frames, pixels, kinds of temporal layers, extra
          input channels, range of frame rates and shared noise are the paper's; widths, optimiser settings, guidance
          and what else _stages.py names are not published, and ours.
Hardware: a pod slice; what each stage needs is answered by vdm-jax compile.
Expected: MSR-VTT zero-shot FID 13.17, CLIPSIM 0.3049; UCF-101 zero-shot IS 33.00, FVD 367.23 (the paper, WebVid-10M and
          HD-VILA). Not trained by us. The prior is not part of it: the decoder takes CLIP embeddings (see images.py),
          and a data set has to bring them. The last stage is trained on images only in the paper; here it goes on from
          the image network with still frames of the clips. Reducing 768 pixels to 512 is left to the viewer.
Run:      vdm-jax train make_a_video/cascade     (after make_a_video/images, into runs/make_a_video_images)
"""

from vdm_jax.data.array_record import PreparedClips
from vdm_jax.data.embeddings import WithEmbeddings
from vdm_jax.stages.stage import Experiment
from vdm_jax_configs.make_a_video._stages import Sizes, video_stages


def get_config() -> Experiment:
    """The four stages on clips of 451 frames at 30 fps with CLIP embeddings: 15 seconds, of which 16 frames at 1 fps
    and 76 at 5 fps are the longest clips that training reads."""
    return Experiment(name="make_a_video", stages=video_stages(Sizes(), "runs/make_a_video_images"),
                      data=WithEmbeddings(data=PreparedClips(path="data/clips"), path="data/clip", length=77))
