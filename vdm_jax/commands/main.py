"""The `vdm-jax` program: finds the command, sets up JAX and logging, turns user errors into a line and exit code 2."""

from __future__ import annotations

import gc
import importlib
import logging
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from vdm_jax.errors import NotFinite, UserError
from vdm_jax.versions import VERSION

# Command -> what it does, in the order in which people meet them.
COMMANDS = {
    "list": "show configs and trained runs",
    "show": "print every value of a config or a run, by the flag that overrides it",
    "prepare": "prepare a data set: captioned digits, or a folder of videos into one fast file",
    "annotate": "make control maps of videos: edges, poses, depth, optical flow, strokes",
    "embed": "encode captions once with a released text encoder, for networks that read embeddings",
    "train": "train the stages of a config into a run directory, resuming where it stopped",
    "distil": "train students of a run that sample in few steps: progressive, guided, consistency",
    "sample": "generate videos of captions from a run",
    "edit": "change what a video shows, by a run or released weights, and keep how it moves",
    "generate": "generate pictures or videos with released weights, such as Stable Video Diffusion",
    "evaluate": "score a run's videos next to the ceiling of real clips and the floor of wrong captions",
    "measure": "score folders of video files, whoever made them, with their sound or against real ones",
    "report": "write one page about runs: configs, curves, samples, videos and scores side by side",
    "compile": "say what a stage needs on given chips: memory, FLOPs, communication, step time at best",
    "benchmark": "measure attention patterns and kernels, or compile them ahead of time for a TPU slice",
    "convert": "bring open weights here from a folder of diffusers or transformers, or back into one",
    "export": "write a run's weights as a folder of safetensors that samples like a run",
}
RARELY = (50_000, 20, 20)  # new objects between collections of the youngest, and how many of these between older ones
NOT_FINITE, USAGE_ERROR, INTERRUPTED = 1, 2, 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code (0 done, 1 a result that is not finite, 2 bad input, 130
    interrupted with everything saved)."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(overview())
        return 0 if arguments else USAGE_ERROR
    if arguments[0] in ("-V", "--version"):
        print(versions())
        return 0
    name, rest = arguments[0], arguments[1:]
    logging.basicConfig(format="vdm-jax: %(message)s", level=logging.WARNING)
    try:
        if name not in COMMANDS:
            raise UserError(f"command {name!r} is unknown; permitted: {', '.join(COMMANDS)}")
        set_up_home()
        set_up_compilation_cache()
        collect_rarely()
        command = importlib.import_module(f"vdm_jax.commands.{name}_command")
        return command.main(rest) or 0
    except UserError as error:
        print(f"vdm-jax: error: {process_prefix()}{' '.join(str(error).split())}", file=sys.stderr)
        return USAGE_ERROR
    except NotFinite as error:
        print(f"vdm-jax: not finite: {process_prefix()}{' '.join(str(error).split())}", file=sys.stderr)
        return NOT_FINITE
    except OSError as error:  # a full or read-only disk, no permission, a name too long
        if isinstance(error, BrokenPipeError):  # the reader of our output went away, as in `vdm-jax list | head`
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 1
        if error.errno is None:
            raise
        where = f"{error.filename}: " if error.filename is not None else ""
        print(f"vdm-jax: error: {process_prefix()}{where}{error.strerror}; permitted: a place that can be read and "
              "written", file=sys.stderr)
        return USAGE_ERROR
    except KeyboardInterrupt as stop:
        print(f"vdm-jax: {process_prefix()}{str(stop) or 'interrupted'}", file=sys.stderr)
        return INTERRUPTED


def collect_rarely() -> None:
    """Look for garbage in cycles less often: tracing a network makes millions of objects that stay, and looking through
    them again and again takes a quarter of its time."""
    if gc.get_threshold()[0] < RARELY[0]:
        gc.set_threshold(*RARELY)


def versions() -> str:
    """Versions for a report of a fault, on one line. No device is looked for."""
    import platform
    from importlib.metadata import PackageNotFoundError, version

    found = []
    for package in ("jax", "jaxlib", "flax", "libtpu"):
        try:
            found.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            continue
    return f"{VERSION} ({', '.join(found)}, python {platform.python_version()}, {platform.platform()})"


def process_prefix() -> str:
    """Which process is speaking, where there are several."""
    jax = sys.modules.get("jax")
    if jax is None or not jax.distributed.is_initialized() or jax.process_count() == 1:
        return ""
    return f"process {jax.process_index()}: "


def overview() -> str:
    """Help of the program as a whole."""
    lines = [f"  {name:<10}{text}" for name, text in COMMANDS.items()]
    return "\n".join([
        "usage: vdm-jax COMMAND ...", "", "Video diffusion cascades in JAX: train, sample, evaluate.", "",
        *lines, "", "A first session:", "",
        "  vdm-jax train captioned_digits                        # trains two stages into runs/captioned_digits",
        '  vdm-jax sample captioned_digits "a red 3 moving left" --out three.gif',
        "  vdm-jax evaluate captioned_digits", "",
        "'vdm-jax COMMAND --help' explains a command."])


def set_up_home() -> None:
    """Where a user has no home directory ($HOME unset, no passwd entry), caches go to a folder of theirs under the
    temporary one."""
    try:
        Path.home()
    except RuntimeError:
        folder = Path(tempfile.gettempdir()) / f"vdm_jax_{os.getuid()}"
        folder.mkdir(mode=0o700, exist_ok=True)
        if folder.stat().st_uid != os.getuid():
            raise UserError(f"HOME=None and {folder} belongs to another user; permitted: HOME=FOLDER") from None
        os.environ["HOME"] = str(folder)
        logging.warning("there is no home directory; caches go to %s (HOME=FOLDER chooses another place)", folder)


def set_up_compilation_cache() -> None:
    """Keep compiled programs on disk, so that the second run of anything starts at once: small ones too, of which a
    command has dozens.

    `$JAX_COMPILATION_CACHE_DIR` chooses another place, `$JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS` what is kept.
    """
    settings = {"jax_persistent_cache_min_compile_time_secs": 0.0,
                "jax_compilation_cache_dir": str(Path.home() / ".cache" / "vdm_jax" / "compiled")}
    for name, value in settings.items():
        if os.environ.get(name.upper()):
            continue
        if "jax" in sys.modules:
            sys.modules["jax"].config.update(name, value)
        else:  # read when a command imports JAX, which some do without
            os.environ[name.upper()] = str(value)


if __name__ == "__main__":
    sys.exit(main())
