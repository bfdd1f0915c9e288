"""Metric files: one line per write, exact resume, torn lines; and the speedometer."""

from __future__ import annotations

import errno
import json
import math
import resource
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.refusals import refused
from vdm_jax.runs.records import MetricWriter, json_number, read_metrics, read_records


def lines(directory):
    return (directory / "metrics.jsonl").read_text().splitlines()


def write(directory, steps, first_step=None, **scalars):
    with MetricWriter(directory, first_step=first_step, tensorboard=False) as writer:
        for step in steps:
            writer.write(step, {"loss": step / 10, **scalars})


def test_records_hold_step_time_and_scalars(tmp_path):
    with MetricWriter(tmp_path / "run", tensorboard=False) as writer:
        writer.write(np.int64(3), {"loss": jnp.float32(0.1), "rate": 1e-4, "count": np.int32(7)})
        assert len(lines(tmp_path / "run")) == 1  # on disk before `close`
    record = json.loads(lines(tmp_path / "run")[0])
    assert list(record) == ["step", "time", "loss", "rate", "count"]
    assert record["step"] == 3 and record["loss"] == float(np.float32(0.1)) and record["count"] == 7.0
    assert record["time"] > 1.6e9


def test_not_finite_values_stay_valid_json(tmp_path):
    values = {"a": math.nan, "b": math.inf, "c": jnp.float32(-jnp.inf)}
    with MetricWriter(tmp_path, tensorboard=False) as writer:
        writer.write(1, values)

    def reject(name):
        raise AssertionError(f"{name} is not JSON")

    record = json.loads(lines(tmp_path)[0], parse_constant=reject)
    assert {name: record[name] for name in "abc"} == {"a": "nan", "b": "inf", "c": "-inf"}
    read = read_records(tmp_path)[0]
    assert math.isnan(read["a"]) and read["b"] == math.inf and read["c"] == -math.inf


@pytest.mark.parametrize("value", [0.1, -0.0, 5e-324, 1e300, math.inf, -math.inf, math.nan])
def test_json_number_inverts(value):
    text = json.dumps(json_number(value), allow_nan=False)
    assert np.float64(float(json.loads(text))).tobytes() == np.float64(value).tobytes()


def test_resume_leaves_no_duplicates(tmp_path):
    write(tmp_path, range(0, 10))
    before = lines(tmp_path)
    write(tmp_path, range(6, 12), first_step=6)
    assert lines(tmp_path)[:6] == before[:6]  # earlier lines stay as they were, to the byte
    np.testing.assert_array_equal(read_metrics(tmp_path)["step"], np.arange(12))


def test_without_first_step_everything_stays(tmp_path):
    write(tmp_path, range(3))
    write(tmp_path, range(3))
    np.testing.assert_array_equal(read_metrics(tmp_path)["step"], [0, 1, 2, 0, 1, 2])


@pytest.mark.parametrize("torn", ['{"step": 3, "ti', '{"step": 3, "time": 1.0}', "{", "\x00\x00"])
def test_torn_last_line_is_skipped_and_removed_on_resume(tmp_path, torn):
    write(tmp_path, range(3))
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write(torn)
    np.testing.assert_array_equal(read_metrics(tmp_path)["step"], [0, 1, 2])
    write(tmp_path, [3])
    np.testing.assert_array_equal(read_metrics(tmp_path)["step"], [0, 1, 2, 3])


@pytest.mark.parametrize("line", [
    "not json", "[1, 2]", '{"loss": 1.0}', '{"step": 1, "loss": "high"}', '{"step": 1, "loss": NaN}', "[" * 100_000,
    '{"step": %s}' % ("9" * 30), '{"step": 1, "loss": %s}' % ("9" * 400), '{"step": %s}' % ("9" * 5000)],
    ids=lambda line: line[:30])
def test_a_foreign_file_is_refused_and_untouched(tmp_path, line):
    content = '{"step": 0, "time": 1.0}\n' + line + "\n"
    (tmp_path / "metrics.jsonl").write_text(content)
    with refused("records._lines", "metrics.jsonl", "2"):
        read_records(tmp_path)
    with refused("records._lines", "2"):
        MetricWriter(tmp_path, tensorboard=False)
    assert (tmp_path / "metrics.jsonl").read_text() == content


