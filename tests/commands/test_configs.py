"""Headers of shipped configs."""

from __future__ import annotations

import pytest

from tests.refusals import refused
from vdm_jax.commands.configs import STATUS, config_names, load_config, read_header
from vdm_jax.data.array_record import PreparedClips
from vdm_jax.data.embeddings import WithEmbeddings
from vdm_jax.diffusion.levels import UniformTimestep


@pytest.mark.parametrize("path", config_names().values(), ids=config_names())
def test_every_header_says_what_a_reader_needs(path):
    header = read_header(path)
    assert header.title and list(header.sections) == ["Citation", "Hardware", "Expected", "Run"]
    assert header.sections["Run"].startswith("vdm-jax ") and header.status in ("trained", "not trained by us")
    assert len(header.published) > 10
    assert "not trained" not in header.published.lower()  # the status says it
    assert len(STATUS.findall(header.sections["Expected"])) == 1 and "rained by us" not in header.published


@pytest.mark.parametrize("name", config_names())
def test_clips_that_cannot_begin_elsewhere_are_not_asked_to(name):
    """Prepared clips are as they were cut; `Training.random_starts` with them ends a training before it begins."""
    experiment = load_config(name)
    data = experiment.data.data if isinstance(experiment.data, WithEmbeddings) else experiment.data
    if isinstance(data, PreparedClips):
        assert not any(stage.training.random_starts for stage in getattr(experiment, "stages", [experiment]))


def test_only_a_config_that_says_so_was_trained(tmp_path):
    path = tmp_path / "one.py"
    for said, status in (("Trained by us.", "trained"), ("Not trained by us.", "not trained by us"),
                         ("not trained by us.", "not trained by us"), ("", "not trained by us")):
        path.write_text(f'"""A title.\n\nExpected: FVD 1. {said}\n"""\n')
        assert read_header(path).status == status
    assert [name for name, path in config_names().items() if read_header(path).status == "trained"] == [
        "captioned_digits", "captioned_digits_full", "captioned_digits_images", "mnist_pictures", "pattern_digits"]


def test_a_header_in_parts(tmp_path):
    path = tmp_path / "one.py"
    path.write_text('"""A title.\n\nCitation: some: one\n          else.\nExpected: FVD 1. Not trained by us.\n"""\n')
    header = read_header(path)
    assert header.sections == {"Citation": "some: one else.", "Expected": "FVD 1. Not trained by us."}
    assert (header.title, header.published, header.status) == ("A title.", "FVD 1.", "not trained by us")


@pytest.mark.parametrize("name", ["cogvideox/text_to_video_2b", "cogvideox/text_to_video_5b",
                                  "ltx_video/text_to_video_2b", "wan/text_to_video_1b"])
def test_transformers_are_trained_on_as_they_were_trained(name):
    """Without a caption they see what their encoder makes of the empty text; those with a table see its timesteps."""
    experiment = load_config(name)
    stage, = experiment.stages
    assert experiment.data.empty == "encoded"
    if stage.network.timesteps is not None:
        assert stage.process.level_sampling == UniformTimestep()


def test_a_config_that_is_no_python_is_refused_by_its_line(tmp_path):
    (tmp_path / "bad.py").write_text("steps = 3\nx = (\n")
    with refused("configs.syntax", f"{tmp_path / 'bad.py'}, line 2: ", "permitted: a Python file with get_config()"):
        load_config(str(tmp_path / "bad.py"))
