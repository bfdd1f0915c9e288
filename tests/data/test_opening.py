"""Data sets as the package sees them: by what their configs say of themselves, never by their kind."""

from typing import get_args

import numpy as np
import pytest

from tests.test_rooms import imports
from vdm_jax.configuration import config
from vdm_jax.data.embeddings import Clips, WithEmbeddings
from vdm_jax.data.opening import caption_words, open_source
from vdm_jax.data.source import ClipData, ReadAsIs
from vdm_jax.digits.captioned_digits import CaptionedDigits


@config
class Grey(ReadAsIs):
    """A data set that the package does not know."""

    frames: int = 3
    height: int = 4
    width: int = 5

    def open(self, split, data_dir):
        return [{"video": np.full((3, 4, 5, 3), i, np.uint8), "caption": f"{split} {data_dir.name}"} for i in range(2)]


def test_a_data_set_of_ones_own_is_opened(tmp_path):
    source = open_source(Grey(), "test", tmp_path)
    assert len(source) == 2 and source[1]["caption"] == f"test {tmp_path.name}"
    assert Grey().clip_shape() == source[0]["video"].shape[:3]
    assert Grey().prepare(tmp_path) is Grey().scorer() is Grey().vocabulary() is None and Grey().stored_bytes() == 0


@pytest.mark.parametrize("kind", [*get_args(Clips), WithEmbeddings])
def test_every_data_set_is_one(kind):
    for name in ("open", "clip_shape", "prepare", "stored_bytes", "vocabulary", "scorer"):
        assert callable(getattr(kind, name))


def test_embeddings_say_of_their_data_what_it_says_itself(tmp_path):
    data = CaptionedDigits(frames=4, size=32, train_clips=3)
    both = WithEmbeddings(data=data, path=str(tmp_path / "none"))
    assert isinstance(both, ClipData) and both.clip_shape() == (4, 32, 32)
    assert caption_words(both, None) == data.vocabulary() and both.stored_bytes() == data.stored_bytes() > 0
    assert both.scorer().examples("test", 2)[1]["caption"] == data.scorer().examples("test", 2)[1]["caption"]


def test_no_room_asks_whether_data_are_captioned_digits():
    users = {module for module, targets in imports().items() if "vdm_jax.digits.captioned_digits" in targets}
    assert users == {"vdm_jax.data.embeddings"}  # the union of all data sets, as configs spell it
