"""`vdm-jax sample`: generate videos of captions from a run."""

from __future__ import annotations

import dataclasses
import logging
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from vdm_jax.commands.amplified_words import amplified_words, check_amplified, with_one_noise
from vdm_jax.commands.arguments import (
    GUIDANCE,
    GUIDANCE_SCALE,
    LORA,
    cache_plan,
    check_outputs,
    parse,
    weighted_files,
)
from vdm_jax.commands.image_prompts import check_image_prompt, first_frame_tokens, image_prompted, with_adapter
from vdm_jax.commands.long_sampling import check_long, read_scripts, sample_long
from vdm_jax.commands.outputs import check_videos
from vdm_jax.configuration import Count, CountOrZero, NonNegative, Positive, Range, SamplingSteps, Seed, Share, Size
from vdm_jax.errors import UserError
from vdm_jax.runs.manifest import Damaged

Label = Annotated[int, Range(least=-1, cap=2**20)]


@dataclasses.dataclass(frozen=True)
class Sample:
    """Generate videos from a run, of captions where it was trained on them.

    RUN is a run directory, a name under runs/, a folder that 'vdm-jax export' wrote, or a released model's folder in
    the layout of diffusers. Captions of runs that read embeddings of CLIP or T5 are encoded where the encoder's folder
    is known: the run says it if 'vdm-jax embed' made the embeddings, or --encoder does. The same seed gives the same
    videos, whatever else is generated with them. The suffix of --out decides what is written: .mp4 or .gif shows all
    videos side by side, .png is a grid with one row of frames per video.

    Examples:
      vdm-jax sample captioned_digits_full "a red 3 moving left" --out three.gif
      vdm-jax sample runs/captioned_digits "a blue 7 bouncing" "a green one rising" --count 4 --seed 7 --out grid.mp4
      vdm-jax sample captioned_digits "a red 3 bouncing" --last base --frames 32 --out long.gif
      vdm-jax sample captioned_digits "a red 3 bouncing" --cache 3 --out quick.gif
      vdm-jax sample captioned_digits "a red 3 bouncing" --image three.png --out animated.gif
      vdm-jax sample my_videos --count 4 --out new.mp4
      vdm-jax sample edges_run "a dancer of glass" --control dance.mp4 --out glass.mp4
      vdm-jax sample edges_run "a dancer of glass" --control dance.mp4 --guide text=7.5 edges=3
      vdm-jax sample portraits_run "a fox" --image-prompt ink.png --image-prompt-scale 0.6
      vdm-jax sample imagen "waves at a cliff" --encoder t5-v1_1-xxl --out waves.mp4
      vdm-jax sample animatediff "waves at a cliff" --frames 32 --overlap 8 --out long.mp4
      vdm-jax sample nuwa_xl_run --script story.txt --frames 226 --extend nuwa_xl --out story.mp4
      vdm-jax sample stable-diffusion-v1-5 "thunder over the sea" --num-frames 16 --amplify thunder=4 --sound x.wav
      vdm-jax sample animatediff "waves at a cliff" --lora zoom_in.safetensors=0.8 --out zoom.mp4
    """

    run: tyro.conf.Positional[str]  # run directory or name, or a released model's folder
    captions: tyro.conf.Positional[tuple[str, ...]] = ()  # each in quotes; none for a run that reads no captions
    seed: Seed = 0
    count: Count = 1  # videos for each caption (or label, or picture)
    steps: SamplingSteps | None = None  # sampler steps of every stage; each stage's own by default
    # Keep deep features of the network from step to step, of every stage: one number N evaluates the whole network at
    # every N-th step, several are the numbers of these steps, from 0. The config's plan by default; 1 is off
    cache: tuple[CountOrZero, ...] = ()
    # Or: of transformers, the whole network once the plain relative changes of the noise level's embedding add up to
    # this; thresholds published with a model's polynomial do not transfer
    cache_threshold: Positive | None = None
    guidance: GUIDANCE = None
    guidance_scale: GUIDANCE_SCALE = None
    # Instead, NAME=SCALE of conditions that come in one after the other, of the first stage: text=7.5 control=3. 1 is
    # off; "time" is guidance away from the estimate frame by frame
    guide: tuple[str, ...] = ()
    labels: tuple[Label, ...] = ()  # class numbers, one per caption, for stages that take a class; -1 is none
    split_guidance: bool | None = None  # a video's two estimates on two halves of the devices; the config's by default
    fps: Positive | None = None  # frames per second that the first stage is conditioned on, where it takes them
    motion: NonNegative | None = None  # how much moves (a bucket), for stages conditioned on it; their own by default
    first: str | None = None  # begin with this stage, one that fills in frames and takes --image instead
    last: str | None = None  # stop after this stage, e.g. base
    image: tuple[Path, ...] = ()  # pictures that become the first frames: one for all captions, or one for each
    # Reference pictures, for runs whose network takes them: one for all captions, or one for each
    reference: tuple[Path, ...] = ()
    # Pictures whose content or style the videos take over (IP-Adapter), for runs trained with them or with an adapter:
    # one for all captions, or one for each
    image_prompt: tuple[Path, ...] = ()
    image_prompt_scale: NonNegative | None = None  # with --image-prompt: how much it counts; 1 by default, 0 is off
    image_prompt_adapter: Path | None = None  # with --image-prompt: .safetensors file of an adapter for the network
    # With --image-prompt: folder of the image encoder; image_encoder/ next to the adapter, or that of the run's data.
    # With --image, for runs that read image tokens of the first frame: likewise
    image_encoder: Path | None = None
    # Control maps, or videos whose edges are the maps, for runs whose network takes them: a video, a picture for all
    # frames, a folder of pictures, or .json of strokes; one for all captions, or one for each
    control: tuple[Path, ...] = ()
    control_scale: NonNegative | None = None  # with --control: factor on what the ControlNet adds; 1 by default
    control_start: Share | None = None  # with --control: share of the steps from which on it adds; 0 by default
    control_end: Share | None = None  # with --control: share of the steps up to which it does; 1 by default
    # With --control: residuals weighted by their resolution, in the conditional estimate alone (guess mode)
    control_guess: bool | None = None
    # With --control of runs with a SparseCtrl: numbers of the frames whose maps count, from 0; the first by default
    control_at: tuple[CountOrZero, ...] = ()
    # Sound, for runs that hear it: media or .wav files (or names of vectors made beforehand); one for all captions, or
    # one for each
    sound: tuple[Path, ...] = ()
    # With --sound: WORD=FACTOR ... of captions, whose attention is scaled by it where the sound is loudest, and by less
    # in other frames (AADiff); the network need not hear the sound
    amplify: tuple[str, ...] = ()
    amplify_window: Size | None = None  # with --amplify: frames over which the loudness is smoothed; 5 by default
    # A longer video of the first stage, which --last names where there are more. Ctrl-C ends it at a whole segment, and
    # the same command goes on
    frames: Count | None = None
    # With --frames: block by block; key_frames: so for key frames, between which further stages fill in; nuwa_xl: key
    # frames, then clips between them, of (L - 1)^m + 1 frames; windows that overlap, all at once; rolling: a queue of
    # frames of rising noise; or blocks: those of a causal network, which keeps keys and values of finished ones
    extend: Literal["autoregressive", "key_frames", "nuwa_xl", "windows", "rolling", "blocks"] | None = None
    # With --frames: files with lines 'FRAME: caption', one for each video, in place of captions
    script: tuple[Path, ...] = ()
    between: Literal["hold", "interpolate"] | None = None  # with --script: what holds between two prompts; the first
    # With --frames: frames that a block takes from the one before, that windows share, or finished ones that rolling
    # sees; by default what the network was trained with, or half
    overlap: CountOrZero | None = None
    reschedule_noise: bool = False  # with --extend windows: further clips reorder the noise of the first (FreeNoise)
    # With --frames: how a segment takes over frames of others; the config's way by default
    method: Literal["network", "reconstruction", "replacement", "noise_levels"] | None = None
    embeddings: Path | None = None  # for runs that read text embeddings: a folder made by write_embeddings
    encoder: Path | None = None  # for the same runs: folder of the text encoder; by default the one that the run names
    # Of a released model's videos, the authors' by default; of a run whose temporal attention sees a window of frames
    num_frames: Size | None = None
    height: Size | None = None  # pixels, of a released model's videos
    width: Size | None = None  # pixels, likewise
    style: str | None = None  # run of an image network whose style the first stage takes on
    style_weight: Share | None = None  # with --style: share of its weights, 0 to 1; 0.7 by default
    lora: LORA = ()
    damaged: Damaged = "refuse"  # a damaged newest checkpoint: refuse, or skip it and use the newest intact one
    out: tuple[Path, ...] = (Path("sample.mp4"),)  # one or more files: .mp4, .gif or .png


