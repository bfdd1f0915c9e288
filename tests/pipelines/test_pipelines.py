"""Pipelines of tiny models: what they are called with, what they give and refuse, on one device and on a mesh."""

from __future__ import annotations

import dataclasses
import inspect
import io
import json

import jax
import numpy as np
import pytest
import rich.console
import safetensors.numpy

import vdm_jax
from tests.pipelines.folders import write_control, write_motion, write_pictures, write_videos
from tests.refusals import refused
from vdm_jax.commands.main import main
from vdm_jax.errors import NotFinite, UserError
from vdm_jax.generation.compiled import StepFunctions
from vdm_jax.generation.released.kinds import KINDS
from vdm_jax.generation.released.pictures import for_encoder, open_pictures
from vdm_jax.parallel.mesh import MeshSpec
from vdm_jax.video.reading import VideoReader
from vdm_jax.video.writing import write_png

PROMPTS = ["a red three", "three moving"]
QUICK = {"num_inference_steps": 2}


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    pytest.importorskip("tokenizers", reason="tokenizers come with the extra [pretrained]")
    return write_pictures(tmp_path_factory.mktemp("pipelines") / "pictures")


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    return write_videos(tmp_path_factory.mktemp("pipelines") / "videos")


@pytest.fixture(scope="module")
def draw(pictures):
    return vdm_jax.from_pretrained(pictures)


@pytest.fixture(scope="module")
def animate(videos):
    return vdm_jax.from_pretrained(videos)


@pytest.fixture
def picture():
    return np.random.default_rng(0).integers(0, 256, (10, 14, 3)).astype(np.uint8)


@pytest.fixture
def fails(capfd):
    """Runs the command, which must fail as a user error; returns its line."""
    def check(*arguments):
        capfd.readouterr()
        assert main(["generate", *map(str, arguments)]) == 2
        return capfd.readouterr().err
    return check


def test_a_picture_depends_on_its_seed_prompt_and_place(draw):
    both = draw(PROMPTS, **QUICK, seed=1).videos
    assert both.shape == (2, 1, 16, 16, 3) and both.dtype == np.uint8
    assert (draw(PROMPTS, **QUICK, seed=2).videos != both).any((1, 2, 3, 4)).all()
    other = draw(["a red three", "red red"], **QUICK, seed=1).videos
    np.testing.assert_array_equal(other[0], both[0])
    assert (other[1] != both[1]).any()
    two = draw(PROMPTS[0], num_per_prompt=2, **QUICK, seed=1)
    assert two.captions == ("a red three",) * 2 and (two.videos[0] != two.videos[1]).any()


@pytest.mark.parametrize(("part", "message"), [
    ("unet", "stage 'image': .* NaN or infinite, from step 1 of 2 of the sampler on; 1 of [0-9]+ of its weights hold"),
    ("vae", "stage 'image': .* NaN or infinite, decoded by the autoencoder; 1 of [0-9]+ of its weights hold NaN")])
def test_results_that_are_not_finite_name_network_and_step(draw, monkeypatch, part, message):
    model = draw.models[part]
    leaves, tree = jax.tree.flatten(model.params)
    place = next(i for i, (path, _) in enumerate(jax.tree.leaves_with_path(model.params))
                 if jax.tree_util.keystr(path).endswith("['conv_out']['kernel']")
                 or jax.tree_util.keystr(path).endswith("['out']['kernel']"))
    leaves[place] = leaves[place].at[(0,) * leaves[place].ndim].set(np.nan)
    broken = dataclasses.replace(model, params=jax.tree.unflatten(tree, leaves))
    monkeypatch.setitem(draw.models, part, broken)
    with pytest.raises(NotFinite, match=message):
        draw(PROMPTS, **QUICK)


def test_guidance_goes_from_the_negative_prompt(draw):
    plain = draw(PROMPTS, **QUICK, guidance_scale=1.0).videos
    np.testing.assert_array_equal(draw(PROMPTS, negative_prompt="red", **QUICK, guidance_scale=1.0).videos, plain)
    away = draw(PROMPTS, negative_prompt="moving moving", **QUICK, guidance_scale=9.0).videos
    assert (away != plain).any() and (draw(PROMPTS, **QUICK, guidance_scale=9.0).videos != away).any()


