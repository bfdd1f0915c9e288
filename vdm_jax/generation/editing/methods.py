"""The methods of editing by name."""

from __future__ import annotations

from vdm_jax.generation.editing.control_video import ControlVideo
from vdm_jax.generation.editing.ddim_inversion import DDIMInversion
from vdm_jax.generation.editing.ddpm_inversion import DDPMInversion
from vdm_jax.generation.editing.fatezero import FateZero
from vdm_jax.generation.editing.null_text import NullText
from vdm_jax.generation.editing.prompt_to_prompt import PromptToPrompt
from vdm_jax.generation.editing.rerender import Rerender
from vdm_jax.generation.editing.sdedit import SDEdit
from vdm_jax.generation.editing.text2video_zero import Text2VideoZero
from vdm_jax.generation.editing.tune_a_video import TuneAVideo

EditMethod = (SDEdit | DDIMInversion | NullText | PromptToPrompt | FateZero | DDPMInversion | TuneAVideo
              | Text2VideoZero | ControlVideo | Rerender)
EDIT_METHODS: dict[str, type[EditMethod]] = {
    kind.name: kind for kind in (
        SDEdit, DDIMInversion, NullText, PromptToPrompt, FateZero, DDPMInversion, TuneAVideo, Text2VideoZero,
        ControlVideo, Rerender)}
