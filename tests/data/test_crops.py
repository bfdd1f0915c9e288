import numpy as np
import pytest

from tests.refusals import refused
from vdm_jax.data.crops import crop_frames
from vdm_jax.data.video_folder import VideoFolder

# Rows of 0, 1, 2, 3 over 8 columns that count: a frame of 4x8.
FRAMES = np.stack([np.stack([np.full((4, 8), 9), *np.mgrid[:4, :8]], -1)] * 2).astype(np.uint8)


@pytest.mark.parametrize("crop, place, columns", [
    ("center", (0.5, 0.5), [2, 3, 4, 5]), ("random", (0.0, 0.0), [0, 1, 2, 3]), ("random", (1.0, 1.0), [4, 5, 6, 7]),
])
def test_cuts_take_a_part_of_the_frame(crop, place, columns):
    found = crop_frames(FRAMES, 4, 4, crop, place)
    assert found.shape == (2, 4, 4, 3) and found[1, 0, :, 2].tolist() == columns
    assert found[0, :, 0, 1].tolist() == [0, 1, 2, 3]


def test_whole_frames_are_padded_or_squeezed():
    padded = crop_frames(FRAMES, 8, 8, "pad")
    assert (padded[:, :2] == 0).all() and (padded[:, 6:] == 0).all() and (padded[:, 2:6] == FRAMES).all()
    assert crop_frames(FRAMES, 4, 4, "squeeze")[0, 0, :, 2].tolist() == [1, 3, 5, 7]  # means of two, halves up
    for crop in ("center", "random", "pad", "squeeze"):
        for size in ((1, 1), (5, 3), (16, 64)):
            assert crop_frames(FRAMES, *size, crop).shape == (2, *size, 3)
    with refused("VideoFolder.crop", "='middle'", "'center', 'random', 'pad', 'squeeze'"):
        VideoFolder(path="videos", crop="middle")