def test_a_weight_is_a_scale_less_one(draw, animate):
    for weight in (0.0, 2.0, 6.5):
        np.testing.assert_array_equal(draw(PROMPTS, **QUICK, guidance=weight).videos,
                                      draw(PROMPTS, **QUICK, guidance_scale=1 + weight).videos)
    np.testing.assert_array_equal(draw(PROMPTS, **QUICK).videos, draw(PROMPTS, **QUICK, guidance=6.5).videos)
    with refused("guidance", "=2", "guidance_scale=3"):
        draw(PROMPTS, guidance=2, guidance_scale=3)


def test_one_program_serves_any_number_of_steps(pictures):
    draw = vdm_jax.from_pretrained(pictures)  # of its own, since other tests draw other shapes
    draw(PROMPTS, **QUICK)
    advance, = (kept.advance for kept in draw.generator._compiled.values() if isinstance(kept, StepFunctions))
    assert advance._cache_size() == 1
    draw(PROMPTS, num_inference_steps=3, guidance_scale=2.0)
    assert advance._cache_size() == 1
    assert sum(isinstance(kept, StepFunctions) for kept in draw.generator._compiled.values()) == 1


def test_on_a_mesh(pictures, draw):
    spread = vdm_jax.from_pretrained(pictures, mesh=MeshSpec(data=2, fsdp=1, tensor=4))
    kernel = spread.models["unet"].params["down_0_0"]["residual"]["conv_in"]["kernel"]
    assert kernel.sharding.shard_shape(kernel.shape)[-1] == kernel.shape[-1] // 4
    wanted, found = (p(PROMPTS, **QUICK).videos.astype(int) for p in (draw, spread))
    assert np.abs(found - wanted).max() <= 1


def test_a_folder_goes_there_and_back(draw, pictures, tmp_path):
    draw.save_pretrained(tmp_path / "out")
    for path in pictures.rglob("*.json"):
        other = tmp_path / "out" / path.relative_to(pictures)
        assert json.loads(other.read_text()) == json.loads(path.read_text()), path
    for path in pictures.rglob("*.safetensors"):
        wanted = safetensors.numpy.load_file(path)
        found = safetensors.numpy.load_file(tmp_path / "out" / path.relative_to(pictures))
        assert found.keys() == wanted.keys()
        assert all(np.array_equal(found[name], tensor) for name, tensor in wanted.items())
    with refused("folder.save_folder", "model_index.json"):
        draw.save_pretrained(tmp_path / "out")


def test_a_video_of_a_picture(animate, picture, tmp_path):
    size = {"height": 8, "width": 12}
    found = animate(picture, **size, **QUICK, fps=5)
    assert found.videos.shape == (1, 3, 8, 12, 3) and found.fps == {"video": 5.0}
    with VideoReader(found.save(tmp_path / "a.mp4")) as video:
        assert len(video) == 3
    still = animate(picture, **size, **QUICK, fps=5, noise_aug_strength=0.5)
    moving = animate(picture, **size, **QUICK, fps=5, motion_bucket_id=200)
    assert (still.videos != found.videos).any() and (moving.videos != found.videos).any()
    steps = []
    chunked = animate(picture, **size, **QUICK, fps=5, decode_chunk_size=1, progress=lambda *s: steps.append(s))
    assert (chunked.videos != found.videos).any()  # the decoder's temporal layers see less
    assert steps == [("denoising", 1, 2), ("denoising", 2, 2)]


def test_motion_modules_join_the_image_network(pictures, tmp_path):
    folder = write_motion(tmp_path / "motion")
    loaded = vdm_jax.from_pretrained(folder)
    assert loaded.models["unet"].config.motion.frames == 4 and "down_0_0_motion" in loaded.models["unet"].params
    loaded.save_pretrained(tmp_path / "out")
    index = json.loads((tmp_path / "out" / "model_index.json").read_text())
    assert index["unet"] == ["diffusers", "UNetMotionModel"]
    again = vdm_jax.from_pretrained(tmp_path / "out")  # where they are one network
    same = jax.tree.map(np.array_equal, again.models["unet"].params, loaded.models["unet"].params)
    assert all(jax.tree.leaves(same))
    name = "diffusion_pytorch_model.safetensors"
    wanted, found = (safetensors.numpy.load_file(path / "motion_adapter" / name) for path in (folder, tmp_path / "out"))
    assert all(np.array_equal(found[key], tensor) for key, tensor in wanted.items() if not key.endswith(".pe"))