def main(arguments: Sequence[str]) -> int:
    """Entry of the command."""
    options = parse(Sample, arguments, "vdm-jax sample")
    check(options)
    from vdm_jax.commands.progress import sampling_progress
    from vdm_jax.generation.released.models import with_size
    from vdm_jax.runs.directory import find_run, load, read_cascade
    from vdm_jax.runs.traced import kept_traces

    scripts = read_scripts(options)
    if scripts:
        options = dataclasses.replace(options, captions=tuple(script.prompts[0][1] for script in scripts))
    options = dataclasses.replace(options, captions=captions_for(options, read_cascade(find_run(options.run))))
    generator = load(options.run, damaged=options.damaged, traced=kept_traces())
    generator = with_size(generator, options.num_frames, options.height, options.width)
    generator, prompts = with_adapter(options, generator)
    generator = with_one_noise(generator) if options.amplify else generator
    video = generator.makes(options.first, options.last, options.fps)
    check_videos(options.out, video.fps, len(options.captions) * options.count, (video.height, video.width))
    if options.style is not None:
        from vdm_jax.runs.directory import stylised

        weight = 0.7 if options.style_weight is None else options.style_weight
        generator = stylised(generator, options.style, weight, damaged=options.damaged)
    captions = [caption for caption in options.captions for _ in range(options.count)]
    scripts = [script for script in scripts for _ in range(options.count)]
    said = [caption for script in scripts for _, caption in script.prompts] or captions
    labels = [label for label in options.labels for _ in range(options.count)] or None
    given = pictured(options, generator.experiment)
    common = {"seed": options.seed, "steps": options.steps, "cache": cache_plan(options.cache, options.cache_threshold),
              "guidance": options.guidance, "guidance_scale": options.guidance_scale, "guide": guides(options.guide),
              "labels": labels, "split_guidance": options.split_guidance,
              "masked_video": given, **first_frame_tokens(options, generator, given), "fps": options.fps,
              "references": referenced(options, generator.experiment), **image_prompted(options, generator, prompts),
              **controlled(options, generator.experiment, video), **heard(options, generator, video),
              **amplified_words(options, generator, captions),
              **text_embeddings(generator, said, options)}
    if options.lora:
        from vdm_jax.generation.loras import with_loras

        generator = with_loras(generator, weighted_files("--lora", options.lora))
    if options.frames is not None:
        files = sample_long(generator, scripts or captions, options, **common)
    else:
        with sampling_progress() as progress:
            result = generator(captions, **common, first=options.first, last=options.last, motion=options.motion,
                               progress=progress)
        files = map(result.save, options.out)
    for path in files:
        print(path)
    return 0


