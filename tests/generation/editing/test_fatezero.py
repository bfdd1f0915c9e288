"""FateZero against whole maps of attention in NumPy, edits of a tiny cascade, and the command."""

from __future__ import annotations

import dataclasses
import json
from types import SimpleNamespace

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.generation.editing.given import write_square
from tests.pipelines.folders import write_pictures
from tests.refusals import refused
from vdm_jax.attention.patterns import Full, Spatial, Temporal
from vdm_jax.commands.main import main
from vdm_jax.diffusion.process import Process
from vdm_jax.diffusion.samplers import DDIM
from vdm_jax.diffusion.sampling import sampling_levels, steps_between
from vdm_jax.diffusion.schedules import CosineSchedule
from vdm_jax.generation.editing.attention_maps import in_main_network
from vdm_jax.generation.editing.ddim_inversion import DDIMInversion
from vdm_jax.generation.editing.edit import edit
from vdm_jax.generation.editing.fatezero import FateZero
from vdm_jax.generation.editing.parts import EditParts, WordParts
from vdm_jax.generation.editing.prompt_to_prompt import WordWeight
from vdm_jax.generation.editing.words import WordEdits
from vdm_jax.generation.generator import Generator
from vdm_jax.networks.blocks.attention import Attention
from vdm_jax_configs import dit_digits

SIZE, SMALL, FRAMES, CHANNELS, TOKENS, HEADS, WIDTH = 8, 4, 2, 3, 5, 2, 4
STEPS, GUIDANCE, EDITED, WEIGHTS = 4, 0.5, (1, 2), (1.0, 1.0, 2.0)
PROCESS = Process(schedule=CosineSchedule(logsnr_min=-2.0, logsnr_max=0.5), prediction="x")
RNG = np.random.default_rng(0)
VIDEO = RNG.normal(size=(2, FRAMES, SIZE, SIZE, CHANNELS)).astype(np.float32)
SOURCE, NULL = (2 * RNG.normal(size=(2, 1, TOKENS, 6)).astype(np.float32) for _ in range(2))
TARGET = np.where(np.isin(np.arange(TOKENS), EDITED)[:, None], RNG.normal(size=SOURCE.shape), SOURCE).astype(np.float32)
PATTERNS = {"own": Spatial(), "over_time": Temporal(), "both": Full(), "cross": None, "cross_small": None}


class Network(nn.Module):
    """Attention of every kind, at two sizes."""

    @nn.compact
    def __call__(self, z, tokens):
        def layer(name, h):
            module = Attention(heads=HEADS, head_dim=WIDTH, pattern=PATTERNS[name], joint=name == "both", name=name)
            return h + module(h, None, (tokens, None) if name.startswith("cross") else None)

        h = layer("over_time", layer("cross", layer("own", z)))
        small = h.reshape(*h.shape[:2], SMALL, 2, SMALL, 2, CHANNELS).mean((3, 5))
        small = layer("both", layer("cross_small", small))
        return 0.1 * h + 0.1 * small.repeat(2, 2).repeat(2, 3)


PARAMS = jax.tree.map(lambda x: 1.2 * x, Network().init(jax.random.key(1), VIDEO, SOURCE)["params"])


class WholeMaps:
    """The same network in NumPy, with all its maps."""

    def __init__(self, changed=None):
        self.maps, self.changed = {}, changed

    def layer(self, name, h, tokens):
        params = jax.tree.map(lambda a: np.asarray(a, np.float64), PARAMS[name])
        flat = h.reshape(len(h), FRAMES, -1, CHANNELS)  # a row for each frame
        if name == "both":  # one for the clip
            flat = h.reshape(len(h), 1, -1, CHANNELS)
        elif name == "over_time":  # one for each position
            flat = h.reshape(len(h), FRAMES, -1, CHANNELS).swapaxes(1, 2)
        asked = tokens if name.startswith("cross") else flat
        kernels = ([params["qkv"]["kernel"].reshape(CHANNELS, 3, -1)[:, n] for n in range(3)] if name == "both" else
                   [params[part]["kernel"] for part in ("query", "key", "value")])
        q, k, v = (a @ kernel for a, kernel in zip((flat, asked, asked), kernels, strict=True))
        q, k, v = (a.reshape(*a.shape[:-1], HEADS, WIDTH) for a in (q, k, v))
        logits = np.einsum("brikd,brjkd->brkij", q, np.broadcast_to(k, (*q.shape[:2], *k.shape[2:]))) / np.sqrt(WIDTH)
        found = np.exp(logits - logits.max(-1, keepdims=True))
        found /= found.sum(-1, keepdims=True)
        self.maps[name] = found
        if self.changed is not None:
            found = self.changed(name, found)
        y = np.einsum("brkij,brjkd->brikd", found, np.broadcast_to(v, (*q.shape[:2], *v.shape[2:])))
        y = y.reshape(*y.shape[:3], -1) @ params["out"]["kernel"] + params["out"]["bias"]
        return h + (y.swapaxes(1, 2) if name == "over_time" else y).reshape(h.shape)

    def __call__(self, z, tokens):
        h = self.layer("own", z, tokens)
        h = self.layer("over_time", self.layer("cross", h, tokens), tokens)
        small = h.reshape(*h.shape[:2], SMALL, 2, SMALL, 2, CHANNELS).mean((3, 5))
        small = self.layer("both", self.layer("cross_small", small, tokens), tokens)
        return 0.1 * h + 0.1 * small.repeat(2, 2).repeat(2, 3)


