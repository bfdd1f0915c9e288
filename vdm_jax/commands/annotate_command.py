"""`vdm-jax annotate`: control maps of videos."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import tyro

from vdm_jax.commands.arguments import parse, refuse_unused
from vdm_jax.commands.outputs import check_folder
from vdm_jax.configuration import Count, NonNegative, Seed, Share, ShareAboveZero, Size
from vdm_jax.data.names import printable
from vdm_jax.errors import UserError

Kind = Literal["canny", "hed", "pose", "depth", "flow", "strokes"]


@dataclasses.dataclass(frozen=True)
class Annotate:
    """Make control maps of a video, or of all videos below a folder, that VideoFolder(controls=...) in a config and
    'vdm-jax sample --control' read.

    Maps are videos without loss, of the same names, sizes and frames. Files that are there are left as they are: an
    interrupted run goes on where it stopped. Keypoints, depth and drawn strokes come from files, in --keypoints,
    --depth and --strokes, a folder with a file or folder of each video's name: JSON of OpenPose or COCO; .npy or .png
    of 16 bits; JSON of strokes. Depth also comes from a released network, in --model: near is white, without --invert.
    Optical flow and strokes are pictures of displacements: red to the right, green down, 128 for none, blue 255 where
    there is one.

    Examples:
      vdm-jax annotate videos --kind canny
      vdm-jax annotate videos --kind pose --keypoints openpose_json
      vdm-jax annotate videos --kind depth --depth depth_anything --out data/depth
      vdm-jax annotate videos --kind depth --model dpt-large
      vdm-jax annotate dance.mp4 --kind hed
    """

    videos: tyro.conf.Positional[Path]  # a video, or a folder of videos
    kind: Kind  # of maps
    out: Path | None = None  # folder of the maps; by default one next to VIDEOS, VIDEOS-KIND
    low: NonNegative = 100.0  # canny: an edge goes on down to this gradient of 8-bit grey
    high: NonNegative = 200.0  # canny: and begins above this one
    keypoints: Path | None = None  # pose: folder of keypoints
    confidence: Share = 0.1  # pose: points below it are not drawn
    depth: Path | None = None  # depth: folder of depth made by another program
    model: Path | None = None  # depth: folder of a network, as transformers saves DPTForDepthEstimation
    range: Literal["video", "frame"] = "video"  # depth: of what the extremes are black and white
    invert: bool = False  # depth: the values grow with the distance
    stride: Size = 1  # flow: frames from one to the other; the frame_stride of the clips
    strokes: Path | None = None  # strokes: folder of those drawn by hand; by default they follow the flow
    count: Count = 8  # strokes along the flow: points at a time
    span: Size = 16  # strokes along the flow: frames for which a point is followed
    seed: Seed = 0  # strokes along the flow: of the points
    radius: Share = 2 / 64  # strokes: of the disc of a step, as a share of the height
    limit: ShareAboveZero = 0.125  # flow, strokes: largest displacement, as a share of the height


def main(arguments: Sequence[str]) -> int:
    """Entry of the command."""
    options = parse(Annotate, arguments, "vdm-jax annotate")
    if not options.videos.exists():
        raise UserError(f"videos={options.videos} does not exist; permitted: a video, or a folder of videos")
    from vdm_jax.annotation.folder import KINDS, annotate
    from vdm_jax.commands.progress import counting_progress

    own = {field.name for field in dataclasses.fields(KINDS[options.kind])}
    others = [field.name for field in dataclasses.fields(options) if field.name not in {*own, "videos", "kind", "out"}]
    refuse_unused(options, others, f"with --kind {options.kind}", "the options of that kind")
    values = {name: getattr(options, name) for name in own}
    for name in {"keypoints", "depth", "model", "strokes"} & own:
        folder = values[name]
        if folder is None and name == "keypoints":
            raise UserError(f"--{name} is missing; permitted: a folder, with --kind {options.kind}")
        if folder is not None and not folder.is_dir():
            holding = "a model's folder" if name == "model" else "a folder with a file or folder of each video's name"
            raise UserError(f"--{name}={folder} is not a folder; permitted: {holding}")
        values[name] = None if folder is None else str(folder)
    videos = options.videos.absolute()
    out = options.out or options.videos.with_name(f"{videos.stem if videos.is_file() else videos.name}-{options.kind}")
    check_folder(out.expanduser())
    with counting_progress("making ") as progress:
        found = annotate(videos, out.expanduser(), options.kind, KINDS[options.kind](**values),
                         lambda done, total: progress(options.kind, done, total))
    print(f"{out}: {found.written} written, {found.there} there before, {len(found.skipped)} skipped")
    for name, reason in itertools.islice(found.skipped.items(), 5):
        print(f"  {printable(name)}: {printable(reason)}")
    return 0
