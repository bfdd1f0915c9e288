"""`vdm-jax export`: weights of a run as safetensors, with their model card."""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import tyro

from vdm_jax.commands.arguments import parse
from vdm_jax.commands.outputs import check_folder
from vdm_jax.errors import UserError
from vdm_jax.runs.listing import CARD
from vdm_jax.runs.manifest import Damaged

if TYPE_CHECKING:  # JAX is not imported before the options are checked
    from vdm_jax.stages.autoencoding import AutoencoderExperiment
    from vdm_jax.stages.stage import Experiment


@dataclasses.dataclass(frozen=True)
class Export:
    """Write the averaged weights of a run's trained stages, with their config, as a folder that samples like a run.

    Of a run of autoencoders each stage becomes OUT/STAGE/autoencoder.safetensors, which latent stages take; scale and
    shift of its latents are measured anew. README.md next to the weights is their model card: stages, data, steps of
    training, the scores that 'vdm-jax evaluate' has recorded, licence, versions.

    Examples:
      vdm-jax export captioned_digits weights/my_digits --dtype float16
      vdm-jax export autoencoder_digits weights/my_autoencoder
      vdm-jax export ink_run weights/ink --lora kohya
      vdm-jax export portraits_run weights/portraits --image-prompts
      vdm-jax export sparse_run weights/sparse --control-nets
    """

    run: tyro.conf.Positional[str]  # run directory or name, or a released model's folder
    out: tyro.conf.Positional[Path]  # folder to make
    dtype: Literal["float32", "float16", "bfloat16"] = "float32"  # type of the stored weights
    # Of stages that train a LoRA write the factors alone, as OUT/STAGE/lora.safetensors: in our layout (plain), which
    # 'sample --lora' takes for any network, or as other programs read those of open latent U-Nets
    lora: Literal["plain", "diffusers", "kohya"] | None = None
    # Of stages that take image prompts write the adapter alone, as OUT/STAGE/ip-adapter.safetensors in the layout of
    # IP-Adapter's files
    image_prompts: bool = False
    # Of stages that have ControlNets, SparseCtrl or T2I-Adapters write these alone, each as the folder
    # OUT/STAGE/CONDITION in the layout of diffusers, such as a pipeline has as controlnet/ or adapter/
    control_nets: bool = False
    damaged: Damaged = "refuse"  # a damaged newest checkpoint: refuse, or skip it and use the newest intact one
    data_dir: Path | None = None  # prepared data sets, for autoencoders; $VDM_JAX_DATA or ~/.cache/vdm_jax/data
    licence: str | None = None  # of the weights, for README.md, such as Apache-2.0; "not stated" without


def main(arguments: Sequence[str]) -> int:
    """Entry of the command."""
    options = parse(Export, arguments, "vdm-jax export")
    check_folder(options.out, "out")
    if options.out.exists() and any(options.out.iterdir()):
        raise UserError(f"out={options.out} is not empty; permitted: a new or empty folder")
    if options.licence is not None and not (options.licence.strip() and options.licence.isprintable()):
        raise UserError(f"--licence={options.licence!r} is not valid; permitted: a name on one line")
    parts = [name for name, asked in ((f"--lora={options.lora}", options.lora is not None), (
        "--image-prompts", options.image_prompts), ("--control-nets", options.control_nets)) if asked]
    if len(parts) > 1:
        raise UserError(f"{' with '.join(parts)}; permitted: one of them, which each write a part of the weights alone",
                        "Export.parts")
    from vdm_jax.runs.directory import find_run, read_config
    from vdm_jax.stages.autoencoding import AutoencoderExperiment

    run = find_run(options.run)
    experiment = read_config(run)
    if options.lora is not None:
        export_loras(run, experiment, options)
    elif options.image_prompts:
        export_image_prompts(run, experiment, options)
    elif options.control_nets:
        export_control_nets(run, experiment, options)
    elif isinstance(experiment, AutoencoderExperiment):
        export_autoencoders(run, experiment, options)
    else:
        export_cascade(run, experiment, options)
    for path in sorted(options.out.rglob("*.safetensors")):
        print(f"{path} ({path.stat().st_size / 1e6:.1f} MB)")
    if not parts:
        print(options.out / CARD)
    return 0


