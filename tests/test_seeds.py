"""Streams of one seed that serve different purposes have nothing in common."""

import jax
import numpy as np

from vdm_jax.evaluation.run_clips import DRAW, START
from vdm_jax.generation.one_stage import sample_keys
from vdm_jax.seeds import generator_for, key_for
from vdm_jax.training.loop import VALIDATION


def test_the_key_of_validation_is_none_of_those_of_training_and_sampling():
    key = jax.random.key(3)
    parts = [*jax.random.split(key), *jax.random.split(key, 4), key, *sample_keys(3, np.arange(4), 0)]
    others = {tuple(np.asarray(jax.random.key_data(k)).tolist()) for part in parts
              for k in (part, *jax.random.split(part, 4))}
    ours = key_for(3, VALIDATION)
    found = {tuple(np.asarray(jax.random.key_data(k)).tolist()) for k in (ours, *jax.random.split(ours, 4))}
    assert len(found) == 5 and not found & others
    assert (jax.random.key_data(key_for(3, "other")) != jax.random.key_data(ours)).any()


def test_no_two_generators_of_a_seed_are_one():
    assert np.random.default_rng([5, 2]).integers(2**62) == np.random.default_rng([5, 2, 0]).integers(2**62)
    made = [generator_for(5, START, i) for i in range(4)] + [generator_for(5, DRAW, side) for side in range(2)]
    made += [generator_for(5, DRAW)]
    made += [np.random.default_rng([5, place, stream]) for place in range(4) for stream in range(4)]  # of training
    firsts = [int(rng.integers(2**62)) for rng in made]
    assert len(set(firsts)) == len(firsts)
    assert int(generator_for(5, START, 1).integers(2**62)) == firsts[1]
