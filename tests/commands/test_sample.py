import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import vdm_jax
from vdm_jax.commands.main import main
from vdm_jax.generation.generator import Generator
from vdm_jax.runs.directory import export, stylised
from vdm_jax.video.reading import VideoReader


def test_sample_writes_every_kind_of_file(trained, tmp_path, capfd):
    arguments = ["sample", str(trained), "a red 3 moving left", "a blue 7 bouncing", "--count", "2",
                 "--out", "a.mp4", "a.gif", "a.png"]
    assert main(arguments) == 0
    assert capfd.readouterr().out.split() == ["a.mp4", "a.gif", "a.png"]
    with VideoReader(tmp_path / "a.mp4") as video:
        assert len(video) == 4
    assert (tmp_path / "a.gif").read_bytes()[:3] == b"GIF"
    assert (tmp_path / "a.png").read_bytes()[1:4] == b"PNG"


def test_a_longer_video_of_the_first_stage(trained, tmp_path, fails):
    arguments = ["sample", str(trained), "a red 3 moving left"]
    longer = [*arguments, "--last", "base", "--frames", "9", "--overlap", "1"]
    assert main([*longer, "--method", "replacement", "--out", "long.mp4"]) == 0
    with VideoReader(tmp_path / "long.mp4") as video:
        assert len(video) == 9
    assert "--frames=9 with --last=None: autoregressive makes videos of stage 'base'; permitted: --last base" in fails(
        *arguments, "--frames", "9")
    assert "--overlap=2 is for --frames" in fails(*arguments, "--overlap", "2")
    assert "overlap=4 is not valid; permitted: 1 to 3" in fails(*longer[:-1], "4")
    assert not list(tmp_path.glob("*.frames"))
    assert "--overlap=1 with --extend=nuwa_xl; permitted: --extend autoregressive or key_frames or" in fails(
        *longer, "--extend", "nuwa_xl")
    for wrong in (("--extend", "nuwa_xl", "--frames", "10"), ()):  # none at all is a number
        assert "--overlap=0 " in fails(*arguments, "--last", "base", "--overlap", "0", *wrong)
    assert "whose second stage does not fill in frames" in fails(*longer, "--extend", "key_frames")
    assert "permitted: 4, 10, ..." in fails(*longer[:-4], "--frames", "9", "--extend", "nuwa_xl")
    assert "--reschedule-noise=True with --extend=autoregressive" in fails(*longer, "--reschedule-noise")


def test_a_script_that_is_interrupted_goes_on(trained, tmp_path, fails, capfd, monkeypatch):
    """A signal after the first segment: what is finished is written, and the same command makes the rest."""
    from vdm_jax.training import stopping

    (tmp_path / "story.txt").write_text("0: a red 3 moving left\n6: a blue 7 bouncing\n")
    command = ["sample", str(trained), "--script", "story.txt", "--last", "base", "--extend", "autoregressive",
               "--overlap", "1", "--method", "replacement", "--frames", "10", "--out"]
    assert main([*command, "whole.gif"]) == 0
    with monkeypatch.context() as patch:
        patch.setattr(stopping.StopRequests, "requested", True)
        assert main([*command, "long.gif"]) == 130
        said = capfd.readouterr().err
        assert "stopped; 4 of 10 frames are finished and in long.gif; the same command goes on" in said
    with VideoReader(tmp_path / "long.gif") as video:
        assert len(video) == 4
    assert (tmp_path / "long.gif.frames").is_dir()
    assert "has frames of another request" in fails(*command, "long.gif", "--seed", "1")
    assert main([*command, "long.gif"]) == 0
    assert (tmp_path / "long.gif").read_bytes() == (tmp_path / "whole.gif").read_bytes()
    assert not list(tmp_path.glob("*.frames"))
    (tmp_path / "bad.txt").write_text("0: a red 3 rising\n9: a red 3\n4: a blue 7\n")
    assert "frame 4 after frame 9; permitted: frames in ascending order" in fails(
        "sample", trained, "--script", "bad.txt", "--frames", "16")
    assert "--script=bad.txt is for --frames" in fails("sample", trained, "--script", "bad.txt")
    assert "--script=bad.txt with 1 captions" in fails("sample", trained, "a", "--script", "bad.txt", "--frames", "16")
    assert "--between=hold is for --script" in fails("sample", trained, "a", "--between", "hold", "--frames", "16")


