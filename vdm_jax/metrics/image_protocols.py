"""How published scores of single frames (FID, Inception score) and of C3D on UCF101 were made, by name.

Frames were resized inside TensorFlow's graph in the first code and before the network in PyTorch's; the two give
different scores. What a source does not say is marked as our choice.
"""

from __future__ import annotations

import dataclasses
from typing import Literal

from vdm_jax.configuration import check_value
from vdm_jax.metrics.detectors.inception import Variant
from vdm_jax.metrics.fvd_protocols import FVDProtocol

# How [0, 255] becomes what the network sees: (x - 128) / 128, or x / 127.5 - 1.
Pixels = Literal["about_128", "to_one"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImageProtocol(FVDProtocol):
    """What a named score of single frames fixes; None is not fixed."""

    pixels: Pixels = "about_128"
    variant: Variant = "fid"  # of Inception
    bias: bool = False  # whether the classes of the Inception score are those of logits with their bias
    splits: int = 10  # of the Inception score
    distance: bool = True  # whether a Frechet distance is made so too


_HEUSEL = ImageProtocol(
    name="fid_tensorflow", resize="bilinear_tf1", divisor="n-1", generated_clips=50_000,
    note="counts are of pictures where papers give them, here of videos",
    source="Heusel et al. 2017, arXiv 1706.08500, Salimans et al. 2016, arXiv 1606.03498, and their published codes")

FID_PROTOCOLS = {protocol.name: protocol for protocol in (
    _HEUSEL,
    dataclasses.replace(_HEUSEL, name="fid_pytorch", resize="bilinear_half_pixel", pixels="to_one",
                        source="the package pytorch-fid"),
    # NVIDIA's code repeats TensorFlow's resizing and divides covariances by n.
    dataclasses.replace(_HEUSEL, name="fid50k_full", divisor="n", split="train",
                        source="Karras et al. 2020, arXiv 2006.06676, and its published code; also that of StyleGAN-V",
                        note="all real pictures, without flips"),
    # The paper gives 4096 samples, and IS with 1 and with 10 splits; resizing and covariance are our choice.
    dataclasses.replace(_HEUSEL, name="vdm_text", generated_clips=4096, frames=16,
                        source="Ho et al. 2022, arXiv 2204.03458, tables 4 and 5"),
    # For those who have torchvision's weights only. Comparable with itself and nothing else.
    dataclasses.replace(_HEUSEL, name="torchvision", variant="torchvision", resize="bilinear_half_pixel",
                        pixels="to_one", bias=True, generated_clips=None, note="not FID, whose weights are others",
                        source="none: no paper's protocol"),
)}

# Its code repeats 2048 samples 10 times, each with one split, and averages.
_TGAN = ImageProtocol(
    name="tganv2_ucf", resize="bilinear_corners", divisor="n-1", frames=16, generated_clips=2048, bias=True, splits=1,
    note="the paper averages 10 repetitions",
    source="Saito et al. 2020, arXiv 1811.09245, and its published code")

C3D_PROTOCOLS = {protocol.name: protocol for protocol in (
    _TGAN,
    dataclasses.replace(_TGAN, name="isv2048_ucf", splits=10, distance=False, note="an Inception score alone",
                        source="Skorokhodov et al. 2022, arXiv 2112.14683, and its published code"),
    # All 13,320 videos are both training and reference. The number of splits is our choice.
    dataclasses.replace(_TGAN, name="vdm_ucf", splits=10, generated_clips=10_000, real_clips=13_320, note="",
                        source="Ho et al. 2022, arXiv 2204.03458, table 1"),
)}


ImageProtocolName, C3DProtocolName = Literal[tuple(FID_PROTOCOLS)], Literal[tuple(C3D_PROTOCOLS)]


def find_image_protocol(name: str) -> ImageProtocol:
    """The protocol of FID and IS of a name. Raises `UserError` listing the names."""
    check_value(name, ImageProtocolName, "fid_protocol")
    return FID_PROTOCOLS[name]


def find_c3d_protocol(name: str) -> ImageProtocol:
    """The protocol of C3D of a name. Raises `UserError` listing the names."""
    check_value(name, C3DProtocolName, "c3d_protocol")
    return C3D_PROTOCOLS[name]
