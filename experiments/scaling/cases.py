"""What is compiled for which slices: weak and strong scaling of published-size stages, and what fits where."""

from __future__ import annotations

import dataclasses
import math
from typing import Literal

from vdm_jax.commands.configs import load_config
from vdm_jax.parallel.mesh import AXES, MeshSpec
from vdm_jax.planning.program import Plan

WEAK_CLIPS = 4  # per chip
STRONG_CLIPS = 1024  # per step
MOST_FSDP = 16  # chips that share one copy of the state (more of them gather by sums); the others have copies
LARGEST = {"v5e": 256, "v6e": 256, "v5p": 8960}  # chips of one slice; more chips are several slices


@dataclasses.dataclass(frozen=True, kw_only=True)
class Case:
    """One program."""

    study: Literal["weak", "strong", "even", "last"]
    config: str
    stage: str
    generation: str
    chips: int
    batch: int  # clips per step, over all chips
    mesh: tuple[int, int, int, int]  # data, fsdp, tensor, context
    what: Literal["train", "sample"] = "train"
    spread: Literal["frames", "height"] = "frames"  # what the context axis splits

    @property
    def name(self) -> str:
        """Key in the record: all that decides about the program, so that studies share rows."""
        mesh = "x".join(map(str, self.mesh))
        return (f"{self.config} {self.stage} {self.what} {self.topology} mesh {mesh} batch {self.batch}"
                f"{'' if self.spread == 'frames' else ' height'}")

    @property
    def topology(self) -> str:
        """As `vdm-jax compile` takes it."""
        slices = math.ceil(self.chips / LARGEST[self.generation])
        product = self.chips // slices * (2 if self.generation == "v5p" else 1)
        return f"{f'{slices}x' if slices > 1 else ''}{self.generation}-{product}"

    def plan(self) -> Plan:
        """What is compiled."""
        experiment = load_config(self.config)
        stage = experiment.stage(self.stage)
        network = dataclasses.replace(stage.network, sharded_axis=self.spread)
        plan = Plan(experiment=experiment.name, stage=dataclasses.replace(stage, network=network),
                    data=experiment.data, mesh=MeshSpec(**dict(zip(AXES, self.mesh, strict=True))), what=self.what,
                    topology=self.topology)
        return plan.with_batch(self.batch)


def copies(chips: int) -> tuple[int, int, int, int]:
    """Data parallel over groups of at most 16 chips that share the state."""
    fsdp = min(chips, MOST_FSDP)
    return chips // fsdp, fsdp, 1, 1


BASES = (("imagen_video/cascade", "base"), ("imagen_video/full_attention", "base"))
LAST = ("imagen_video/cascade", "spatial_1280")
CHIPS = {"v5p": (64, 256, 8, 1024), "v5e": (64, 256), "v6e": (64, 256)}  # the most telling first


def even() -> list[Case]:
    """The state split over all chips of a slice: shards as thin as they get."""
    return [Case(study="even", config=config, stage=stage, generation="v5p", chips=64, batch=256, mesh=(1, 64, 1, 1))
            for config, stage in BASES]


def scaling(generation: str) -> list[Case]:
    """The 5.6 B base, factorised and with full attention, trained on more and more chips."""
    return [Case(study=study, config=config, stage=stage, generation=generation, chips=chips, mesh=copies(chips),
                 batch=WEAK_CLIPS * chips if study == "weak" else STRONG_CLIPS)
            for study in ("weak", "strong") for chips in CHIPS[generation] for config, stage in BASES]


def last_stage() -> list[Case]:
    """One clip of 128 frames of 768 x 1280, sampled on ever larger slices, split by frames or by rows."""
    config, stage = LAST
    return [Case(study="last", config=config, stage=stage, generation=generation, chips=chips, batch=1,
                 mesh=(1, 1, 1, chips), what="sample", spread=spread)
            for generation, sizes in (("v5p", (8, 4, 16)), ("v6e", (16, 8, 32)), ("v5e", (32, 64))) for chips in sizes
            for spread in ("height", "frames")]


def cases() -> list[Case]:
    """All, in the order in which they are compiled: what was asked first, then what shows how it grows."""
    last = last_stage()
    return [*even(), *last[:2], *scaling("v5p"), *last[2:], *scaling("v6e"), *scaling("v5e")]
