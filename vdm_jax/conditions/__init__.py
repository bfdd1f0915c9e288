"""What a network is conditioned on, one file per condition. To add one, add it to the list below."""

from vdm_jax.conditions.conditioning import register
from vdm_jax.conditions.control import ControlMap, ControlMap1, ControlMap2, ControlMap3, Edges
from vdm_jax.conditions.first_frame import FirstFramePicture
from vdm_jax.conditions.frames import ConditioningFrames
from vdm_jax.conditions.history import History
from vdm_jax.conditions.image_prompt import ImagePromptVectors
from vdm_jax.conditions.image_tokens import ImageTokens
from vdm_jax.conditions.label import Label
from vdm_jax.conditions.low_resolution import LowResolutionVideo
from vdm_jax.conditions.padding import Padding
from vdm_jax.conditions.pooled_text import PooledText
from vdm_jax.conditions.reference import ReferencePicture, References
from vdm_jax.conditions.scalars import Scalars
from vdm_jax.conditions.sound import Sound
from vdm_jax.conditions.sparse_control import SparseControl, SparseFrames
from vdm_jax.conditions.strokes import StrokeMap
from vdm_jax.conditions.text import Text

# In the order in which they enter a network.
for _condition in (Text(), Label(), References(), ReferencePicture(), Scalars(), Padding(), ConditioningFrames(),
                   LowResolutionVideo(), FirstFramePicture(), ControlMap(), ControlMap1(), ControlMap2(), ControlMap3(),
                   Edges(), SparseControl(), SparseFrames(), StrokeMap(), Sound(), ImageTokens(), PooledText(),
                   ImagePromptVectors(), History()):
    register(_condition)
