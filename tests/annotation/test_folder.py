"""`vdm-jax annotate`: maps of videos written once, and read with the crop, flip and stride of their videos."""

from __future__ import annotations

import json

import numpy as np
import pytest

from tests.refusals import refused
from vdm_jax.annotation.canny import Canny
from vdm_jax.annotation.depth import Depth
from vdm_jax.annotation.flow import Flow, StrokesOfVideos, follow, moving_points
from vdm_jax.annotation.folder import annotate
from vdm_jax.commands.main import main
from vdm_jax.data.pipeline import FlipAugmentation, Pipeline
from vdm_jax.data.video_folder import VideoFolder, VideoFolderSource
from vdm_jax.stages.inputs import device_fields
from vdm_jax.video.reading import VideoReader
from vdm_jax.video.strokes import decoded
from vdm_jax.video.writing import write_png, write_video

pytestmark = pytest.mark.usefixtures("elsewhere")
FRAMES, HEIGHT, WIDTH = 6, 40, 48


def square(frames=FRAMES, step=2):
    """A textured square on grey that goes to the right by `step` pixels a frame."""
    video = np.full((frames, HEIGHT, WIDTH, 3), 90, np.uint8)
    texture = np.random.default_rng(0).integers(0, 256, (16, 16, 1), np.uint8)
    for frame in range(frames):
        video[frame, 12:28, 6 + step * frame : 22 + step * frame] = texture
    return video


@pytest.fixture
def videos(tmp_path):
    write_video(tmp_path / "videos" / "a.mp4", square(), fps=10, lossless=True)
    write_video(tmp_path / "videos" / "deep" / "b.mp4", square(4), fps=10, lossless=True)
    (tmp_path / "videos" / "bad.mp4").write_bytes(b"\0" * 1000)
    return tmp_path / "videos"


def read(path):
    with VideoReader(path) as video:
        return video.frames(range(len(video)))


def test_edges_are_written_once_next_to_the_videos(videos, tmp_path, capfd):
    assert main(["annotate", "videos", "--kind", "canny"]) == 0
    out = capfd.readouterr().out
    assert "videos-canny: 2 written, 0 there before, 1 skipped" in out and "bad.mp4" in out
    maps = read(tmp_path / "videos-canny" / "a.mp4")
    assert maps.shape == (FRAMES, HEIGHT, WIDTH, 3) and set(np.unique(maps)) == {0, 255}
    still = np.abs(np.diff(square().astype(int)[..., 0], axis=2)).max() > 0  # there is something to see
    assert still and maps[:, 10:30].any() and not maps[:, :8].any()  # edges are of the square
    first = tmp_path / "videos-canny" / "a.mp4"
    before = first.stat().st_mtime_ns
    (tmp_path / "videos-canny" / "deep" / "b.mp4").unlink()  # as after an interrupted run
    assert main(["annotate", "videos", "--kind", "canny"]) == 0
    assert "1 written, 1 there before" in capfd.readouterr().out and first.stat().st_mtime_ns == before
    assert not list((tmp_path / "videos-canny").rglob("*.partial"))


def test_a_broken_file_leaves_nothing_behind_and_other_settings_are_refused(videos, tmp_path):
    class Breaks(Canny):
        def frames(self, video, name):
            yield next(super().frames(video, name))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        annotate(videos, tmp_path / "maps", "canny", Breaks())
    assert [path.name for path in (tmp_path / "maps").rglob("*") if path.is_file()] == ["annotation.json"]
    annotate(videos, tmp_path / "maps", "canny", Canny())
    with refused("--out", "maps", "canny", "another folder"):
        annotate(videos, tmp_path / "maps", "canny", Canny(low=50.0))
    with refused("--out", "no maps"):
        annotate(videos / "a.mp4", videos, "canny", Canny())
    with refused("--out", "outside"):
        annotate(videos, videos / "maps", "canny", Canny())
    write_video(videos / "a.gif", square(2), fps=10)
    with refused("annotate", "a.gif", "a.mp4"):
        annotate(videos, tmp_path / "other", "canny", Canny())
    with refused("Canny", "low=300"):
        Canny(low=300.0)


