"""`vdm-jax edit`: change what a video shows."""

from __future__ import annotations

import dataclasses
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from vdm_jax.commands.arguments import (
    GUIDANCE,
    GUIDANCE_SCALE,
    LORA,
    check_outputs,
    parse,
    weighted_files,
    word_weights,
)
from vdm_jax.commands.control_maps import MADE, make_maps, maps_of, remove_maps
from vdm_jax.commands.outputs import check_videos
from vdm_jax.commands.sample_command import guides
from vdm_jax.configuration import Count, Guidance, Positive, Range, SamplingSteps, Seed, Share, Size
from vdm_jax.errors import UserError
from vdm_jax.runs.manifest import Damaged

METHOD = Literal["sdedit", "ddim", "null_text", "prompt_to_prompt", "fatezero", "ddpm", "tune_a_video",
                 "text2video_zero", "controlvideo", "rerender"]
Refinements = Annotated[int, Range(least=0, most=100)]
Window = Annotated[int, Range(least=3)]


@dataclasses.dataclass(frozen=True)
class Edit:
    """Edit a video by a run or by released weights: keep how it moves and change what --prompt says.

    VIDEO is any file that FFmpeg reads. It is cut to the size of the model's videos and edited clip by clip; its rate
    and, in an .mp4, its sound are kept. MODEL is a run, a name under runs/, an exported folder or a released model's
    folder in the layout of diffusers. In a cascade every stage edits the video in its own size, given what the stage
    before made of it. Next to --out, x.mp4, come x_side_by_side.mp4, with VIDEO on the left, and x.json, a record.
    Ctrl-C ends it at a whole clip, and the same command goes on.

    Methods: sdedit adds noise and samples with the prompt (Meng et al. 2021). ddim inverts the video to the noise that
    DDIM makes it of, with --source-prompt, and samples from there with the prompt. null_text also optimises the null
    caption of every step, so that guidance leads back to the video (Mokady et al. 2022). prompt_to_prompt is ddim with
    the cross-attention of --source-prompt in the first steps (Hertz et al. 2022). fatezero takes that of the inversion,
    and self-attention too but where VIDEO shows what --blend names (Qi et al. 2023). ddpm keeps the noise of every step
    instead (edit-friendly inversion, Huberman-Spiegelglas et al. 2023). tune_a_video inverts without a prompt, with a
    MODEL trained on VIDEO (configs/tune_a_video, Wu et al. 2022). text2video_zero lets the frames of an image model see
    the first one (Khachatryan et al. 2023); --control says how they move. controlvideo lets them all see each other and
    smooths them (Zhang et al. 2023); with --hierarchical a long video is made from key frames. rerender makes every
    --interval-th frame, held to the first and the previous of these (Yang et al. 2023), and the others by optical flow
    and a patch-based propagation of our own in place of EbSynth; --flow names the weights of the authors' optical flow.

    Examples:
      vdm-jax edit three.mp4 --model captioned_digits_full --method ddim --source-prompt "a red 3 moving left" \\
        --prompt "a blue 3 moving left" --out blue.mp4
      vdm-jax edit dance.mp4 --model stable-diffusion-v1-5 --num-frames 8 --method ddim --source-prompt "a dancer" \\
        --prompt "a robot dancing" --out robot.mp4
      vdm-jax edit dance.mp4 --model sd-controlnet-canny --num-frames 8 --method text2video_zero --control canny \\
        --prompt "a robot dancing" --out robot.mp4
      vdm-jax edit dance.mp4 --model sd-controlnet-canny --method controlvideo --control canny --hierarchical \\
        --prompt "a robot dancing" --out robot.mp4
      vdm-jax edit dance.mp4 --model sd-controlnet-canny --method rerender --control canny --strength 0.9 \\
        --prompt "a robot dancing" --out robot.mp4
      vdm-jax edit waves.mov --model animatediff --method sdedit --strength 0.5 --prompt "waves of milk" --out milk.mp4
    """

    video: tyro.conf.Positional[Path]
    model: str  # run directory or name, or a released model's folder
    prompt: str = ""  # what the video shall show
    method: METHOD = "ddim"
    # ddim, ddpm: what it shows, by default not said; null_text, prompt_to_prompt and fatezero need it
    source_prompt: str | None = None
    # Share of the steps that are made: one number, or one for each stage. By default 0.6 of sdedit, 0.64 of ddpm, else
    # 1, which for text2video_zero, controlvideo and rerender is to begin with noise; 0 leaves the video as it is
    strength: tuple[Share, ...] = ()
    # ddim, null_text: further evaluations of each step of the inversion, 3 and 0 by default
    refinements: Refinements | None = None
    iterations: Count | None = None  # null_text: of the optimisation at each step, 10 by default
    # prompt_to_prompt, fatezero: share of the steps, the first ones, with the cross-attention of --source-prompt, by
    # default 0.8
    cross_replace: Share | None = None
    weight: tuple[str, ...] = ()  # prompt_to_prompt, fatezero: WORD=FACTOR of attention to a word of --prompt
    self_replace: Share | None = None  # fatezero: the same of self-attention, 0.8 by default
    # fatezero: words of --source-prompt whose places keep their own self-attention; by default those that differ
    blend: tuple[str, ...] | None = None
    # fatezero: share of the largest attention to these words from which a place is theirs, 0.3 by default
    threshold: Share | None = None
    # controlvideo: steps after which frames are smoothed, counted from the end, 20 19 by default; none: no smoother
    smooth: tuple[Count, ...] | None = None
    # controlvideo: file of RIFE's weights (HDv3, .safetensors or the authors' .pkl) by which smoothed frames are
    # interpolated; by default by optical flow
    interpolator: str | None = None
    hierarchical: bool = False  # controlvideo: from key frames, for videos of more than 64 frames
    # controlvideo: frames from one key frame to the next, both included; by default floor(sqrt(frames)), at least 3
    window: Window | None = None
    interval: Size | None = None  # rerender: frames from one key frame to the next, 10 by default
    # rerender: shares of the steps at which something begins and ends, or none to leave it out. Shapes of the first key
    # frame, 0 0.1 by default; pixels of the first and the previous one, 0.5 0.8; colours of the first one, 0.8 1
    shape: tuple[Share, ...] | None = None
    pixel: tuple[Share, ...] | None = None
    colour: tuple[Share, ...] | None = None
    poisson: bool = False  # rerender: blend the frames between key frames by their gradients too
    # rerender: file of GMFlow's weights of one scale, .pth as published or .safetensors, for optical flow; by default
    # it is OpenCV's DIS
    flow: str | None = None
    steps: SamplingSteps | None = None  # of the sampler, of every stage; each stage's own by default
    guidance: GUIDANCE = None
    guidance_scale: GUIDANCE_SCALE = None
    # Instead, NAME=SCALE of conditions that come in one after the other, of the first stage
    guide: tuple[str, ...] = ()
    source_guidance: Guidance = 0.0  # ddim, ddpm: weight w of guidance by --source-prompt in the inversion; 0 is off
    negative_prompt: str | None = None  # what the video should not show, for models that encode captions
    # Kind of maps to make of VIDEO for networks that take a control map, or a video of such maps, frame for frame
    control: str | None = None
    round_trip: bool = False  # also go back to VIDEO with its own prompt, and report the PSNR; twice the time
    fps: Positive | None = None  # frames per second at which VIDEO is read and written; its own by default
    frames: Count | None = None  # most frames that are edited, from the first on; all by default
    at_once: Count = 1  # clips that are edited together
    # Of a released model's clips: the authors' by default, of controlvideo all of the video
    num_frames: Size | None = None
    height: Size | None = None  # pixels, likewise
    width: Size | None = None  # pixels, likewise
    last: str | None = None  # stop after this stage
    lora: LORA = ()
    seed: Seed = 0
    damaged: Damaged = "refuse"  # a damaged newest checkpoint: refuse, or skip it and use the newest intact one
    out: Path = Path("edited.mp4")  # .mp4, .gif or .png


