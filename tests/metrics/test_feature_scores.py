"""Scores of a run by features: what each metric takes, what is kept in a file of references, what is refused.

The networks are replaced by means of pixels, so that every score can also be computed directly.
"""

import dataclasses
import json
from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest

from tests.refusals import refused
from vdm_jax.diffusion.process import Process
from vdm_jax.digits.captioned_digits import CaptionedDigits
from vdm_jax.digits.clips import CaptionedDigitsSource
from vdm_jax.evaluation import run_clips, run_metrics
from vdm_jax.evaluation.run_metrics import RunMetrics, evaluate_run
from vdm_jax.evaluation.settings import MetricSettings, parse_share
from vdm_jax.metrics import features as features_of
from vdm_jax.metrics import measures
from vdm_jax.metrics.detectors import c3d, clip, i3d, inception, weights
from vdm_jax.metrics.frechet import Moments, frechet_distance
from vdm_jax.metrics.fvd import FeatureSet, fvd
from vdm_jax.metrics.fvd_protocols import PROTOCOLS
from vdm_jax.metrics.inception_score import ClassTotals, softmax, split_of
from vdm_jax.metrics.scores import require_comparable
from vdm_jax.networks.config import Level, UNet
from vdm_jax.stages.stage import Experiment, Stage, VideoSpec

DATA = CaptionedDigits(size=32, frames=16, test_clips=12)
FC = {"kernel": np.random.default_rng(0).standard_normal((3, 5)) / 20, "bias": np.ones(5)}
COUNT = 12


def means(pictures):
    """Three numbers of each picture, next to which float32 sums do not show."""
    return np.asarray(pictures, np.float64).reshape(len(pictures), -1, 3).mean(1)


class Cascade:
    """Stands for a trained cascade: answers with noise."""

    def __init__(self, seed=0):
        stage = Stage(name="base", video=VideoSpec(frames=16, height=32, width=32), process=Process(),
                      network=UNet(levels=(Level(channels=4),)))
        self.experiment, self.params = Experiment(name="tiny", stages=(stage,), data=DATA), {"base": jnp.ones(3)}
        self.asked = []

    def videos(self, numbers, seed=0):
        draw = [np.random.default_rng([seed, i]).integers(i, 256, (16, 32, 32, 3)) for i in numbers]
        return np.stack(draw).astype(np.uint8)

    def __call__(self, captions, *, seed, first_index, **rest):
        self.asked.append(first_index)
        return SimpleNamespace(videos=self.videos(first_index + np.arange(len(captions)), seed))


@pytest.fixture
def source():
    return CaptionedDigitsSource(DATA, "test")


@pytest.fixture
def networks(monkeypatch, tmp_path):
    """Means in the place of features, and files in the user's folder as if they were weights."""
    (tmp_path / "detectors").mkdir()
    for name in ("inception_2015", "c3d_ucf101", "clip_ViT-B-32", "clip_ViT-L-14"):
        (tmp_path / "detectors" / f"{name}.safetensors").write_text(name)
    monkeypatch.setenv(weights.FOLDER_VARIABLE, str(tmp_path / "detectors"))
    find = weights.find
    monkeypatch.setattr(weights, "find", lambda file: None if file.package else find(file))
    monkeypatch.setattr(weights, "verified", lambda file: None if file.package else find(file))
    monkeypatch.setattr(i3d, "LEAST_FRAMES", 4)
    monkeypatch.setattr(features_of, "i3d_features", lambda clips, resize: means(clips))
    monkeypatch.setattr(features_of, "_inception", lambda *how: means)
    monkeypatch.setattr(features_of, "_c3d", lambda: means)
    monkeypatch.setattr(inception, "parameters", lambda variant: {"fc": FC})
    monkeypatch.setattr(c3d, "parameters", lambda: {"classifier": FC})
    monkeypatch.setattr(clip, "image_embeddings", lambda pictures, name: means(pictures))
    monkeypatch.setattr(clip, "text_embeddings", lambda texts, name: np.array([[len(t), 1.0, 2] for t in texts]))
    return tmp_path


