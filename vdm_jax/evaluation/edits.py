"""Scores of edited videos, as papers on editing report them: how consistent frames are by CLIP, how they fit the
prompt, and whether they move as the given video does.

Which videos are edited by which prompts is a list, a JSON file next to the given videos; the papers' own lists and
prompts are not part of this package. An edit is a file in another folder, `NAME_NUMBER.mp4` of the given video's name
and the number of the prompt, from 0 on.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import numpy as np
from jaxtyping import Float, UInt8

from vdm_jax.configuration import Length, config, from_json
from vdm_jax.errors import UserError
from vdm_jax.evaluation.run_metrics import RunMetrics
from vdm_jax.metrics import flow, frames
from vdm_jax.metrics.detectors import clip, weights
from vdm_jax.metrics.scores import Score
from vdm_jax.video.reading import VideoReader

EditMetric = Literal["clip_frame_consistency", "clip_frame_consistency_all", "prompt_consistency", "frame_accuracy",
                     "warp_error"]
EDIT_METRICS: tuple[EditMetric, ...] = get_args(EditMetric)
LISTED = 5  # missing files that an error names
ROUNDING = 0.75  # frames by which an edit may be longer: half a frame by its whole number of them, and stored times


@dataclasses.dataclass(frozen=True)
class EditProtocol:
    """How many videos and prompts a paper's numbers are of; what they are is in its own list."""

    videos: int
    prompts: int  # of all videos together
    each: int | None  # prompts of a video; None: not all have as many
    source: str

    def deviations(self, edits: EditList) -> tuple[str, ...]:
        """In what a list differs."""
        counts = [len(video.prompts) for video in edits.videos]
        found = []
        if len(counts) != self.videos:
            found.append(f"{len(counts)} videos, not {self.videos}")
        if sum(counts) != self.prompts:
            found.append(f"{sum(counts)} prompts, not {self.prompts}")
        if self.each is not None and set(counts) != {self.each}:
            found.append(f"{min(counts)} to {max(counts)} prompts of a video, not {self.each}")
        return tuple(found)


EDIT_PROTOCOLS = {
    "controlvideo_davis": EditProtocol(25, 125, 5, "Zhang et al. 2023, arXiv 2305.13077"),
    "tune_a_video_davis": EditProtocol(42, 140, None, "Wu et al. 2022, arXiv 2212.11565"),
}
EditProtocolName = Literal[tuple(EDIT_PROTOCOLS)]


@config
class GivenVideo:
    """A given video and what it is edited to."""

    file: str  # in the folder of the list
    prompts: Annotated[tuple[str, ...], Length()]
    source_prompt: str = ""  # what it shows, for frame_accuracy


@config
class EditList:
    """Which videos are edited by which prompts."""

    videos: Annotated[tuple[GivenVideo, ...], Length()]

    def __post_init__(self):
        names = [Path(video.file).stem for video in self.videos]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise UserError(f"EditList.videos has {twice[0]!r} twice; permitted: files of different names")

    def files(self) -> Iterator[tuple[GivenVideo, str, str]]:
        """Each edit: the given video, the prompt and the name of the file."""
        for video in self.videos:
            for number, prompt in enumerate(video.prompts):
                yield video, prompt, f"{Path(video.file).stem}_{number}.mp4"


