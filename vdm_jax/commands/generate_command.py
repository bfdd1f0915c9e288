"""`vdm-jax generate`: pictures and videos from the folder of a released model."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from vdm_jax.commands.arguments import (
    GUIDANCE,
    GUIDANCE_SCALE,
    LORA,
    cache_plan,
    check_outputs,
    parse,
    weighted_files,
)
from vdm_jax.commands.image_prompts import check_image_prompt
from vdm_jax.commands.outputs import check_videos
from vdm_jax.configuration import (
    Count,
    CountOrZero,
    Devices,
    Guidance,
    NonNegative,
    Positive,
    Range,
    SamplingSteps,
    Seed,
    Share,
    ShareBelowOne,
    Size,
)
from vdm_jax.errors import UserError

MotionBucket = Annotated[int, Range(least=0, most=255)]


@dataclasses.dataclass(frozen=True)
class Generate:
    """Generate with released weights: pictures of texts (Stable Diffusion 1.x and 2.x) and control maps (ControlNet),
    videos of texts (ModelScope, AnimateDiff, Wan, CogVideoX, LTX-Video, HunyuanVideo), or videos that begin with a
    picture (Stable Video Diffusion, and with a text too LTX-Video, Wan's image-to-video models and its 5B model).

    FOLDER is local, in the layout of diffusers (with model_index.json and .safetensors files); nothing is downloaded.
    The scheduler is that of the folder unless --scheduler names another. What is not given is what the model's authors
    used. The same seed gives the same result. The suffix of --out decides what is written: .mp4 or .gif plays, .png
    shows pictures, or the frames of videos side by side.

    Examples:
      vdm-jax generate stable-diffusion-v1-5 --prompt "a watercolour of a lighthouse" --out lighthouse.png
      vdm-jax generate stable-diffusion-2-1 --prompt "a fox" "an owl" --negative-prompt blurry --num-per-prompt 2
      vdm-jax generate animatediff --prompt "waves at a cliff" --num-frames 16 --out waves.gif
      vdm-jax generate stable-diffusion-v1-5 --prompt "a fox" --lora ink.safetensors=0.7 light.safetensors
      vdm-jax generate stable-diffusion-v1-5 --prompt "a fox" --image-prompt ink.png --image-prompt-scale 0.6 \
        --image-prompt-adapter IP-Adapter/models/ip-adapter_sd15.safetensors
      vdm-jax generate stable-video-diffusion-img2vid --image rocket.png --dtype bfloat16 --decode-chunk-size 4
      vdm-jax generate animatediff-controlnet --prompt "a dancer of glass" --conditioning-frames poses.mp4
      vdm-jax generate animatediff-sparsectrl-rgb --prompt "a dancer" --conditioning-frames first.png last.png \
        --controlnet-frame-indices 0 15
      vdm-jax generate Wan2.1-T2V-1.3B-Diffusers --prompt "a cat on a surfboard" --num-frames 33 --dtype bfloat16
      vdm-jax generate CogVideoX-5b --prompt "a panda plays a guitar" --scheduler cogvideox_dpm --dynamic-guidance
      vdm-jax generate HunyuanVideo --prompt "a cat on the grass" --num-frames 61 --dtype bfloat16
      vdm-jax generate LTX-Video --prompt "a clownfish between corals" --num-frames 97 --dtype bfloat16
      vdm-jax generate LTX-Video --prompt "the boat leaves" --image boat.jpg --num-frames 97 --dtype bfloat16
      vdm-jax generate Wan2.1-I2V-14B-480P-Diffusers --prompt "the boat leaves" --image boat.jpg --dtype bfloat16
      vdm-jax generate stable-video-diffusion-img2vid --image boat.jpg --motion-bucket-id 60 --fps 10 --out boat.gif
    """

    folder: tyro.conf.Positional[Path]  # local folder of a released model
    prompt: tuple[str, ...] = ()  # one or more texts, each in quotes
    negative_prompt: tuple[str, ...] = ()  # what they should not show: one text, or one for each prompt
    # One or more pictures that videos begin with, in the aspect of the video; of a ControlNet the control maps, one or
    # one for each prompt
    image: tuple[Path, ...] = ()
    last_image: tuple[Path, ...] = ()  # Wan: what the videos end with, one or one for each prompt
    # AnimateDiff with ControlNets: the maps of the frames, for each ControlNet a video, a folder of pictures, or a
    # picture for all frames
    conditioning_frames: tuple[Path, ...] = ()
    # AnimateDiff with SparseCtrl: the frames that --conditioning-frames, pictures, are of, from 0; the first by default
    controlnet_frame_indices: tuple[CountOrZero, ...] = ()
    adapter_conditioning_scale: tuple[NonNegative, ...] = ()  # T2I-Adapter: factor on its features, as the next one
    # ControlNet: factor on what it adds, 1 by default; one for all ControlNets, or one for each, like the next two
    controlnet_conditioning_scale: tuple[NonNegative, ...] = ()
    control_guidance_start: tuple[Share, ...] = ()  # ControlNet: share of the steps from which on it adds anything
    control_guidance_end: tuple[Share, ...] = ()  # ControlNet: share of the steps up to which it does
    # ControlNet: weights by resolution, in the conditional estimate alone, so that maps show without a prompt
    guess_mode: bool | None = None
    # Pictures whose content or style the result takes over (IP-Adapter): one, or one for each prompt
    image_prompt: tuple[Path, ...] = ()
    image_prompt_scale: NonNegative | None = None  # with --image-prompt: how much it counts; 1 by default, 0 is off
    image_prompt_adapter: Path | None = None  # with --image-prompt: .safetensors file of the adapter
    image_encoder: Path | None = None  # with --image-prompt: its encoder's folder; image_encoder/ next to the adapter
    height: Size | None = None  # pixels; that of the training by default
    width: Size | None = None  # pixels; that of the training by default
    num_frames: Size | None = None  # of a video; the model's by default
    # ddim, ddpm, deis, dpm++, dpm++_3m, dpm++_sde, euler, euler_ancestral, heun, lms, pndm, unipc, cogvideox_dpm, ...;
    # the folder's by default
    scheduler: str | None = None
    # Wan, CogVideoX, LTX-Video and HunyuanVideo: keep what the blocks add from step to step. One number N evaluates all
    # of them at every N-th step, several are the numbers of these steps, from 0
    cache: tuple[CountOrZero, ...] = ()
    # Or: all of them once the plain relative changes of the noise level's embedding add up to this; thresholds
    # published with a model's polynomial do not transfer
    cache_threshold: Positive | None = None
    num_inference_steps: SamplingSteps | None = None  # of the scheduler; by default 50 with a text, 25 with a picture
    guidance: GUIDANCE = None
    guidance_scale: GUIDANCE_SCALE = None
    # CogVideoX: guidance that changes from step to step, as the authors sample the 5B model with cogvideox_dpm
    dynamic_guidance: bool = False
    min_guidance_scale: Guidance | None = None  # picture: --guidance-scale of the first frame, 1 by default
    high_noise_guidance_scale: Guidance | None = None  # Wan 2.2 A14B: that of the expert for much noise, 4 by default
    max_guidance_scale: Guidance | None = None  # picture: of the last frame, 3 by default, linear between
    num_per_prompt: Count | None = None  # text: how many of each prompt
    # Frames per second; by default 7 (Stable Video Diffusion), 16 (Wan, CogVideoX1.5), 24 (HunyuanVideo), 25
    # (LTX-Video) or 8. LTX-Video and Stable Video Diffusion are conditioned on it too
    fps: Count | None = None
    motion_bucket_id: MotionBucket | None = None  # picture: how much moves, 1 to 255; 127 by default
    noise_aug_strength: NonNegative | None = None  # picture: noise on it, 0.02 by default; more lets the video leave it
    decode_chunk_size: Size | None = None  # frames decoded at a time; all by default, fewer take less memory
    decode_timestep: Share | None = None  # LTX-Video from 0.9.1 on: time of the decoder, 0.05 by default
    decode_noise_scale: ShareBelowOne | None = None  # and the share of noise in what it decodes, 0.025 by default
    # CogVideoX, LTX-Video and HunyuanVideo: pixels of a side of the tiles that are decoded one by one, and blended over
    # a quarter of them; whole frames by default, tiles take less memory
    decode_tile_size: Size | None = None
    lora: LORA = ()
    seed: Seed = 0
    dtype: Literal["float32", "bfloat16", "float16"] | None = None  # of weights and activations; as stored by default
    variant: str | None = None  # part of the weights' file names, such as fp16
    data: Devices = 1  # devices that share the pictures or videos
    fsdp: Devices = 1  # devices that share the weights, and the pictures or videos
    tensor: Devices = 1  # devices that share wide layers
    out: tuple[Path, ...] = ()  # one or more files: .png, .mp4 or .gif; generated.png or generated.mp4 by default


LOADING = ("folder", "image_prompt_adapter", "image_encoder", "dtype", "variant", "scheduler", "lora", "data", "fsdp",
           "tensor", "out", "cache_threshold")


def main(arguments: Sequence[str]) -> int:
    """Entry of the command."""
    options = parse(Generate, arguments, "vdm-jax generate")
    check(options)
    check_experts(options)
    from vdm_jax.parallel.mesh import MeshSpec
    from vdm_jax.pipelines.loading import from_pretrained

    sizes = (options.data, options.fsdp, options.tensor)
    mesh = None if sizes == (1, 1, 1) else MeshSpec(data=options.data, fsdp=options.fsdp, tensor=options.tensor)
    pipeline = from_pretrained(options.folder, dtype=options.dtype, variant=options.variant, mesh=mesh,
                                       scheduler=options.scheduler)
    given = call_arguments(options, pipeline)
    if options.image_prompt_adapter is not None:
        pipeline.use_image_prompts(options.image_prompt_adapter, options.image_encoder)
    if options.lora:
        pipeline.use_loras(weighted_files("--lora", options.lora))
    result = pipeline(**given)
    default = "generated.png" if "image" in result.stages else "generated.mp4"
    for path in options.out or (Path(default),):
        print(result.save(path))
    return 0


def call_arguments(options: Generate, pipeline: Any) -> dict[str, Any]:
    """What a pipeline is called with. Raises `UserError` for what it needs and was not given, or does not take."""
    given = {field.name: getattr(options, field.name) for field in dataclasses.fields(options)
             if field.name not in LOADING}
    given = {name: value for name, value in given.items() if value is not None and value is not False and value != ()}
    for name in ("negative_prompt", "conditioning_frames", "controlnet_conditioning_scale", "control_guidance_start",
                 "control_guidance_end", "adapter_conditioning_scale"):
        if len(given.get(name, ())) == 1:
            given[name] = given[name][0]
    if (plan := cache_plan(options.cache, options.cache_threshold)) is not None:
        given["cache"] = plan
    takes = inspect.signature(type(pipeline).__call__).parameters
    permitted = [f"--{name.replace('_', '-')}" for name in takes if hasattr(options, name)]
    permitted += ["--cache-threshold"] if "cache" in takes else []
    for name in given:
        if name not in takes:
            name = "cache_threshold" if name == "cache" and not options.cache else name
            raise UserError(f"--{name.replace('_', '-')} is not for {options.folder}, a {pipeline.folder.kind}; "
                            f"permitted: {', '.join(permitted)}")
    if options.image_prompt and options.image_prompt_adapter is None:
        raise UserError("--image-prompt without --image-prompt-adapter; permitted: the .safetensors file of an adapter "
                        "for the model", "image_prompt.adapter")
    for name in ("prompt", "image", "conditioning_frames"):
        if name in takes and name not in given and takes[name].default is inspect.Parameter.empty:
            raise UserError(f"--{name.replace('_', '-')} is missing, which a {pipeline.folder.kind} begins with; "
                            "permitted: one or more")
    return given


def check_experts(options: Generate) -> None:
    """Refuse a cache of two experts before their weights are loaded. Raises `UserError`."""
    if cache_plan(options.cache, options.cache_threshold) is None:
        return
    from vdm_jax.generation.released.folder import open_folder
    from vdm_jax.generation.released.transformers import SECOND

    folder = open_folder(options.folder)
    if folder.holds(SECOND):
        given = (f"--cache={' '.join(map(str, options.cache))}" if options.cache
                 else f"--cache-threshold={options.cache_threshold}")
        raise UserError(f"{given} with {options.folder}, a model of two experts (boundary_ratio="
                        f"{folder.index.get('boundary_ratio')}); permitted: neither, or a model of one transformer",
                        "Sampling.cache")


def check(options: Generate) -> None:
    """Refuse bad options before anything is loaded. Raises `UserError`."""
    from vdm_jax.diffusion.guidance import guidance_weight

    guidance_weight(options.guidance, options.guidance_scale)
    weighted_files("--lora", options.lora)
    cache_plan(options.cache, options.cache_threshold)
    for name, paths in (("image", options.image), ("last-image", options.last_image)):
        for path in paths:
            if not path.is_file():
                raise UserError(f"--{name}={path} is not a file; permitted: a picture")
    check_image_prompt(options)
    for path in options.conditioning_frames:
        if not path.exists():
            raise UserError(f"--conditioning-frames={path} does not exist; permitted: a video, a picture or a folder "
                            "of pictures")
    check_outputs(options.out)
    count = max(len(options.prompt) * (options.num_per_prompt or 1), len(options.image))
    size = (options.height, options.width) if options.height and options.width else None
    check_videos(options.out, options.fps or 8, count, size)