def test_bad_options_are_one_line(videos, capfd):
    def fails(*arguments):
        assert main(["annotate", *arguments]) == 2
        return capfd.readouterr().err

    assert "--keypoints is missing" in fails("videos", "--kind", "pose")
    assert "--depth=none is not a folder" in fails("videos", "--kind", "depth", "--depth", "none")
    assert "--low=5.0 with --kind flow is not used" in fails("videos", "--kind", "flow", "--low", "5")
    assert "videos=none does not exist" in fails("none", "--kind", "canny")
    assert "none of 3 videos" in fails("videos", "--kind", "depth", "--depth", "videos")


def test_flow_is_where_pixels_go_and_is_cut_and_mirrored_with_its_clip(videos, tmp_path):
    annotate(videos, tmp_path / "flow", "flow", Flow(stride=2, limit=0.25))
    moved, seen = decoded(read(tmp_path / "flow" / "a.mp4"), 0.25)
    inside = moved[:4, 16:24, 14:18]  # of the square in all of these frames
    assert np.abs(inside[..., 0] - 4).max() < 0.5 and np.abs(inside[..., 1]).max() < 0.3
    assert seen[:4, 16:24, 14:18].mean() > 0.9 and not seen[4:].any()
    spec = VideoFolder(path=str(videos), controls=str(tmp_path / "flow"), frames=2, height=20, width=24, frame_stride=2,
                       fractions=(1.0, 0.0, 0.0))
    source = VideoFolderSource(spec)
    clip = source[0]
    assert clip["control"].shape == (2, 20, 24, 3) and clip["control_kind"] == "flow"
    half, mask = decoded(clip["control"], 0.25)
    assert np.abs(half[0, 8:11, 7:9, 0] - 2).max() < 0.3 and mask[0, 8:11, 7:9].all()  # pixels of the clip
    flipped = FlipAugmentation(probability=1.0)(clip, np.random.default_rng(0))
    np.testing.assert_array_equal(flipped["video"], clip["video"][:, :, ::-1])
    turned, _ = decoded(flipped["control"], 0.25)
    np.testing.assert_array_equal(turned[..., 0], -half[:, :, ::-1, 0])
    np.testing.assert_array_equal(turned[..., 1], half[:, :, ::-1, 1])
    unturned = FlipAugmentation(probability=1.0)(clip | {"control_kind": "pose"}, np.random.default_rng(0))
    assert unturned["video"] is clip["video"]  # left and right limbs have their own colours
    fields = device_fields(Pipeline(source, batch_size=1, seed=0).batch(0))
    assert fields["control"].shape == (1, 2, 20, 24, 3) and "control_kind" not in fields
    with refused("VideoFolder.frame_stride", "stride 2"):
        VideoFolderSource(VideoFolder(path=str(videos), controls=str(tmp_path / "flow"), frames=2))