READ_BY = {"refinements": ("ddim", "null_text", "prompt_to_prompt", "fatezero", "tune_a_video"),
           "iterations": ("null_text",),
           "smooth": ("controlvideo",), "interpolator": ("controlvideo",), "hierarchical": ("controlvideo",),
           "window": ("controlvideo",),
           "interval": ("rerender",), "shape": ("rerender",), "pixel": ("rerender",), "colour": ("rerender",),
           "poisson": ("rerender",), "flow": ("rerender",),
           "cross_replace": ("prompt_to_prompt", "fatezero"), "weight": ("prompt_to_prompt", "fatezero"),
           "self_replace": ("fatezero",), "blend": ("fatezero",), "threshold": ("fatezero",),
           "source_guidance": ("ddim", "prompt_to_prompt", "ddpm"),
           "source_prompt": ("ddim", "null_text", "prompt_to_prompt", "fatezero", "ddpm")}
# Fields of methods
OF_METHODS = ("refinements", "iterations", "cross_replace", "self_replace", "blend", "threshold", "smooth",
              "interpolator", "hierarchical", "window", "interval", "shape", "pixel", "colour", "poisson", "flow")


def main(arguments: Sequence[str]) -> int:
    """Entry of the command.

    Raises:
      KeyboardInterrupt: it was asked to stop; finished clips are kept.
    """
    options = parse(Edit, arguments, "vdm-jax edit")
    check(options)
    from vdm_jax.commands.progress import counting_progress
    from vdm_jax.generation.editing.files import edit_video
    from vdm_jax.training.stopping import stop_requests

    began, generator = time.monotonic(), _generator(options)
    if not options.prompt and any(stage.network.text is not None for stage in generator.stages(None, options.last)):
        raise UserError("--prompt is missing; permitted: what the video shall show, in quotes")
    spec, out = generator.makes(last=options.last), options.out
    check_videos((out,), options.fps or _rate(options.video), 2, (spec.height, spec.width))
    job = _job(options, generator)
    notes = _notes(generator, job)
    with counting_progress("editing ", "clips") as progress, stop_requests("batch of clips") as requests:
        made = edit_video(generator, job, folder=out.with_name(f"{out.name}.frames"), progress=progress,
                          stop=lambda: requests.requested)
    if not made.complete:
        raise KeyboardInterrupt(f"stopped; {made.finished} of {made.frames.shape[1]} frames are finished; the same "
                                "command goes on")
    paths = _written(out)
    made.save(out)
    made.save(paths[1], side_by_side=True)
    record = made.record() | {"model": options.model, "notes": notes, "seconds": round(time.monotonic() - began, 1)}
    paths[2].write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    for path in paths:
        print(path)
    for stage, value in record["round_trip_psnr"].items():
        print(f"round trip of stage {stage}: {value:.1f} dB")
    made.frames.remove()
    if options.control in MADE:
        remove_maps(_maps_folder(options))
    return 0