def test_columns_have_nan_where_a_metric_is_absent(tmp_path):
    with MetricWriter(tmp_path, tensorboard=False) as writer:
        writer.write(1, {"loss": 0.5})
        writer.write(2, {"fvd": 100.0})
    columns = read_metrics(tmp_path / "metrics.jsonl")
    assert columns["step"].dtype == np.int64 and set(columns) == {"step", "time", "loss", "fvd"}
    np.testing.assert_array_equal(columns["loss"], [0.5, math.nan])
    np.testing.assert_array_equal(columns["fvd"], [math.nan, 100.0])


def test_absent_file(tmp_path):
    with refused("records.read_records", "metrics.jsonl"):
        read_metrics(tmp_path / "metrics.jsonl")


@pytest.mark.parametrize("scalars, message", [
    ({"loss": np.zeros(2)}, ("records._scalar", "'loss'", "[2]")), ({"step": 1},
     ("records.MetricWriter.write", "'step'"))])
def test_what_is_not_a_scalar_is_refused(tmp_path, scalars, message):
    with MetricWriter(tmp_path, tensorboard=False) as writer:
        with refused(*message):
            writer.write(1, scalars)
    assert lines(tmp_path) == []


def test_only_process_0_writes(tmp_path, monkeypatch):
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    with MetricWriter(tmp_path / "run") as writer:
        writer.write(1, {"loss": 1.0})
        writer.image(1, "samples", np.zeros((4, 4, 3), np.uint8))
        writer.flush()
    assert not (tmp_path / "run").exists()


def tensorboard_events(directory):
    """(step, tag, value or image size) of every summary, and the steps at which a purge was asked for."""
    pytest.importorskip("tensorboardX")
    from tensorboardX.proto import event_pb2

    summaries, purges = [], []
    for path in sorted(directory.glob("events.out.tfevents.*"), key=lambda path: path.stat().st_mtime_ns):
        data = path.read_bytes()
        while data:  # framing: length (8 bytes), its checksum (4), the event, its checksum (4)
            length = int.from_bytes(data[:8], "little")
            event = event_pb2.Event.FromString(data[12:12 + length])
            data = data[16 + length:]
            if event.HasField("session_log"):
                purges.append(event.step)
            for value in event.summary.value:
                image = value.image
                summaries.append((event.step, value.tag, (image.height, image.width, image.colorspace)
                                  if value.HasField("image") else value.simple_value))
    return summaries, purges


def test_tensorboard_scalars_images_and_purge(tmp_path):
    pytest.importorskip("tensorboardX")
    with MetricWriter(tmp_path) as writer:
        writer.write(1, {"loss": 0.5})
        writer.write(2, {"loss": 0.25})
        writer.image(2, "samples", np.zeros((4, 6, 3), np.uint8))
        with refused("records.MetricWriter.image", "'samples'", "[4, 6, 3]"):
            writer.image(2, "samples", np.zeros((4, 6, 3), np.float32))
    summaries, purges = tensorboard_events(tmp_path)
    assert summaries == [(1, "loss", 0.5), (2, "loss", 0.25), (2, "samples", (4, 6, 3))] and purges == []
    for path in tmp_path.glob("events.out.tfevents.*"):
        path.unlink()
    with MetricWriter(tmp_path, first_step=2) as writer:
        writer.write(2, {"loss": 0.125})
    summaries, purges = tensorboard_events(tmp_path)
    assert summaries == [(2, "loss", 0.125)] and purges == [2]
    assert [record["loss"] for record in read_records(tmp_path)] == [0.5, 0.125]


def test_a_disk_that_is_full_ends_the_writing_and_hangs_nothing(tmp_path, capfd):
    """The error comes in the thread that trains, which is the only one."""
    pytest.importorskip("tensorboardX")
    noise, threads = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8), threading.active_count()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, hard))
    try:
        with pytest.raises(OSError) as error, MetricWriter(tmp_path) as writer:
            for step in range(100):
                writer.write(step, {"loss": 0.5})
                writer.image(step, "samples", noise)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert error.value.errno == errno.EFBIG and 1 < len(read_records(tmp_path)) < 20
    assert threading.active_count() == threads and "Traceback" not in capfd.readouterr().err