def export_loras(run: Path, experiment: Experiment | AutoencoderExperiment, options: Export) -> None:
    """Write the averaged factors of the stages of a run that train a LoRA. Raises `UserError` where none does, or the
    layout has no names for a network's modules."""
    import jax

    from vdm_jax.generation.loras import stage_target
    from vdm_jax.runs.directory import load_adapter
    from vdm_jax.stages.parameters import network_shapes
    from vdm_jax.weights.lora_files import NETWORK, STAGE, write_lora

    stages = [stage for stage in experiment.stages if getattr(stage.training, "lora", ())]
    if not stages or options.licence is not None:
        raise UserError(f"--lora={options.lora} of {run}, where {len(stages)} stages train a LoRA, with --licence="
                        f"{options.licence}; permitted: a run with training.lora, and no --licence, since there is no "
                        "model card")
    for stage in stages:
        target, adapter = stage_target(stage, network_shapes(stage)), load_adapter(run, stage, options.damaged)
        if options.dtype != "float32":
            factors = jax.tree.map(lambda a: a.astype(options.dtype), adapter.factors)
            adapter = dataclasses.replace(adapter, factors=factors)
        write_lora(options.out / stage.name / "lora.safetensors", {NETWORK: (target, adapter)}, options.lora,
                   {STAGE: stage.name})


def export_image_prompts(run: Path, experiment: Experiment | AutoencoderExperiment, options: Export) -> None:
    """Write the averaged image prompt adapters of the stages of a run that have one. Raises `UserError` where none has,
    or it is not trained."""
    import jax

    from vdm_jax.networks.image_prompt import part
    from vdm_jax.runs.directory import load_stage
    from vdm_jax.weights.pretrained import Pretrained, save_original

    stages = [stage for stage in experiment.stages if getattr(stage.network, "image_projection", None) is not None]
    if not stages or options.licence is not None:
        raise UserError(f"--image-prompts of {run}, where {len(stages)} stages have an adapter, with --licence="
                        f"{options.licence}; permitted: a run with network.image_projection, and no --licence, since "
                        "there is no model card", "Export.image_prompts")
    for stage in stages:
        params = load_stage(run, stage, options.damaged)
        if params is None:
            raise UserError(f"stage {stage.name!r} of run {run} is not trained; permitted: a trained one",
                            "Export.image_prompts")
        config, adapter = part(stage.network.unet, stage.network.image_projection, jax.device_get(params))
        adapter = jax.tree.map(lambda a: a.astype(options.dtype), adapter)
        save_original(options.out / stage.name / "ip-adapter.safetensors", Pretrained(config, adapter))


def export_control_nets(run: Path, experiment: Experiment | AutoencoderExperiment, options: Export) -> None:
    """Write the averaged ControlNets, SparseCtrl and T2I-Adapters of the stages of a run that have some, by the names
    of the conditions that they see. Raises `UserError` where none has, one has no layout of diffusers, or a stage is
    not trained."""
    import jax

    from vdm_jax.networks.control_net import ControlNet
    from vdm_jax.networks.sparse_control import SparseControlNet
    from vdm_jax.networks.t2i_adapter import T2IAdapter
    from vdm_jax.runs.directory import load_stage
    from vdm_jax.weights.model_kinds import kind_of
    from vdm_jax.weights.pretrained import Pretrained, save_pretrained

    stages = [stage for stage in experiment.stages if getattr(stage.network, "control_nets", ())]
    if not stages or options.licence is not None:
        raise UserError(f"--control-nets of {run}, where {len(stages)} stages have some, with --licence="
                        f"{options.licence}; permitted: a run with LatentNetwork.control_nets, and no --licence, since "
                        "there is no model card", "Export.control_nets")
    trained = {stage.name: load_stage(run, stage, options.damaged) for stage in stages}
    for stage in stages:  # before anything is written
        if trained[stage.name] is None:
            raise UserError(f"stage {stage.name!r} of run {run} is not trained; permitted: a trained one",
                            "Export.control_nets")
        for entry, net in zip(stage.network.entering("residuals"), stage.network.control_nets, strict=True):
            if not isinstance(net, ControlNet | SparseControlNet | T2IAdapter):
                raise UserError(f"--control-nets of stage {stage.name!r}, whose {entry.name!r} is seen by a "
                                f"{type(net).__name__}; permitted: ControlNet, SparseControlNet, T2IAdapter, which "
                                "other libraries have", "Export.control_nets")
            kind_of(net).write(net)
    for stage in stages:
        params = trained[stage.name]
        for entry, config in zip(stage.network.entering("residuals"), stage.network.control_nets, strict=True):
            branch = jax.tree.map(lambda a: a.astype(options.dtype),
                                  jax.device_get(params[f"control_net_{entry.name}"]))
            save_pretrained(options.out / stage.name / entry.name, Pretrained(config, branch))


