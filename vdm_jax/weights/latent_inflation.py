"""A video U-Net of an open latent model that begins as an image one, frame by frame exactly.

What both have is copied. Each temporal layer ends in a projection that is set to zero here, so that what is mixed
with its input is that input, whatever the share: how Stable Video Diffusion (Blattmann et al. 2023, arXiv 2311.15127)
begins them is not published. Norms over the clip (`norm_over`) see all frames from the start: what begins with them is
exact for a clip of one frame. New input channels (the latents of a picture) and numbers that only the video network is
see begin with zero weights. A ControlNet begins as a copy of the image layers, which adds zeros at first (Zhang et al.
2023, arXiv 2302.05543), and a network for reference pictures as one (Hu et al. 2023, arXiv 2311.17117). Tokens of a new
condition begin as zeros, which share the attention with those of the text.
"""

from __future__ import annotations

import re
from collections.abc import Container
from typing import Any

import jax

from vdm_jax.errors import UserError
from vdm_jax.networks.latent_unet import LatentUNet
from vdm_jax.parallel.rules import path_name
from vdm_jax.weights.inflation import STEM, Inflation

# Fields that decide what a network computes from tensors of the same shapes. Epsilons of norms are not among them: the
# authors' code of Stable Video Diffusion and diffusers have different ones for the same weights.
SAME = ("heads", "only_cross_attention", "use_linear_projection", "groups", "classes", "scale_shift_norm")
_OVER_FRAMES = (r"/temporal_residual/|/time/|/mix/|/places_(in|out)/|/\w+_(frames|motion)/|/known(_\d+)?/"
                r"|/(norm_)?time_attention_\d+/|/(norm_)?temporal_attention/"
                r"|/temporal_convolution/|/frame_(scale|shift)")
# The last layers of these: what they add is zero at first.
_LAST = (r"/temporal_residual/conv_out/|/time/\w+/out/|/places_out/|/\w+_motion/out/|/known/"
         r"|/time_attention_\d+/out/|/temporal_attention/out/|/temporal_convolution/up/")
_CONVOLUTION = re.compile(r"(/\w+_frames/conv_)(\d+)(/\w+)")  # the last of several, too
_NUMBERS = "/scalars_out/"
_COPY = re.compile(r"/(?:control_net_\w+?|reference_net)(/.*)")  # of the image layers, next to the U-Net
_MOTION = re.compile(r"/\w+_motion/")
_MAPS = re.compile(r"/hint/|/control_(\d+|middle)/|/adapter_")  # its own layers, which end in zeros (not of adapters)
_WEIGHT = "/weight/kernel"  # of the guidance, as a new input
# Keys and values of an image prompt begin as those of the text (Ye et al. 2023, arXiv 2308.06721, in its code)
_IMAGE = re.compile(r"(.*/cross_attention)/image_(key|value)/kernel")
_PROJECTIONS = "/image_projection/", "/picture_adapter/"
_TOKENS = re.compile(r"/condition_\w+/kernel")


def plan_latent_inflation(network: LatentUNet, shapes: Any, source: LatentUNet, source_shapes: Any) -> Inflation:
    """How `network` begins as `source`, an image network or another video network of its kind, from their configs and
    their parameters (or shapes of these).

    Raises `UserError` naming every tensor that `source` lacks, that has no place in `network`, or whose shape differs,
    and a field that makes the two compute different things.
    """
    for name in SAME:
        if getattr(network, name) != getattr(source, name):
            raise UserError(f"LatentUNet.{name}={getattr(network, name)!r} of a network that is to begin as one with "
                            f"{getattr(source, name)!r}; permitted: the same")
    ours, theirs = ({path_name(path): leaf.shape for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}
                    for tree in (shapes, source_shapes))
    wider = network.in_channels > source.in_channels
    new_numbers = network.scalars > 0 and source.scalars == 0
    copied, zero_initialised, new, wrong = {}, [], [], []
    for name, shape in ours.items():
        inside = None if name in theirs else _COPY.fullmatch(name)
        image = None if name in theirs else _IMAGE.fullmatch(name)
        if inside and _MOTION.search(name):  # of SparseCtrl, which carry what is given, and begin as the identity
            (zero_initialised if re.search(_LAST, name) else new).append(name)
            continue
        of = inside[1] if inside else name if image is None else f"{image[1]}/{image[2]}/kernel"
        if of in theirs:
            expected = theirs[of]
            if of == STEM and wider:
                expected = (*expected[:3], shape[3], expected[4])
            if shape != expected:
                wrong.append(f"{name} {list(shape)} from {list(theirs[of])}")
            copied[name] = of
        elif inside and _MAPS.match(of) or name.startswith(_PROJECTIONS):
            new.append(name)
        elif _TOKENS.fullmatch(name) or name == _WEIGHT:
            zero_initialised.append(name)
        elif re.search(_OVER_FRAMES, name):
            (zero_initialised if re.search(_LAST, name) or _last_convolution(name, ours) else new).append(name)
        elif new_numbers and name.startswith("/scalars_"):
            (zero_initialised if name.startswith(_NUMBERS) else new).append(name)
        else:
            wrong.append(f"{name} from nothing")
    wrong += [f"nothing from {name}" for name in theirs if name not in ours]
    if wrong:
        raise UserError(f"the network cannot begin as the other one: {'; '.join(wrong)}; permitted: networks that "
                        "differ by temporal layers, scalars, further input channels, ControlNets, image prompts and "
                        "tokens")
    places = tuple(range(source.in_channels)) if wider else None
    return Inflation(copied, tuple(zero_initialised), tuple(new), places, 1)


def _last_convolution(name: str, names: Container[str]) -> bool:
    """Whether a parameter is that of the last one of several temporal convolutions."""
    found = _CONVOLUTION.fullmatch(name)
    return found is not None and f"{found[1]}{int(found[2]) + 1}{found[3]}" not in names