def evaluate(source, folder, *metrics, cascade=None, **changes):
    settings = MetricSettings(metrics=metrics, **{"count": COUNT, "resamples": 4, "part": 5} | changes)
    return evaluate_run(cascade or Cascade(), source, settings, folder)


def sides(source):
    return np.stack([source[i]["video"] for i in range(COUNT)]), Cascade().videos(range(COUNT))


def direct(real, made, divisor="n-1"):
    return frechet_distance(Moments.of(real), Moments.of(made), divisor)


def test_frame_distances(source, networks):
    found = {score.metric: score for score in evaluate(source, networks, "fid", "fid_first", "fid_average").scores}
    real, made = (x.reshape(COUNT * 16, 32, 32, 3) for x in sides(source))
    assert found["fid"].value == pytest.approx(direct(means(real), means(made)), rel=1e-6)
    first = direct(means(real[::16]), means(made[::16]))
    assert found["fid_first"].value == pytest.approx(first, rel=1e-6)
    each = [direct(means(real[t::16]), means(made[t::16])) for t in range(16)]
    assert found["fid_average"].value == pytest.approx(np.mean(each), rel=1e-6)
    assert [found[name].conditions["vectors"] for name in found] == ["all frames", "first frame", "each frames"]
    score = found["fid"]
    assert score.detector == "inception_2015 (weights not vouched for)" and len(score.detector_sha256) == 64
    assert score.label == "fid (fid_tensorflow), OFF PROTOCOL" and score.interval.low < score.value
    assert score.deviations == ("generated clips 12 instead of 50000",)
    assert score.conditions["resize"] == "bilinear_tf1" and score.conditions["covariance"] == "n-1"
    other = evaluate(source, networks, "fid", fid_protocol="fid50k_full").scores[0]
    assert other.value == pytest.approx(direct(means(real), means(made), "n"), rel=1e-6)
    with refused("scores._not_comparable", "'fid_tensorflow'", "'fid50k_full'"):
        require_comparable(score, other)
    with refused("scores._not_comparable", "'fid'", "'fid_first'"):
        require_comparable(score, found["fid_first"])


def test_inception_scores(source, networks):
    found = evaluate(source, networks, "is", "is_first", "is_i3d", "is_c3d", "fvd_c3d", c3d_protocol="vdm_ucf")
    score = {one.metric: one for one in found.scores}
    _, made = sides(source)
    frames = means(made.reshape(-1, 32, 32, 3)).reshape(COUNT, 16, 3)

    def expected(logits, vectors):
        p = softmax(logits).reshape(COUNT * vectors, -1)
        return ClassTotals.of(p, split_of(np.arange(COUNT), COUNT, 10).repeat(vectors), 10).scores()

    assert score["is"].value == pytest.approx(expected(frames @ FC["kernel"], 16).mean(), rel=1e-6)
    assert score["is_first"].value == pytest.approx(expected(frames[:, 0] @ FC["kernel"], 1).mean(), rel=1e-6)
    by_i3d = expected(means(made), 1)
    assert score["is_i3d"].value == pytest.approx(by_i3d.mean(), rel=1e-6)
    assert score["is_i3d"].details["deviation of splits"] == pytest.approx(by_i3d.std(), rel=1e-4)
    by_c3d = expected(means(made) @ FC["kernel"] + FC["bias"], 1)
    assert score["is_c3d"].value == pytest.approx(by_c3d.mean(), rel=1e-6)
    assert score["is_c3d"].label == "is_c3d (vdm_ucf), OFF PROTOCOL" and score["is_i3d"].label == "is_i3d"
    assert score["is_c3d"].interval.low < score["is_c3d"].value < score["is_c3d"].interval.high
    assert score["fvd_c3d"].label == "fvd_c3d (vdm_ucf), OFF PROTOCOL"
    assert [one.metric for one in found.real] == ["is", "is_first", "is_i3d", "is_c3d"]  # of real clips too
    folder = networks / "detectors"
    (folder / "c3d_ucf101.safetensors").rename(folder / "conv3d_deepnetA_ucf.npz")
    (folder / "mean2.npz").write_text("mean")
    other = evaluate(source, networks / "two", "is_c3d", c3d_protocol="vdm_ucf").scores[0]
    assert " and mean2.npz " in other.detector and other.detector_sha256 == score["is_c3d"].detector_sha256
    with refused("feature_scores.require_sight", "9", "10"):
        evaluate(source, networks, "is", count=9)


