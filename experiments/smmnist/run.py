"""What scores on Stochastic Moving MNIST, 5 -> 10, can be: those of predictions that no network makes (`predictors.py`)
under the protocol mcvd_smmnist.

Run:  python -m experiments.smmnist.run          (needs requirements/metrics.txt and mnist-no-deps.txt)

Every number is written when it is there, and features are kept in --work, so an interrupted run goes on.
results/cpu.json is the record.
"""

from __future__ import annotations

import dataclasses
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import tyro
from jaxtyping import Float, UInt8

from experiments.smmnist import predictors
from experiments.smmnist.predictors import CLIPS, FRAMES, GIVEN, TRAJECTORIES, Videos
from vdm_jax.benchmark.machine import describe, versions
from vdm_jax.benchmark.record import open_record, save
from vdm_jax.configuration import digest
from vdm_jax.data.mnist import SHA256
from vdm_jax.metrics import frames
from vdm_jax.metrics.detectors import weights
from vdm_jax.metrics.fvd import FeatureSet, fvd, i3d_features, trajectory_fvd
from vdm_jax.metrics.fvd_protocols import find_protocol
from vdm_jax.metrics.measures import MEASURES, Measure
from vdm_jax.metrics.prediction import video_mse
from vdm_jax.video.writing import atomic_path

FOLDER = Path(__file__).parent
PROTOCOL = find_protocol("mcvd_smmnist")
PART = 32  # clips whose features are kept together
# Added to the mean squared error before PSNR, which is infinite for an exact prediction (1 in 20 of the oracle's best)
ERROR_FLOOR = 0.001
FRAME_METRICS = ("mcvd_mse", "mcvd_psnr", "mcvd_ssim")  # that need no network


@dataclasses.dataclass(frozen=True)
class Run:
    """Score the oracle, its blurred mean and predictions that know nothing."""

    work: Path = Path("runs/smmnist_floor")  # where features are kept
    out: Path = FOLDER / "results" / "cpu.json"
    trajectories: int = TRAJECTORIES  # of the oracle whose FVD is measured; what is missing is said in the record
    fresh: bool = False  # forget the record


@dataclasses.dataclass(frozen=True)
class Predictor:
    """Predictions of the clips: a trajectory by its number."""

    name: str  # in the record
    videos: Callable[[Any, int], Videos]
    trajectories: int = 1
    test_digits: int = 256
    features: str = ""  # name of the files of its features; "": FVD is not measured


PREDICTORS = (
    Predictor("oracle", predictors.oracle, TRAJECTORIES, features="oracle"),
    Predictor("oracle, all test digits", predictors.oracle, TRAJECTORIES, test_digits=10_000),
    Predictor("blurred mean", lambda source, _: predictors.blurred_mean(source), features="mean"),
    Predictor("last frame", lambda source, _: predictors.last_frame(source), features="last"),
    Predictor("black", lambda source, _: predictors.black(source)),
)


def main() -> None:
    """Entry of the script."""
    options = tyro.cli(Run)
    source = predictors.test_clips()
    record = open_record(options.out, fresh=options.fresh, about={
        "device": describe(jax.devices()[0], 1), "versions": versions(),
        "protocol": {"name": PROTOCOL.name, "source": PROTOCOL.source, "clips": CLIPS, "given": GIVEN, "frames": FRAMES,
                     "trajectories": TRAJECTORIES, "averaged": predictors.AVERAGED, "error_floor": ERROR_FLOOR,
                     "data": digest(source.spec), "mnist": SHA256, "i3d": weights.I3D.sha256}})
    record["command"] = "python -m experiments.smmnist.run"
    options.work.mkdir(parents=True, exist_ok=True)

    def measured(row: str, name: str, make: Callable[[], Any]) -> None:
        entries = record["rows"].setdefault(row, {})
        if name in entries:
            return
        start = time.perf_counter()
        entries[name] = {"score": make(), "seconds": round(time.perf_counter() - start, 1)}
        save(options.out, record)
        print(row, name, entries[name], file=sys.stderr, flush=True)

    for one in PREDICTORS:
        of_frames = {name: MEASURES[name] for name in FRAME_METRICS} | {"psnr_floored": FLOORED}
        measured(one.name, "frames", lambda one=one, of_frames=of_frames: scores(one, of_frames))
    measured("black against white", "fvd", regression)
    real = kept("real", lambda: predictors.real(source), options.work)
    for count in range(1, options.trajectories + 1):
        for one in (one for one in PREDICTORS if one.features and count <= one.trajectories):
            fvd_of(one, count, source, real, options.work, record, options.out)
    for one in (one for one in PREDICTORS if one.features):
        measured(one.name, "lpips", lambda one=one: scores(one, {"mcvd_lpips": MEASURES["mcvd_lpips"]}))


