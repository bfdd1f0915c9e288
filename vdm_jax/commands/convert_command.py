"""`vdm-jax convert`: open weights into our layout and back."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import tyro

from vdm_jax.commands.arguments import parse
from vdm_jax.commands.outputs import check_file, check_folder


@dataclasses.dataclass(frozen=True)
class Convert:
    """Rewrite a model's folder in the layout of diffusers or transformers as one file of ours, or such a file as a
    folder. Both hold the same numbers. A file of AnimateDiff's motion modules becomes either; an original checkpoint of
    Stable Diffusion or Stable Video Diffusion, one file of all parts, becomes a folder with a folder for each, and that
    of Wan's autoencoder a folder with `vae/`, which `--original` writes back.

    Examples:
      vdm-jax convert stable-video-diffusion/vae weights/svd_vae.safetensors
      vdm-jax convert weights/svd_vae.safetensors my_model/vae
      vdm-jax convert v3_sd15_mm.safetensors motion_adapter
      vdm-jax convert v1-5-pruned.safetensors stable-diffusion     # makes unet/, vae/ and text_encoder/ in it
      vdm-jax convert Wan2.1_VAE.safetensors wan                   # makes vae/ in it
      vdm-jax convert wan/vae Wan2.1_VAE.safetensors --original
    """

    # Folder with config.json and .safetensors files, a file this command wrote, or an original checkpoint
    source: tyro.conf.Positional[Path]
    out: tyro.conf.Positional[Path]  # .safetensors file to write, or folder to make
    variant: str | None = None  # part of the folder's file names, such as fp16
    original: bool = False  # write a file by the names of the model's authors


def main(arguments: Sequence[str]) -> int:
    """Entry of the command."""
    options = parse(Convert, arguments, "vdm-jax convert")
    if options.out.suffix == ".safetensors":
        check_file(options.out, (".safetensors",), "out", make_folder=True)
    else:
        check_folder(options.out, "out")
    from vdm_jax.weights.motion_files import is_motion_file, load_motion_file
    from vdm_jax.weights.pretrained import import_folder, load_imported, save_imported, save_pretrained
    from vdm_jax.weights.single_file import split_single_file
    from vdm_jax.weights.tensor_files import file_metadata

    if options.original:
        return _original(options)
    if options.source.is_file() or options.source.suffix == ".safetensors":
        motion = is_motion_file(options.source)
        if not motion and "config" not in file_metadata(options.source):
            for part, config in split_single_file(options.source, options.out).items():
                print(f"{options.out / part}: {type(config).__name__}")
            return 0
        load = load_motion_file if motion else load_imported
        model = load(options.source)
        save = save_imported if options.out.suffix == ".safetensors" else save_pretrained
        save(options.out, model)
        config = model.config
    else:
        config = import_folder(options.source, options.out, options.variant)
    print(f"{options.out}: {type(config).__name__}")
    return 0


def _original(options: Convert) -> int:
    """Writes a model by its authors' names."""
    from vdm_jax.errors import UserError
    from vdm_jax.weights.pretrained import load_imported, load_pretrained, save_original

    if options.out.suffix != ".safetensors":
        raise UserError(f"out={options.out} with --original; permitted: a name that ends in .safetensors")
    ours = options.source.suffix == ".safetensors"
    model = load_imported(options.source) if ours else load_pretrained(options.source, variant=options.variant)
    save_original(options.out, model)
    print(f"{options.out}: {type(model.config).__name__}")
    return 0