def _written(out: Path) -> tuple[Path, Path, Path]:
    """The video, the one with the given video on its left, and the record."""
    return out, out.with_name(f"{out.stem}_side_by_side{out.suffix}"), out.with_suffix(".json")


def _generator(options: Edit) -> Any:
    """The model, in the sizes that are asked for."""
    from vdm_jax.generation.editing.files import numbers_of
    from vdm_jax.generation.editing.methods import EDIT_METHODS
    from vdm_jax.generation.released.models import with_size
    from vdm_jax.runs.directory import load

    generator, frames = load(options.model, damaged=options.damaged), options.num_frames
    if frames is None and EDIT_METHODS[options.method].whole_video and generator.experiment.data is None:
        frames = len(numbers_of(options.video, options.fps, options.frames))
    generator = with_size(generator, frames, options.height, options.width)
    if options.lora:
        from vdm_jax.generation.loras import with_loras

        generator = with_loras(generator, weighted_files("--lora", options.lora))
    return generator


def _job(options: Edit, generator: Any) -> Any:
    """What is asked of the video. Raises `UserError` for a strength per stage of another number of stages."""
    from vdm_jax.generation.editing.files import VideoJob
    from vdm_jax.generation.editing.methods import EDIT_METHODS

    stages = generator.stages(None, options.last)
    kind = EDIT_METHODS[options.method]
    own = _fields(options)
    if len(options.strength) not in (0, 1, len(stages)):
        raise UserError(f"--strength has {len(options.strength)} numbers for the stages "
                        f"{', '.join(stage.name for stage in stages)}; permitted: one, or one for each")
    methods = [kind(strength=strength, **own) for strength in options.strength] or [kind(**own)]
    method = methods[0] if len(methods) == 1 else dict(zip([s.name for s in stages], methods, strict=True))
    more = {"steps": options.steps, "guidance": options.guidance, "guidance_scale": options.guidance_scale,
            "guide": guides(options.guide), "source_guidance": options.source_guidance, "last": options.last,
            "negative": options.negative_prompt, "round_trip": options.round_trip}
    return VideoJob(options.video, options.prompt, options.source_prompt, method, options.fps, options.frames,
                    options.seed, options.at_once, _maps(options, generator), options.control in MADE, more)


