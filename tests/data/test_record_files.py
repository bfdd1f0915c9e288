"""Files of every layout that ArrayRecord writes are taken; others are refused before the C++ reader gets them."""

import subprocess
import sys
import textwrap

import numpy as np
import pytest
from array_record.python.array_record_module import ArrayRecordWriter

from tests.refusals import refused
from vdm_jax.data.record_files import check_record_file


def write(path, records, options="group_size:1"):
    writer = ArrayRecordWriter(str(path), options)
    for record in records:
        writer.write(record)
    writer.close()
    return path


@pytest.mark.parametrize("options", ["group_size:1", "group_size:1,uncompressed", "group_size:7", "group_size:1,brotli",
                                     "group_size:1,pad_to_block_boundary:true", "group_size:64,transpose:true"])
@pytest.mark.parametrize("count, longest", [(1, 10), (3, 0), (300, 3000), (20, 200_000), (40, 65_536), (2000, 90)])
def test_files_of_every_layout_are_taken(options, count, longest, tmp_path):
    rng = np.random.default_rng(count)
    check_record_file(write(tmp_path / "a", (rng.bytes(int(rng.integers(longest + 1))) for _ in range(count)), options),
                      2**23)


def number(value):
    return value.to_bytes(8, "little")


@pytest.mark.parametrize("change, message", [
    (lambda data: data[:-1], ("record_files.check_record_file",)),
    (lambda data: data[:2**16], ("record_files.check_record_file",)),
    (lambda data: data[:-2**16], ("record_files.check_record_file",)),
    (lambda data: b"x" + data[1:], ("record_files.check_record_file",)),
    (lambda data: data[:72] + number(2**60) + data[80:], ("record_files.check_record_file", "64", "114")),
    (lambda data: data[:88] + b"r" + b"\xff" * 7 + data[96:], ("record_files.check_record_file", "114")),
    (lambda data: data[:96] + number(2**62) + data[104:],
     ("record_files.check_record_file", "4611686018427387904", "64")),
    (lambda data: data[:88] + b"x" + data[89:], ("record_files.check_record_file", "120")),
    (lambda data: data[:-2**16] + bytes(2**16), ("record_files.check_record_file",)),
])
def test_sizes_that_lie_are_refused(change, message, tmp_path):
    path = write(tmp_path / "a", [b"one", b"two" * 10])
    path.write_bytes(change(path.read_bytes()))
    with refused(*message) as error:
        check_record_file(path, 2**20)
    assert str(path) in str(error.value)


def test_a_record_that_unpacks_to_more_than_permitted_is_refused(tmp_path):
    with refused("record_files.check_record_file", "3000000", "64", "1048576", "1000000"):
        check_record_file(write(tmp_path / "a", [bytes(3_000_000)]), 1_000_000)


def test_damaged_files_are_refused_or_skipped_in_little_memory(tmp_path):
    """The reader is C++, which crashes rather than raises: so in a process of its own, with 2 GB of addresses."""
    script = f"""
        import logging, resource
        import numpy as np
        from tests.data.fuzzing import mutated
        from vdm_jax.data.array_record import PreparedClips, PreparedClipsSource, prepare_clips
        from vdm_jax.data.record_files import _footer
        from vdm_jax.errors import UserError

        clips = [{{"video": np.full((2, 8, 8, 3), n, np.uint8), "caption": "", "fps": 2.0}} for n in range(3)]
        path = prepare_clips(clips, {str(tmp_path)!r}, format="jpeg") / "clips.array_record"
        logging.disable()
        resource.setrlimit(resource.RLIMIT_AS, (2**31, 2**31))
        whole = path.read_bytes()
        with open(path, "rb") as file:
            begins = [0, _footer(file.fileno(), len(whole) - 2**16), len(whole) - 2**16]  # the last: of the postscript
        for seed in range(200):
            begin = begins[seed % 3]
            part = mutated(whole[begin : begin + 150], np.random.default_rng(seed))
            data = whole[:begin] + part + whole[begin + 150 :]
            data = data[: len(whole)] + bytes(max(0, len(whole) - len(data)))
            path.write_bytes(data)
            try:
                source = PreparedClipsSource(PreparedClips(path={str(tmp_path)!r}))
                [source[n] for n in range(3)]
            except UserError:
                pass
        print("whole")
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (0, "whole\n"), done.stderr