def read_edit_list(path: Path) -> EditList:
    """The list of a file. Raises `UserError` for one that cannot be read, and naming the first field that is off."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"edits={path} cannot be read ({type(error).__name__}); permitted: a JSON file",
                        "edits.list") from error
    return from_json(EditList, text, str(path))


@dataclasses.dataclass(frozen=True)
class ExpectedFile:
    """A file that a list asks for."""

    path: Path
    prompt: str | None  # of an edit; None: a given video
    there: bool


@dataclasses.dataclass(frozen=True)
class Expected:
    """What a list and a protocol ask for, and what is there of it."""

    files: tuple[ExpectedFile, ...]  # given videos, then their edits
    deviations: tuple[str, ...]  # of the list from the protocol
    other: tuple[str, ...]  # what else cannot be measured, such as weights that are not there

    @property
    def complete(self) -> bool:
        """Whether everything is there that is needed to measure by the protocol."""
        return all(file.there for file in self.files) and not self.deviations and not self.other

    def table(self) -> str:
        """A line for each file, and what is missing at the end."""
        lines = []
        for file in self.files:
            what = "given video" if file.prompt is None else repr(file.prompt)
            lines.append(f"{'there  ' if file.there else 'missing'}  {file.path}  {what}")
        missing = sum(not file.there for file in self.files)
        lines.append(f"{missing} of {len(self.files)} files are missing")
        return "\n".join([*lines, *(f"off protocol: {text}" for text in self.deviations),
                          *(f"missing: {text}" for text in self.other)])


@config
class EditSettings:
    """What to measure of edits."""

    metrics: Annotated[tuple[EditMetric, ...], Length()] = EDIT_METRICS
    protocol: EditProtocolName | None = None  # whose numbers of videos and prompts the list must have; None: any
    clip: clip.ModelName = "ViT-L-14"


def evaluate_edits(
    folder: Path, edits: Path, settings: EditSettings, *,
    progress: Callable[[str, int, int], None] = lambda what, done, total: None,
) -> RunMetrics:
    """Measure edited videos, file by file, so that memory does not grow with their number.

    Args:
      folder: of the edits.
      edits: the list; given videos are in its folder.
      settings: what to measure.
      progress: called with (what, files done, files in all).

    Raises `UserError` for a list that cannot be read, files that are missing (all of them counted, the first ones
    named), edits that are longer than the given video, and missing weights.
    """
    listed = read_edit_list(edits)
    _check(folder, edits.parent, listed, settings)
    places, values = list(listed.files()), {name: [] for name in settings.metrics}
    for done, (given, prompt, name) in enumerate(places):
        for metric, value in _measured(folder / name, edits.parent / given.file, given, prompt, settings).items():
            values[metric].append(value)
        progress("edited videos", done + 1, len(places))
    scores = tuple(_score(metric, np.array(found), listed, settings) for metric, found in values.items())
    return RunMetrics(scores=scores, real=(), settings=dataclasses.asdict(settings) | {
        "folder": str(folder), "edits": str(edits)})


def expected(folder: Path, edits: Path, settings: EditSettings) -> Expected:
    """What `evaluate_edits` would read of the same arguments, and what is missing of it. Raises `UserError` for a list
    that cannot be read."""
    listed = read_edit_list(edits)
    protocol = None if settings.protocol is None else EDIT_PROTOCOLS[settings.protocol]
    other = []
    for check in (_check_prompts, _check_packages):
        try:
            check(listed, settings)
        except UserError as error:
            other.append(str(error))
    return Expected(_files(folder, edits.parent, listed), () if protocol is None else protocol.deviations(listed),
                    tuple(other))


def _files(folder: Path, given: Path, listed: EditList) -> tuple[ExpectedFile, ...]:
    """The given videos of a list, and the edits of them."""
    found = [(given / video.file, None) for video in listed.videos]
    found += [(folder / name, prompt) for _, prompt, name in listed.files()]
    return tuple(ExpectedFile(path, prompt, path.is_file()) for path, prompt in found)


def _check(folder: Path, given: Path, listed: EditList, settings: EditSettings) -> None:
    """Raise `UserError` for what cannot be measured, before anything is."""
    paths = _files(folder, given, listed)
    if missing := [str(file.path) for file in paths if not file.there]:
        more = f" and {len(missing) - LISTED} more" if len(missing) > LISTED else ""
        raise UserError(f"{len(missing)} of {len(paths)} files are missing: {', '.join(missing[:LISTED])}{more}; "
                        "permitted: every video of the list, and NAME_NUMBER.mp4 of each of its prompts",
                        "edits.missing")
    _check_prompts(listed, settings)
    _check_packages(listed, settings)


def _check_prompts(listed: EditList, settings: EditSettings) -> None:
    """Raise `UserError` for a list that does not say what a metric compares with."""
    unsaid = [video.file for video in listed.videos if not video.source_prompt]
    if unsaid and "frame_accuracy" in settings.metrics:
        raise UserError(f"frame_accuracy without source_prompt of {unsaid[0]}; permitted: what each given video shows, "
                        "or other metrics", "edits.source_prompt")


def _check_packages(listed: EditList, settings: EditSettings) -> None:
    """Raise `UserError` for packages and weights that a metric needs and that are not there."""
    if "warp_error" in settings.metrics:
        flow.require_opencv()
    if set(settings.metrics) - {"warp_error"}:
        weights.find(clip.find_model(settings.clip).file)
    if {"prompt_consistency", "frame_accuracy"} & set(settings.metrics):
        clip.merges_file(settings.clip)


def _measured(
    edited: Path, source: Path, given: GivenVideo, prompt: str, settings: EditSettings
) -> dict[str, float]:
    """The metrics of an edit."""
    with VideoReader(edited) as file:
        video, fps = np.asarray(file.frames(range(len(file)))), file.fps
    if len(video) < 2:
        raise UserError(f"{edited} has {len(video)} frame; permitted: from 2", "edits.frames")
    found: dict[str, float] = {}
    if set(settings.metrics) - {"warp_error"}:
        found = _by_clip(video, given.source_prompt, prompt, settings)
    if "warp_error" in settings.metrics:
        guide = _given_frames(source, edited, video, fps)
        found["warp_error"] = float(flow.warp_error(video[None], guide[None])[0])
    return {name: found[name] for name in settings.metrics}


def _by_clip(
    video: UInt8[np.ndarray, "T H W 3"], source_prompt: str, prompt: str, settings: EditSettings
) -> dict[str, float]:
    """The metrics of CLIP's embeddings."""
    names, embeddings = settings.metrics, np.asarray(clip.image_embeddings(video, settings.clip))[None]
    found = {name: float(frames.consistency(embeddings, pairs)[0]) for name, pairs in (
        ("clip_frame_consistency", "consecutive"), ("clip_frame_consistency_all", "all")) if name in names}
    if "prompt_consistency" in names or "frame_accuracy" in names:
        texts = np.asarray(clip.text_embeddings([prompt, source_prompt], settings.clip))
        found["prompt_consistency"] = float(frames.similarity(embeddings, texts[:1])[0])
        found["frame_accuracy"] = frame_accuracy(embeddings[0], texts[0], texts[1])
    return found


