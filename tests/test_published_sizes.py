"""Parameter counts of the shipped configs of published systems, without allocation, against the published ones."""

from __future__ import annotations

import re

import pytest

from tests.parallel.test_table import golden_file
from vdm_jax.commands.configs import load_config

# Config and stage -> what is published, and how close ours has to be. Where widths are ours, 3 %.
PUBLISHED = {
    # Ho et al. 2022, arXiv 2210.02303, section 2.1 and figure 6.
    ("imagen_video/cascade", "base"): (5.6e9, 0.03), ("imagen_video/cascade", "temporal_32"): (1.7e9, 0.03),
    ("imagen_video/cascade", "spatial_80"): (1.4e9, 0.03), ("imagen_video/cascade", "spatial_320"): (1.2e9, 0.03),
    ("imagen_video/cascade", "temporal_64"): (780e6, 0.03), ("imagen_video/cascade", "temporal_128"): (630e6, 0.03),
    ("imagen_video/cascade", "spatial_1280"): (340e6, 0.03),
    # Ho et al. 2022, arXiv 2204.03458 gives no counts. These follow from its appendix A, with the vector added and
    # strided convolutions between levels, without tables of relative positions and pooling of text.
    ("vdm/ucf101", "base"): (1.144e9, 0.005), ("vdm/kinetics600", "base"): (1.142e9, 0.005),
    ("vdm/bair", "base"): (138e6, 0.005), ("vdm/text_small", "base"): (295e6, 0.005),
    ("vdm/text_large_64", "base"): (1.144e9, 0.005), ("vdm/text_large_128", "base"): (1.147e9, 0.005),
}


def counted(config: str, stage: str) -> int:
    """Parameters as the golden table has them, which `tests/parallel/test_table.py` compares with the network."""
    text = golden_file(config).read_text()
    return int(re.search(rf"^stage {stage}\n.*: ([\d,]+) parameters", text, re.MULTILINE)[1].replace(",", ""))


@pytest.mark.parametrize(("config", "stage"), PUBLISHED)
def test_a_published_stage_has_its_published_size(config, stage):
    count, (published, tolerance) = counted(config, stage), PUBLISHED[config, stage]
    assert abs(count / published - 1) <= tolerance, f"{count:,} parameters, {published:,.0f} published"


def test_the_cascade_of_imagen_video_is_the_published_one():
    """Frames, height, width and frames per second of the paper's figure 6."""
    videos = [stage.video for stage in load_config("imagen_video/cascade").stages]
    sizes = [(v.frames, v.height, v.width, v.fps) for v in videos]
    assert sizes == [(16, 24, 40, 3), (32, 24, 40, 6), (32, 48, 80, 6), (32, 192, 320, 6), (64, 192, 320, 12),
                     (128, 192, 320, 24), (128, 768, 1280, 24)]
