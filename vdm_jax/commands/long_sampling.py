"""What `vdm-jax sample --frames` does: long videos that go on after an interruption, with prompts by time."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vdm_jax.errors import UserError

# Options that say something of longer videos, with the methods that read them; (): all
READ_BY: dict[str, tuple[str, ...]] = {
    "extend": (), "script": (), "between": (), "overlap": ("autoregressive", "key_frames", "windows", "rolling"),
    "method": ("autoregressive", "key_frames", "nuwa_xl"), "reschedule_noise": ("windows",)}


def check_long(options: Any) -> None:
    """Refuse options of longer videos without `--frames`, with a method that does not read them, or with others that
    do not go with it. Raises `UserError`."""
    for name, methods in READ_BY.items():
        value, flag = getattr(options, name), f"--{name.replace('_', '-')}"
        if value is None or value is False or value == ():  # 0 is a value
            continue
        shown = value[0] if isinstance(value, tuple) else value
        if options.frames is None:
            raise UserError(f"{flag}={shown} is for --frames; permitted: --frames N with it")
        if methods and (options.extend or "autoregressive") not in methods:
            raise UserError(f"{flag}={shown} with --extend={options.extend or 'autoregressive'}; permitted: --extend "
                            f"{' or '.join(methods)}")
    if options.script and options.captions:
        raise UserError(f"--script={options.script[0]} with {len(options.captions)} captions; permitted: one of them, "
                        "since a script has the captions of a video")
    if options.between is not None and not options.script:
        raise UserError(f"--between={options.between} is for --script; permitted: --script FILE with it")
    for name in ("motion", "first"):
        if options.frames is not None and getattr(options, name) is not None:
            raise UserError(f"--{name}={getattr(options, name)} with --frames={options.frames}; permitted: one of them")


def read_scripts(options: Any) -> tuple[Any, ...]:
    """The scripts of `--script`. Raises `UserError` for files that are none."""
    from vdm_jax.generation.long_video.script import read_script, scripts_of

    scripts = tuple(read_script(path, options.between or "hold") for path in options.script)
    return scripts_of(scripts, options.frames) if scripts else ()


def sample_long(generator: Any, captions: Sequence[Any], options: Any, **common: Any) -> list[Path]:
    """Sample and write longer videos of the first stage; returns the files. Their frames are kept in a folder next to
    the first file until all files are written.

    Raises:
      UserError: further stages were not left out, or as `Generator.long` does.
      KeyboardInterrupt: it was asked to stop, and has written what is finished.
    """
    from vdm_jax.commands.progress import counting_progress
    from vdm_jax.generation.long_video.plan import METHODS
    from vdm_jax.training.stopping import stop_requests

    own = {"overlap": options.overlap} if options.overlap is not None else {}
    own |= {"rescheduled": True} if options.reschedule_noise else {}
    stages, out = generator.experiment.stages, options.out[0]
    method = METHODS[options.extend or "autoregressive"](**own).of_cascade(stages)
    first, last = stages[0], stages[method.stages - 1]
    if len(stages) > method.stages and options.last != last.name:
        raise UserError(f"--frames={options.frames} with --last={options.last}: {method.name} makes videos of stage "
                        f"{last.name!r}; permitted: --last {last.name}")
    inpainting = first.sampling.inpainting
    if options.method is not None:
        inpainting = dataclasses.replace(inpainting, method=options.method)
    with counting_progress("sampling ", "segments") as progress, stop_requests("batch of segments") as requests:
        made = generator.long(captions, frames=options.frames, method=method, inpainting=inpainting, progress=progress,
                              folder=out.with_name(f"{out.name}.frames"), stop=lambda: requests.requested, **common)
    files = [made.save(path) for path in options.out] if made.finished else []
    if not made.complete:
        raise KeyboardInterrupt(f"stopped; {made.finished} of {options.frames} frames are finished"
                                f"{f' and in {files[0]}' if files else ''}; the same command goes on")
    made.frames.remove()
    return files
