"""BAIR robot pushing from its TFRecord files, or from folders of pictures; see `published.BAIRRobotPushing`."""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np

from vdm_jax.data.image_folder import opened
from vdm_jax.data.published_set import PublishedSet
from vdm_jax.data.tfrecord import read_record, record_places
from vdm_jax.data.whole_videos import WholeVideos
from vdm_jax.errors import UserError

MAX_PICTURES = 10_000  # of a video that is a folder of pictures
SHAPE = (64, 64, 3)  # of a stored frame, raw pixels


def open_robot_pushing(spec: PublishedSet, split: str) -> WholeVideos:
    """The clips of one split, from records where the folder has them, else from pictures."""
    records = spec.folder / "softmotion30_44k"
    return RobotRecordsSource(spec, split) if records.is_dir() else RobotPicturesSource(spec, split)


class RobotRecordsSource(WholeVideos):
    """Videos that are records of `softmotion30_44k/PART/*.tfrecords`, in the order of the file names."""

    def __init__(self, spec: PublishedSet, split: str):
        super().__init__(spec, split)
        self._places: list[tuple[Path, tuple[int, int]]] = []
        for part in spec.parts(split):
            paths = sorted((spec.folder / "softmotion30_44k" / part).glob("*.tfrecord*"))
            if not paths:
                raise spec.missing(f"no records in softmotion30_44k/{part}")
            self._places += [(path, place) for path in paths for place in record_places(path)]

    def __len__(self) -> int:
        return len(self._places)

    @functools.cached_property
    def names(self) -> list[str]:
        """File and offset of each video."""
        return [f"{path.relative_to(self.spec.folder)}, byte {place[0]}" for path, place in self._places]

    def video(self, index: int) -> np.ndarray:
        """All frames of one camera, uint8 `[30, 64, 64, 3]`. Raises `UserError` for a damaged record."""
        path, place = self._places[index]
        try:
            with open(path, "rb") as file:
                stored = read_record(file, place)
        except OSError as error:
            raise UserError(f"cannot be read: {error.strerror}") from error
        frames = []
        while (pixels := stored.get(f"{len(frames)}/{self.spec.camera}/encoded")) is not None:
            if len(pixels) != np.prod(SHAPE):
                raise UserError(f"a frame of {len(pixels)} bytes; permitted: {np.prod(SHAPE)}, raw pixels of 64x64x3")
            frames.append(np.frombuffer(pixels, np.uint8).reshape(SHAPE))
        if not frames:
            raise UserError(f"no frames of camera {self.spec.camera!r}; permitted: records with "
                            f"N/{self.spec.camera}/encoded")
        return np.stack(frames)


class RobotPicturesSource(WholeVideos):
    """Videos that are folders of pictures below `PART/`, in the order of their names; frames in the order of their
    numbers."""

    def __init__(self, spec: PublishedSet, split: str):
        super().__init__(spec, split)
        self._videos: list[Path] = []
        for part in spec.parts(split):
            folders = sorted({path.parent for path in (spec.folder / part).rglob("*.png")})
            if not folders:
                raise spec.missing(f"neither softmotion30_44k nor pictures in {part}")
            self._videos += folders

    def __len__(self) -> int:
        return len(self._videos)

    @functools.cached_property
    def names(self) -> list[str]:
        """The folder of each video."""
        return [str(path.relative_to(self.spec.folder)) for path in self._videos]

    def video(self, index: int) -> np.ndarray:
        """All frames, uint8 `[T, H, W, 3]`. Raises `UserError` where a picture is damaged or another size."""
        folder = self._videos[index]
        paths = list(folder.glob("*.png"))
        wrong = [path.name for path in paths if not (path.stem.isdecimal() and len(path.stem) < 10)]
        if wrong:
            raise UserError(f"picture {wrong[0]!r}; permitted: frames named by number, 0.png, 1.png, ...")
        paths.sort(key=lambda path: int(path.stem))
        if not 0 < len(paths) <= MAX_PICTURES:
            raise UserError(f"{len(paths)} pictures; permitted: 1 to {MAX_PICTURES}")
        frames = []
        for path in paths:
            try:
                with opened(path) as image:
                    frames.append(np.asarray(image.convert("RGB")))
            except UserError as error:
                raise UserError(f"{path.name}: {error}", error.code) from error
            if frames[-1].shape != frames[0].shape:
                raise UserError(f"{path.name} has {list(frames[-1].shape)} pixels; permitted: {list(frames[0].shape)} "
                                f"like {paths[0].name}")
        return np.stack(frames)