def export_cascade(run: Path, experiment: Experiment, options: Export) -> None:
    """Write a cascade of diffusion stages with its card."""
    import jax

    from vdm_jax.runs.directory import export, load
    from vdm_jax.runs.model_card import exported_steps, model_card

    steps = exported_steps(run, experiment, options.damaged)
    scores = recorded_scores(run, steps)
    generator = load(run, damaged=options.damaged)
    parameters = {name: sum(leaf.size for leaf in jax.tree.leaves(tree)) for name, tree in generator.params.items()}
    prompt = ' "a caption"' if any(stage.network.text is not None for stage in experiment.stages) else ""
    label = " --labels 0" if any(stage.network.classes for stage in experiment.stages) else ""
    use = f"vdm-jax sample {shlex.quote(str(options.out))}{prompt}{label} --out video.mp4"
    export(generator, options.out, None if options.dtype == "float32" else options.dtype,
           card=lambda exported: model_card(exported, parameters, steps, use, scores, options.licence))


def export_autoencoders(run: Path, experiment: AutoencoderExperiment, options: Export) -> None:
    """Write autoencoders, as latent stages take them, with their card."""
    from vdm_jax.commands.sizes import counted
    from vdm_jax.evaluation.reconstruction import finish_autoencoder
    from vdm_jax.runs.autoencoders import FILE
    from vdm_jax.runs.model_card import exported_steps, model_card
    from vdm_jax.video.writing import atomic_path

    dtype = None if options.dtype == "float32" else options.dtype
    steps, scores = exported_steps(run, experiment, options.damaged), {}
    for stage in experiment.stages:
        found = finish_autoencoder(run, experiment, stage, options.data_dir, out=options.out / stage.name, dtype=dtype,
                                   damaged=options.damaged)
        scores[f"{stage.name}: reconstruction of validation clips"] = found.table()
    use = "\n".join(f"vdm-jax train CONFIG --STAGE.latent.weights {shlex.quote(str(options.out / stage.name / FILE))}"
                    for stage in experiment.stages)
    card = model_card(experiment, {stage.name: counted(stage) for stage in experiment.stages}, steps, use, scores,
                      options.licence)
    with atomic_path(options.out / CARD) as temporary:
        temporary.write_text(card, encoding="utf-8")


def recorded_scores(run: Path, steps: Mapping[str, int]) -> dict[str, str]:
    """What 'vdm-jax evaluate' has on record of a run, with its protocol, as Markdown by title; of checkpoints, those of
    these steps. Raises `UserError` for a damaged record."""
    from vdm_jax.evaluation.checkpoints import Kept, read_digits, read_metrics, read_record

    found = {}
    path = run / "evaluation.json"
    if record := read_record(path):
        found["What captions ask for"] = read_digits(record, path).table()
    places = {"Metrics": run / "metrics.json"}
    places |= {f"{stage}, checkpoint {step}": Kept(stage, step).record(run) for stage, step in steps.items()}
    for title, path in places.items():
        if record := read_record(path):
            found[title] = read_metrics(record, path).table()
    return found