def test_clips_similarities(source, networks):
    names = ("clipsim", "prompt_consistency", "clip_frame_consistency", "clip_frame_consistency_all")
    found = evaluate(source, networks, *names)
    score = {one.metric: one for one in found.scores}
    _, made = sides(source)
    unit = means(made.reshape(-1, 32, 32, 3)).reshape(COUNT, 16, 3)
    unit /= np.linalg.norm(unit, axis=-1, keepdims=True)
    texts = np.array([[len(source[i]["caption"]), 1.0, 2] for i in range(COUNT)])
    texts /= np.linalg.norm(texts, axis=-1, keepdims=True)
    cosines = np.einsum("ntd,nd->nt", unit, texts)
    assert score["clipsim"].value == pytest.approx(cosines.mean()) == score["prompt_consistency"].value
    assert score["clip_frame_consistency"].value == pytest.approx((unit[:, 1:] * unit[:, :-1]).sum(-1).mean())
    pairs = np.einsum("nsd,ntd->nst", unit, unit).sum((1, 2)) - 16
    assert score["clip_frame_consistency_all"].value == pytest.approx(pairs.mean() / (16 * 15))
    # The published CLIPSIM is of one model whatever is chosen for the others.
    assert score["clipsim"].detector.startswith("clip_ViT-B-32")
    assert score["prompt_consistency"].detector.startswith("clip_ViT-L-14") and len(found.real) == 4
    assert found.real[0].value != score["clipsim"].value


def test_block_distance(source, networks):
    found = evaluate(source, networks, "b_fvd", "fvd", block_frames=5)
    score = found.scores[0]
    real, made = (x[:, :15].reshape(COUNT, 3, 5, 32, 32, 3) for x in sides(source))
    each = [direct(means(real[:, i]), means(made[:, i])) for i in range(3)]
    assert score.metric == "b-fvd-5" and score.value == pytest.approx(np.mean(each), rel=1e-6)
    assert score.conditions["frames"] == 5 and len(score.details["blocks"]) == 3
    assert score.interval.low < score.value < score.interval.high and score.interval.resamples == 4
    for frames, message in ((3, ("feature_scores.require_sight", "b_fvd", "16", "3", "4")), (17,
    ("feature_scores.require_sight", "17"))):
        with refused(*message):
            evaluate(source, networks, "b_fvd", block_frames=frames)


def test_reference_statistics_are_written_once_and_read(source, networks):
    file = networks / "real.safetensors"
    once = evaluate(source, networks / "one", "fvd", "kvd", "fid", reference_statistics=str(file))

    class Gone(CaptionedDigitsSource):
        """Captions are there, and only the first clip, which the run is named after."""

        def __getitem__(self, index):
            item = super().__getitem__(index)
            return item if index == 0 else {"caption": item["caption"]}

    again = evaluate(Gone(DATA, "test"), networks / "two", "fid", "fvd", reference_statistics=str(file))
    assert [s.value for s in again.scores] == [once.scores[2].value, once.scores[0].value]
    require_comparable(again.scores[1], once.scores[0])
    assert again.scores[1].interval == once.scores[0].interval
    for name, changes, message in (
        ("fvd", {"split": "validation"}, ("reference.Reference.covers", "split='test'", "'validation'")),
        ("fvd", {"protocol": "vdm_bair"}, ("reference.Reference.covers", "protocol='original'", "'vdm_bair'")),
        ("fvd", {"protocol": "fvd2048_16f"}, ("reference.Reference.covers", "i3d_bilinear_tf1")),
        ("fid_first", {}, ("reference.Reference.covers", "fid_first")),
    ):
        with refused(*message):
            evaluate(source, networks / "two", name, reference_statistics=str(file), **changes)
    (networks / "detectors" / "inception_2015.safetensors").write_text("other weights")
    with refused("reference.Reference.covers", "detector_sha256='"):
        evaluate(source, networks / "two", "fid", reference_statistics=str(file))