def region(cross, size, threshold):
    """Where the edited words are: their map at the smaller size, the largest of 3 x 3, nearest neighbours, a share of
    the largest of each frame."""
    words = cross[..., list(EDITED)].sum(-1).mean(2).reshape(2, FRAMES, SMALL, SMALL)
    pooled = np.zeros_like(words)
    for y in range(SMALL):
        for x in range(SMALL):
            around = words[..., max(y - 1, 0):y + 2, max(x - 1, 0):x + 2]
            pooled[..., y, x] = around.max((-1, -2))
    large = pooled.repeat(size // SMALL, 2).repeat(size // SMALL, 3)
    return large / large.max((2, 3), keepdims=True) > threshold


def by_hand(method, made):
    """Inversion and edit, step by step; `made`: the numbers of the steps."""
    levels = np.asarray(sampling_levels(DDIM(), PROCESS.schedule, STEPS), np.float64)[STEPS - made:]
    alphas, sigmas = np.sqrt(1 / (1 + np.exp(-levels))), np.sqrt(1 / (1 + np.exp(levels)))
    alphas, sigmas = np.append(alphas, 1.0), np.append(sigmas, 0.0)
    z, kept = VIDEO.astype(np.float64), []
    for n in reversed(range(made)):
        network = WholeMaps()
        eps = (z - alphas[n] * network(z, SOURCE)) / sigmas[n]
        z = alphas[n] * (z - sigmas[n + 1] * eps) / alphas[n + 1] + sigmas[n] * eps
        kept.insert(0, network.maps)
    shares = []
    for n in range(made):
        given = kept[n]

        def changed(name, found, n=n, given=given):
            small = name in ("both", "cross_small")
            if name == "over_time" or (SMALL if small else SIZE) ** 2 > method.most_tokens:
                return found
            if name.startswith("cross"):
                found = given[name].copy() if n < method.cross_replace * made else found.copy()
                found[..., : len(WEIGHTS)] *= WEIGHTS
                return found
            if n >= method.self_replace * made:
                return found
            mask = region(given["cross_small"], SMALL if small else SIZE, method.threshold)
            shares.append(mask.mean())
            mask = mask.reshape(*found.shape[:2], 1, -1, 1)
            return np.where(mask, found, given[name])

        x_hat = (1 + GUIDANCE) * WholeMaps(changed)(z, TARGET) - GUIDANCE * WholeMaps()(z, NULL)
        z = alphas[n + 1] * x_hat + sigmas[n + 1] * (z - alphas[n] * x_hat) / sigmas[n]
    return z, shares


def in_jax(method):
    def network(z, tokens):
        return Network().apply({"params": PARAMS}, z, jnp.asarray(tokens))

    def guided(z, logsnr):
        pairs, texts = (jnp.stack(two, 1).reshape(-1, *two[0].shape[1:]) for two in ((z, z), (TARGET, NULL)))
        both = network(pairs, texts)
        return (1 + GUIDANCE) * both[::2] - GUIDANCE * both[1::2]

    parts = EditParts(lambda z, logsnr: network(z, SOURCE), guided, jax.random.split(jax.random.key(0), 2),
                      steps_between(sampling_levels(DDIM(), PROCESS.schedule, STEPS)), PROCESS, DDIM(),
                      words=WordParts(WordEdits(WEIGHTS, EDITED), 2))
    return np.asarray(method.edit(jnp.asarray(VIDEO), parts))


@pytest.mark.parametrize(("method", "made"), [
    (FateZero(threshold=0.85, self_replace=0.75, cross_replace=0.5), 4),
    (FateZero(threshold=0.85, self_replace=1.0, cross_replace=1.0, most_tokens=16, strength=0.5), 2)])
def test_maps_are_those_of_the_inversion_blended_by_where_the_words_are(method, made):
    expected, shares = by_hand(method, made)
    assert 0.1 < np.mean(shares) < 0.9  # so that both sides of the mask count
    np.testing.assert_allclose(in_jax(method), expected, atol=1e-4)


SOURCES, TARGETS = ["a red three moving left", "a blue two"], ["a blue three moving left", "a red two"]
VIDEOS = np.random.default_rng(0).integers(0, 256, (2, 2, 8, 8, 3)).astype(np.uint8)


@pytest.fixture(scope="module")
def generator(experiment, params):
    return Generator(experiment, params, jax.devices()[:1])


def made(generator, method, captions=TARGETS, **options):
    """By the stage that reads captions."""
    return edit(generator, VIDEOS, captions, source_captions=SOURCES, method=method, last="base", guidance=0.0,
                **options).videos.astype(int)


def test_what_is_not_replaced_is_ddim_inversion(generator):
    plain = made(generator, DDIMInversion(refinements=0))
    assert np.abs(made(generator, FateZero(self_replace=0.0, cross_replace=0.0)) - plain).max() <= 1
    everywhere = FateZero(threshold=0.0, cross_replace=0.0, self_replace=1.0)  # all queries keep their own
    assert np.abs(made(generator, everywhere) - plain).max() <= 1
    nowhere = made(generator, FateZero(threshold=1.0, cross_replace=0.0, self_replace=1.0))
    assert np.abs(nowhere - plain).max() > 1
    again = FateZero(refinements=20, self_replace=1.0, cross_replace=1.0)
    assert np.abs(made(generator, again, SOURCES) - made(generator, DDIMInversion(refinements=20), SOURCES)).max() <= 1


def test_words_that_change(generator):
    stage, = generator.stages(None, "base")
    assert FateZero().by_words(stage, generator, TARGETS, SOURCES) == WordEdits((), (1,))
    named = FateZero(blend=("a", "Three"), weights=(WordWeight(word="blue", weight=2.0),))
    assert named.by_words(stage, generator, TARGETS[:1], SOURCES[:1]) == WordEdits((1.0, 2.0), (0, 2))
    apart = FateZero(blend=("three",), cross_replace=0.0)
    assert apart.by_words(stage, generator, ["a two"], SOURCES[:1]) == WordEdits((), (2,))
    with refused("FateZero.blend", "blend='two'", "a, red, three, moving, left"):
        FateZero(blend=("two",)).by_words(stage, generator, TARGETS[:1], SOURCES[:1])
    with refused("FateZero.blend", "other numbers of words", "such as 'left'"):
        FateZero(cross_replace=0.0).by_words(stage, generator, ["a two"], SOURCES[:1])
    assert FateZero().by_words(stage, generator, SOURCES, SOURCES) == WordEdits((), ())  # equal: none changes
    short = dataclasses.replace(stage.network, text=dataclasses.replace(stage.network.text, length=2))
    short = dataclasses.replace(stage, network=short)
    assert FateZero().by_words(short, generator, TARGETS, SOURCES) == WordEdits((), (1,))
    for method, target in ((FateZero(blend=("three",)), TARGETS[0]), (FateZero(), "a red two moving left")):
        with refused("FateZero.blend", "'three'", "cut off", "reads 2 tokens"):
            method.by_words(short, generator, [target], SOURCES[:1])
    with refused("PromptToPrompt.weights", "'three'", "cut off", "reads 2 tokens"):
        weighted = FateZero(weights=(WordWeight(word="three", weight=2.0),))
        weighted.by_words(short, generator, TARGETS[:1], SOURCES[:1])
    with refused("FateZero.blend", "different places, [(1,), (2,)]"):
        FateZero().by_words(stage, generator, [TARGETS[0], "a blue three"], SOURCES)
    _, large = generator.stages()
    assert FateZero().by_words(large, generator, TARGETS, SOURCES) is None


def test_what_cannot_be(generator):
    with refused("FateZero.source_guidance", "source_guidance above 0"):
        made(generator, FateZero(), source_guidance=1.0)
    with refused("FateZero.most_tokens", "most_tokens=1", "self_replace=0"):
        made(generator, FateZero(most_tokens=1))
    with refused("FateZero.stage", "VideoTransformer with method='fatezero'", "a UNet or a LatentNetwork"):
        FateZero().stage(dit_digits.base())


@pytest.mark.parametrize(("path", "main"), [
    (("unet", "down_0_0", "transformer_0", "block_0", "self_attention"), True), (("middle", "crossattention_0"), True),
    (("text", "pool_attention"), False), (("control_net_control", "down_0_0", "self_attention"), False)])
def test_networks_next_to_the_main_one_keep_their_attention(path, main):
    assert in_main_network(SimpleNamespace(path=path)) == main


def test_the_command_edits_by_a_released_model(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    folder = write_pictures(tmp_path / "plain")
    write_square("given.mp4", 2)
    command = ["edit", "given.mp4", "--model", str(folder), "--num-frames", "2", "--steps", "2", "--method", "fatezero",
               "--source-prompt", "a red three", "--prompt", "a red moving", "--self-replace", "1", "--out", "made.mp4"]
    assert main([*command, "--threshold", "0.5", "--blend", "three"]) == 0
    record = json.loads((tmp_path / "made.json").read_text())["method"]["all"]
    assert record["name"] == "fatezero" and record["blend"] == ["three"] and record["threshold"] == 0.5
    assert main([*command, "--blend", "four"]) == 2 and "blend='four'" in capfd.readouterr().err
    command[command.index("fatezero")] = "prompt_to_prompt"
    assert main(command) == 2 and "--self-replace=1.0 with --method=prompt_to_prompt" in capfd.readouterr().err
