"""How published Frechet video distances were made, by name. A number can stand next to theirs only if made likewise.

What is fixed by none of them is left to the caller and recorded; what a source does not say is marked as our choice.
"""

from __future__ import annotations

import dataclasses
from typing import Literal

from vdm_jax.configuration import check_value
from vdm_jax.metrics.frechet import Divisor
from vdm_jax.metrics.resizing import Resize

Draw = Literal["without replacement", "with replacement"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class FVDProtocol:
    """What a named FVD fixes; None is not fixed."""

    name: str
    source: str
    resize: Resize | Literal["bilinear_corners"]
    divisor: Divisor  # of the covariances
    frames: int | None = None  # that the detector sees
    stride: int | None = None  # source frames between two of them
    real_clips: int | None = None
    generated_clips: int | None = None
    split: str | None = None  # of the real clips
    start: str | None = None  # of a real clip in its video
    draw: Draw | None = None  # of the real clips from the split
    given_frames: int | None = None  # of a real clip that a generated one begins with
    # Videos generated for each clip. FVD is that of one of them for each clip, averaged; generated_clips is of one
    trajectories: int | None = None
    data_set: str | None = None  # kind of its config
    grey: bool = False  # generated videos are made grey first: channels averaged
    metrics: tuple[str, ...] = ()  # that the paper reports, which are measured where none are named
    note: str = ""  # what else there is to know

    def deviations(self, **found: int | str) -> tuple[str, ...]:
        """Where values of the fields above differ from what the protocol fixes."""
        return tuple(f"{name.replace('_', ' ')} {value} instead of {getattr(self, name)}"
                     for name, value in found.items() if getattr(self, name) not in (None, value))


# google-research/frechet_video_distance; the covariance is that of the distance it calls in tensorflow_gan.
_ORIGINAL = FVDProtocol(name="original", resize="bilinear_tf1", divisor="n-1",
                        source="Unterthiner et al. 2018, arXiv 1812.01717, and its published code")
# universome/stylegan-v, src/metrics: whole training set read without flips; I3D as TorchScript, which resizes inside.
_STYLEGAN_V = FVDProtocol(name="fvd2048_16f", resize="bilinear_half_pixel", divisor="n", frames=16, stride=1,
                          real_clips=2048, generated_clips=2048, split="train",
                          start="random", note="one clip a video; videos that are too short are left out",
                          source="Skorokhodov et al. 2022, arXiv 2112.14683, and its published code")

PROTOCOLS = {protocol.name: protocol for protocol in (
    _ORIGINAL,
    _STYLEGAN_V,
    dataclasses.replace(_STYLEGAN_V, name="fvd2048_128f", frames=128),
    dataclasses.replace(_STYLEGAN_V, name="fvd2048_128f_subsample8f", stride=8),
    # Ho et al. give 100 x 256 samples against the 256 evaluation clips. They do not say whether the given frame counts;
    # 16 frames with it are our choice, as are resizing and covariance, which follow the original code.
    dataclasses.replace(_ORIGINAL, name="vdm_bair", frames=16, stride=1, real_clips=256, generated_clips=25_600,
                        split="test", given_frames=1, note="100 completions of each evaluation clip's first frame",
                        source="Ho et al. 2022, arXiv 2204.03458, table 2"),
    # 5 given and 11 new frames. Videos without replacement, and the same clips for the model and as the reference.
    dataclasses.replace(_ORIGINAL, name="vdm_kinetics600", frames=16, stride=1, real_clips=50_000,
                        generated_clips=50_000, split="test", given_frames=5, draw="without replacement",
                        note="completions of the very clips that they are compared with",
                        source="Ho et al. 2022, arXiv 2204.03458, table 3"),
    # The older way, under which the same model has 16.9 instead of 16.2.
    dataclasses.replace(_ORIGINAL, name="vdm_kinetics600_with_replacement", frames=16, stride=1, real_clips=50_000,
                        generated_clips=50_000, split="test", given_frames=5, draw="with replacement",
                        note="completions of other clips than the reference, drawn with another seed",
                        source="Ho et al. 2022, arXiv 2204.03458, table 3"),
    # voletiv/mcvd-pytorch, runners/ncsn_runner.py and models/fvd: StyleGAN-V's I3D, with a covariance divided by n - 1.
    # The table's value is the mean over trajectories, as the authors say in issue 25 there.
    FVDProtocol(name="mcvd_smmnist", resize="bilinear_half_pixel", divisor="n-1", frames=15, stride=1, real_clips=256,
                generated_clips=256, split="test", given_frames=5, draw="without replacement", trajectories=10,
                data_set="StochasticMovingMNIST", grey=True,
                metrics=("fvd", "mcvd_mse", "mcvd_psnr", "mcvd_ssim", "mcvd_lpips"),
                note="given frames included; the same clips as the reference; digits are the first 256 of MNIST's test "
                     "part (test_digits=256)",
                source="Voleti et al. 2022, arXiv 2205.09853, and its published code"),
)}


ProtocolName = Literal[tuple(PROTOCOLS)]


def find_protocol(name: str) -> FVDProtocol:
    """The protocol of a name. Raises `UserError` listing the names."""
    check_value(name, ProtocolName, "protocol")
    return PROTOCOLS[name]