def _fields(options: Edit) -> dict[str, Any]:
    """The fields of the method that are said."""
    own = {name: value for name in OF_METHODS
           if (value := getattr(options, name)) is not None and value is not False}  # 0 is a value
    return own | ({"weights": word_weights(options.weight, "weight")} if options.weight else {})


def _notes(generator: Any, job: Any) -> list[str]:
    """What the user should know before the edit, which is said."""
    from vdm_jax.generation.editing.edit import notes_on

    notes = notes_on(generator, job.method, job.options["last"])
    for note in notes:
        print(f"vdm-jax edit: {note}", file=sys.stderr)
    return notes


def _maps(options: Edit, generator: Any) -> Path | None:
    """The video of control maps: given, or made of the video next to the result, up to the frame after the last one
    that is edited, to which its optical flow goes. Those of a released model are made of frames in its size, as the
    methods' authors do; those of a run as `vdm-jax annotate` made what it was trained on."""
    if options.control is None:
        return None
    if options.control not in MADE:
        return Path(options.control)
    from vdm_jax.generation.editing.files import numbers_of

    spec, frames = generator.makes(last=options.last), int(numbers_of(options.video, options.fps, options.frames).max())
    size = (spec.height, spec.width) if generator.experiment.data is None else None
    return make_maps(options.video, _maps_folder(options), options.control, frames + 2, size)


def _maps_folder(options: Edit) -> Path:
    return options.out.with_name(f"{options.out.name}.maps")


def _rate(path: Path) -> float:
    from vdm_jax.video.reading import VideoReader

    with VideoReader(path) as reader:
        return reader.fps


def check(options: Edit) -> None:
    """Refuse bad options, and at last files that the method cannot read, before a model is loaded. Raises
    `UserError`."""
    from vdm_jax.generation.editing.methods import EDIT_METHODS
    from vdm_jax.generation.overrides import one_guidance

    if not options.video.is_file():
        raise UserError(f"video={options.video} is not a file; permitted: a video")
    for name, methods in READ_BY.items():
        value = getattr(options, name)
        if options.method not in methods and value != getattr(Edit, name):
            raise UserError(f"--{name.replace('_', '-')}={value} with --method={options.method}; permitted: --method "
                            f"{' or '.join(methods)}")
    if EDIT_METHODS[options.method].needs_source and options.source_prompt is None:
        raise UserError(f"--method={options.method} without --source-prompt; permitted: with --source-prompt TEXT, "
                        "what the given video shows")
    if options.source_guidance and options.source_prompt is None:
        raise UserError(f"--source-guidance={options.source_guidance} without --source-prompt; permitted: 0, or with "
                        "--source-prompt TEXT")
    if EDIT_METHODS[options.method].by_key_frames:
        _check_key_frames(options)
    method = EDIT_METHODS[options.method](**_fields(options))  # refuses values of its own
    if options.control is not None and options.control not in MADE and not Path(options.control).is_file():
        raise UserError(f"--control={options.control} is no file; permitted: {', '.join(MADE)}, or a video of maps")
    one_guidance(options.guidance, options.guidance_scale, guides(options.guide))
    weighted_files("--lora", options.lora)
    check_outputs((options.out,))
    _check_sources(options)
    method.check_files()


def _check_key_frames(options: Edit) -> None:
    """Refuse what a method that makes key frames does not do. Raises `UserError`."""
    if options.num_frames is not None:
        raise UserError(f"--num-frames={options.num_frames} with --method={options.method}, which makes single frames; "
                        "permitted: --interval, from one of them to the next")
    if options.at_once > 1:
        raise UserError(f"--at-once={options.at_once} with --method={options.method}, whose clips go on from one "
                        "another; permitted: 1")


def _check_sources(options: Edit) -> None:
    """Refuse to write over what is read, whatever the paths look like. Raises `UserError`."""
    read, written = {"the video": options.video}, [*_written(options.out)]
    for name in ("interpolator", "flow"):
        if getattr(options, name) is not None:
            read[f"the file of --{name}"] = Path(getattr(options, name))
    if options.control in MADE:
        written.append(maps_of(options.video, _maps_folder(options)))
    elif options.control is not None:
        read["the video of control maps"] = Path(options.control)
    for path in written:
        for what, source in read.items():
            if path.resolve() == source.resolve():
                others = "" if path == options.out else f" has {path} written, which"
                raise UserError(f"--out={options.out}{others} is {what} itself; permitted: another file")
