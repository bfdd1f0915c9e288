"""Checks of guidance against training: an estimate that lacks a condition needs training that leaves it out."""

from typing import Any

from vdm_jax.conditions.conditioning import CONDITIONS, nullable
from vdm_jax.conditions.frame_masks import NoMask
from vdm_jax.diffusion.guidance import in_turn
from vdm_jax.errors import UserError


def check_dropped(stage: Any) -> None:
    """Raise `UserError` for guidance away from an input that training never leaves out: the network has not seen
    what the unconditional estimate is made from."""
    sampling, training, where = stage.sampling, stage.training, f"Stage {stage.name!r}: sampling.guidance"
    if not sampling.guided or sampling.terms:
        return
    weight = sampling.guidance or sampling.last_frame_guidance
    if sampling.guided_by == "frames" and not any(isinstance(o, NoMask) for o in training.masking):
        raise UserError(f"{where}={weight} by 'frames' with training.masking={training.masking}, which "
                        "never show it a video without conditioning frames; permitted: masking with "
                        "NoMask, or guidance=0")
    if sampling.guided_by == "prompt" and not training.text_dropout:
        raise UserError(f"{where}={weight} by 'prompt' with training.text_dropout=0, so that it never sees the "
                        "null caption; permitted: text_dropout above 0, or guidance=0")


def check_named(stage: Any) -> None:
    """Raise `UserError` for dropout of, or guidance by, what the network has not or may not do without, and for
    guidance by what training never leaves out."""
    training, known = stage.training, nullable(stage.network)
    permitted = ", ".join(known) or "none: the network has no condition that can be left out"
    for name in (name for entry in training.dropout for name in entry.names):
        if name not in known:
            raise UserError(f"Stage {stage.name!r}: training.dropout names {name!r}; permitted: {permitted}")
    where, terms = f"Stage {stage.name!r}: sampling.terms", [term.name for term in stage.sampling.terms]
    for name in terms:
        if name == "time":
            if not training.images_per_clip:
                raise UserError(f"{where} has 'time' with training.images_per_clip=0, so that it never sees single "
                                "frames; permitted: images_per_clip above 0")
        elif name not in known:
            raise UserError(f"{where} has {name!r}; permitted: {permitted}"
                            + (", time" if training.images_per_clip else ""))
    shown = _left_out(stage)
    for names in in_turn(dict.fromkeys(terms, 1.0))[0]:  # one program serves all weights
        lacking = [name for name in names if name != "time"]
        if set(lacking) not in shown:
            parts = [" with ".join(name for name in known if name in part) for part in shown if part]
            raise UserError(f"{where} needs an estimate without {' and '.join(map(repr, lacking))}, which training "
                            f"never leaves out{' together' * (len(lacking) > 1)}; permitted: estimates without "
                            f"{', '.join(parts) or 'nothing'}, or training.text_dropout, training.masking with "
                            "NoMask or training.dropout of these names")


def _left_out(stage: Any) -> list[set[str]]:
    """The sets of conditions that training leaves out of some samples, each together; the empty one first. Those of
    the prompt go together, and so do those of the frames; either may meet what an entry of dropout leaves out."""
    training, names = stage.training, nullable(stage.network)
    found = [set(), *(set(entry.names) for entry in training.dropout if entry.probability)]
    masked = any(isinstance(masking, NoMask) for masking in training.masking)
    for guidance, drops in (("prompt", training.text_dropout > 0), ("frames", masked)):
        together = {name for name in names if CONDITIONS[name].guidance == guidance}
        found += [part | together for part in found if drops and part | together not in found]
    return found
