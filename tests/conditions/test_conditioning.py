"""The conditioning pytree: absent parts cost nothing; dropping text touches the text mask and nothing else."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vdm_jax.conditions.conditioning import Conditioning, drop_text


@pytest.fixture
def conditioning():
    tokens = jnp.arange(24).reshape(4, 2, 3) % 5
    return Conditioning(tokens=tokens, text_mask=tokens > 0, low_resolution=jnp.ones((4, 2, 2, 2, 3)),
                        augmentation=jnp.arange(4.0), scalars={"fps": jnp.arange(4.0)})


def test_absent_parts_are_no_leaves():
    assert jax.tree.leaves(Conditioning()) == []
    assert len(jax.tree.leaves(Conditioning(scalars={"fps": jnp.ones(2)}))) == 1


def test_scalars_are_not_shared_between_instances():
    assert Conditioning().scalars is not Conditioning().scalars


def test_without_text_empties_the_mask_of_all_groups_and_keeps_the_rest(conditioning):
    null = conditioning.without_text()
    assert not null.text_mask.any()
    assert null.replace(text_mask=None) == conditioning.replace(text_mask=None)  # the same arrays


def test_without_text_where(conditioning):
    null = conditioning.without_text(jnp.array([True, False, False, True]))
    np.testing.assert_array_equal(null.text_mask[1:3], conditioning.text_mask[1:3])
    assert not null.text_mask[jnp.array([0, 3])].any()


def test_the_null_caption_may_be_an_encoded_one():
    given = Conditioning(
        embeddings=jnp.ones((2, 3, 4, 5)), text_mask=jnp.ones((2, 3, 4), bool),
        null_embeddings=jnp.full((2, 4, 5), 7.0), null_mask=jnp.tile(jnp.arange(4) < 1, (2, 1)))
    some = given.without_text(jnp.array([True, False]))
    np.testing.assert_array_equal(some.embeddings, np.stack([np.full((3, 4, 5), 7), np.ones((3, 4, 5))]))
    np.testing.assert_array_equal(some.text_mask.sum((1, 2)), [3, 12])
    assert (given.without_text().embeddings == 7).all() and given.without_text().text_mask.sum() == 6


def test_nothing_to_drop():
    empty = Conditioning(augmentation=jnp.zeros(2))
    assert empty.without_text() is empty
    assert drop_text(jax.random.key(0), empty, 0.5) is empty


def test_drop_text_drops_whole_samples_with_the_probability():
    mask = jnp.ones((2000, 2, 3), bool)
    kept = drop_text(jax.random.key(1), Conditioning(text_mask=mask), 0.3).text_mask
    per_sample = np.asarray(kept).reshape(2000, -1)
    assert (per_sample.all(1) | ~per_sample.any(1)).all()  # whole samples, all groups alike
    assert abs(per_sample.all(1).mean() - 0.7) < 4 * np.sqrt(0.3 * 0.7 / 2000)


def test_drop_text_with_probability_zero_and_almost_one(conditioning):
    assert drop_text(jax.random.key(0), conditioning, 0.0) is conditioning
    assert not drop_text(jax.random.key(0), conditioning, 1.0).text_mask.any()


def test_the_null_condition_takes_the_class_too():
    """Of a sample without text all of it is gone: tokens, class and picture; the other sample keeps all."""
    given = Conditioning(text_mask=jnp.ones((2, 1, 3), bool), labels=jnp.array([4, 7]), image=jnp.ones((2, 1, 2, 2, 4)))
    one = given.without_text(jnp.array([True, False]))
    np.testing.assert_array_equal(one.labels, [-1, 7])
    np.testing.assert_array_equal(one.text_mask[:, 0], [[False] * 3, [True] * 3])
    np.testing.assert_array_equal(one.image[:, 0, 0, 0, 0], [0, 1])
    np.testing.assert_array_equal(given.without_text().labels, [-1, -1])
    np.testing.assert_array_equal(Conditioning(labels=jnp.array([4, 7])).without_text().labels, [-1, -1])