def captions_for(options: Sample, experiment: Any) -> tuple[str, ...]:
    """The captions; of a run that reads none, an empty one for each label or picture. Raises `UserError` for captions
    that are missing, or pictures of another number."""
    from vdm_jax.stages.stage import FirstFrame

    def reads_captions(stage: Any) -> bool:
        # A released model that begins with a picture reads that as its tokens.
        pictured = experiment.data is None and isinstance(stage.source, FirstFrame)
        return stage.network.text is not None and not pictured

    reads = any(map(reads_captions, experiment.stages))
    if reads and not options.captions:
        raise UserError("captions are missing; permitted: one or more, each in quotes")
    if options.captions and not reads:
        logging.getLogger(__name__).warning("no stage of run %s reads captions: they change nothing", options.run)
    captions = options.captions or ("",) * max(1, len(options.labels), len(options.image), len(options.control),
                                        len(options.sound), len(options.image_prompt))
    for name, what in (("image", "pictures"), ("reference", "pictures"), ("image_prompt", "pictures"),
                       ("control", "files"), ("sound", "files")):
        if (given := len(getattr(options, name))) not in (0, 1, len(captions)):
            raise UserError(f"--{name.replace('_', '-')} has {given} {what} for {len(captions)} captions; permitted: "
                            "one, or one for each caption")
    return captions


