"""From a video back to noise, along the steps that a sampler then takes: what editing a given video begins with.

Each function is pure, and works on pixels and latents, with or without guidance: it sees a denoiser. `steps` are those
of `sampling.steps_between`, or of a released scheduler (`Discretisation.steps`); those with `last` end on their
estimate, and so begin from a clean video here.
"""

from __future__ import annotations

from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from vdm_jax.configuration import CountOrZero, Share, check_value
from vdm_jax.diffusion import predictions
from vdm_jax.diffusion.arrays import Denoiser, Video, noise_from_keys
from vdm_jax.diffusion.families import Family
from vdm_jax.diffusion.process import Process
from vdm_jax.diffusion.samplers import DDIM, DDPM, Sampler
from vdm_jax.diffusion.sampling import Walk
from vdm_jax.diffusion.scheduler_steps import CLEAN
from vdm_jax.diffusion.steps import Scalar, Step

Held = Literal["eps", "v", "flow"]  # what of an estimate is taken to be the same at both ends of a step
Trajectory = Float[Array, "steps B *rest"]


def steps_from(steps: Step, strength: float) -> Step:
    """The last `int(strength n)` of n steps, numbered anew: those that SDEdit takes of a sampler's (Meng et al. 2021,
    arXiv 2108.01073). A strength of 0 leaves none, 1 all. Samplers of several steps begin without a memory, and what
    they do by the number of all steps (lower orders at the end of few, churn) stays as it is. Raises `UserError` for a
    strength outside [0, 1]."""
    check_value(strength, Share, "strength")
    count = len(steps.level)
    first = skipped_steps(count, strength)
    part = jax.tree.map(lambda x: jnp.asarray(x)[first:], steps)
    return part._replace(index=jnp.arange(count - first), skipped=jnp.full(count - first, first))


def skipped_steps(count: int, strength: float) -> int:
    """How many of so many steps come before the last ones that a strength makes."""
    return count - int(count * strength)


def diffused(x: Video, keys: Key[Array, " B"], steps: Step, process: Process, shared_noise: bool = False) -> Video:
    """z at the first of the steps, by noise that a sampler would begin with: where SDEdit starts."""
    return process.diffuse(x, noise_from_keys(keys, 0, x.shape, shared_noise), _of_batch(steps.level[0], x))


def sampled_from(
    z: Video, sampler: Sampler, denoise: Denoiser, keys: Key[Array, " B"], steps: Step, process: Process,
    shared_noise: bool = False,
) -> Video:
    """What a sampler makes of z at the first of the steps."""
    walk = Walk(sampler, process, z.shape, len(steps.level), shared_noise=shared_noise)
    carry = walk.begin(keys, steps.level[0], z)
    (x, _), _ = jax.lax.scan(lambda carry, step: (walk.advance(denoise, keys, carry, step)[0], None), carry, steps)
    return x


def ddim_inverted(
    denoise: Denoiser, x: Video, steps: Step, family: Family, *, refinements: int = 0, held: Held = "eps"
) -> Trajectory:
    """z at each of the steps, of which `DDIM()` makes x again; the first, the noisiest, comes first.

    A step back from z_s to the noisier z_t takes the estimate at level t, but of z_s, for that at z_t (Dhariwal &
    Nichol 2021, arXiv 2105.05233, appendix F; DDIMInverseScheduler of diffusers): `z_t = alpha_t x_hat + sigma_t
    eps_hat`, where eps_hat is the network's and x_hat follows from it at level s. `held="v"` and
    `held="flow"` do that with v_hat and the flow's velocity, for networks that predict these; the second is Euler's
    step back. `refinements` more evaluations a step repeat it with the estimate at the z_t found, until
    DDIM's step from there leads to z_s (fixed-point inversion: Pan et al. 2023, arXiv 2309.04907). They hold v_hat,
    since of all predictions it makes the smallest error at both ends of a schedule: `z_t = ((alpha_t^2 + sigma_t^2)
    z_s - (alpha_t sigma_s - alpha_s sigma_t) v_hat) / (alpha_s alpha_t + sigma_s sigma_t)`.

    The estimates should be without guidance: with it, an inversion leads to noise that no sample begins with (Mokady
    et al. 2022, arXiv 2211.09794, section 3.2). Raises `UserError` for refinements below 0.
    """
    check_value(refinements, CountOrZero, "refinements")

    def back(z_s: Video, step: Step) -> tuple[Video, Video]:
        level = jnp.where(step.last, CLEAN, step.next)
        (alpha_t, sigma_t), (alpha_s, sigma_s) = (family.alpha_sigma(a) for a in (step.level, level))

        def refine(z_t: Video, number: Array) -> tuple[Video, None]:
            x_hat = denoise(z_t, _of_batch(step.level, z_t))
            found = predictions.convert("x", x_hat, z_t, alpha_t, sigma_t)
            x_s, eps_s = predictions.clean_and_noise(held, found[held], z_s, alpha_s, sigma_s)
            turned = (alpha_t**2 + sigma_t**2) * z_s - (alpha_t * sigma_s - alpha_s * sigma_t) * found["v"]
            refined = turned / (alpha_s * alpha_t + sigma_s * sigma_t)
            return jnp.where(number == 0, alpha_t * x_s + sigma_t * eps_s, refined), None

        z_t, _ = jax.lax.scan(refine, z_s, jnp.arange(1 + refinements))  # one evaluation in the compiled function
        return z_t, z_t

    _, trajectory = jax.lax.scan(back, x.astype(jnp.float32), jax.tree.map(jnp.asarray, steps), reverse=True)
    return trajectory


