import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.refusals import refused
from vdm_jax.diffusion import guidance
from vdm_jax.diffusion.arrays import expand
from vdm_jax.diffusion.predictions import convert
from vdm_jax.diffusion.process import Process
from vdm_jax.diffusion.samplers import DDIM, Heun
from vdm_jax.diffusion.sampling import sample, sampling_levels
from vdm_jax.diffusion.schedules import CosineSchedule

LOGSNR = jnp.array([-4.0, -1.0, 0.0, 0.5, 2.0, 4.0])


def constant(value):
    return lambda z, logsnr: jnp.full_like(z, value)


def scaled(factor):
    return lambda z, logsnr: factor * z * expand(jax.nn.sigmoid(logsnr), z)


def separate(*denoisers):
    return lambda z, logsnr: tuple(denoise(z, logsnr) for denoise in denoisers)


def classifier_free(conditional, unconditional, weight, **options):
    return guidance.combine(separate(conditional, unconditional), [(0, 1, weight)], **options)


def test_classifier_free_is_the_1_plus_w_form_in_x_eps_and_v(videos):
    z, w = videos[0], 2.5
    conditional, unconditional = scaled(0.7)(z, LOGSNR), scaled(0.2)(z, LOGSNR)
    guided = classifier_free(scaled(0.7), scaled(0.2), w)(z, LOGSNR)
    np.testing.assert_allclose(guided, (1 + w) * conditional - w * unconditional, rtol=1e-5, atol=1e-6)
    alpha_sigma = CosineSchedule().alpha_sigma(LOGSNR)
    c, u, g = (convert("x", x, z, *alpha_sigma) for x in (conditional, unconditional, guided))
    for name in ("eps", "v", "flow", "score"):
        np.testing.assert_allclose(g[name], (1 + w) * c[name] - w * u[name], rtol=1e-3, atol=1e-3)


def test_weight_zero_is_the_conditional_model_and_evaluates_no_other(videos):
    def unused(z, logsnr):
        return jnp.full_like(z, jnp.nan)

    guided = classifier_free(scaled(0.7), unused, 0.0)(videos[0], LOGSNR)
    np.testing.assert_array_equal(guided, scaled(0.7)(videos[0], LOGSNR))


def test_guided_sampling_of_gaussians_matches_its_closed_form(gaussian):
    # With equal covariances, extrapolating between posterior means is extrapolating between the data means:
    # conditional mean m and unconditional mean 0 give, guided, the Gaussian of mean (1 + w) m.
    process, w = Process(), 2.0
    unconditional = dataclasses.replace(gaussian, mean=0 * gaussian.mean)
    extrapolated = dataclasses.replace(gaussian, mean=(1 + w) * gaussian.mean)
    guided = classifier_free(gaussian.denoiser(process), unconditional.denoiser(process), w)
    z = jax.random.normal(jax.random.key(0), (8, 2, 1, 1, 2))
    keys = jax.random.split(jax.random.key(0), 8)
    x = jax.jit(lambda keys: sample(Heun(), guided, keys, z.shape, process, 64, initial=z))(keys)
    exact = extrapolated.flow(z, *process.schedule.alpha_sigma(process.schedule.logsnr(1.0)))
    np.testing.assert_allclose(x, exact, atol=5e-3)


def test_weights_per_frame_per_sample_and_both(videos):
    z = videos[0]

    def run(w):
        return classifier_free(constant(1.0), constant(0.0), w)(z, LOGSNR)[..., 0, 0, 0] - 1

    np.testing.assert_allclose(run(jnp.array([1.0, 3.0])), [[1, 3]] * 6)
    np.testing.assert_allclose(run(jnp.arange(6.0)[:, None]), np.repeat(np.arange(6.0)[:, None], 2, 1))
    np.testing.assert_allclose(run(jnp.arange(12.0).reshape(6, 2)), np.arange(12.0).reshape(6, 2))
    np.testing.assert_allclose(
        run(lambda logsnr: 2 * logsnr), np.repeat(2 * LOGSNR[:, None], 2, 1), rtol=1e-6
    )


