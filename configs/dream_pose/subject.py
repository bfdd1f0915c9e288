"""DreamPose, second phase: U-Net and adapter tuned to one person, of whom there is a picture or a few frames.

Citation: Karras et al. 2023, arXiv 2304.06025; the authors' code (johannakarras/DreamPose): 500 steps at rate 1e-5 on
          random crops. frames.py says more. Ours: dropout as in the first phase, which guidance asks for. decoder.py is
          the other half.
Hardware: 2 A100; about 10 minutes, and 20 of the decoder.
Expected: as dream_pose/frames. Not trained by us.
Run:      vdm-jax train dream_pose/subject     (after dream_pose/frames; data/person has what data/fashion has, at least
          eight frames, which may be one picture repeated)
"""

from dataclasses import replace

from vdm_jax.stages.options import InitFrom
from vdm_jax.stages.stage import Experiment
from vdm_jax_configs.dream_pose import frames

DATA = replace(frames.DATA, path="data/person", references="data/person_pictures", image_prompts="data/person_vectors",
               controls="data/person-densepose", crop="random", clips="one", fractions=(1.0, 0.0, 0.0))


def get_config() -> Experiment:
    """One clip a step."""
    experiment = frames.get_config()
    stage, = experiment.stages
    training = replace(stage.training, steps=500, batch_size=1, learning_rate=1e-5, checkpoint_every=100,
                       sample_every=0, validate_every=0, init_from=InitFrom(stage="base", run="dream_pose_frames"))
    return replace(experiment, name="dream_pose_subject", stages=(replace(stage, training=training),), data=DATA,
                   validation_split="train")
