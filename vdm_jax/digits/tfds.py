"""`captioned_digits` as a TFDS data set: prepared once into ArrayRecord files, read back without TensorFlow.

Videos are stored with zlib. ArrayRecord compresses too, so raw bytes end up as small (10 KB for a 16x64x64
clip of 197 KB, measured on one core) and read faster (3,900 clips/s and not 2,900), but they pass whole
through TFDS's temporary files: preparing takes 1.4 times as long and, for the default 20,000 clips, 4 GB of
scratch space and not 0.2. The records are in the order of the generator, so clip i is clip i in both.

Importing this module imports `tensorflow_datasets` (0.3 s) and registers the builder, which is why it is
apart from `vdm_jax.digits.clips`.
"""

import contextlib
import dataclasses
import fcntl
import functools
import hashlib
import io
import json
import logging
import operator
import os
import pathlib
from collections.abc import Iterator

import numpy as np
import tensorflow_datasets as tfds

from vdm_jax.configuration import SPLITS
from vdm_jax.digits.clips import DigitClips, DigitObject, generate_clip, prompts
from vdm_jax.digits.drawing import COLOURS, MOTIONS
from vdm_jax.errors import UserError
from vdm_jax.video.strides import clip_by_stride


@dataclasses.dataclass
class DigitsBuilderConfig(tfds.core.BuilderConfig):
    """A builder configuration that knows the spec it stands for."""

    spec: DigitClips = DigitClips()


def builder_config(spec: DigitClips) -> DigitsBuilderConfig:
    """The configuration of `spec`, named by its frames, its size and a digest of all its fields."""
    fields = json.dumps(dataclasses.asdict(spec), sort_keys=True)
    digest = hashlib.sha256(fields.encode()).hexdigest()[:10]
    return DigitsBuilderConfig(name=f"{spec.frames}x{spec.size}-{digest}", description=fields, spec=spec)


class CaptionedDigitsBuilder(tfds.core.GeneratorBasedBuilder):
    """Writes the splits train, validation and test. Equal specs give equal clips in equal order."""

    name = "captioned_digits"
    VERSION = tfds.core.Version("1.0.0")  # to be raised whenever a clip of some spec changes
    RELEASE_NOTES = {"1.0.0": "First release."}
    BUILDER_CONFIGS = [builder_config(DigitClips())]

    def _info(self) -> tfds.core.DatasetInfo:
        spec, features = self.builder_config.spec, tfds.features
        shape = (spec.frames, spec.size, spec.size, 3)
        return tfds.core.DatasetInfo(
            builder=self,
            description="One or two coloured handwritten digits that move as the caption says.",
            features=features.FeaturesDict(
                {
                    "video": features.Tensor(shape=shape, dtype=np.uint8, encoding=features.Encoding.ZLIB),
                    "caption": features.Text(),
                    "fps": features.Scalar(np.float32),
                    "objects": features.Sequence(
                        {
                            "digit": features.ClassLabel(num_classes=10),
                            "colour": features.ClassLabel(names=list(COLOURS)),
                            "motion": features.ClassLabel(names=list(MOTIONS)),
                        }
                    ),
                }
            ),
            metadata=tfds.core.MetadataDict(spec=dataclasses.asdict(spec)),
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager):
        return {split: self._generate_examples(split) for split in SPLITS}

    def _generate_examples(self, split):
        spec = self.builder_config.spec
        for index in range(spec.clips(split)):
            clip = generate_clip(spec, split, index)
            objects = [dataclasses.asdict(item) for item in clip.objects]
            yield index, {"video": clip.video, "caption": clip.caption, "fps": spec.fps, "objects": objects}


def prepared_path(spec: DigitClips, data_dir: str | os.PathLike) -> pathlib.Path:
    """Where the prepared records of `spec` are or would be. Each spec has its own directory."""
    builder = CaptionedDigitsBuilder
    root = pathlib.Path(data_dir).expanduser()
    return root / builder.name / builder_config(spec).name / str(builder.VERSION)


def prepare_captioned_digits(spec: DigitClips, data_dir: str | os.PathLike) -> pathlib.Path:
    """Write the three splits of `spec` below `data_dir`, unless they are there, and return their directory.

    The directory appears complete or not at all; a preparation that was killed is started anew. Processes that ask for
    the same one wait for the first.
    """
    path = prepared_path(spec, data_dir)
    if path.exists():
        return path
    with _one_at_a_time(path.parent), _quiet():
        if path.exists():
            return path
        config = builder_config(spec)
        known = CaptionedDigitsBuilder.builder_configs.get(config.name)  # TFDS refuses an equal one
        builder = CaptionedDigitsBuilder(config=known or config, data_dir=path.parents[2])
        download = tfds.download.DownloadConfig(try_download_gcs=False)
        builder.download_and_prepare(download_config=download, file_format="array_record")
    return path


class PreparedDigitsSource:
    """Random access to one split of prepared records; gives what `CaptionedDigitsSource` gives.

    Picklable: the files are opened on first use in each process.

    Raises:
      UserError: for an unknown split, or if `spec` is not prepared in `data_dir`.
    """

    def __init__(self, spec: DigitClips, data_dir: str | os.PathLike, split: str):
        self.spec, self.split, self.path = spec, split, prepared_path(spec, data_dir)
        self._length = spec.clips(split)
        if not self.path.exists():
            raise UserError(
                f"data_dir={str(data_dir)!r} holds no captioned_digits/{self.path.parent.name}; "
                "prepare_captioned_digits(spec, data_dir) makes it"
            )

    @functools.cached_property
    def _records(self):
        with _quiet():
            return tfds.builder_from_directory(self.path).as_data_source(self.split)

    def __getstate__(self) -> dict:
        return {name: value for name, value in vars(self).items() if name != "_records"}

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> dict:
        record = self._record(index)
        return {"video": record["video"], "caption": record["caption"].decode(), "fps": float(self.spec.fps)}

    def clip_at(self, index: int, rng: np.random.Generator, fps: float, frames: int) -> dict:
        """`frames` frames from anywhere in clip `index`, by the stride that comes nearest to the rate `fps`."""
        return clip_by_stride("CaptionedDigits", self[index], fps, frames, rng)

    def objects(self, index: int) -> tuple[DigitObject, ...]:
        """What clip `index` shows."""
        stored = self._record(index)["objects"]
        return tuple(
            DigitObject(int(digit), list(COLOURS)[colour], MOTIONS[motion])
            for digit, colour, motion in zip(
                *(stored[name] for name in ("digit", "colour", "motion")), strict=True
            )
        )

    def captions(self) -> Iterator[str]:
        """The caption of every clip, without reading it."""
        yield from prompts(self.spec, self.split, len(self))

    def _record(self, index):
        index = operator.index(index)
        if not 0 <= index < len(self):
            raise IndexError(f"clip {index} of {len(self)}")
        return self._records[index]


@contextlib.contextmanager
def _one_at_a_time(folder: pathlib.Path):
    """A lock on `folder` between processes of this machine; it goes with the process that holds it."""
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / ".preparing", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def _quiet():
    """Without TFDS's banners, progress bars and notes about custom configurations; its errors still come."""
    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(logging.ERROR)
    tfds.display_progress_bar(False)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        tfds.display_progress_bar(True)
        logger.setLevel(level)
