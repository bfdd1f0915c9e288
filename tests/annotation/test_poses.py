"""Skeletons from keypoints of OpenPose and COCO."""

from __future__ import annotations

import json

import numpy as np
import pytest

from tests.refusals import refused
from vdm_jax.annotation.poses import COLOURS, LIMBS, Pose, coco_people, drawn, from_coco, openpose_people
from vdm_jax.video.reading import VideoReader
from vdm_jax.video.writing import write_video


def person():
    """18 points, all found."""
    rng = np.random.default_rng(0)
    return np.concatenate([rng.uniform(8, 56, (18, 2)), np.ones((18, 1))], axis=1)


def test_limbs_join_points_in_their_colours():
    assert COLOURS[:4] == ((255, 0, 0), (255, 85, 0), (255, 170, 0), (255, 255, 0))  # as the published ControlNet's
    assert len(LIMBS) == 17 and len({frozenset(limb) for limb in LIMBS}) == 17
    alone = np.zeros((1, 18, 3))
    alone[0, 2], alone[0, 3] = (10, 32, 0.9), (50, 32, 0.05)
    picture = drawn(alone, 64, 64, 0.1)
    assert picture[32, 10].tolist() == list(COLOURS[2]) and not picture[32, 20:].any()  # the elbow was not found
    alone[0, 3, 2] = 0.5
    picture = drawn(alone, 64, 64, 0.1)
    limb = COLOURS[LIMBS.index((2, 3))]
    assert picture[32, 30].tolist() == [int(0.6 * c) for c in limb]
    assert picture[32, 50].tolist() == list(COLOURS[3]) and not picture[40:].any()
    assert not drawn(np.zeros((0, 18, 3)), 8, 8, 0.1).any()


def test_all_layouts_are_the_same_skeleton(tmp_path):
    points = person()
    of_18 = {"people": [{"pose_keypoints_2d": points.reshape(-1).tolist()}]}
    of_25 = np.zeros((25, 3))
    of_25[[*range(8), *range(9, 19)]] = points
    five_and_twenty = {"people": [{"pose_keypoints_2d": of_25.reshape(-1).tolist()}]}
    np.testing.assert_array_equal(openpose_people(tmp_path, of_18), points[None])
    np.testing.assert_array_equal(openpose_people(tmp_path, five_and_twenty), points[None])
    coco = points[[0, 15, 14, 17, 16, 5, 2, 6, 3, 7, 4, 11, 8, 12, 9, 13, 10]]
    coco[:, 2] = 2
    found = from_coco(coco)
    np.testing.assert_array_equal(np.delete(found, 1, 0), np.delete(points, 1, 0))
    np.testing.assert_allclose(found[1], [*(points[2, :2] + points[5, :2]) / 2, 1])
    entry = {"image_id": 7, "keypoints": coco.reshape(-1).tolist()}
    data = {"images": [{"id": 9}, {"id": 7, "width": 128, "height": 64}], "annotations": [entry]}
    first, second = coco_people(tmp_path, data, 2, (64, 64))
    assert len(second) == 0
    np.testing.assert_allclose(first[0, :, :2], found[:, :2] * [0.5, 1])
    listed = coco_people(tmp_path, [entry | {"image_id": 2}], 3, (64, 64))
    assert [len(people) for people in listed] == [0, 1, 0]  # ids from 1 on


def test_files_of_a_video_become_frames_and_wrong_ones_are_named(tmp_path):
    write_video(tmp_path / "a.mp4", np.zeros((3, 64, 64, 3), np.uint8), fps=8, lossless=True)
    folder = tmp_path / "points" / "a"
    folder.mkdir(parents=True)
    for frame in range(3):
        points = person() + [frame, 0, 0]
        (folder / f"a_{frame:012}_keypoints.json").write_text(
            json.dumps({"people": [{"pose_keypoints_2d": points.reshape(-1).tolist()}]}))
    with VideoReader(tmp_path / "a.mp4") as video:
        frames = list(Pose(keypoints=str(tmp_path / "points")).frames(video, "a.mp4"))
        assert len(frames) == 3
        np.testing.assert_array_equal(frames[2], drawn(person()[None] + [2, 0, 0], 64, 64, 0.1))
        (folder / "a_000000000001_keypoints.json").write_text('{"people": [{"pose_keypoints_2d": [1, 2]}]}')
        with refused("annotation.poses", "000001", "2 numbers"):
            list(Pose(keypoints=str(tmp_path / "points")).frames(video, "a.mp4"))
        (folder / "a_000000000001_keypoints.json").unlink()
        with refused("annotation.frames", "2 files of keypoints for 3 frames"):
            list(Pose(keypoints=str(tmp_path / "points")).frames(video, "a.mp4"))


@pytest.mark.parametrize("data", [{}, {"people": 3}, {"people": [{"pose_keypoints_2d": None}]}, [],
                                  {"people": [{"pose_keypoints_2d": [10**400] * 54}]}])
def test_no_openpose_is_refused(data, tmp_path):
    with refused("annotation.poses", "x.json"):
        openpose_people(tmp_path / "x.json", data)


@pytest.mark.parametrize("data", [{}, [{"image_id": 0}], [{"image_id": "x", "keypoints": [0] * 51}], 3,
                                  *({"images": [{"id": 0, "width": width}, {"id": 1}], "annotations": []}
                                    for width in (1e-300, 0, -8, float("nan"), 10**400, "8")),
                                  {"images": [{"id": 0, "width": 1}, {"id": 1}],
                                   "annotations": [{"image_id": 0, "keypoints": [2.0**18] * 51}]}])
def test_no_coco_is_refused(data, tmp_path):
    with refused("annotation.poses", "x.json"):
        coco_people(tmp_path / "x.json", data, 2, (8, 8))
