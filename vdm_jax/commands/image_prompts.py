"""Image prompts of `vdm-jax sample` and `generate`: their options, checked, and as arguments of a generator."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from vdm_jax.errors import UserError

if TYPE_CHECKING:  # JAX is not imported before the options are checked
    from vdm_jax.generation.generator import Generator
    from vdm_jax.generation.image_prompts import ImagePrompts

OTHERS = ("image_prompt_scale", "image_prompt_adapter", "image_encoder")  # that say how --image-prompt is taken


def check_image_prompt(options: Any) -> None:
    """Refuse files that are not there, and options without pictures, before anything is loaded. Raises `UserError`."""
    for path in options.image_prompt:
        if not path.is_file():
            raise UserError(f"--image-prompt={path} is not a file; permitted: a picture, or a .npy file of faces")
    for name in OTHERS:
        if (value := getattr(options, name)) is not None and not options.image_prompt:
            raise UserError(f"--{name.replace('_', '-')}={value} is for --image-prompt; permitted: --image-prompt FILE "
                            "with it")
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