def text_embeddings(generator: Any, captions: Sequence[str], options: Sample) -> dict[str, Any]:
    """Embeddings and mask of the captions, for a run that reads them and encodes no captions itself, which `--encoder`
    lets it do. Raises `UserError` where they are needed and not given, given and not needed, or lack a caption."""
    from vdm_jax.data.embeddings import EncoderFolder, TextEmbeddings, WithEmbeddings
    from vdm_jax.data.text_encoding import padding_of
    from vdm_jax.generation.encoding import RunEncoder

    experiment = generator.experiment
    reads = [stage for stage, text in experiment.texts.items() if text.embedded]
    given = {name: getattr(options, name) for name in ("embeddings", "encoder") if getattr(options, name) is not None}
    if len(given) > 1 or given and not reads:
        name, value = next(iter(given.items()))
        raise UserError(f"--{name}={value} with {'--encoder' if reads else 'stages that read no embeddings'}; "
                        f"permitted: {'one of them' if reads else 'none'}")
    if options.encoder is not None:
        stored = experiment.encoder or EncoderFolder(path="", padding=padding_of(options.encoder))
        spec = dataclasses.replace(stored, path=str(options.encoder))
        generator.encoder = RunEncoder(spec, experiment)
    if options.embeddings is None:
        if reads and generator.encoder is None:
            raise UserError(f"--embeddings is missing: stage {reads[0]!r} reads texts as embeddings; permitted: a "
                            "folder made by vdm_jax.data.embeddings.write_embeddings with these captions, or "
                            "--encoder FOLDER of the text encoder")
        return {}
    data, texts = experiment.data, TextEmbeddings(options.embeddings)
    vectors, mask = texts.batch(captions, data.length if isinstance(data, WithEmbeddings) else None)
    found = {"embeddings": vectors, "text_mask": mask}
    if isinstance(data, WithEmbeddings) and data.empty == "encoded":
        found["null_embeddings"], found["null_mask"] = texts.empty(vectors.shape[1])
    return found


def pictured(options: Sample, experiment: Any) -> Any:
    """The pictures of --image as the first frames of the first stage's videos, or None. Raises `UserError` for a
    file that is no picture."""
    if not options.image:
        return None
    video = (experiment.stage(options.first) if options.first else experiment.stages[0]).video
    from vdm_jax.conditions.frame_masks import masked_first_frame
    from vdm_jax.video.arrays import to_float

    return masked_first_frame(to_float(_pictures("image", options, video)), video.frames)


def referenced(options: Sample, experiment: Any) -> Any:
    """The pictures of --reference by the name of the reference that they are of, or None. Raises `UserError` for a file
    that is no picture, and for runs whose networks take no pictures, or several kinds."""
    if not options.reference:
        return None
    stages = [(stage, r) for stage in experiment.stages for r in stage.network.references if r.patch]
    stages += [(stage, None) for stage in experiment.stages if stage.network.reference_picture]
    names = {"picture" if reference is None else reference.name for _, reference in stages}
    if len(names) != 1:
        raise UserError(f"--reference={options.reference[0]}: networks of the run take "
                        f"{', '.join(sorted(names)) or 'no reference pictures'}; permitted: it for one reference that "
                        "is made of pictures (Reference.patch, reference_net, picture_adapter)")
    return {names.pop(): _pictures("reference", options, stages[-1][0].video)}


def controlled(options: Sample, experiment: Any, video: Any) -> dict[str, Any]:
    """The maps of --control for videos of a size (`VideoSpec`), by the name of the condition that they are. Raises
    `UserError` for files that cannot be read or are too short, and for runs whose networks take no such maps, or
    several kinds."""
    if not options.control:
        return {}
    import numpy as np

    from vdm_jax.conditions.control import OPTIONS
    from vdm_jax.conditions.sparse_control import SPARSE
    from vdm_jax.data.decoding import read_frames

    names = {entry.name for stage in experiment.stages for entry in stage.network.conditions
             if entry.condition.of_video or (entry.condition.form == "map" and entry.condition.dtype == np.uint8)}
    if len(names) != 1:
        raise UserError(f"--control={options.control[0]}: networks of the run take "
                        f"{', '.join(sorted(names)) or 'no control maps'}; permitted: runs that take one map of "
                        "pictures, such as control or edges")
    frames = options.frames or video.frames
    maps = [read_frames(path, frames, video.height, video.width, video.fps) for path in options.control]
    name = names.pop()
    sparse = {}
    if name in SPARSE:
        mask = np.isin(np.arange(frames), options.control_at or (0,))
        sparse = {f"{name}_mask": _for_each([mask], options)}
    if any(place >= frames for place in options.control_at) or options.control_at and not sparse:
        raise UserError(f"--control-at={' '.join(map(str, options.control_at))} for maps {name!r} of {frames} frames"
                        f"; permitted: 0 to {frames - 1}, for a run that takes {' or '.join(SPARSE)}",
                        "Sample.control_at")
    return {name: _for_each(maps, options), **sparse, **{f"{name}_{option}": getattr(options, f"control_{option}")
                                               for option in OPTIONS}}


