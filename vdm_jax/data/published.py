"""The video sets that papers report on, from the files their authors distribute or from TFDS, with the official splits.

Nothing is downloaded here: an error says what is missing, where it is published, and how the folder has to look.
Every set gives one clip per video: its beginning, or with `Training.random_starts` any part of it. Captions are the
names of the classes in words.

How the papers cut frames to squares, and where in a video their clips begin, is not published; frames are cut centrally
to the aspect ratio and then averaged down, as for every other set.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from vdm_jax.configuration import Count, Size, config
from vdm_jax.data.moving_mnist import open_moving_mnist
from vdm_jax.data.published_files import kinetics_files, ucf101_files
from vdm_jax.data.published_set import Download, PublishedSet
from vdm_jax.data.robot_pushing import open_robot_pushing
from vdm_jax.data.source import RandomAccessSource
from vdm_jax.data.tfds_video import TFDSVideoSource
from vdm_jax.data.video_folder import VideoFolderSource
from vdm_jax.errors import UserError

Via = Literal["folder", "tfds"]
Splits = tuple[str, str, str]


@config
class UCF101(PublishedSet):
    """UCF101 (Soomro et al. 2012, arXiv 1212.0402): 13,320 videos of 101 actions, 320x240 at 25 frames per second.

    Three official divisions into train and test; none has a validation part. Video Diffusion Models (arXiv 2204.03458)
    trains on all videos: splits=("train+test", "test", "test").
    """

    DOWNLOAD = Download("UCF101.rar and UCF101TrainTestSplits-RecognitionTask.zip (7 GB)",
                        "https://www.crcv.ucf.edu/data/UCF101.php",
                        ("UCF-101/ApplyEyeMakeup/v_ApplyEyeMakeup_g01_c01.avi", "ucfTrainTestlist/classInd.txt",
                         "ucfTrainTestlist/trainlist01.txt", "ucfTrainTestlist/testlist01.txt"))
    PARTS = ("train", "test")

    via: Via = "folder"
    division: Literal[1, 2, 3] = 1  # official division into train and test: 1, 2 or 3
    splits: Splits = ("train", "test", "test")

    def open(self, split: str, data_dir: Path) -> RandomAccessSource:
        """The clips of one split. Raises `UserError` saying what to fetch where files are missing."""
        parts = self.parts(split)
        if self.via == "tfds":  # its default configuration would squash frames to squares
            return TFDSVideoSource(self.tfds(f"ucf101/ucf101_{self.division}"), split)
        return VideoFolderSource(self.videos(), split, ucf101_files(self, parts))


@config
class BAIRRobotPushing(PublishedSet):
    """BAIR robot pushing, small (Ebert et al. 2017, arXiv 1710.05268): videos of 30 frames of 64x64, 43,264 for
    training and 256 for test, where papers predict 15 frames from 1.

    Read as distributed, or from folders of pictures, one folder per video with its frames as 0.png, 1.png, ...
    """

    DOWNLOAD = Download("bair_robot_pushing_dataset_v0.tar (32 GB)",
                        "http://rail.eecs.berkeley.edu/datasets/bair_robot_pushing_dataset_v0.tar",
                        ("softmotion30_44k/train/*.tfrecords", "softmotion30_44k/test/*.tfrecords (or pictures: "
                         "train/VIDEO/0.png ... and test/VIDEO/0.png ...)"))
    PARTS = ("train", "test")

    via: Via = "folder"
    camera: Literal["image_main", "image_aux1"] = "image_main"  # which of the two; papers do not say
    splits: Splits = ("train", "test", "test")

    def open(self, split: str, data_dir: Path) -> RandomAccessSource:
        """The clips of one split. Raises `UserError` saying what to fetch where files are missing."""
        if self.via == "tfds":
            return TFDSVideoSource(self.tfds("bair_robot_pushing_small", frames_key=self.camera), split)
        return open_robot_pushing(self, split)


@config
class Kinetics600(PublishedSet):
    """Kinetics-600 (Carreira et al. 2018, arXiv 1808.01340): videos of about 10 s of 600 actions, where papers predict
    11 frames from 5, reporting on the test part. Videos have vanished since: copies differ in what they hold."""

    DOWNLOAD = Download("k600_downloader.sh and k600_extractor.sh (779 GB of videos; run both)",
                        "https://github.com/cvdfoundation/kinetics-dataset",
                        ("train/*.mp4", "val/*.mp4", "test/*.mp4", "annotations/train.csv (or train.txt)",
                         "annotations/val.csv", "annotations/test.csv"))
    PARTS = ("train", "val", "test")

    # Captions from the annotations by YouTube id, from the folders that videos lie in (train/archery/...), or none.
    labels: Literal["annotations", "folders", "none"] = "annotations"
    splits: Splits = ("train", "val", "test")

    def open(self, split: str, data_dir: Path) -> RandomAccessSource:
        """The clips of one split. Raises `UserError` saying what to fetch where files are missing."""
        return VideoFolderSource(self.videos(), split, kinetics_files(self, self.parts(split)))


@config
class MovingMNIST(PublishedSet):
    """Moving MNIST (Srivastava et al. 2015, arXiv 1502.04681): 20 frames of 64x64 with two digits that bounce.

    The authors publish the 10,000 test videos; training videos are generated from the digits of MNIST's training part
    by the procedure that TFDS gives for it (`moving_mnist.py`), whose speeds need not be those of the test videos.
    """

    DOWNLOAD = Download("mnist_test_seq.npy (819 MB) and the digits' train-images-idx3-ubyte.gz (10 MB)",
                        "http://www.cs.toronto.edu/~nitish/unsupervised_video/ and "
                        "https://storage.googleapis.com/cvdf-datasets/mnist/",
                        ("mnist_test_seq.npy", "train-images-idx3-ubyte.gz"))
    PARTS = ("train", "test")

    frames: Size = 20
    via: Via = "folder"
    # How many are generated before they repeat; with Training.random_starts none does. The authors generate endlessly.
    train_videos: Count = 10_000
    splits: Splits = ("train", "test", "test")

    def __post_init__(self):
        super().__post_init__()
        if any(split not in self.PARTS for split in self.splits):
            raise UserError(f"MovingMNIST.splits={self.splits!r}; permitted: {', '.join(self.PARTS)} for each")

    def open(self, split: str, data_dir: Path) -> RandomAccessSource:
        """The clips of one split, generated ones for training. Raises `UserError` saying what to fetch."""
        return open_moving_mnist(self, split)


PublishedVideo = UCF101 | BAIRRobotPushing | Kinetics600 | MovingMNIST