def test_a_weight_of_guidance_is_a_scale_less_one(trained, tmp_path, fails):
    arguments = ["sample", str(trained), "a red 3 moving left", "--last", "base", "--steps", "1"]
    for name, *guidance in (("w.png", "--guidance", "999"), ("s.png", "--guidance-scale", "1000"),
                            ("off.png", "--guidance-scale", "1")):
        assert main([*arguments, *guidance, "--out", name]) == 0
    weight, scale, off = ((tmp_path / name).read_bytes() for name in ("w.png", "s.png", "off.png"))
    assert weight == scale != off
    for command in (arguments, ("generate", "none"), ("evaluate", str(trained))):
        assert "guidance=2.0 with guidance_scale=3.0; permitted: one of them" in fails(
            *command, "--guidance", "2", "--guidance-scale", "3")


@pytest.mark.parametrize("command", ["sample", "evaluate", "generate"])
def test_guidance_has_the_same_help_everywhere(command, capsys):
    with pytest.raises(SystemExit):
        main([command, "--help"])
    found = " ".join(re.sub("[│|]", " ", capsys.readouterr().out).split())
    assert "w in cond + w (cond - uncond), of a cascade's first stage; 0 is off. --guidance-scale is 1 + w" in found
    assert "s in uncond + s (cond - uncond), of a cascade's first stage; 1 is off. --guidance is s - 1" in found


def test_features_are_kept_where_that_is_asked_for(trained, tmp_path, fails):
    arguments = ["sample", str(trained), "a red 3 moving left", "--last", "base", "--out", "x.png"]
    assert main([*arguments, "--cache", "2"]) == 0 and (tmp_path / "x.png").is_file()
    assert "--cache=1 2 (Cache.steps=(1, 2); permitted: ascending numbers from 0" in fails(
        *arguments, "--cache", "1", "2")
    assert "sampling.cache.steps=(0, 900) with" in fails(*arguments, "--cache", "0", "900")


def test_a_picture_becomes_the_first_frame(trained, tmp_path, fails):
    from PIL import Image

    Image.new("RGB", (20, 10), (250, 10, 10)).save(tmp_path / "red.png")
    arguments = ["sample", str(trained), "a red 3 moving left", "a blue 7 bouncing", "--last", "base"]
    assert main([*arguments, "--method", "replacement", "--frames", "4", "--image", "red.png", "--out", "a.gif"]) == 0
    with VideoReader(tmp_path / "a.gif") as video:
        first = video.frames([0])[0]
    assert (np.abs(first.astype(int) - (250, 10, 10)).max(-1) < 12).mean() > 0.7  # but for borders, of both captions
    assert "--image has 3 pictures for 2 captions" in fails(*arguments, "--image", "red.png", "red.png", "red.png")
    assert "--image=none.png is not a file" in fails(*arguments, "--image", "none.png")
    (tmp_path / "bad.png").write_bytes(b"no picture")
    assert "--image=bad.png is not a readable picture" in fails(*arguments, "--image", "bad.png")
    assert "networks of the run take no reference pictures" in fails(*arguments, "--reference", "red.png")


def test_a_style_is_the_weights_of_an_image_run(trained, tmp_path, fails):
    """Any run of the same layout will do: here the run itself with all weights 0, and the run itself."""
    generator = vdm_jax.load(trained)
    silent = {name: jax.tree.map(jnp.zeros_like, tree) for name, tree in generator.params.items()}
    export(Generator(generator.experiment, silent), tmp_path / "silent")
    mixed = stylised(generator, tmp_path / "silent", 0.25).params
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, 0.75 * b, rtol=1e-6), mixed["base"],
                 generator.params["base"])
    jax.tree.map(np.testing.assert_array_equal, mixed["spatial"], generator.params["spatial"])
    arguments = ["sample", str(trained), "a red 3 moving left", "--last", "base"]
    assert main([*arguments, "--style", str(trained), "--out", "same.gif"]) == 0
    assert main([*arguments, "--style", "silent", "--style-weight", "1", "--out", "other.gif"]) == 0
    assert (tmp_path / "same.gif").read_bytes() != (tmp_path / "other.gif").read_bytes()
    assert "--style-weight=2.0 is not valid; permitted: >= 0 and <= 1" in fails(
        *arguments, "--style", "silent", "--style-weight", "2")
    assert "--style-weight=0.5 is not valid" in fails(*arguments, "--style-weight", "0.5")
    assert "run 'nowhere' was not found" in fails(*arguments, "--style", "nowhere")