def test_each_term_adds_each_difference_from_the_base(videos):
    terms = [(constant(3.0), 0.5), (constant(-1.0), jnp.array([0.0, 2.0]))]
    estimates = separate(constant(1.0), *(denoise for denoise, _ in terms))
    guided = guidance.combine(estimates, [(i + 1, 0, weight) for i, (_, weight) in enumerate(terms)])(videos[0], LOGSNR)
    np.testing.assert_allclose(guided[:, 0], 1 + 0.5 * 2)
    np.testing.assert_allclose(guided[:, 1], 1 + 0.5 * 2 - 2 * 2)


def test_two_conditions_by_differences(videos):
    both, image, none = 5.0, 2.0, 1.0
    estimates = separate(constant(both), constant(image), constant(none))
    guided = guidance.combine(estimates, [(0, 1, 6.5), (1, 2, 0.5)])(videos[0], LOGSNR)
    np.testing.assert_allclose(guided, none + 1.5 * (image - none) + 7.5 * (both - image))


def test_batched_makes_one_call_and_equals_separate_ones(videos):
    z, calls = videos[0], []

    def denoise_with(z, logsnr, conditioning):
        calls.append(z.shape[0])
        return (
            expand(conditioning["a"], z) * z
            + expand(logsnr, z)
            + conditioning["video"].mean((1, 2, 3, 4), keepdims=True)
        )

    conditionings = [{"a": jnp.arange(6.0) * n, "video": z + n, "absent": None} for n in range(3)]
    estimates = guidance.batched(denoise_with, conditionings)(z, LOGSNR)
    assert calls == [18] and len(estimates) == 3
    for estimate, conditioning in zip(estimates, conditionings, strict=True):
        np.testing.assert_allclose(estimate, denoise_with(z, LOGSNR, conditioning), rtol=1e-5, atol=1e-5)


def test_rescale_restores_the_standard_deviation_of_each_sample(videos):
    z = videos[0]

    def guide(rescale):
        return classifier_free(scaled(0.7), scaled(-0.4), 3.0, rescale=rescale)(z, LOGSNR)

    axes = (1, 2, 3, 4)
    full, half, none = guide(1.0), guide(0.5), guide(0.0)
    np.testing.assert_allclose(full.std(axes), scaled(0.7)(z, LOGSNR).std(axes), rtol=1e-5)
    np.testing.assert_allclose(half, (full + none) / 2, rtol=1e-5, atol=1e-6)


def test_oscillating_weight_follows_the_steps_of_the_sampler():
    levels = sampling_levels(DDIM(), CosineSchedule(), 8)
    weight = guidance.oscillating(15.0, 1.0, levels, constant_steps=3)
    np.testing.assert_array_equal(weight(levels), [15, 15, 15, 1, 15, 1, 15, 1])
    seen = sample(
        DDIM(),
        classifier_free(constant(1.0), constant(0.0), weight),
        jax.random.split(jax.random.key(0), 2),
        (2, 1, 1, 1, 1),
        Process(),
        8,
        trajectory=True,
    )[1]
    np.testing.assert_allclose(seen[:, 0, 0, 0, 0, 0], 1 + weight(levels), rtol=1e-5)


def test_static_threshold(videos):
    z = 3 * videos[0]
    np.testing.assert_array_equal(guidance.static_threshold(lambda z, _: z)(z, LOGSNR), np.clip(z, -1, 1))


