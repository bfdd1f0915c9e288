"""Motion modules of AnimateDiff in one file, as their authors name the tensors (Guo et al. 2023, arXiv 2307.04725).

Such a file has no config: sizes are read from shapes, and heads are 8 in all that were released.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping

from vdm_jax.errors import UserError
from vdm_jax.networks.latent_frames import Motion
from vdm_jax.networks.motion_adapter import MotionAdapter
from vdm_jax.weights.pretrained import Pretrained, loaded, parameters_of
from vdm_jax.weights.tensor_files import Tensor, open_file
from vdm_jax.weights.tensor_names import canonical
from vdm_jax.weights.video_unet_fields import CODES, motion_names

HEADS, GROUPS = 8, 32


def is_motion_file(path: str | os.PathLike) -> bool:
    """Whether a safetensors file holds motion modules by their authors' names. Raises `UserError` for another or a
    damaged file."""
    return any(".motion_modules." in name for name in open_file(path))


def motion_config(tensors: Mapping[str, Tensor], where: str, heads: int = HEADS, groups: int = GROUPS) -> MotionAdapter:
    """Sizes of the motion modules in a file. Raises `UserError` where they cannot be determined."""
    named = {name: tensors[stored] for name, stored in canonical(tensors, motion_names()).items()}
    codes = {tensor.shape[-2] for name, tensor in tensors.items() if re.fullmatch(CODES, name)}
    widths, blocks = {}, set()
    for name, tensor in named.items():
        if match := re.fullmatch(r"down_blocks\.(\d+)\.motion_modules\.(\d+)\.proj_in\.weight", name):
            widths[int(match[1])] = tensor.shape[0]
            blocks.add(int(match[2]))
    if not widths or len(codes) != 1 or sorted(widths) != list(range(len(widths))):
        raise UserError(f"{where} has motion modules of levels {sorted(widths)} and codes of {sorted(codes)} frames; "
                        "permitted: all levels from 0 on, and codes of one length")
    middle = any(name.startswith("mid_block.") for name in named)
    motion = Motion(heads=heads, groups=groups, frames=codes.pop(), middle=middle)
    return MotionAdapter(widths=tuple(widths[i] for i in sorted(widths)), blocks=len(blocks), motion=motion)


def load_motion_file(path: str | os.PathLike, *, heads: int = HEADS, groups: int = GROUPS) -> Pretrained:
    """The motion modules of a single file, on the default device; `motion_adapter.join` puts them into a network.

    Args:
      path: a safetensors file; a `.ckpt` is a pickle and refused.
      heads, groups: of its attention and norms, which shapes do not show.

    Raises:
      UserError: another file, or tensors that are missing, unexpected or misshapen, by name.
    """
    tensors = open_file(path)
    config = motion_config(tensors, str(path), heads, groups)
    return Pretrained(config, loaded(parameters_of(config, tensors, f"{path} is no complete set of motion modules")))