def fvd_of(one: Predictor, count: int, source: Any, real: FeatureSet, work: Path, record: dict[str, Any], out: Path
           ) -> None:
    """The FVD of the first `count` trajectories, in the record in place of that of fewer."""
    row, start = record["rows"][one.name], time.perf_counter()
    if len(row.get("fvd", {}).get("score", {}).get("details", {}).get("trajectories", ())) >= count:
        return
    sets = [kept(f"{one.features}{k:02d}" if one.trajectories > 1 else one.features,
                 lambda k=k: one.videos(source, k), work) for k in range(count)]
    found = trajectory_fvd(real, sets, PROTOCOL, resamples=0).to_dict()
    row["fvd"] = {"score": found, "seconds": round(time.perf_counter() - start, 1)}
    save(out, record)
    print(one.name, found["label"], found["value"], file=sys.stderr, flush=True)


def floored_psnr(videos: Videos, real: Videos) -> Float[np.ndarray, " N"]:
    """PSNR of the whole video, dB, with the error floor."""
    return -10 * np.log10(video_mse(videos, real) + ERROR_FLOOR)


FLOORED = Measure(values=floored_psnr, better="higher", paired=True, best=True, conditions={"error_floor": ERROR_FLOOR})


def scores(one: Predictor, measures: Mapping[str, Measure]) -> dict[str, Any]:
    """Measures of the predicted frames: the best trajectory of each clip, and the first alone."""
    source = predictors.test_clips(one.test_digits)
    real, values = predictors.real(source)[:, GIVEN:], {name: [] for name in measures}
    for trajectory in range(one.trajectories):
        videos = one.videos(source, trajectory)[:, GIVEN:]
        for name, measure in measures.items():
            values[name].append(measure.values(videos, real))
    return {name: frames.best_score(name, np.stack(values[name]), measure.better, measure.conditions,
                                    measure.detector).to_dict() for name, measure in measures.items()}


def regression() -> dict[str, Any]:
    """8 clips of 30 black frames against 8 of white ones, 64x64: a published value of the port that MCVD uses."""
    def side(level: int) -> FeatureSet:
        clip = np.full((30, 64, 64, 3), level, np.uint8)
        features = i3d_features([clip], PROTOCOL.resize).repeat(8, 0)
        return feature_set(features, f"level {level}", 30)

    return fvd(side(0), side(255), PROTOCOL, resamples=0).to_dict()


def kept(name: str, make: Callable[[], UInt8[np.ndarray, "N T H W 3"]], work: Path) -> FeatureSet:
    """I3D features of videos, part by part, each kept."""
    videos, parts = None, []
    for start in range(0, CLIPS, PART):
        path = work / f"{name}-{start:03d}.npy"
        if not path.exists():
            videos = make() if videos is None else videos
            features = i3d_features(videos[start : start + PART], PROTOCOL.resize)
            with atomic_path(path) as temporary, open(temporary, "wb") as file:
                np.save(file, features)
            print(f"features: {name}, {start + PART} of {CLIPS}", file=sys.stderr, flush=True)
        parts.append(np.load(path, allow_pickle=False))
    return feature_set(np.concatenate(parts), f"StochasticMovingMNIST {name}")


def feature_set(features: Float[np.ndarray, "N D"], data: str, length: int = FRAMES) -> FeatureSet:
    """Features with what they are of."""
    return FeatureSet(features=features, data=data, split="test", frames=length, stride=1, size="64x64",
                      resize=PROTOCOL.resize, given_frames=GIVEN)


if __name__ == "__main__":
    main()
