"""MagicVideo: 16 key frames of 256x256 from text, 61 frames by interpolation in latents, then 1024x1024 in pixels.

Citation: Zhou et al. 2022, arXiv 2211.11018, by its abstract and public notes: a second network puts new frames between
          neighbouring key frames, a third one makes every frame larger, in pixels, and is trained on pictures. Of the
          second, its layers, what it sees of the key frames and how many frames it makes between two of them are not
          known to us; of the third see magic_video/super_resolution. Ours, in their place: three new frames between
          two, of all key frames at once; the network of the key frames with the latents of these in place of noisy ones
          and a mask as a further channel, text and the frame rate, and temporal attention that sees all frames, since a
          frame has to see the key frame after it; super-resolution frame by frame, of the same noise for all, by the
          network of pictures, which goes on with single frames of the clips. The first network is
          magic_video/key_frames, whose header lists what is not known of it.
Hardware: not known to us.
Expected: UCF-101 zero-shot FVD 699 (655 as a later paper quotes it), MSR-VTT FID 36.5 and FVD 998 (1290 as a later
          paper quotes it). Not trained by us.
Run:      vdm-jax train magic_video/cascade     (as for magic_video/key_frames, after magic_video/super_resolution, into
          runs/magic_video_super_resolution)
"""

from dataclasses import replace

from vdm_jax.data.embeddings import WithEmbeddings
from vdm_jax.data.frame_rates import FrameRates
from vdm_jax.data.video_folder import VideoFolder
from vdm_jax.stages.stage import Experiment
from vdm_jax_configs.magic_video import _stage, key_frames, super_resolution


def get_config() -> Experiment:
    """The three stages on clips of 61 frames. Key frames of 2 to 7.5 frames per second, of all rates that the first
    network learns, are those between which the second one learns to put frames."""
    (base,), (pictures,) = (module.get_config().stages for module in (key_frames, super_resolution))
    rates = FrameRates(lowest=8.0, highest=30.0, first=(1.0, 1.0), last=(1.0, 1.0))
    stages = _stage.cascade(replace(base, video=replace(base.video, fps=7.5)), pictures, 4, rates,
                            "runs/magic_video_super_resolution", 10_000)
    videos = VideoFolder(path="data/webvid", captions="data/webvid/captions.csv", frames=61, height=1024, width=1024,
                         clips="one")
    return Experiment(name="magic_video", stages=stages, data=WithEmbeddings(
        data=videos, path="data/clip_l", length=77))
