"""Image prompts of `vdm-jax sample` and `generate`, and image tokens of given first frames: their options, checked, and
as arguments of a generator."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from vdm_jax.errors import UserError

if TYPE_CHECKING:  # JAX is not imported before the options are checked
    from vdm_jax.conditions.frame_masks import MaskedVideo
    from vdm_jax.generation.generator import Generator
    from vdm_jax.generation.image_prompts import ImagePrompts

OTHERS = ("image_prompt_scale", "image_prompt_adapter", "image_encoder")  # that say how --image-prompt is taken


def check_image_prompt(options: Any, first_frames: bool = False) -> None:
    """Refuse files that are not there, and options without pictures, before anything is loaded; with `first_frames` the
    encoder may be for those of --image. Raises `UserError`."""
    for path in options.image_prompt:
        if not path.is_file():
            raise UserError(f"--image-prompt={path} is not a file; permitted: a picture, or a .npy file of faces")
    for name in OTHERS:
        encodes = name == "image_encoder" and first_frames and bool(options.image)
        if (value := getattr(options, name)) is not None and not options.image_prompt and not encodes:
            either = " or --image" if name == "image_encoder" and first_frames else ""
            raise UserError(f"--{name.replace('_', '-')}={value} is for --image-prompt{either}; permitted: "
                            f"--image-prompt FILE{either and ', or --image FILE,'} with it")
    if options.image_prompt_adapter is not None and not options.image_prompt_adapter.is_file():
        raise UserError(f"--image-prompt-adapter={options.image_prompt_adapter} is not a file; permitted: the "
                        ".safetensors file of an adapter")


def with_adapter(options: Any, generator: Generator) -> tuple[Generator, ImagePrompts | None]:
    """The generator with the adapter of the options in its first stage, and the adapter; as it is without one."""
    if options.image_prompt_adapter is None:
        return generator, None
    from vdm_jax.generation.image_prompts import ImagePrompts

    prompts = ImagePrompts(options.image_prompt_adapter, options.image_encoder, generator.mesh)
    return prompts.joined(generator), prompts


def image_prompted(options: Any, generator: Generator, prompts: ImagePrompts | None) -> dict[str, Any]:
    """The pictures as arguments, one for each video that is asked for. Raises `UserError` for files that are no
    pictures, and for runs whose networks take no image prompts or whose image encoder is not known."""
    if not options.image_prompt:
        return {}
    from vdm_jax.data.image_prompts import read_made
    from vdm_jax.generation.image_prompts import open_encoder, picture_arguments

    files = list(options.image_prompt) * (1 if len(options.image_prompt) > 1 else len(options.captions))
    pictures = [str(path) for path in files for _ in range(options.count)]
    if prompts is not None:
        return prompts.arguments(pictures, options.image_prompt_scale)
    found = [(entry.width, stage.network) for stage in generator.experiment.stages
             for entry in stage.network.conditions if entry.name == "image_prompt"]
    if len(found) != 1:
        raise UserError(f"--image-prompt={options.image_prompt[0]}: {len(found)} networks of the run take image "
                        "prompts; permitted: a run of which one does, or --image-prompt-adapter FILE")
    (width, network), = found
    projection, adapter = (getattr(network, name, None) for name in ("image_projection", "picture_adapter"))
    data = getattr(generator.experiment.data, "data", generator.experiment.data)
    where = getattr(data, "image_prompts", None)
    made = None if where is None else read_made(Path(where).expanduser())
    if made is None and options.image_encoder is None:
        raise UserError("--image-encoder is missing: the run does not say which encoder its image prompts were made "
                        "with; permitted: the folder of that")
    reads = adapter is not None or (projection is not None and projection.hidden_states)
    hidden, last = (reads, adapter is not None) if made is None else (made.hidden, made.last)
    if (projection is not None or adapter is not None) and hidden != reads:
        what = ("a summary of each picture", "hidden states")
        reader = "image_projection" if adapter is None else "picture_adapter"
        raise UserError(f"{where} holds {what[hidden]} (hidden={hidden}), and the run's {reader} reads "
                        f"{what[reads]}; permitted: a folder of vdm-jax embed {'with' if reads else 'without'} "
                        "--hidden", "image_prompt.record")
    encoder = open_encoder(options.image_encoder or made.encoder, width, hidden)
    return picture_arguments(encoder, pictures, options.image_prompt_scale, hidden, last)


def first_frame_tokens(options: Any, generator: Generator, masked_video: MaskedVideo | None) -> dict[str, Any]:
    """What an image encoder makes of the given first frames, for a run whose network reads image tokens and which
    encodes no pictures itself. Raises `UserError` for an encoder that nothing reads, and one that is not known."""
    import numpy as np
    from PIL import Image

    from vdm_jax.conditions.image_tokens import IMAGE_TOKENS
    from vdm_jax.data.first_frames import encoder_of
    from vdm_jax.generation.image_prompts import open_encoder
    from vdm_jax.video.arrays import to_uint8

    experiment = generator.experiment
    stage = experiment.stage(options.first) if options.first else experiment.stages[0]
    widths = [entry.width for entry in stage.network.conditions if entry.name == IMAGE_TOKENS]
    itself = experiment.data is None  # a released model
    if options.image_encoder is not None and not options.image_prompt and (itself or not widths):
        raise UserError(f"--image-encoder={options.image_encoder} with --image, and stage {stage.name!r} of the run "
                        "reads no image tokens, or encodes pictures itself; permitted: none", "Sample.image_encoder")
    if masked_video is None or itself or not widths:
        return {}
    data = getattr(experiment.data, "data", experiment.data)
    folder = options.image_encoder or encoder_of(getattr(data, "image_tokens", ""))
    if folder is None:
        raise UserError("--image-encoder is missing: the run does not say which encoder its image tokens were made "
                        "with; permitted: the folder of that", "Sample.image_encoder")
    frames = np.asarray(to_uint8(masked_video.video[:, 0]))
    encoder = open_encoder(folder, widths[0], True)
    return {IMAGE_TOKENS: encoder([Image.fromarray(frame) for frame in frames], hidden=True).vectors}