def test_other_files_are_no_reference(source, networks):
    from vdm_jax.weights.safetensors import save_params

    save_params(networks / "other.safetensors", {"a": np.ones(2)})
    with refused("reference.Reference.open"):
        evaluate(source, networks, "fvd", reference_statistics=str(networks / "other.safetensors"))
    with refused("reference_statistics"):
        evaluate(source, networks, "fvd", reference_statistics="real.npz")


def test_shares_of_several_machines_are_the_whole(source, networks):
    metrics = ("fvd", "is", "clipsim")
    whole = evaluate(source, networks / "whole", *metrics)
    one, other = Cascade(), Cascade()
    for cascade, share in ((one, "1/2"), (other, "2/2")):
        found = evaluate(source, networks / "shared", *metrics, cascade=cascade, share=share)
        assert found == RunMetrics(scores=(), real=(), settings=found.settings)
    assert (one.asked, other.asked) == ([0, 10], [5])
    last = Cascade()
    assert evaluate(source, networks / "shared", *metrics, cascade=last).scores == whole.scores and last.asked == []
    for text in ("3/2", "0/2", "1", "a/b"):
        with refused("share", "='"):
            parse_share(text)


def test_a_draw_of_many_videos_says_so(source, networks, monkeypatch):
    whole = {score.metric: score for score in evaluate(source, networks / "a", "fvd", "kvd").scores}
    monkeypatch.setattr("vdm_jax.metrics.statistics.KEPT", 8)
    drawn = {score.metric: score for score in evaluate(source, networks / "b", "fvd", "kvd").scores}
    assert drawn["fvd"].value == pytest.approx(whole["fvd"].value, rel=1e-9)  # moments are of all
    assert drawn["fvd"].conditions == whole["fvd"].conditions and drawn["fvd"].interval
    assert drawn["kvd"].conditions["real_drawn"] == drawn["kvd"].conditions["generated_drawn"] == "8 of 12"
    with refused("scores._not_comparable"):
        require_comparable(drawn["kvd"], whole["kvd"])


def test_a_missing_detector_is_told_before_anything_is_generated(source, tmp_path, monkeypatch):
    monkeypatch.setenv(weights.FOLDER_VARIABLE, str(tmp_path))
    for name, file in (("fid", "pt_inception-2015-12-05"), ("is_c3d", "conv3d_deepnetA_ucf.npz"),
                       ("clipsim", "clip-vit-base-patch32/"), ("prompt_consistency", "clip-vit-large-patch14/")):
        cascade = Cascade()
        with refused("weights.find", file, "https://"):
            evaluate(source, tmp_path, name, cascade=cascade)
        assert cascade.asked == []


@pytest.mark.parametrize(("changes", "message"), [
    ({"fid_protocol": "mine"},
     ("MetricSettings.fid_protocol", "='mine'", "fid_tensorflow", "fid_pytorch", "fid50k_full")),
    ({"c3d_protocol": "mine"}, ("MetricSettings.c3d_protocol", "='mine'", "vdm_ucf")),
    ({"clip": "RN50"}, ("MetricSettings.clip", "='RN50'")), ({"block_frames": 0},
     ("MetricSettings.block_frames", "=0")),
])
def test_bad_settings_are_refused(changes, message):
    with refused(*message):
        MetricSettings(metrics=("fid",), **changes)


def test_settings_and_scores_are_json(source, networks):
    found = evaluate(source, networks, "fid", "is", "fvd").to_dict()
    assert json.loads(json.dumps(found))["settings"]["fid_protocol"] == "fid_tensorflow"
    assert set(measures.accompanied(("b_fvd",), (16, 64, 64))) == {"b_fvd", "motion", "frame_lpips"}


def test_c3d_sees_sixteen_frames(networks):
    settings = MetricSettings(metrics=("is_c3d",), count=12)
    with refused("feature_scores.require_sight", "is_c3d", "8", "16"):
        run_metrics.require_visible(("is_c3d",), (8, 32, 32), settings)
    settings = dataclasses.replace(settings, c3d_protocol="isv2048_ucf")
    with refused("feature_scores.require_sight", "fvd_c3d", "'isv2048_ucf'"):
        run_metrics.require_visible(("fvd_c3d",), (16, 32, 32), settings)


