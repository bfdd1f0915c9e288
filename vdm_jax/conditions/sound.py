"""The sound of a clip: a vector per frame (`data/sound.py`), which enters as tokens of cross-attention that differ from
frame to frame (`networks/sound.py`)."""

from __future__ import annotations

from vdm_jax.conditions.inputs import InputCondition


class Sound(InputCondition):
    """What is heard in each frame `[T, C]`, the field `sound` of a clip. Zeros where it is left out, which guidance by
    its name does, and guidance by the prompt does not."""

    name = "sound"
    enters = "tokens"
    form = "frames"