def test_python_api_gives_the_same_video_for_the_same_seed(trained):
    generate = vdm_jax.load(trained)
    first = generate(["a red 3 moving left", "a green one rising"], seed=5)
    assert first.videos.shape == (2, 4, 16, 16, 3)
    assert first.videos.dtype == np.uint8
    again = vdm_jax.load(trained)(["a green one rising"], seed=5, first_index=1)
    np.testing.assert_allclose(again.videos[0].astype(int), first.videos[1].astype(int), atol=1)
    other = generate(["a red 3 moving left"], seed=6)
    assert (other.videos[0] != first.videos[0]).any()


def test_unknown_words_are_named_and_do_not_stop_sampling(trained, caplog):
    vdm_jax.load(trained)(["a purple dinosaur moving left"], last="base")
    assert "purple, dinosaur" in caplog.text and "moving" in caplog.text


def test_last_stops_early(trained):
    result = vdm_jax.load(trained)("a red 3 moving left", last="base")
    assert list(result.stages) == ["base"]
    assert result.videos.shape == (1, 4, 8, 8, 3)


def test_evaluate_writes_json_and_table(run, capfd):
    import json

    assert main(["evaluate", str(run), "--count", "4"]) == 0
    table = capfd.readouterr().out
    result = json.loads((run / "evaluation.json").read_text())
    assert set(result["scores"]) == {"generated", "real clips (ceiling)", "wrong captions (floor)"}
    assert result["scores"]["wrong captions (floor)"]["whole"] <= 0.25
    assert result["protocol"]["clips"] == 4 and result["protocol"]["jax"]
    assert "| generated |" in table and (run / "evaluation.png").exists()


def test_evaluate_searches_the_augmentation_level(run, capfd):
    import json

    pytest.importorskip("matplotlib", reason="the plot of levels needs the extra [plots]")
    assert main(["evaluate", str(run), "--count", "2", "--augmentation-levels", "3", "-1"]) == 0
    output = capfd.readouterr()
    record = json.loads((run / "augmentation_levels.json").read_text())
    assert [row["logsnr"] for row in record["levels"]] == [-1, 3] and set(record["levels"][0]["scores"]) >= {"whole"}
    assert "best: --augmentation-levels " in output.out and (run / "augmentation_levels.png").exists()
    assert main(["evaluate", str(run), "--count", "3", "--augmentation-levels", "3"]) == 2
    assert "is the record of other weights or another protocol" in capfd.readouterr().err


def test_export_samples_like_the_run(trained, tmp_path):
    assert main(["export", str(trained), "out"]) == 0
    captions = ["a red 3 moving left"]
    ours, theirs = vdm_jax.load("out")(captions).videos, vdm_jax.load(trained)(captions).videos
    np.testing.assert_array_equal(ours, theirs)
    assert "| 4 of 4 | 8 |" in (tmp_path / "out" / "README.md").read_text()  # the card has the steps of training


@pytest.mark.parametrize("extra", [[], ["--last", "base", "--frames", "6", "--method", "replacement"]])
def test_videos_that_are_not_finite_are_named_by_stage_and_step_and_not_written(trained, tmp_path, capfd, extra):
    generator = vdm_jax.load(trained)
    broken = jax.tree.map(lambda x: x.at[(0,) * x.ndim].set(jnp.nan) if x.ndim else x, generator.params["base"])
    export(Generator(generator.experiment, {**generator.params, "base": broken}), tmp_path / "broken")
    capfd.readouterr()
    assert main(["sample", "broken", "a red 3 moving left", "--out", "black.gif", *extra]) == 1
    lines = [line for line in capfd.readouterr().err.splitlines() if line.startswith("vdm-jax:")]
    assert len(lines) == 1 and lines[0].startswith("vdm-jax: not finite: stage 'base': ")
    assert "are NaN or infinite, from step 1 of 2 of the sampler on; " in lines[0]
    assert "of its weights hold NaN or infinity" in lines[0]
    assert not (tmp_path / "black.gif").exists()


def test_list_shows_readable_runs_beside_damaged_ones(run, tmp_path, capfd, monkeypatch):
    monkeypatch.setenv("COLUMNS", "400")
    for name, content in (("[cut]", b'{"name": "x"'), ("binary", b"\xff\xfe"), ("folder", None)):
        bad = tmp_path / name / "config.json"
        bad.parent.mkdir()
        bad.mkdir() if content is None else bad.write_bytes(content)
    assert main(["list", "--runs", str(tmp_path)]) == 0
    text = capfd.readouterr().out
    assert "base (4/4)" in text and text.count("damaged: ") == 3 and "[cut]" in text