def test_motion_modules_of_other_norm_groups_take_those_of_the_image_network(pictures, tmp_path):
    """And their own folder still says what it said."""
    loaded = vdm_jax.from_pretrained(write_motion(tmp_path / "motion", groups=4))
    assert loaded.models["unet"].config.motion.groups == loaded.models["unet"].config.groups == 2
    loaded.save_pretrained(tmp_path / "out")
    fields = json.loads((tmp_path / "out" / "motion_adapter" / "config.json").read_text())
    assert fields["motion_norm_num_groups"] == 4
    again = vdm_jax.from_pretrained(tmp_path / "out")
    assert again.models["unet"].config == loaded.models["unet"].config
    assert all(jax.tree.leaves(jax.tree.map(np.array_equal, again.models["unet"].params, loaded.models["unet"].params)))


def test_thresholds_are_per_frame_where_frames_are_pictures():
    assert {name: kind.threshold_per for name, kind in KINDS.items()} == {
        "AnimateDiffControlNetPipeline": "clip", "AnimateDiffPipeline": "clip",
        "AnimateDiffSparseControlNetPipeline": "clip", "CogVideoXPipeline": "clip",
        "HunyuanVideoPipeline": "clip", "LatentConsistencyModelPipeline": "clip",
        "LTXImageToVideoPipeline": "clip", "LTXPipeline": "clip",
        "StableDiffusionAdapterPipeline": "clip", "StableDiffusionControlNetPipeline": "clip",
        "StableDiffusionPipeline": "clip", "StableVideoDiffusionPipeline": "clip", "TextToVideoSDPipeline": "frame",
        "WanImageToVideoPipeline": "clip", "WanPipeline": "clip"}


class Console(rich.console.Console):
    """One on a terminal, or not, that prints into a string."""

    terminal = True

    def __init__(self, **_):
        super().__init__(file=io.StringIO(), force_terminal=Console.terminal, width=80)
        Console.last = self


@pytest.mark.parametrize("progress, terminal, drawn", [
    (None, True, True), (True, True, True), (False, True, False), (None, False, False)])
def test_a_bar_of_the_steps_on_a_terminal(progress, terminal, drawn, draw, monkeypatch):
    monkeypatch.setattr("rich.console.Console", Console)
    monkeypatch.setattr(Console, "terminal", terminal)
    draw(PROMPTS, **QUICK, progress=progress)
    text = Console.last.file.getvalue()
    assert ("denoising" in text and "2/2" in text) == drawn and bool(text) == drawn


def arguments_of(call, rng, base):
    """Arguments of a pipeline's call: the base, and any of them of any kind."""
    wrong = [None, True, -1, 0, 1, 2, 3, 2.5, 1e30, float("nan"), 10**30, "x", "", [], ["a"], ["a", 3], {}, b"x",
             np.zeros(3), np.float32(2), np.int64(2), object(), (1, 2), lambda *_: None, "none.png", 16, 4]
    right = {"height": 16, "width": 24, "num_frames": 3, "num_inference_steps": 7, "seed": np.int64(5), "fps": 9,
             "guidance": 0.5, "negative_prompt": ["red"], "decode_chunk_size": 2, "num_per_prompt": 2,
             "max_guidance_scale": 2, "motion_bucket_id": 255, "progress": False, "noise_aug_strength": 1}
    names = list(inspect.signature(call).parameters)
    chosen = map(str, rng.choice(names, size=rng.integers(1, 4), replace=False))
    return {**base, **{name: right[name] if name in right and rng.random() < 0.7 else wrong[rng.integers(len(wrong))]
                       for name in chosen}}


