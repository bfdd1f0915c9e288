"""Stages in the latents of causal autoencoders: frames, masks, meshes, and the programs that are planned."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from tests.refusals import refused
from tests.training.latents import random_params, write_model
from vdm_jax.conditions.frame_masks import MaskedVideo
from vdm_jax.configuration import from_json, to_json
from vdm_jax.diffusion.process import Process
from vdm_jax.digits.captioned_digits import CaptionedDigits
from vdm_jax.networks.autoencoders.causal_config import CausalAutoencoder
from vdm_jax.networks.config import Level, UNet
from vdm_jax.parallel.collectives import collectives
from vdm_jax.parallel.mesh import MeshSpec, make_mesh
from vdm_jax.planning.flops import sampling_work, training_work
from vdm_jax.planning.inputs import training_batch
from vdm_jax.runs.autoencoders import load_autoencoder, resolved
from vdm_jax.stages.inputs import training_inputs
from vdm_jax.stages.latent import Latent, abstract_weights, decode, encode, encode_masked_video
from vdm_jax.stages.options import Sampling
from vdm_jax.stages.stage import Experiment, Stage, VideoSpec
from vdm_jax.training.state import abstract_state

AUTOENCODER = CausalAutoencoder(widths=(4, 4), blocks=1, halve_frames=(True,), latent_channels=2, mean=(0.1, -0.2),
                                std=(0.5, 2.0))
LATENT = Latent(autoencoder=AUTOENCODER, encode="mode")
UNET = UNet(levels=(Level(channels=8, blocks=1),), out_channels=2)


def make(frames=5, side=8, **changes):
    values = {"name": "base", "video": VideoSpec(frames=frames, height=side, width=side), "latent": LATENT,
              "network": UNET, "process": Process(), "sampling": Sampling(threshold=None)} | changes
    return Stage(**values)


def test_sizes_and_a_config_as_json():
    stage = make()
    assert stage.shape == (3, 4, 4, 2)
    experiment = Experiment(name="x", stages=(stage,), data=CaptionedDigits(size=16, frames=5))
    assert from_json(Experiment, to_json(experiment)) == experiment
    two = dataclasses.replace(UNET, levels=(dataclasses.replace(UNET.levels[0], temporal_stride=2), *UNET.levels))
    assert make(7, network=two).shape == (4, 4, 4, 2)
    with refused("Stage.video.frames", "=5 is 3 latents", "2, 4"):
        make(5, network=two)
    with refused("video.frames", "=6", "1, 3, 5"):
        make(6)


def test_inputs_and_masks_of_training():
    weights, stage = random_params(AUTOENCODER), make()
    batch = {"video": np.random.default_rng(0).integers(0, 256, (2, 5, 8, 8, 3)).astype(np.uint8)}
    video = jnp.asarray(batch["video"] / 127.5 - 1, jnp.float32)

    @jax.jit
    def run(weights, video):
        x, _, _ = training_inputs(stage, batch, jax.random.key(0), weights)
        mask = jnp.ones((2, 5, 1, 1, 1)).at[:, 2:].set(0)  # frames 1 and 2 share a latent
        return x, encode(LATENT, weights, video), encode_masked_video(LATENT, weights, MaskedVideo(video, mask)).mask

    x, z, mask = run(weights, video)
    np.testing.assert_allclose(x, z, atol=1e-4)
    assert mask.shape == (2, 3, 4, 4, 1) and mask[:, 0].all() and not mask[:, 1:].any()


def test_sharded_equals_single():
    """Batches over `data`, rows over `context`: neighbours exchange rows, and no device has the whole activation."""
    weights = random_params(AUTOENCODER)
    video = np.random.default_rng(0).uniform(-1, 1, (2, 5, 16, 8, 3)).astype(np.float32)
    latent = dataclasses.replace(LATENT, decode_frames=1)

    def there_and_back(weights, video):
        z = encode(latent, weights, video)
        return z, decode(latent, weights, z)

    single = jax.jit(there_and_back)(weights, video)
    mesh = make_mesh(MeshSpec(data=2, context=4))
    with jax.set_mesh(mesh):
        split = NamedSharding(mesh, P("data"))
        compiled = jax.jit(there_and_back, in_shardings=(None, split)).lower(weights, video).compile()
        found = compiled(weights, jax.device_put(video, split))
    for one, other in zip(found, single, strict=True):
        np.testing.assert_allclose(one, other, atol=2e-5)
    assert "collective-permute" in collectives(compiled.as_text())


def test_weights_say_how_latents_are_normalised(tmp_path):
    write_model(tmp_path / "vae.safetensors", AUTOENCODER)
    other = dataclasses.replace(AUTOENCODER, mean=(0.0, 0.0))
    latent = dataclasses.replace(LATENT, autoencoder=other, weights=str(tmp_path / "vae.safetensors"))
    found = resolved(Experiment(name="x", stages=(make(latent=latent),), data=CaptionedDigits(size=16, frames=5)))
    assert found.stages[0].latent.autoencoder == AUTOENCODER and found.stages[0].latent.sha256
    (params,) = load_autoencoder(found.stages[0])
    assert jax.tree.structure(params) == jax.tree.structure(random_params(AUTOENCODER))
    wrong = dataclasses.replace(latent, autoencoder=dataclasses.replace(other, shortcuts=True))
    with refused("Stage.latent.autoencoder.shortcuts", "=True", "False"):
        resolved(Experiment(name="x", stages=(make(latent=wrong),), data=CaptionedDigits(size=16, frames=5)))


def test_programs_are_planned():
    """The work of the autoencoder is counted in training and in sampling."""
    stage, mesh = make(), make_mesh(MeshSpec(data=2), jax.devices()[:2])
    batch, _ = training_batch(stage, CaptionedDigits(size=16, frames=5), 2, 1)
    params = abstract_state(stage, mesh).params
    assert jax.tree.leaves(abstract_weights(stage.latent, mesh))
    assert training_work(stage, batch, params, mesh).autoencoder > 0
    sampling = sampling_work(stage, dataclasses.replace(stage.sampling, steps=2), batch, params, mesh)
    assert sampling.autoencoder > 0


@pytest.mark.full
def test_a_step_of_a_causal_latent_stage_is_compiled():
    from vdm_jax.training.step import jit_train_step

    stage, mesh = make(), make_mesh(MeshSpec(data=2, context=2), jax.devices()[:4])
    batch, _ = training_batch(stage, CaptionedDigits(size=16, frames=5), 2, 1, mesh)
    state, weights = abstract_state(stage, mesh), abstract_weights(stage.latent, mesh)
    compiled = jit_train_step(stage, mesh).lower(state, batch, *weights).compile()
    assert compiled.memory_analysis().temp_size_in_bytes > 0
