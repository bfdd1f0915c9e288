"""Denoisers that keep deep features of the network from step to step (DeepCache: Ma et al. 2023, arXiv 2312.00858).

Features deep inside a U-Net change little between neighbouring steps, and so does what the blocks of a transformer add
to its tokens (`networks/transformer/caching.py`). A step that the plan names evaluates the whole network and keeps
them; the others compute what lies outside alone. The plan depends on the number of the step, so that it is a branch of
the scan over steps and the cheap branch has no deep layers in it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Bool, Float, Int

from vdm_jax.configuration import Count, CountOrZero, Length, Positive, config
from vdm_jax.diffusion.arrays import Denoiser, Level, Video
from vdm_jax.diffusion.steps import Step
from vdm_jax.errors import UserError

T = TypeVar("T")
Through = Callable[[Callable[[], Array]], Array]  # deep features, made by calling its argument or not


@config
class Cache:
    """Which steps evaluate the whole network, and how much of it the others do."""

    every: Count = 3  # every N-th step does, from the first on; 2 to 20 published
    # Numbers of the steps that do, from 0, in place of every N-th: more of them where estimates change faster. ():
    # every N-th
    steps: tuple[CountOrZero, ...] = ()
    # Of a U-Net the skip connection outside which the other steps compute, 0 the outermost: what it joins is computed,
    # with all before it on the way down and after it on the way up. Of a transformer the number of its first blocks
    # that they compute: 1 computes the first block in every step, 0 none of them
    branch: CountOrZero = 0

    def __post_init__(self):
        if self.steps and (self.steps[0] != 0 or list(self.steps) != sorted(set(self.steps))):
            raise UserError(f"Cache.steps={self.steps}; permitted: ascending numbers from 0, the first step, which has "
                            "no features to reuse", "Cache.steps")

    def whole(self, index: Int[ArrayLike, " ..."]) -> bool | Bool[Array, " ..."]:
        """Whether steps of these numbers evaluate the whole network; a `bool` where all do."""
        if self.steps:
            return jnp.isin(jnp.asarray(index), jnp.asarray(self.steps))
        return True if self.every == 1 else jnp.asarray(index) % self.every == 0

    def count(self, steps: int) -> int:
        """How many of so many steps evaluate the whole network."""
        return sum(step < steps for step in self.steps) if self.steps else -(-steps // self.every)


@config
class ByChange:
    """A plan by how much the embedding of the noise level changes: the changes add up from step to step, and a step
    that they have brought to the threshold is whole. The embedding depends on the step alone, so the plan is there
    before sampling begins. With the polynomial of a model it is TeaCache (Liu et al. 2024, arXiv 2411.19108) of Wan
    with one transformer. Of other models, such as HunyuanVideo, LTX and CogVideoX, TeaCache measures the modulated
    input of the first block, which depends on the video, and has another plan."""

    threshold: Positive = 0.1  # of the changes after the polynomial: one published for another does not transfer
    # Of the polynomial that makes of the relative change of the embedding that of what the network adds, the highest
    # power first: fitted for a model, such as `TEACACHE`
    coefficients: Annotated[tuple[float, ...], Length()] = (1.0, 0.0)
    branch: CountOrZero = 0  # as of `Cache`

    def plan(self, vectors: Float[np.ndarray, "steps C"]) -> Cache:
        """The whole steps of a sampler with these embeddings, of which the first and the last always are. The change
        is the mean absolute difference over the mean absolute value before."""
        total, whole = 0.0, [0]
        for step in range(1, len(vectors)):
            before, now = np.asarray(vectors[step - 1 : step + 1], np.float64)
            total += float(np.polyval(self.coefficients, np.abs(now - before).mean() / np.abs(before).mean()))
            if total >= self.threshold or step == len(vectors) - 1:
                whole.append(step)
                total = 0.0
        return Cache(steps=tuple(whole), branch=self.branch)


# Coefficients published with TeaCache for Wan 2.1, text to video, by the number of parameters
TEACACHE = {"wan_1b": (2396.76752, -1311.10545, 201.331979, -8.29855975, 0.137887774),
            "wan_14b": (-5784.54975374, 5449.50911966, -1811.16591783, 256.27178429, -13.02252404)}


def keeping(evaluate: Callable[[Through], T]) -> tuple[T, Array]:
    """What `evaluate(through)` returns where `through` computes the deep features, and these features."""
    kept = []

    def through(make: Callable[[], Array]) -> Array:
        kept.append(make())
        return kept[-1]

    return evaluate(through), kept[-1]


class CachedDenoiser:
    """A denoiser whose deep features go from step to step; `denoise_of(through)` is the denoiser with its deep features
    from `through`, which it calls once."""

    def __init__(self, denoise_of: Callable[[Through], Denoiser], plan: Cache) -> None:
        self.denoise_of, self.plan = denoise_of, plan

    def empty(self, z: Video, logsnr: Level) -> Array:
        """Features before the first step, which reads none."""
        shape = jax.eval_shape(lambda: keeping(lambda through: self.denoise_of(through)(z, logsnr))[1])
        return jnp.zeros(shape.shape, shape.dtype)

    def at(self, step: Step, features: Array) -> StepDenoiser:
        """The denoiser of one step."""
        return StepDenoiser(self, self.plan.whole(step.index) if step.whole is None else step.whole, features)


class StepDenoiser:
    """The denoiser of a step; `features` are those to keep after its first estimate. Further estimates of the step
    (of Heun's method, which makes them in branches of their own) go by the same plan and leave them as they are."""

    def __init__(self, cached: CachedDenoiser, whole: bool | Bool[Array, ""], features: Array) -> None:
        self.denoise_of, self.whole, self.features, self.first = cached.denoise_of, whole, features, True

    def __call__(self, z: Video, logsnr: Level) -> Video:
        features = self.features

        def computed() -> tuple[Video, Array]:
            return keeping(lambda through: self.denoise_of(through)(z, logsnr))

        def reused() -> tuple[Video, Array]:
            return self.denoise_of(lambda make: features)(z, logsnr), features

        x_hat, kept = computed() if self.whole is True else jax.lax.cond(self.whole, computed, reused)
        self.features, self.first = kept if self.first else features, False
        return x_hat
