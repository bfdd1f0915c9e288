"""Parameter counts of the shipped configs of published systems, without allocation, against the published ones.

`python -m tests.test_published_sizes` writes the tables of docs/systems.md anew.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from experiments.readme_tables import insert
from tests.parallel.test_table import golden_file
from vdm_jax.commands.configs import config_names, load_config, read_header
from vdm_jax.commands.list_command import shown_count
from vdm_jax.commands.sizes import parameter_count, stage_sizes

PAGE = Path(__file__).parent.parent / "docs" / "systems.md"

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
    # Saharia et al. 2022, arXiv 2205.11487, appendix F: 2 B in the text, 2.27 B by the printed layers. The
    # printed layers of the other two have 0.46 to 0.50 B, where the text says 600 M and 400 M; with a fifth level there
    # are 605 M.
    ("imagen/cascade", "base"): (2.27e9, 0.005), ("imagen/cascade", "sr_256"): (0.48e9, 0.04),
    ("imagen/cascade", "sr_1024"): (0.48e9, 0.04), ("imagen/sr_256_600m", "sr_256"): (605e6, 0.015),
    # The authors' code of Salimans & Ho 2022, arXiv 2202.00512, whose noise level has half as many sinusoids.
    ("progressive_distillation/imagenet_64", "base"): (295.9e6, 0.0005),
    # Ho et al. 2021, arXiv 2106.15282 gives no counts. These follow from its appendix B.
    ("cdm/imagenet_128", "base_32"): (826e6, 0.002), ("cdm/imagenet_128", "sr_64"): (750e6, 0.002),
    ("cdm/imagenet_128", "sr_128"): (575e6, 0.002), ("cdm/imagenet_256", "sr_256"): (634e6, 0.002),
    # Blattmann et al. 2023, arXiv 2304.08818, on Stable Diffusion 2 and 1 and on its upscaler.
    ("video_ldm/key_frames", "base"): (1.521e9, 0.001), ("video_ldm/interpolation", "base"): (1.509e9, 0.001),
    ("video_ldm/upscaler", "spatial"): (0.922e9, 0.013),
    # Hu et al. 2023, arXiv 2311.17117 gives no counts. Twice Stable Diffusion 1.x and a pose guider of 514,896
    # parameters, and the motion modules of AnimateDiff's second version.
    ("animate_anyone/images", "base"): (2 * 859_520_964 + 514_896, 0.0),
    ("animate_anyone/videos", "base"): (2 * 859_520_964 + 514_896 + 453_209_280, 0.0),
    # Karras et al. 2023, arXiv 2304.06025 gives no counts. Ten input channels more than Stable Diffusion 1.x, and by
    # the authors' code the two maps of its adapter.
    ("dream_pose/frames", "base"): (859_520_964 + 10 * 9 * 320 + 1281 * 768 + 55 * 50, 0.0),
    ("dream_pose/subject", "base"): (859_520_964 + 10 * 9 * 320 + 1281 * 768 + 55 * 50, 0.0),
    # Ma et al. 2023, arXiv 2304.01186 gives no counts. Stable Diffusion 1.x, for videos with Tune-A-Video's layers, a
    # T2I-Adapter, and by the authors' code 960 parameters of a temporal convolution for each channel of a transformer.
    ("follow_your_pose/images", "base"): (859_520_964 + 77_369_280, 0.0),
    ("follow_your_pose/videos", "base"): (909_120_004 + 77_369_280 + 960 * 12_480, 0.0),
}

# Numbers of parameters of released weights (of released configs for LVDM and Make-Your-Video), which ours have to have
# exactly.
EXACT = {
    ("stable_diffusion/v1", "base"): 859_520_964, ("stable_diffusion/v2", "base"): 865_910_724,
    ("svd/image_to_video_14", "base"): 1_524_623_082, ("svd/image_to_video_25", "base"): 1_524_623_082,
    ("make_your_video/images", "base"): 865_913_604, ("make_your_video/videos", "base"): 1_605_838_852,
    ("modelscope/text_to_video", "base"): 1_411_233_860, ("animatediff/v2", "base"): 1_312_730_244,
    ("sparse_ctrl/rgb", "base"): 1_276_658_564 + 496_730_880,
    ("sparse_ctrl/scribble", "base"): 1_276_658_564 + 497_802_784,
    ("lvdm/sky", "base"): 548_904_580, ("lvdm/sky_prediction", "base"): 549_163_908,
    ("lvdm/sky_interpolation", "base"): 549_181_060, ("lvdm/text", "base"): 958_924_964,
    ("wan/text_to_video_1b", "base"): 1_418_996_800, ("wan/text_to_video_14b", "base"): 14_288_491_584,
    ("wan/image_to_video_14b", "base"): 16_394_878_784,
    ("cogvideox/text_to_video_2b", "base"): 1_693_783_872, ("cogvideox/text_to_video_5b", "base"): 5_570_283_072,
    ("ltx_video/text_to_video_2b", "base"): 1_923_385_472,
}

# No count is published; it follows from what is.
COMPUTED = {config for config, _ in PUBLISHED if config.startswith(
    ("vdm/", "animate_anyone/", "dream_pose/", "follow_your_pose/"))}


def counted(config: str, stage: str) -> int:
    """Parameters as the golden table has them, which `tests/parallel/test_table.py` compares with the network."""
    text = golden_file(config).read_text()
    return int(re.search(rf"^stage {stage}\n.*: ([\d,]+) parameters", text, re.MULTILINE)[1].replace(",", ""))


@pytest.mark.parametrize(("config", "stage"), PUBLISHED)
def test_a_published_stage_has_its_published_size(config, stage):
    count, (published, tolerance) = counted(config, stage), PUBLISHED[config, stage]
    assert abs(count / published - 1) <= tolerance, f"{count:,} parameters, {published:,.0f} published"


@pytest.mark.parametrize(("config", "stage"), EXACT)
def test_a_released_network_has_as_many_parameters_as_its_weights(config, stage):
    assert counted(config, stage) == EXACT[config, stage]


def test_the_cascade_of_imagen_video_is_the_published_one():
    """Frames, height, width and frames per second of the paper's figure 6."""
    videos = [stage.video for stage in load_config("imagen_video/cascade").stages]
    sizes = [(v.frames, v.height, v.width, v.fps) for v in videos]
    assert sizes == [(16, 24, 40, 3), (32, 24, 40, 6), (32, 48, 80, 6), (32, 192, 320, 6), (64, 192, 320, 12),
                     (128, 192, 320, 24), (128, 768, 1280, 24)]


