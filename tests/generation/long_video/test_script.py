"""Scripts: which caption holds at which frame."""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
import numpy as np

from tests.generation.conftest import base_stage
from tests.refusals import refused
from vdm_jax.conditions.conditioning import Request
from vdm_jax.generation.long_video.plan import Autoregressive, NuwaXL, Segment
from vdm_jax.generation.long_video.script import LongRequest, Script, long_requests, read_script, scripts_of
from vdm_jax.networks.config import EmbeddedText
from vdm_jax.stages.stage import VideoSpec

RED, BLUE = (0, "a red three"), (4, "a blue two moving left")


def test_lines_of_a_file(tmp_path):
    path = tmp_path / "script.txt"
    path.write_text("# a comment\n0: a red 3: moving left\n\n  40 :a blue 7\n")
    assert read_script(path) == Script(((0, "a red 3: moving left"), (40, "a blue 7")))
    for text, message in (
            ("0: a\n5: b\n5: c", ("frame 5 after frame 5", "ascending")),
            ("0: a\n9: b\n3: c", ("frame 3 after frame 9",)),
            ("3: a", ("frame 3", "permitted: 0")), ("", ("frame None",)), ("0: a\nb", ("'b'", "FRAME: caption")),
            ("0:", ("'0:'",)), ("-1: a", ("'-1: a'",))):
        path.write_text(text)
        with refused("script", str(path), *message):
            read_script(path)
    with refused("script", "no such file"):
        read_script(tmp_path / "none.txt")


def test_held_and_interpolated():
    place, share = Script((RED, BLUE)).places(range(0, 8, 2))
    assert place.tolist() == [0, 0, 1, 1] and share.tolist() == [0, 0, 0, 0]
    place, share = Script((RED, BLUE), "interpolate").places(range(0, 8, 2))
    assert place.tolist() == [0, 0, 1, 1] and share.tolist() == [0, 0.5, 0, 0]


def test_captions_are_scripts_of_one_prompt():
    assert scripts_of("a", 4) == (Script(((0, "a"),)),)
    script = Script((RED, BLUE))
    assert scripts_of(["a", script], 5) == (Script(((0, "a"),)), script)
    with refused("script.scripts_of", "frame 4", "up to 3"):
        scripts_of([script], 4)


def test_words_of_each_frame():
    stage, script = base_stage(), Script((RED, BLUE))
    captions = ("a red three", *(caption for _, caption in script.prompts))
    request = LongRequest(stage, (Script((RED,)), script), Request(captions), Request(captions[:2]), frames=6)
    found = request.conditioning(Segment(1, 1, 2, 3))  # frames 1, 3 and 5
    red, blue = (np.asarray(request.text["tokens"])[i, 0] for i in (0, 2))
    np.testing.assert_array_equal(found.tokens, [[red, red, red], [red, red, blue]])
    np.testing.assert_array_equal(found.text_mask, np.asarray(found.tokens) > 0)
    one = LongRequest(stage, (Script((RED,)),), Request(captions[:1]), Request(captions[:1]), frames=6)
    assert one.conditioning(Segment(0, 0, 1, 2)).tokens.shape == (1, 1, 6)  # as of a video of ordinary length
    with refused("Script.between", "'interpolate'", "words"):
        LongRequest(stage, (Script((RED, BLUE), "interpolate"),), Request(captions[1:]), Request(captions[1:2]), 6)


def test_embeddings_between_two_prompts():
    stage = base_stage()
    stage = dataclasses.replace(stage, network=dataclasses.replace(stage.network, text=EmbeddedText(width=2)))
    embeddings, mask = jnp.arange(8.0).reshape(2, 2, 2), jnp.array([[True, False], [True, True]])
    given = {"embeddings": embeddings, "text_mask": mask, "null_embeddings": jnp.ones((2, 2))}
    request = LongRequest(stage, (Script((RED, BLUE), "interpolate"),), Request(("a", "b"), given), Request(("a",)), 6)
    found = request.conditioning(Segment(1, 0, 1, 6))
    for frame, share in enumerate((0, 0.25, 0.5, 0.75, 1, 1)):
        np.testing.assert_allclose(found.embeddings[0, frame], (1 - share) * embeddings[0] + share * embeddings[1])
    assert found.text_mask[0, :, 1].tolist() == [False, True, True, True, True, True]
    assert found.null_embeddings.shape == (1, 2, 2)


def test_clips_of_frames_far_apart_have_their_own_rate():
    """Of a hierarchy without a rate asked for, and with one; blocks have the stage's own."""
    def rates(method, frames, **given):
        stage = dataclasses.replace(base_stage(), video=VideoSpec(frames=4, height=8, width=8, fps=6))
        fps = {"base": given.get("fps", 6.0)}
        request, = long_requests((stage,), method, scripts_of("a red three", frames), given, frames, fps,
                                 lambda captions, texts, stages: Request(captions, texts))
        plan = [segment for round_ in method.rounds(frames, 4) for segment in round_]
        return [request.conditioning(segment).scalars.get("fps") for segment in plan]

    np.testing.assert_allclose(rates(NuwaXL(), 10), [[2]] + [[6]] * 3)
    np.testing.assert_allclose(rates(NuwaXL(), 10, fps=3.0), [[1]] + [[3]] * 3)
    assert rates(Autoregressive(), 10) == [None] * 4
    np.testing.assert_allclose(rates(Autoregressive(), 10, fps=3.0), [[3]] * 4)