def test_list_shows_configs_and_runs(trained, capfd, monkeypatch):
    monkeypatch.setenv("COLUMNS", "240")
    assert main(["list", "--runs", str(trained.parent)]) == 0
    text = capfd.readouterr().out
    assert "captioned_digits" in text and "base (4/4)" in text
    assert {"Imagen", "Video:", "5.45", "B", "38.40", "M", "R-precision"} - set(text.split()) == {"38.40"}
    assert text.count("trained by us") >= 6  # a column of its own; what we have trained says so
    monkeypatch.setenv("COLUMNS", "80")
    assert main(["list", "--runs", str(trained.parent)]) == 0
    text = capfd.readouterr().out
    assert "imagen_video/cascade  (not trained by us)" in text and "\n  spatial_1280 128x768x1280       339 M\n" in text


def test_overview_and_version(capsys):
    assert main(["--help"]) == 0
    assert "vdm-jax sample captioned_digits" in capsys.readouterr().out
    assert main(["--version"]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith(f"{vdm_jax.__version__} (jax {jax.__version__}, ") and shown.count("\n") == 1


class TestErrors:
    def test_unknown_command(self, fails):
        assert "command 'trian' is unknown; permitted: list, show, prepare, annotate, embed, train" in fails("trian")

    def test_unknown_run(self, fails):
        assert "run 'nowhere' was not found" in fails("sample", "nowhere", "a red 3")

    def test_no_caption(self, fails, trained):
        assert "captions are missing" in fails("sample", trained)

    @pytest.mark.parametrize(("flag", "value"), [("--count", "0"), ("--steps", "0"), ("--fps", "0"), ("--out", "a.avi"),
                                                 ("--out", "no/such/folder/a.mp4"), ("--last", "top")])
    def test_bad_option(self, fails, trained, tmp_path, flag, value):
        line = fails("sample", trained, "a red 3", flag, value)
        assert value in line and "permitted" in line
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.parametrize("name", ["a.mp4", "a.gif"])
    def test_more_videos_than_a_file_holds(self, fails, trained, tmp_path, monkeypatch, name):
        monkeypatch.setattr(Generator, "__call__", lambda *_, **__: pytest.fail("sampled"))
        assert "pixels; permitted: 1 to" in fails("sample", trained, "a red 3", "--count", "90000000", "--out", name)
        assert list(tmp_path.iterdir()) == []

    def test_run_without_a_trained_stage(self, fails, run):
        import shutil

        shutil.rmtree(run / "spatial")
        assert "stage 'spatial' has no trained weights" in fails("sample", run, "a red 3")
        shutil.rmtree(run / "base")
        assert "no trained stage" in fails("sample", run, "a red 3")

    def test_checkpoint_of_another_config(self, fails, run):
        text = (run / "config.json").read_text()
        (run / "config.json").write_text(text.replace('"embedding_channels": 16', '"embedding_channels": 32'))
        assert "config.json has changed since training wrote it" in fails("sample", run, "a red 3")
        (run / "run.json").unlink()  # changed on purpose
        line = fails("sample", run, "a red 3")
        assert "base" in line and "embedding" in line

    def test_damaged_config(self, fails, run):
        (run / "config.json").write_text("{")
        assert "config.json is not JSON" in fails("sample", run, "a red 3")

    def test_config_with_a_foreign_field(self, fails, run):
        text = (run / "config.json").read_text()
        (run / "config.json").write_text(text.replace('"seed": 0', '"sead": 0', 1))
        assert "sead is not a field" in fails("sample", run, "a red 3")

    def test_prepare_of_nothing(self, fails):
        assert "neither a config nor a folder" in fails("prepare", "nothing")

    def test_prepare_of_an_empty_folder(self, fails, tmp_path):
        (tmp_path / "empty").mkdir()
        assert "empty" in fails("prepare", "empty", "--out", "clips")
        assert not (tmp_path / "clips").exists()

    def test_prepare_of_unreadable_videos(self, fails, tmp_path):
        (tmp_path / "bad").mkdir()
        for name in "abcdefgh":
            (tmp_path / "bad" / f"{name}.mp4").write_bytes(b"not a video")
        line = fails("prepare", "bad", "--out", "clips")
        assert "bad" in line and ".mp4" in line
        assert not (tmp_path / "clips").exists()