def test_the_cascade_of_imagen_is_the_published_one():
    """Sizes, optimisers, schedules, guidance (the paper's weight less 1) and the windows of the last stage."""
    base, middle, last = load_config("imagen/cascade").stages
    assert [(s.video.frames, s.video.height, s.video.width) for s in (base, middle, last)] == [
        (1, 64, 64), (1, 256, 256), (1, 1024, 1024)]
    assert [round(s.sampling.guidance, 9) for s in (base, middle, last)] == [0.35, 7, 7]
    assert [s.training.optimizer for s in (base, middle, last)] == ["adafactor", "adamw", "adamw"]
    assert [type(s.process.schedule).__name__ for s in (base, middle, last)] == [
        "CosineSchedule", "CosineSchedule", "LinearBetaSchedule"]
    assert last.training.crop == (256, 256) and {s.training.crop for s in (base, middle)} == {None}
    for stage in (middle, last):  # aug_level is a time
        augmentation = stage.source.augmentation
        time = float(augmentation.schedule.time(augmentation.sampling_logsnr))
        assert 0.1 <= time <= 0.3 and augmentation.training_logsnr is None


@pytest.mark.parametrize("config", config_names())
def test_the_shipped_counts_are_those_of_the_golden_tables(config):
    """`vdm-jax list` shows them without building a network."""
    for stage in load_config(config).stages:
        assert parameter_count(stage) == counted(config, stage.name)


@pytest.mark.parametrize("config", config_names())
def test_the_recorded_stages_are_those_of_the_config(config):
    """`vdm-jax list` shows them without JAX. Written anew by `python -m tests.parallel.test_table`."""
    shown = [(size.name, size.video, size.parameters) for size in stage_sizes(config)]
    assert shown == [(s.name, str(s.video), counted(config, s.name)) for s in load_config(config).stages]


def table() -> str:
    """Ours and what is published, for docs/systems.md."""
    lines = ["| config | stage | video | parameters | published | difference |", "|---|---|---|---:|---:|---:|"]
    for (config, name), (published, _) in PUBLISHED.items():
        stage = load_config(config).stage(name)
        difference = counted(config, name) / published - 1
        wanted = f"{published / 1e9:.3g} B, {'computed' if config in COMPUTED else 'published'}"
        lines.append(f"| `{config}` | {name} | {stage.video} | {shown_count(parameter_count(stage))} | {wanted} | "
                     f"{100 * difference:+.1f} % |")
    for config, name in EXACT:
        stage = load_config(config).stage(name)
        lines.append(f"| `{config}` | {name} | {stage.video} | {shown_count(parameter_count(stage))} | "
                     f"{EXACT[config, name]:,}, released | 0 |")
    return "\n".join(lines)


def systems() -> str:
    """What each config is, from its header, for docs/systems.md."""
    lines = ["| config | system | paper | published result | status |", "|---|---|---|---|---|"]
    for name, path in config_names().items():
        header = read_header(path)
        paper = re.search(r"[A-Z][^;()]* \d{4}, arXiv \d{4}\.\d{5}", header.sections["Citation"])
        lines.append(f"| `{name}` | {header.title} | {paper[0] if paper else 'ours'} | {header.published} | "
                     f"{header.status} |")
    return "\n".join(lines)


def page() -> str:
    """docs/systems.md as it should be."""
    return insert(insert(PAGE.read_text(), "systems", systems()), "sizes", table())


def test_the_page_of_systems_has_the_tables():
    assert page() == PAGE.read_text(), "write it anew: python -m tests.test_published_sizes"


if __name__ == "__main__":
    PAGE.write_text(page())
