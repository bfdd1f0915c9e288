"""The methods for image models: what their model is given, and that each clip keeps its own maps and captions."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from experiments.editing import image_methods, image_model, run
from tests.refusals import refused
from vdm_jax.data.controlled_digits import ControlledDigits
from vdm_jax.digits.clips import DIGIT_WORDS, DigitClips, parse_caption
from vdm_jax.generation.editing.one_stage import edit_sampling

DATA = ControlledDigits(size=32, frames=4, objects=(1, 1), train_clips=16, validation_clips=8, test_clips=8)
UNET = dataclasses.replace(image_model.UNET, widths=(8, 8), attention=(False, True), heads=(2, 2),
                           only_cross_attention=(False, False), groups=4)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images") / "run"
    return folder, image_model.trained_model(folder, quiet=True, unet=UNET, data=DATA, steps=2)


def test_every_caption_of_one_digit_has_vectors_of_its_words():
    captions = image_model.captions()
    assert len(set(captions)) == len(captions) and all(len(parse_caption(text)) == 1 for text in captions)
    assert {clip.caption for clip in run.clips_of(DigitClips(frames=2), 20)} <= set(captions)
    one, other = (image_model.vectors(f"a red {digit} bouncing") for digit in (DIGIT_WORDS[3], "4"))
    assert one.shape == (4, image_model.WIDTH) and (one == other).all(-1).tolist() == [True, True, False, True]


def test_the_model_makes_clips_of_its_data_by_their_edges(trained):
    _, generator = trained
    assert (generator.makes().frames, generator.makes().height) == (4, 32)
    maps = np.zeros((1, 4, 32, 32, 3), np.uint8)
    videos = [generator("a red 3 bouncing", seed=0, steps=2, control=found).videos for found in (maps, maps + 255)]
    assert videos[0].shape == (1, 4, 32, 32, 3) and (videos[0] != videos[1]).any()


@pytest.mark.parametrize("method", image_methods.METHODS)
def test_every_method_can_edit_by_the_model(trained, method):
    _, generator = trained
    spec, stage = image_methods.METHODS[method], generator.experiment.stages[0]
    sampling = dataclasses.replace(stage.sampling, steps=image_methods.STEPS)
    assert edit_sampling(spec.stage(stage), sampling, spec, 0.0).target.steps == image_methods.STEPS
    assert len(spec.pauses(image_methods.STEPS)) == 2 * ("controlvideo" in method and "not smoothed" not in method)


def test_a_method_is_measured_once(trained, tmp_path):
    folder, _ = trained
    methods = (run.NO_EDIT, image_methods.ANEW, "text2video_zero")
    options = image_methods.Run(run=folder, clips=2, methods=methods, quiet=True, out=tmp_path / "rows.json")
    image_methods.main(options, unet=UNET, data=DATA, steps=2)
    rows = run.read(options.out)
    assert [row["method"] for row in rows] == list(methods) and rows[0]["trajectory_error"] == 0
    assert rows[0]["whole"] == 0 < rows[1]["trajectory_error"]
    image_methods.main(options, unet=UNET, data=DATA, steps=2)  # which goes on with nothing
    assert run.read(options.out) == rows
    with refused("image_methods.methods", "methods='magic'", "no edit, each frame anew"):
        image_methods.main(dataclasses.replace(options, methods=("magic",)), unet=UNET, data=DATA, steps=2)
    with refused("image_model.negative", "negative=('a dog',)"):
        trained[1]("a red 3 bouncing", negative="a dog", control=np.zeros((1, 4, 32, 32, 3), np.uint8))