def test_strokes_follow_what_moves(videos, tmp_path):
    annotate(videos / "a.mp4", tmp_path / "strokes", "strokes", StrokesOfVideos(count=4, span=3, radius=0.03))
    moved, mask = decoded(read(tmp_path / "strokes" / "a.mp4"))
    assert mask[:-1].any((1, 2)).all() and not mask[-1].any()
    assert mask.mean() < 0.05  # sparse
    assert np.median(moved[mask][:, 0]) == pytest.approx(2, abs=0.2)
    motion = np.zeros((8, 8, 2), np.float32)
    assert len(moving_points(motion, 3, np.random.default_rng(0))) == 0
    motion[2, 3] = (9, 0)
    assert moving_points(motion, 3, np.random.default_rng(0)).tolist() == [[3, 2]]
    assert follow(np.array([3.0, 2.0]), [motion] * 4).points.tolist() == [[3, 2], [12, 2]]  # it left the frame
    drawn = {"width": 24, "height": 20, "frames": 6, "strokes": [{"points": [[4, 10], [14, 10]]}]}
    (tmp_path / "drawn").mkdir()
    (tmp_path / "drawn" / "a.json").write_text(json.dumps(drawn))
    annotate(videos / "a.mp4", tmp_path / "by_hand", "strokes", StrokesOfVideos(strokes=str(tmp_path / "drawn")))
    by_hand, _ = decoded(read(tmp_path / "by_hand" / "a.mp4"))
    assert by_hand[1, 20, 12].tolist() == pytest.approx([4, 0], abs=0.05)  # twice the size
    found = annotate(videos, tmp_path / "some", "strokes", StrokesOfVideos(strokes=str(tmp_path / "drawn")))
    assert found.written == 1 and "permitted: the folder deep/b" in found.skipped["deep/b.mp4"]


def test_depth_comes_from_files_of_any_size(videos, tmp_path):
    from PIL import Image

    levels = np.linspace(0, 1, FRAMES)[:, None, None] * np.ones((1, 10, 12)) * 0.5
    levels[:, :, 6:] += 0.5
    (tmp_path / "depth" / "a").mkdir(parents=True)
    for frame, level in enumerate(levels):
        Image.fromarray((level * 60000).astype(np.uint16)).save(tmp_path / "depth" / "a" / f"{frame + 5}.png")
    (tmp_path / "depth" / "deep").mkdir()
    np.save(tmp_path / "depth" / "deep" / "b.npy", levels[:4].astype(np.float32))
    found = annotate(videos, tmp_path / "maps", "depth", Depth(depth=str(tmp_path / "depth")))
    assert found.written == 2
    maps = read(tmp_path / "maps" / "a.mp4")
    assert maps.shape == (FRAMES, HEIGHT, WIDTH, 3)
    np.testing.assert_allclose(maps[:, 5, 5, 0], levels[:, 0, 0] * 255, atol=1.5)  # frames 10 come after 9
    np.testing.assert_allclose(maps[:, 5, 40, 0], levels[:, 0, 8] * 255, atol=1.5)
    near = annotate(videos / "a.mp4", tmp_path / "near", "depth",
                    Depth(depth=str(tmp_path / "depth"), invert=True, range="frame"))
    near = read(tmp_path / "near" / "a.mp4")
    assert (near[:, 5, 5] == 255).all() and (near[:, 5, 40] == 0).all()
    np.save(tmp_path / "depth" / "deep" / "b.npy", np.full((4, 4, 4), np.nan))
    with refused("annotate", "NaN"):
        annotate(videos / "deep" / "b.mp4", tmp_path / "nan", "depth", Depth(depth=str(tmp_path / "depth" / "deep")))
    np.save(tmp_path / "depth" / "deep" / "b.npy", levels[:3])
    with refused("annotate", "3 maps of depth for 4 frames"):
        annotate(videos / "deep" / "b.mp4", tmp_path / "nan", "depth", Depth(depth=str(tmp_path / "depth" / "deep")))
    with (tmp_path / "depth" / "deep" / "b.npy").open("wb") as file:
        np.savez(file, levels[:4])  # several arrays under the ending of one
    with refused("annotate", "b.npy", "not a readable array"):
        annotate(videos / "deep" / "b.mp4", tmp_path / "nan", "depth", Depth(depth=str(tmp_path / "depth" / "deep")))
    write_png(tmp_path / "colour" / "b" / "0.png", square()[0])
    for frame in range(1, 4):
        write_png(tmp_path / "colour" / "b" / f"{frame}.png", square()[0])
    with refused("annotate", "0.png", "mode RGB"):
        annotate(videos / "deep" / "b.mp4", tmp_path / "rgb", "depth", Depth(depth=str(tmp_path / "colour")))
