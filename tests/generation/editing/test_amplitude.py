"""AADiff: how loud a sound is frame by frame, words that follow it, and videos of released folders."""

from __future__ import annotations

import wave

import jax
import numpy as np
import pytest

import vdm_jax
from tests.pipelines.folders import write_pictures
from tests.refusals import refusals_of_commands, refused
from vdm_jax.commands.amplified_words import with_one_noise
from vdm_jax.commands.main import main
from vdm_jax.generation.editing.amplitude import amplified, frame_amplitudes
from vdm_jax.generation.editing.prompt_to_prompt import WordWeight
from vdm_jax.generation.generator import Generator
from vdm_jax.generation.released.models import with_size
from vdm_jax.runs.directory import load

CAPTION, THREE = "a red three", WordWeight(word="three", weight=9.0)


def write_wav(path, sound, rate=16_000):
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(np.rint(32767 * np.asarray(sound)).astype("<i2").tobytes())


@pytest.mark.parametrize("window", [1, 3, 4])
def test_amplitudes_are_smoothed_roots_of_mean_squares(window):
    sound, frames, rate, fps = np.random.default_rng(0).normal(size=1000) * np.linspace(0, 1, 1000), 9, 100, 1.0
    loud = []
    for frame in range(frames):
        samples = [sound[i] for i in range(len(sound)) if frame <= i / rate < frame + 1]
        loud.append((sum(s * s for s in samples) / len(samples)) ** 0.5)
    smooth = []
    for frame in range(frames):
        near = [loud[i] for i in range(frame - (window - 1 - window // 2), frame + window // 2 + 1) if 0 <= i < frames]
        smooth.append(sum(near) / len(near))
    found = frame_amplitudes(sound, rate, frames, fps, window)
    np.testing.assert_allclose(found, np.array(smooth) / max(smooth), rtol=1e-9)
    assert found.max() == 1


def test_constant_and_silent_sounds():
    np.testing.assert_allclose(frame_amplitudes(np.full(8000, 0.3), 16_000, 4, 8.0), np.ones(4))
    np.testing.assert_array_equal(frame_amplitudes(np.zeros(8000), 16_000, 4, 8.0), np.zeros(4))
    with refused("sound.shorter", "x.wav", "0.4 s", "0.5 s"):
        frame_amplitudes(np.ones(6400), 16_000, 4, 8.0, name="x.wav")


@pytest.fixture(scope="module")
def generator(experiment, params):
    return Generator(experiment, params, jax.devices()[:1])


def test_named_words_are_scaled_by_the_amplitude_of_each_frame(generator):
    stages = generator.stages(None, "base")
    amplitudes = np.array([[0.0, 0.5, 1.0, 0.25], [1.0, 0.0, 0.0, 0.0]])
    found = amplified(generator, [CAPTION, "three red a"], [THREE], amplitudes, stages)["token_weights"]
    wanted = np.ones((2, 4, 3))
    for row, place in ((0, 2), (1, 0)):
        for frame in range(4):
            wanted[row, frame, place] = 1 + 8 * amplitudes[row, frame]
    np.testing.assert_allclose(found, wanted)
    plain = WordWeight(word="three", weight=1.0)
    for weights, loud in (([plain], amplitudes), ([THREE], 0 * amplitudes), ([], amplitudes)):
        assert amplified(generator, [CAPTION, CAPTION], weights, loud, stages) == {}
    constant = amplified(generator, [CAPTION], [THREE], np.ones((1, 4)), stages)["token_weights"]
    assert constant.tolist() == [[[1, 1, 9]]]  # as Prompt-to-Prompt weighs them
    with refused("PromptToPrompt.weights", "'seven'", "a, red, three"):
        amplified(generator, [CAPTION], [WordWeight(word="seven")], amplitudes[:1], stages)
    with refused("amplitude.stages", "no captions"):
        amplified(generator, [CAPTION], [THREE], amplitudes[:1], generator.stages()[1:])


def test_frames_of_silence_are_those_of_no_words_where_frames_are_made_one_by_one(tmp_path):
    """By an image model of one noise: a frame follows its own amplitude alone."""
    generator = load(str(write_pictures(tmp_path / "pictures")))
    generator = with_one_noise(with_size(generator, 3, None, None))
    stages = generator.stages()
    most = [WordWeight(word="three", weight=100.0)]
    given = amplified(generator, [CAPTION], most, np.array([[0.0, 1.0, 0.5]]), stages)
    plain, found = (generator([CAPTION], guidance=2.0, steps=2, **more).videos[0].astype(int) for more in ({}, given))
    assert np.abs(plain - plain[:1]).max() <= 1 and np.abs(found[0] - plain[0]).max() <= 1
    assert np.abs(found[1] - plain[1]).max() > 1 and np.abs(found[2] - found[1]).max() > 0
    constant = amplified(generator, [CAPTION], most, np.ones((1, 3)), stages)
    all_loud = generator([CAPTION], guidance=2.0, steps=2, **constant).videos[0].astype(int)
    assert np.abs(all_loud - found[1]).max() <= 1


def test_the_command_samples_released_folders(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    write_pictures(tmp_path / "pictures")
    write_wav("x.wav", np.sin(np.arange(16_000)) * np.repeat([0.0, 0.9], 8000))
    command = ["sample", "pictures", CAPTION, "--num-frames", "4", "--steps", "2", "--guidance-scale", "3"]
    fps = vdm_jax.load("pictures").makes().fps
    write_wav("long.wav", np.sin(np.arange(int(16_000 * 4 / fps))) * np.linspace(0, 0.9, int(16_000 * 4 / fps)))
    for name, more in (("plain", []), ("same", ["--amplify", "three=1", "--sound", "long.wav"]),
                       ("loud", ["--amplify", "three=100", "--sound", "long.wav", "--amplify-window", "1"])):
        assert main([*command, *more, "--out", f"{name}.png"]) == 0
    assert (tmp_path / "loud.png").read_bytes() != (tmp_path / "same.png").read_bytes()
    fails = refusals_of_commands(capfd)
    write_wav("short.wav", np.ones(int(16_000 * 2 / fps)))
    assert "permitted: a sound as long as the video" in fails(*command, "--amplify", "three=3", "--sound", "short.wav")
    assert "no word" in fails(*command, "--amplify", "seven=3", "--sound", "long.wav")
    assert "without --sound" in fails(*command, "--amplify", "three=3")
    assert "--sound=none.wav with --amplify is not a file" in fails(*command, "--amplify", "three=3", "--sound",
                                                                    "none.wav")
    assert "WORD=FACTOR" in fails(*command, "--amplify", "three", "--sound", "long.wav")
    assert "--amplify-window=3" in fails(*command, "--amplify-window", "3")
    assert "--frames=9" in fails(*command, "--amplify", "three=3", "--sound", "long.wav", "--frames", "9")
