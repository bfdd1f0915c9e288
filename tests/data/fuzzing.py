"""Files damaged at random, for tests of readers: each is read, skipped or refused by a `UserError` of one line, within
a time, and no program is started and no connection made."""

import contextlib
import json
import signal
import sys

import numpy as np

from vdm_jax.errors import UserError

MUTATIONS = 200
SECONDS = 20  # for one mutation; they take milliseconds, and the machine may be busy
NUMBERS = (b"\xff" * 4, b"\x7f" + b"\xff" * 7, b"\0" * 8, b"\x80" * 4, b"99999999999", b"-1", b"[" * 2000, b'"', b"\0")
VALUES = (None, True, -1, 0, 2, 10**20, 1e308, float("nan"), "", "x", "../../x", "vdm_evil.Feature", [], {}, [None],
          {"x": 1}, [[1]], ["x", -1], "8", 0.5)
FORBIDDEN = ("os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.fork", "os.startfile", "subprocess.Popen",
             "socket.connect", "ctypes.dlopen", "shutil.rmtree")

_seen: list[str] | None = None  # forbidden events; None: nobody watches


class TooSlow(BaseException):
    """Not an `Exception`, so that no reader catches it."""


def _audit(event, arguments):
    if _seen is not None and (event in FORBIDDEN or event == "import" and "evil" in arguments[0]):
        _seen.append(event)


sys.addaudithook(_audit)


@contextlib.contextmanager
def watched():
    """Fails after some time, and where a program was started, a library loaded, or a connection made."""
    global _seen

    def late(*_):
        raise TooSlow(f"more than {SECONDS} s")

    before, _seen = signal.signal(signal.SIGALRM, late), []
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try:
        yield
        assert not _seen
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        _seen = None


def mutated(data, rng):
    """Some bytes changed, cut off, repeated, moved or replaced by numbers that headers may hold."""
    data = bytearray(data)
    for _ in range(rng.integers(1, 4)):
        place = int(rng.integers(len(data) + 1))
        place = place if rng.random() < 0.5 else place % min(len(data) + 1, 600)  # headers are at the beginning
        match rng.integers(5):
            case 0 if data:
                data[min(place, len(data) - 1)] ^= 1 << int(rng.integers(8))
            case 1:
                del data[place:]
            case 2:
                data[place:place] = data[: int(rng.integers(100))]
            case 3:
                number = NUMBERS[rng.integers(len(NUMBERS))]
                data[place : place + len(number)] = number
            case _:
                del data[place : place + int(rng.integers(1, 50))]
    return bytes(data)


def mutated_json(data, rng):
    """A value somewhere in a JSON file replaced, left out or moved."""
    tree, nodes = {"": json.loads(data)}, []

    def visit(value):
        for key in value if isinstance(value, dict) else range(len(value)):
            nodes.append((value, key))
            if isinstance(value[key], dict | list):
                visit(value[key])

    visit(tree)
    for _ in range(rng.integers(1, 3)):
        holder, key = nodes[rng.integers(len(nodes))]
        other, place = nodes[rng.integers(len(nodes))]
        if rng.random() < 0.2 and isinstance(holder, dict) and key:
            holder.pop(key, None)
        elif key in holder if isinstance(holder, dict) else key < len(holder):
            holder[key] = VALUES[rng.integers(len(VALUES))] if rng.random() < 0.8 or place not in other else (
                json.loads(json.dumps(other[place])) if isinstance(other, dict) else holder[key])
    return json.dumps(tree[""]).encode()


def fuzz(path, data, read, mutations=MUTATIONS):
    """How many of the mutations were read. Every second one of a JSON file has another value somewhere."""
    count = 0
    for seed in range(mutations):
        change = mutated_json if path.suffix == ".json" and seed % 2 else mutated
        path.write_bytes(change(data, np.random.default_rng(seed)))
        try:
            with watched():
                read(path)
            count += 1
        except UserError as error:
            assert "\n" not in str(error)
    return count