def frame_accuracy(
    embeddings: Float[np.ndarray, "T D"], text: Float[np.ndarray, " D"], source: Float[np.ndarray, " D"]
) -> float:
    """Share of the frames that are nearer to the new prompt than to that of the given video, by the cosine of CLIP's
    embeddings (Fram-Acc of Yang et al. 2023, arXiv 2306.07954)."""
    nearer = [frames.similarity(embeddings[:, None], np.repeat(each[None], len(embeddings), axis=0))
              for each in (text, source)]
    return float(np.mean(nearer[0] > nearer[1]))


def _given_frames(
    source: Path, edited: Path, video: UInt8[np.ndarray, "T H W 3"], fps: float
) -> UInt8[np.ndarray, "T H W 3"]:
    """The frames of the given video that were edited, in the size of the edit: those on screen at its times, as the
    edit was read. Raises `UserError` for an edit that goes on after the given video's end."""
    with VideoReader(source) as file:
        there = file.duration * fps  # of the edit's frames
        if len(video) > there + ROUNDING:
            raise UserError(f"{edited} has {len(video)} frames at {fps:g} a second, for {there:.3g} that {source} "
                            "lasts; permitted: as long or shorter", "edits.frames")
        numbers = file.index.at(np.arange(len(video)) / fps)
        return np.asarray(file.frames(numbers, *video.shape[1:3]))


def _score(metric: EditMetric, values: Float[np.ndarray, " N"], listed: EditList, settings: EditSettings) -> Score:
    """The mean of a metric over all edits."""
    conditions: dict[str, Any] = {"given_videos": len(listed.videos)}
    own: tuple[str, ...] = ()
    if metric == "warp_error":
        conditions |= {"flow": "DIS", "of": "the given video", "range": "[0, 1]"}
        own = ("flow by DIS, not by a learned network",)
    detector = None if metric == "warp_error" else clip.find_model(settings.clip).file
    score = frames.mean_score(metric, values, "lower" if metric == "warp_error" else "higher", conditions, detector)
    if settings.protocol is None:
        return score
    deviations = EDIT_PROTOCOLS[settings.protocol].deviations(listed)
    return dataclasses.replace(score, protocol=settings.protocol, deviations=(*deviations, *own))