@pytest.mark.parametrize("kind", ["pictures", "videos", "motion"])
def test_any_arguments_are_taken_or_refused(kind, request, pictures, picture, tmp_path, monkeypatch):
    """A `UserError` before any network runs, or noise and conditions of right shapes for the first step."""
    if kind == "motion":
        pipeline = vdm_jax.from_pretrained(write_motion(tmp_path / "motion"))
    else:
        pipeline = request.getfixturevalue({"pictures": "draw", "videos": "animate"}[kind])
    base = {"pictures": {"prompt": "a red three"}, "motion": {"prompt": "a red three", "num_frames": 4},
            "videos": {"image": picture, "height": 8, "width": 12}}[kind]
    reached = []

    class Reached(Exception):
        pass

    def stop(*_, **__):
        reached.append(1)
        raise Reached

    monkeypatch.setattr(pipeline, "encoded", stop)
    rng, refused = np.random.default_rng(3), 0
    for _ in range(250):
        given = arguments_of(pipeline.__call__, rng, base)
        try:
            pipeline(**given)
        except UserError as error:
            refused += 1
            assert "permitted: " in str(error), given
        except Reached:
            pass
        except Exception as error:
            raise AssertionError(f"{given}: {error!r}") from error
    assert refused > 100 and len(reached) > 20


def test_weights_in_half_precision(videos, picture):
    found = vdm_jax.from_pretrained(videos, dtype="float16")
    dtypes = {name: {leaf.dtype.name for leaf in jax.tree.leaves(model.params)} for name, model in found.models.items()}
    assert dtypes == {"unet": {"float16"}, "vae": {"float32"}, "image_encoder": {"float16"}}
    assert found.models["unet"].config.dtype == "float16" and found.models["vae"].config.dtype == "float32"


def test_a_picture_for_the_encoder_keeps_its_mean_and_its_corners():
    grey = np.full((20, 30, 3), 64, np.uint8)
    np.testing.assert_allclose(for_encoder(open_pictures(grey), 8, (0.0,) * 3, (1.0,) * 3), 64 / 255, atol=1e-6)
    ramp = np.repeat(np.linspace(0, 255, 8)[None, :, None], 8, 0).repeat(3, -1).astype(np.uint8)
    same = for_encoder(open_pictures(ramp), 8, (0.5,) * 3, (0.5,) * 3)  # nothing to blur or to move
    np.testing.assert_allclose(same[0], ramp / 127.5 - 1, atol=1e-6)


@pytest.mark.parametrize("more, message", [
    ({"height": 9}, ("height", "=9")), ({"num_frames": -1}, ("num_frames", "=-1")),
    ({"decode_chunk_size": 0}, ("decode_chunk_size", "=0")), ({"num_inference_steps": 0},
     ("num_inference_steps", "=0")),
    ({"latents": np.zeros((1, 2))}, ("arguments.noise", "[1, 2]", "[1, 3, 4, 6, 4]")),
    ({"image": "none.png"}, ("image", "=none.png")), ({"image": 3}, ("pictures._opened",)),
    ({"image": np.full((2, 2, 3), 2.0)},
     ("pictures._of_array", "2.0", "1.0")), ({"fps": 0}, ("fps", "=0")),
])
def test_what_videos_refuse(more, message, animate, picture):
    with refused(*message):
        animate(**{"image": picture, "height": 8, "width": 12, **QUICK, **more})


PICTURES_AND_SIZES = "image_to_video.ImageToVideo.__call__"  # the code of pictures and sizes that do not go together


@pytest.mark.parametrize("more, message", [
    *(({name: value}, (name, f"={value!r}", "permitted: ")) for name, value in (
        ("num_frames", 0), ("height", 0), ("width", 0), ("num_inference_steps", True), ("num_inference_steps", 2.0),
        ("fps", 0), ("fps", "7"), ("seed", -1), ("seed", 2**32), ("noise_aug_strength", float("nan")),
        ("max_guidance_scale", float("inf")), ("min_guidance_scale", "3"), ("motion_bucket_id", -1), ("progress", 3))),
    ({"height": None}, (PICTURES_AND_SIZES, "1 pictures", "height=None")),
    ({"image": []}, (PICTURES_AND_SIZES, "0 pictures")),
    ({"latents": np.full((1, 3, 4, 6, 4), np.nan)}, ("arguments.noise", "latents", "[1, 3, 4, 6, 4]")),
    ({"image_noise": "x"}, ("arguments.noise", "image_noise", "str", "[1, 8, 12, 3]")),
], ids=str)
def test_arguments_of_videos_are_checked_before_any_work(more, message, animate, picture, monkeypatch):
    monkeypatch.setattr(animate, "encoded", None)
    with refused(*message):
        animate(**{"image": picture, "height": 8, "width": 12, **QUICK, **more})


