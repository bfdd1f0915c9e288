"""What is compiled for which slices: weak and strong scaling of published-size stages, and what fits where."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, Literal, NamedTuple

from vdm_jax.commands.configs import load_config
from vdm_jax.networks.config import SelfAttention, UNet
from vdm_jax.parallel.mesh import AXES, MeshSpec
from vdm_jax.planning.program import Plan

FSDP = 16  # chips that share one copy of the state where its memory allows; the others have copies
LARGEST = {"v5e": 256, "v6e": 256, "v5p": 8960}  # chips of one slice; more chips are several slices


@dataclasses.dataclass(frozen=True, kw_only=True)
class Case:
    """One program."""

    study: Literal["weak", "strong", "even", "mesh", "last", "long"]
    config: str
    stage: str
    generation: str
    chips: int
    batch: int  # clips per step, over all chips
    mesh: tuple[int, int, int, int]  # data, fsdp, tensor, context
    what: Literal["train", "sample"] = "train"
    spread: Literal["frames", "height"] = "frames"  # what the context axis splits
    accumulation: int = 1  # micro-batches per step
    remat: str | None = None  # None: as the config says
    frames: int | None = None  # of a clip; None: as the config says
    context: str | None = None  # how self-attention is spread over devices; None: as the config says

    @property
    def name(self) -> str:
        """Key in the record: all that decides about the program, so that studies share rows."""
        mesh = "x".join(map(str, self.mesh))
        more = [f" {self.spread}" * (self.spread != "frames"), f" remat {self.remat}" * (self.remat is not None),
                f" in {self.accumulation} micro-batches" * (self.accumulation > 1),
                f" frames {self.frames}" * (self.frames is not None), f" {self.context}" * (self.context is not None)]
        return f"{self.config} {self.stage} {self.what} {self.topology} mesh {mesh} batch {self.batch}{''.join(more)}"

    @property
    def slices(self) -> int:
        """Of which the chips are."""
        return math.ceil(self.chips / LARGEST[self.generation])

    @property
    def program(self) -> tuple:
        """What decides about the program of one chip but for the kind of its slice and the number of copies. Whether
        all of a slice share one copy does, since its weights are summed then, and so may several slices."""
        return (self.config, self.stage, self.what, self.mesh[1:], self.mesh[0] == 1, self.slices > 1,
                self.batch / self.chips, self.spread, self.accumulation, self.remat, self.frames, self.context)

    @property
    def topology(self) -> str:
        """As `vdm-jax compile` takes it."""
        product = self.chips // self.slices * (2 if self.generation == "v5p" else 1)
        return f"{f'{self.slices}x' if self.slices > 1 else ''}{self.generation}-{product}"

    def plan(self) -> Plan:
        """What is compiled."""
        experiment = load_config(self.config)
        stage = experiment.stage(self.stage)
        if self.spread != "frames":
            network = dataclasses.replace(stage.network, sharded_axis=self.spread)
            stage = dataclasses.replace(stage, network=network)
        if self.frames is not None:
            stage = dataclasses.replace(stage, video=dataclasses.replace(stage.video, frames=self.frames))
        if self.context is not None:
            stage = dataclasses.replace(stage, network=spread_by(stage.network, self.context))
        training = dataclasses.replace(stage.training, batch_size=self.batch, accumulation=self.accumulation)
        plan = Plan(experiment=experiment.name, stage=dataclasses.replace(stage, training=training),
                    data=experiment.data, mesh=MeshSpec(**dict(zip(AXES, self.mesh, strict=True))), what=self.what,
                    topology=self.topology)
        plan = plan.with_batch(self.batch)
        return plan if self.remat is None else plan.with_remat(self.remat)


def spread_by(network: UNet, context: str) -> UNet:
    """The network with every self-attention spread over devices in another way."""
    def mixers(found: tuple[Any, ...]) -> tuple[Any, ...]:
        return tuple(dataclasses.replace(mixer, context=context) if isinstance(mixer, SelfAttention) else mixer
                     for mixer in found)

    levels = tuple(dataclasses.replace(level, mixers=mixers(level.mixers)) for level in network.levels)
    return dataclasses.replace(network, levels=levels, middle=mixers(network.middle))


class Base(NamedTuple):
    """A stage that is trained on more and more chips."""

    config: str
    stage: str
    weak: int  # clips per chip
    strong: int  # clips per step
    remat: str | None = None  # None: as the config says
    on_v5e: int = FSDP  # the same on v5e, which has the least memory; twice as many of several slices

    def mesh(self, generation: str, chips: int) -> tuple[int, int, int, int]:
        """Data parallel over groups of chips that share the state, at most half of a large slice: the compiler sums
        weights instead of gathering them where all of one share."""
        # Programs for several slices need about a GiB more: 32 chips that share Imagen Video's state do not fit on v5e.
        share = self.on_v5e * (2 if chips > LARGEST["v5e"] else 1) if generation == "v5e" else FSDP
        fsdp = min(chips if chips < 64 else chips // 2, share)
        return chips // fsdp, fsdp, 1, 1


# Stable Video Diffusion: 3 clips on 256 chips are the batch of the paper; its U-Net fits only when it is recomputed.
BASES = (Base("imagen_video/cascade", "base", 4, 1024, on_v5e=32),
         Base("imagen_video/full_attention", "base", 4, 1024, on_v5e=32),
         Base("svd/image_to_video_14", "base", 3, 768, "full"))
LAST = ("imagen_video/cascade", "spatial_1280")
CHIPS = {"v5p": (64, 256, 8, 1024), "v5e": (256, 64, 1024), "v6e": (256, 64, 1024)}  # the most telling first


def even() -> list[Case]:
    """The state split over all chips of a slice, and over half of them."""
    return [Case(study="even", config=base.config, stage=base.stage, generation="v5p", chips=64, batch=64 * base.weak,
                 mesh=(data, 64 // data, 1, 1), remat=base.remat) for data in (1, 2) for base in BASES[:2]]


def scaling(generation: str) -> list[Case]:
    """The bases trained on more and more chips, in micro-batches of what one chip has in weak scaling."""
    found = []
    for study in ("weak", "strong"):
        for chips in CHIPS[generation]:
            for base in BASES:
                batch = base.weak * chips if study == "weak" else base.strong
                if batch % chips == 0:
                    found.append(Case(
                        study=study, config=base.config, stage=base.stage, generation=generation, chips=chips,
                        mesh=base.mesh(generation, chips), batch=batch, remat=base.remat,
                        accumulation=max(batch // chips // base.weak, 1)))
    return found


def meshes() -> list[Case]:
    """The batches of weak scaling on 256 chips: with more or fewer copies, with and without recomputation."""
    return [Case(study="mesh", config=base.config, stage=base.stage, generation=generation, chips=256,
                 batch=256 * base.weak, mesh=(256 // fsdp, fsdp, 1, 1), remat=remat)
            for generation in ("v6e", "v5e", "v5p") for base in BASES for remat in (base.remat, "none")
            for fsdp in (16, 64)]


def last_stage() -> list[Case]:
    """One clip of 128 frames of 768 x 1280, sampled on ever larger slices, split by frames or by rows."""
    config, stage = LAST
    return [Case(study="last", config=config, stage=stage, generation=generation, chips=chips, batch=1,
                 mesh=(1, 1, 1, chips), what="sample", spread=spread)
            for generation, sizes in (("v5p", (8, 4, 16)), ("v6e", (16, 8, 32)), ("v5e", (32, 64))) for chips in sizes
            for spread in ("height", "frames")]


def long_videos() -> list[Case]:
    """A level of NUWA-XL with 225 segments, filled up to 256 so that 64 chips sample four each, and one clip of 1,024
    frames with full spatio-temporal attention, whose frames are split over all chips."""
    clip = Case(study="long", config="imagen_video/full_attention", stage="base", generation="v5p", chips=64, batch=1,
                mesh=(1, 1, 1, 64), frames=1024, context="ring", what="sample")
    return [Case(study="long", config="nuwa_xl/flintstones", stage="base", generation=generation, chips=64, batch=256,
                 mesh=(64, 1, 1, 1), what="sample") for generation in ("v5p", "v6e")] + [
        clip, dataclasses.replace(clip, what="train")]


def cases() -> list[Case]:
    """All, in the order in which they are compiled: what was asked first, then what shows how it grows."""
    last = last_stage()
    return [*last[:2], *scaling("v6e"), *scaling("v5e"), *meshes(), *scaling("v5p"), *even(), *last[2:], *long_videos()]
