"""What `vdm-jax sample --amplify` does: words that count as much as a sound is loud."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from vdm_jax.commands.arguments import word_weights
from vdm_jax.errors import UserError


def check_amplified(options: Any) -> None:
    """Refuse words to amplify without a sound, or with one that is not there, of longer videos and with guidance by
    names, and a window without words. Raises `UserError`."""
    if options.amplify_window is not None and not options.amplify:
        raise UserError(f"--amplify-window={options.amplify_window} is for --amplify; permitted: --amplify WORD=FACTOR "
                        "with it")
    if not options.amplify:
        return
    word_weights(options.amplify, "amplify")
    if not options.sound:
        raise UserError(f"--amplify={options.amplify[0]} without --sound; permitted: --sound FILE with it, or one for "
                        "each caption")
    for path in options.sound:
        if not path.is_file():
            raise UserError(f"--sound={path} with --amplify is not a file; permitted: a media file with sound")
    for name in ("frames", "guide"):
        if value := getattr(options, name):
            shown = value[0] if isinstance(value, tuple) else value
            raise UserError(f"--amplify={options.amplify[0]} with --{name}={shown}; permitted: one of them")


def with_one_noise(generator: Any) -> Any:
    """The generator whose image networks make all frames of the same noise, so that frames differ by their words
    alone."""
    from vdm_jax.networks.latent_network import LatentNetwork

    def shared(stage: Any) -> Any:
        image = isinstance(stage.network, LatentNetwork) and not stage.network.unet.video
        sampling = dataclasses.replace(stage.sampling, shared_noise=stage.sampling.shared_noise or image)
        return dataclasses.replace(stage, sampling=sampling)

    experiment = generator.experiment
    return generator.of(dataclasses.replace(experiment, stages=tuple(map(shared, experiment.stages))))


def amplified_words(options: Any, generator: Any, captions: Sequence[str]) -> dict[str, Any]:
    """The argument of a generator for the words of --amplify, by the loudness of --sound. Raises `UserError` for a
    sound that is shorter than the video, and words that a caption has not."""
    if not options.amplify:
        return {}
    import numpy as np

    from vdm_jax.generation.editing.amplitude import RATE, WINDOW, amplified, frame_amplitudes
    from vdm_jax.video.sound import read_sound

    stages, window = generator.stages(options.first, options.last), options.amplify_window or WINDOW
    video = stages[-1].video
    fps = generator.makes(options.first, options.last, options.fps).fps
    found = [frame_amplitudes(read_sound(path, RATE), RATE, video.frames, fps, window, str(path))
             for path in options.sound]
    of_captions = found * len(options.captions) if len(found) == 1 else found
    return amplified(generator, captions, word_weights(options.amplify, "amplify"),
                     np.repeat(np.stack(of_captions), options.count, axis=0), stages)