@pytest.mark.parametrize("more, message", [
    *(({name: value}, (name, f"={value!r}", "permitted: ")) for name, value in (
        ("prompt", None), ("prompt", 3), ("prompt", []), ("prompt", ["a", None]), ("negative_prompt", 3), ("height", 0),
        ("num_per_prompt", 0), ("guidance_scale", "3"), ("guidance", -1), ("num_inference_steps", 0))),
    ({"negative_prompt": ["a", "b"]}, ("arguments.texts", "negative_prompt", "2 texts", "1 prompts")),
    ({"latents": np.zeros(3)}, ("arguments.noise", "latents", "[3]", "[1, 1, 8, 8, 4]")),
], ids=str)
def test_arguments_of_pictures_are_checked_before_any_work(more, message, draw, monkeypatch):
    monkeypatch.setattr(draw, "encoded", None)
    with refused(*message):
        draw(**{"prompt": "a red three", **QUICK, **more})


def test_no_negative_prompt_is_the_empty_one(draw):
    wanted = draw(PROMPTS, negative_prompt="", **QUICK).videos
    for none in (None, [None, ""]):
        np.testing.assert_array_equal(draw(PROMPTS, negative_prompt=none, **QUICK).videos, wanted)


def test_guidance_that_falls_to_one_stays_on_the_first_frames(animate, picture):
    size = {"height": 8, "width": 12, **QUICK}
    falls, nearly, none = (animate(picture, **size, min_guidance_scale=3.0, max_guidance_scale=last).videos.astype(int)
                           if first else animate(picture, **size, max_guidance_scale=1.0).videos.astype(int)
                           for first, last in ((3, 1.0), (3, 1.0001), (0, 1.0)))
    assert np.abs(falls - nearly).max() <= 1 and (falls != none).any()


def test_a_scheduler_by_name_and_what_is_printed(pictures, tmp_path):
    other = vdm_jax.from_pretrained(pictures, scheduler="unipc")
    assert other(PROMPTS, **QUICK).videos.shape == (2, 1, 16, 16, 3)
    assert "scheduler: UniPCMultistepScheduler, predicts epsilon" in repr(other) and "unet: LatentUNet, " in repr(other)
    other.save_pretrained(tmp_path / "out")
    assert vdm_jax.from_pretrained(tmp_path / "out").scheduler == other.scheduler
    with refused("scheduler", "='unicorn'"):
        vdm_jax.from_pretrained(pictures, scheduler="unicorn")
    with refused("models.stage_of", "scheduler=CogVideoXDDIMScheduler with StableDiffusionPipeline", "other noise"):
        vdm_jax.from_pretrained(pictures, scheduler="cogvideox_ddim")


def edit(path, **values):
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def test_folders_that_are_refused(tmp_path, monkeypatch):
    with refused("folder.open_folder", "model_index.json"):
        vdm_jax.from_pretrained(tmp_path)
    folder = write_videos(tmp_path / "videos")
    with refused("dtype", "='int8'"):
        vdm_jax.from_pretrained(folder, dtype="int8")
    with refused("variant", "='fp16'"):
        vdm_jax.from_pretrained(folder, variant="fp16")
    edit(folder / "scheduler" / "scheduler_config.json", twist=3)
    with refused("scheduler_options.checked", "'twist'", "EulerDiscreteScheduler"):
        vdm_jax.from_pretrained(folder)
    edit(folder / "model_index.json", _class_name="StableVideoDiffusionPipeline", image_encoder=[None, None])
    with refused("folder.Folder._check", "image_encoder", "StableVideoDiffusionPipeline"):
        vdm_jax.from_pretrained(folder)
    edit(folder / "model_index.json", _class_name="FluxPipeline")
    with refused("loading.from_pretrained", "FluxPipeline", "AnimateDiffPipeline", "StableDiffusionPipeline"):
        vdm_jax.from_pretrained(folder)
    edit(folder / "model_index.json", _class_name="StableVideoDiffusionPipeline",
         image_encoder=["transformers", "CLIPVisionModelWithProjection"])
    edit(folder / "unet" / "config.json", cross_attention_dim=7)
    with refused("pretrained.parameters_of", "config.json"):
        vdm_jax.from_pretrained(folder)


