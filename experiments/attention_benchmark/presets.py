"""What the recorded files of this folder measure: a preset is a list of sweeps that share one record."""

from __future__ import annotations

import dataclasses

from vdm_jax.attention.capability import CAPABILITIES
from vdm_jax.benchmark.cases import Case, Sweep

PATTERNS = ("spatial", "temporal", "full", "causal", "sparse-causal", "SparseCausal(own=True)", "local-window")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Preset:
    """Sweeps, and how long each case may take."""

    about: str
    sweeps: tuple[Sweep, ...]
    seconds: float = 1.0  # time budget of one case
    topology: str | None = None  # compiled for this TPU slice instead of run

    def cases(self) -> list[Case]:
        """All cases once, in order: the long ones stand last, so that an interruption costs least."""
        return list(dict.fromkeys(case for sweep in self.sweeps for case in sweep.cases()))


# 1,048,576 tokens in every context that the capability table has, but zigzag_ring: at 64 chips its program takes more
# than three minutes to compile.
POD = Sweep(patterns=("full", "causal", "sparse-causal"), kernels=("chunked",),
            contexts=tuple(dict.fromkeys(c for _, c in CAPABILITIES if c != "zigzag_ring")), frames=(256,), sides=(64,),
            heads=(16,), head_dims=(128,), dtypes=("bfloat16",), modes=("forward+backward",))

PRESETS = {
    "cpu": Preset(
        about="A CPU with two cores, float32, 8 heads of 64: 16 to 25 minutes (reckoned), 6 to 10 for the last case.",
        sweeps=(
            # Kernels against each other at 4,096 tokens.
            Sweep(patterns=("full", "causal", "sparse-causal"), kernels=("xla", "chunked", "gather"), frames=(16,)),
            Sweep(patterns=PATTERNS[:5], frames=(8, 16, 32), sides=(16,)),  # growth against frames
            Sweep(patterns=PATTERNS[:5], frames=(8,), sides=(8, 12, 16, 24)),  # growth against resolution
            # 65,536 tokens: dense logits do not fit, blocks do.
            Sweep(patterns=("full",), kernels=("xla", "chunked"), frames=(16,), sides=(64,),
                  modes=("forward+backward",)),
        )),
    "linear": Preset(
        about="Linear attention next to softmax attention, on a CPU with two cores: 2 minutes (reckoned).",
        sweeps=(Sweep(patterns=("full", "causal"), kernels=("auto", "linear"), frames=(8, 16, 32)),)),
    "gpu": Preset(
        about="One GPU, bfloat16.",
        seconds=2.0,
        sweeps=(
            Sweep(patterns=("full",), kernels=("auto", "chunked"), frames=(16,), sides=(32, 48, 64), heads=(16,),
                  head_dims=(64, 128), dtypes=("bfloat16",)),
            Sweep(patterns=PATTERNS, frames=(8, 16, 32, 64), sides=(32,), heads=(16,), dtypes=("bfloat16",)),
            Sweep(patterns=PATTERNS, frames=(16,), sides=(8, 16, 32, 64), heads=(16,), dtypes=("bfloat16",)),
            Sweep(patterns=("full", "causal", "sparse-causal"), kernels=("xla", "chunked", "gather", "cudnn"),
                  frames=(16,), sides=(16, 32), heads=(16,), dtypes=("bfloat16",)),
        )),
    # The same cases on 4, 16 and 64 chips: what falls with the number of chips, and what does not. Ulysses splits 16
    # heads over at most 16.
    "v5p_4": Preset(about="4 chips of TPU v5p (sold as v5p-8), compiled ahead of time.", topology="v5p:2x2x1",
                    sweeps=(POD,)),
    "v5p_16": Preset(about="16 chips of TPU v5p (sold as v5p-32), compiled ahead of time.", topology="v5p:2x2x4",
                     sweeps=(POD,)),
    "v5p_64": Preset(about="64 chips of TPU v5p (sold as v5p-128), compiled ahead of time.", topology="v5p:4x4x4",
                     sweeps=(POD,)),
}