@pytest.mark.parametrize("name", sorted(PROTOCOLS))
def test_every_protocol_labels_what_departs_from_it(name):
    """Sets that keep to a protocol have its name; each thing that departs is listed, and scores are not compared."""
    protocol = PROTOCOLS[name]
    fixed = {"frames": protocol.frames or 16, "stride": protocol.stride or 1, "split": protocol.split or "test",
             "start": protocol.start or "as the data set gives it", "draw": protocol.draw or "without replacement"}
    moments = Moments.of(np.random.default_rng(0).standard_normal((9, 4)))

    def made(clips, **changes):
        about = {"data": f"{protocol.data_set or 'Clips'} 0a", "size": "64x64", "resize": protocol.resize,
                 "given_frames": protocol.given_frames or 0}
        return FeatureSet(features=np.ones((2, 4)), clips=clips, moments=moments, **(fixed | about | changes))

    real, generated = protocol.real_clips or 9, protocol.generated_clips or 9
    on = fvd(made(real), made(generated), protocol, resamples=0)
    assert on.label == f"fvd ({name})" and on.deviations == () and on.conditions["given_frames"] is not None
    for field, other in {"frames": 9, "stride": 3, "split": "validation", "start": "middle", "draw": "by hand",
                         "given_frames": 7}.items():
        changes = {field: other}
        off = fvd(made(real, **changes), made(generated, **changes), protocol, resamples=0)
        expected = (f"{field.replace('_', ' ')} {other} instead of {getattr(protocol, field)}",)
        assert off.deviations == (() if getattr(protocol, field) is None else expected)
        assert ("OFF PROTOCOL" in off.label) == (getattr(protocol, field) is not None)
        with refused("scores._not_comparable", f" {field} is"):
            require_comparable(on, off)
    few = fvd(made(8), made(7), protocol, resamples=0)
    assert len(few.deviations) == (protocol.real_clips is not None) + (protocol.generated_clips is not None)


def test_kinetics_with_and_without_replacement_draw_their_clips(source, networks):
    class Watched(CaptionedDigitsSource):
        asked = []

        def __getitem__(self, index):
            self.asked.append(index)
            return super().__getitem__(index)

    found = {}
    for name in ("vdm_kinetics600", "vdm_kinetics600_with_replacement"):
        clips = run_clips.Clips(Cascade(), Watched(DATA, "test"), MetricSettings(
            metrics=("fvd",), count=12, protocol=name, given_frames=5))
        clips.source.asked.clear()
        real = clips.real(range(12))
        of_real = list(clips.source.asked)
        clips.source.asked.clear()
        paired = clips.counterparts(range(12))
        found[name] = of_real, list(clips.source.asked), np.array_equal(real, paired)
    assert found["vdm_kinetics600"] == (list(range(12)), list(range(12)), True)
    real, given, same = found["vdm_kinetics600_with_replacement"]
    assert len(set(real)) < 12 and real != given and not same
    scores = [evaluate(source, networks, "fvd", protocol=name, given_frames=5).scores[0] for name in found]
    assert [score.conditions["draw"] for score in scores] == ["without replacement", "with replacement"]
    assert all(set(score.deviations) == {"real clips 12 instead of 50000", "generated clips 12 instead of 50000"}
               for score in scores)
    with refused("count", "=13", "12"):
        evaluate(source, networks, "fvd", protocol="vdm_kinetics600", count=13)
    assert evaluate(source, networks, "fvd", protocol="vdm_kinetics600_with_replacement", count=13).scores


def test_bair_has_many_completions_of_each_clip(source, networks):
    found = evaluate(source, networks, "fvd", protocol="vdm_bair", given_frames=1, count=3, samples_per_clip=4)
    score = found.scores[0]
    assert (score.conditions["real_clips"], score.conditions["generated_clips"]) == (3, 12)
    assert score.deviations == ("real clips 3 instead of 256", "generated clips 12 instead of 25600")