def test_the_command_draws_and_animates(pictures, videos, picture, tmp_path, monkeypatch, capfd, fails):
    from PIL import Image

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "set by tests/conftest.py")
    Image.fromarray(picture).save("picture.png")
    assert main(["generate", str(pictures), "--prompt", *PROMPTS, "--num-inference-steps", "2", "--seed", "1",
                 "--out", "a.png", "a.gif"]) == 0
    assert capfd.readouterr().out.split() == ["a.png", "a.gif"]
    assert main(["generate", str(pictures), "--prompt", *PROMPTS, "--num-inference-steps", "2", "--seed", "1",
                 "--scheduler", "euler", "--out", "euler.png"]) == 0
    assert capfd.readouterr().out.split() == ["euler.png"]
    by_name = vdm_jax.from_pretrained(pictures, scheduler="euler")(PROMPTS, **QUICK, seed=1)
    assert by_name.save("api.png").read_bytes() == open("euler.png", "rb").read() != open("a.png", "rb").read()
    assert "scheduler='unicorn'; permitted: ddim, " in fails(pictures, "--prompt", "a", "--scheduler", "unicorn")
    assert Image.open("a.png").size[1] < 40  # the pictures alone
    assert main(["generate", str(videos), "--image", "picture.png", "--height", "8", "--width", "12",
                 "--num-inference-steps", "2"]) == 0
    assert capfd.readouterr().out.split() == ["generated.mp4"]
    assert "--prompt is not for" in fails(videos, "--image", "picture.png", "--prompt", "a")
    assert "--cache-threshold is not for" in fails(videos, "--image", "picture.png", "--cache-threshold", "0.1")
    assert "--image is missing, which a StableVideoDiffusionPipeline begins with" in fails(videos)
    assert "--image=none.png is not a file" in fails(videos, "--image", "none.png")
    assert "--out=a.txt has suffix '.txt'" in fails(videos, "--image", "picture.png", "--out", "a.txt")
    assert "a.gif: fps=200; permitted: 0.01 to 100 frames per second" in fails(
        videos, "--image", "picture.png", "--fps", "200", "--out", "a.gif")
    assert "20000 pixels; permitted: 1 to 16384" in fails(
        videos, "--image", "picture.png", "--height", "8", "--width", "20000", "--out", "a.mp4")


@pytest.fixture(scope="module")
def controlled(tmp_path_factory):
    pytest.importorskip("tokenizers", reason="tokenizers come with the extra [pretrained]")
    return write_control(tmp_path_factory.mktemp("pipelines") / "control")


def test_control_maps_of_a_folder(controlled):
    draw, rng = vdm_jax.from_pretrained(controlled), np.random.default_rng(0)
    maps = [rng.integers(0, 256, (16, 16, 3)).astype(np.uint8) for _ in PROMPTS]
    both = draw(PROMPTS, image=maps, **QUICK, seed=1).videos.astype(int)
    assert both.shape == (2, 1, 16, 16, 3)
    swapped = draw(PROMPTS, image=[maps[0], maps[0]], **QUICK, seed=1).videos
    np.testing.assert_array_equal(swapped[0], both[0])
    assert np.abs(swapped[1] - both[1]).max() > 2
    off = [draw(PROMPTS, image=m, controlnet_conditioning_scale=0, **QUICK, seed=1).videos for m in (maps, maps[::-1])]
    np.testing.assert_array_equal(*off)
    with refused("control.pictures", "2 maps", "1 prompts"):
        draw("red", image=maps)


@pytest.mark.full
def test_control_maps_of_the_commands(controlled, tmp_path, fails):
    write_png(tmp_path / "map.png", np.random.default_rng(0).integers(0, 256, (16, 16, 3)).astype(np.uint8))
    generate = [str(controlled), "--prompt", *PROMPTS, "--image", str(tmp_path / "map.png")]
    assert main(["generate", *generate, "--num-inference-steps", "2", "--out", str(tmp_path / "a.png")]) == 0
    sample = ["sample", str(controlled), *PROMPTS, "--steps", "2", "--control", str(tmp_path / "map.png")]
    for number, scale in enumerate((0, 1)):
        assert main([*sample, "--control-scale", str(scale), "--out", str(tmp_path / f"{number}.png")]) == 0
    assert (tmp_path / "0.png").read_bytes() != (tmp_path / "1.png").read_bytes()
    assert "--controlnet-conditioning-scale=-1" in fails(*generate, "--controlnet-conditioning-scale", "-1")