def heard(options: Sample, generator: Any, video: Any) -> dict[str, Any]:
    """The sound of --sound for the frames of the last stage that hears it, of which earlier ones take every k-th; with
    --frames for those of the whole `video` (`VideoSpec`). Raises `UserError` for files without or with too little of
    it, and for runs that hear none or whose data does not say how."""
    experiment = generator.experiment
    stages = [stage for stage in generator.stages(options.first, options.last)
              if any(entry.name == "sound" for entry in stage.network.conditions)]
    if not stages and (not options.sound or options.amplify):
        return {}
    import numpy as np

    data = getattr(experiment.data, "data", experiment.data)
    track = getattr(data, "sound", None)
    if not stages or track is None:
        raise UserError(f"--sound={options.sound[0] if options.sound else None}: the run "
                        f"{'hears no sound' if not stages else 'does not say what it hears'}; permitted: a run trained "
                        "on VideoFolder(sound=...) or DigitBeats")
    if not options.sound:
        raise UserError("--sound=None: it is missing for a run that hears sound; permitted: a file of it, or one for "
                        "each caption")
    if options.frames is None:
        video = generator.makes(options.first, stages[-1].name, options.fps)
    fps, frames = video.fps, options.frames or video.frames
    return {"sound": _for_each([track.of_frames(path.parent, path.name, np.arange(frames) / fps, fps)
                                for path in options.sound], options)}


def _for_each(given: list[Any], options: Sample) -> Any:
    """Arrays, one or one for each caption, as `[B, ...]`, one per video that is asked for."""
    import numpy as np

    of_captions = given * len(options.captions) if len(given) == 1 else given
    return np.repeat(np.stack(of_captions), options.count, axis=0)


def _pictures(name: str, options: Sample, video: Any) -> Any:
    """The pictures of an option in the size of a video, uint8 `[B, H, W, 3]`, one per video that is asked for. Raises
    `UserError` for a file that is no picture."""
    from vdm_jax.data.image_folder import fitted

    pictures = []
    for path in getattr(options, name):
        try:
            pictures.append(fitted(path, video.height, video.width))
        except UserError as error:
            raise UserError(f"--{name}={path} is not a readable picture ({error})") from error
    return _for_each(pictures, options)


def guides(terms: Sequence[str]) -> dict[str, float] | None:
    """Scales by name of `--guide`, None without any. Raises `UserError` for what is not NAME=NUMBER, and a name twice.
    """
    found: dict[str, float] = {}
    for term in terms:
        name, _, number = term.partition("=")
        try:
            scale = float(number)
        except ValueError:
            scale = float("nan")
        if not name or name in found or not math.isfinite(scale):
            raise UserError(f"--guide={term} is not valid; permitted: NAME=SCALE, each name once, such as text=7.5 "
                            "control=3")
        found[name] = scale
    return found or None


def check(options: Sample) -> None:
    """Refuse bad options before anything is loaded. Raises `UserError`."""
    from vdm_jax.generation.overrides import one_guidance

    for name, path in [*(("image", p) for p in options.image), *(("reference", p) for p in options.reference)]:
        if not path.is_file():
            raise UserError(f"--{name}={path} is not a file; permitted: a picture")
    for path in options.control:
        if not path.exists():
            raise UserError(f"--control={path} does not exist; permitted: a video, a picture, a folder of pictures "
                            "or .json of strokes")
    check_image_prompt(options, first_frames=True)
    one_guidance(options.guidance, options.guidance_scale, guides(options.guide))
    cache_plan(options.cache, options.cache_threshold)
    weighted_files("--lora", options.lora)
    if options.style_weight is not None and options.style is None:
        raise UserError(f"--style-weight={options.style_weight} is not valid; permitted: 0 to 1, with --style RUN")
    for name in ("control_scale", "control_start", "control_end", "control_guess", "control_at"):
        if (value := getattr(options, name)) not in (None, ()) and not options.control:
            raise UserError(f"--{name.replace('_', '-')}={value} is for --control; permitted: --control FILE with it")
    check_long(options)
    check_amplified(options)
    check_outputs(options.out)