@pytest.mark.parametrize("per", ["clip", "frame"])
def test_dynamic_threshold(per):
    x = np.random.default_rng(0).normal(size=(2, 3, 4, 4, 1)).astype(np.float32)
    x[1] *= 0.1  # entirely inside [-1, 1]
    x[0, 2] *= 5
    result = guidance.dynamic_threshold(lambda z, _: z, percentile=90.0, per=per)(jnp.asarray(x), LOGSNR[:2])
    np.testing.assert_allclose(result[1], x[1], rtol=1e-6)
    for frame in range(3):
        s = np.percentile(np.abs(x[0] if per == "clip" else x[0, frame]), 90)
        np.testing.assert_allclose(result[0, frame], np.clip(x[0, frame], -s, s) / s, rtol=1e-4)
    assert np.abs(result).max() <= 1 + 1e-6


@pytest.mark.parametrize(
    "make, message",
    [
        (
            lambda: classifier_free(constant(1), constant(0), 1.0, rescale=2.0),
            ("rescale", "=2.0"),
        ),
        (lambda: guidance.oscillating(15.0, 1.0, LOGSNR, -1), ("constant_steps", "=-1")),
        (lambda: guidance.dynamic_threshold(constant(1), percentile=0.0), ("percentile", "=0.0")),
        (
            lambda: guidance.dynamic_threshold(constant(1), per="pixel"),
            ("per", "='pixel'", "'clip'", "'frame'"),
        ),
        (
            lambda: guidance.batched(constant, [{"a": jnp.ones(2)}, {"a": None}]),
            ("guidance.batched",),
        ),
        (lambda: guidance.batched(constant, []), ("guidance.batched", "0")),
        (
            lambda: classifier_free(constant(1), constant(0), jnp.ones(3))(
                jnp.zeros((3, 2, 1, 1, 1)), LOGSNR[:3]
            ),
            ("guidance._weights", "3", "2"),
        ),
    ],
)
def test_errors(make, message):
    with refused(*message):
        make()


def chained(weights, values):
    """In-turn guidance of estimates that are the sum of the values of the names they have, plus their square."""
    def estimate(lacking):
        total = sum(value for name, value in values.items() if name not in lacking)
        return constant(total + total**2)

    lacking, terms = guidance.in_turn(weights)
    denoise = guidance.combine(separate(*map(estimate, lacking)), terms)
    return float(denoise(jnp.zeros((1, 1, 1, 1, 1)), LOGSNR[:1])[0, 0, 0, 0, 0]), lacking


def test_conditions_come_in_one_after_the_other():
    values = {"image": 2.0, "text": 3.0, "pose": 5.0}

    def e(*names):
        total = sum(values[name] for name in names)
        return total + total**2

    found, lacking = chained({"image": 0.5, "text": 6.5}, values)  # InstructPix2Pix and DreamPose, scales 1.5 and 7.5
    assert lacking == [(), ("text",), ("image", "text")]  # pose is in all
    assert found == pytest.approx(e("pose") + 1.5 * (e("pose", "image") - e("pose"))
                                  + 7.5 * (e("pose", "image", "text") - e("pose", "image")))
    found, lacking = chained({"text": 6.5, "image": 0.5}, values)  # another order is another guidance
    assert found == pytest.approx(e("pose") + 7.5 * (e("pose", "text") - e("pose"))
                                  + 1.5 * (e("pose", "image", "text") - e("pose", "text")))
    found, lacking = chained({"text": 1.0}, values)
    assert lacking == [(), ("text",)] and guidance.in_turn({"text": 1.0})[1] == [(0, 1, 1.0)]  # classifier-free


def test_what_only_scales_of_one_would_use_is_not_evaluated():
    values = {"image": 2.0, "text": 3.0, "pose": 5.0}
    found, lacking = chained({"image": 0.0, "text": 0.0, "pose": 0.0}, values)
    assert lacking == [()] and found == 110
    found, lacking = chained({"image": 0.0, "text": 2.0, "pose": 0.0}, values)
    assert lacking == [(), ("pose",), ("text", "pose")]
    assert found == pytest.approx(110 + 2 * (30 - 6))
    found, lacking = chained({"image": 0.0, "text": 2.0}, values)
    assert lacking == [(), ("text",)]