def ddpm_inverted(
    denoise: Denoiser, x: Video, keys: Key[Array, " B"], steps: Step, process: Process, *,
    sampler: DDPM | DDIM = DDPM(), shared_noise: bool = False,  # noqa: B008 (a frozen config)
) -> tuple[Video, Trajectory]:
    """z at the first of the steps, and the noise of every step, of which the sampler makes x again (`replayed`):
    edit-friendly inversion (Huberman-Spiegelglas et al. 2023, arXiv 2304.06140, algorithm 1).

    z at each step has independent noise, `z_t = alpha_t x + sigma_t noise_t`, and the noise of a step is what leads
    from one to the next, `(z_s - mean(z_t)) / std`. Of a last step, which has no noise, what its estimate lacks of x is
    kept in place of it, so that x comes back exactly.

    Args:
      sampler: whose mean and variance; one that draws noise (DDIM with eta above 0), without a threshold of its own.
    """
    steps, count, family = jax.tree.map(jnp.asarray, steps), len(steps.level), process.schedule.family
    noise = jnp.stack([noise_from_keys(keys, number, x.shape, shared_noise) for number in range(count)])
    z = jax.vmap(lambda level, eps: process.diffuse(x, eps, _of_batch(level, x)))(steps.level, noise)

    def noise_of(step: Step, z_t: Video, z_s: Video) -> Video:
        step = step._replace(count=count)
        nothing = jnp.zeros_like(x)

        def estimate(z: Video, level: Scalar) -> Video:
            return denoise(z, _of_batch(level, z))

        mean, x_hat, _ = sampler.step(estimate, z_t, None, step, family, nothing)
        std = sampler.step(lambda z, level: nothing, nothing, None, step, family, jnp.ones_like(x))[0]
        return jnp.where(step.last, x - x_hat, (z_s - mean) / std)

    after = jnp.concatenate([z[1:], x[None]])
    return z[0], jax.lax.map(lambda given: noise_of(*given), (steps, z, after))


def replayed(
    denoise: Denoiser, z: Video, noises: Trajectory, steps: Step, family: Family, *,
    sampler: DDPM | DDIM = DDPM(),  # noqa: B008
) -> Video:
    """What a sampler makes of z at the first of the steps with the noises of `ddpm_inverted`."""
    count = len(steps.level)

    def advance(z: Video, given: tuple[Step, Video]) -> tuple[Video, None]:
        step, noise = given
        z, x_hat, _ = sampler.step(lambda z, level: denoise(z, _of_batch(level, z)), z, None,
                                   step._replace(count=count), family, noise)
        return jnp.where(step.last, x_hat + noise, z), None

    return jax.lax.scan(advance, z, (jax.tree.map(jnp.asarray, steps), noises))[0]


def _of_batch(level: Scalar, x: Video) -> Float[Array, " B"]:
    return jnp.broadcast_to(level, x.shape[:1])
