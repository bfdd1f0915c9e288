"""Which process starts with which others, and errors before anybody waits. Real processes: tests/multiprocess/."""

from __future__ import annotations

import socket

import jax
import numpy as np
import pytest

from tests.refusals import refused
from vdm_jax.errors import UserError
from vdm_jax.parallel import processes
from vdm_jax.parallel.arrays import global_batch, process_rows
from vdm_jax.parallel.mesh import MeshSpec, make_mesh
from vdm_jax.parallel.processes import detect_cluster, first, start_processes, together

SLURM = {"SLURM_JOB_ID": "7", "SLURM_STEP_NODELIST": "node[1-2]", "SLURM_NTASKS": "2", "SLURM_PROCID": "1",
         "SLURM_LOCALID": "0"}
MPI = {"OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_RANK": "0"}
POD = {"KUBERNETES_SERVICE_HOST": "10.0.0.1"}
GKE = {**POD, "JOB_COMPLETION_INDEX": "0", "TPU_WORKER_ID": "0"}


@pytest.fixture
def offline(monkeypatch):
    """Any attempt to open a socket or to start JAX's service fails the test."""

    def refuse(*arguments, **keywords):
        raise AssertionError("the network was used")

    monkeypatch.setattr(socket, "socket", refuse)
    monkeypatch.setattr(socket, "create_connection", refuse)
    monkeypatch.setattr(jax.distributed, "initialize", refuse)


@pytest.fixture
def packages(monkeypatch):
    """Says which of the optional packages are installed."""

    def install(*names):
        monkeypatch.setattr(processes.importlib.util, "find_spec", lambda name: name if name in names else None)

    install()
    return install


@pytest.mark.parametrize(("environment", "tpu_vm", "expected"), [
    ({}, False, None),
    (SLURM, False, "slurm"),
    ({**SLURM, "SLURM_NTASKS": "1"}, False, None),
    ({name: value for name, value in SLURM.items() if name != "SLURM_STEP_NODELIST"}, False, None),  # no srun
    ({**MPI, "OMPI_MCA_orte_hnp_uri": "1;tcp://10.0.0.1:3"}, False, "ompi"),
    ({"OMPI_COMM_WORLD_SIZE": "1"}, False, None),
    (POD, False, None),  # a notebook in a cluster
    ({}, True, "gcetpu"),
    ({"JAX_PLATFORMS": "cpu"}, True, None),
    ({"TPU_SKIP_MDS_QUERY": "1"}, True, None),  # compiling ahead of time
    ({**GKE, "TPU_WORKER_HOSTNAMES": "a,b"}, True, "gketpu"),
    ({**GKE, "TPU_PROCESS_ADDRESSES": "a:1,b:1", "TPU_WORKER_HOSTNAMES": "a"}, True, "gketpu"),
    ({**GKE, "TPU_WORKER_HOSTNAMES": "a"}, True, None),
    ({**GKE, "TPU_WORKER_HOSTNAMES": "a", "MEGASCALE_NUM_SLICES": "2"}, True, "gketpu"),
    ({"TPU_WORKER_HOSTNAMES": "localhost"}, False, None),
])
def test_clusters_are_told_by_their_environment(packages, offline, environment, tpu_vm, expected):
    assert detect_cluster(environment, tpu_vm) == expected


def test_clusters_that_need_a_package(packages, offline):
    with refused("processes.detect_cluster", "5", "0"):
        detect_cluster(MPI, False)
    pod = {**POD, "JOB_COMPLETION_INDEX": "0"}
    with refused("processes.detect_cluster", "--coordinator"):
        detect_cluster(pod, False)
    packages("mpi4py", "kubernetes")
    assert detect_cluster(MPI, False) == "mpi4py" and detect_cluster(pod, False) == "k8s"


@pytest.mark.parametrize("flags", [{}, {"processes": 1}, {"processes": 1, "process_id": 0}])
def test_a_lone_machine_contacts_nobody(offline, monkeypatch, flags):
    if flags:  # --processes 1 wins over what the environment says
        for name, value in SLURM.items():
            monkeypatch.setenv(name, value)
    assert start_processes(**flags) == "one process"
    assert not jax.distributed.is_initialized()


def test_this_machine_is_no_tpu():
    assert processes.on_tpu_vm() is False


ADDRESS = "127.0.0.1:1234"


@pytest.mark.parametrize(("flags", "message"), [
    ((None, 2, 0), ("processes.check_flags", "--coordinator", "--processes", "--process-id")),
    ((ADDRESS, None, 0), ("processes.check_flags", "--processes")),
    ((ADDRESS, 2, None), ("processes.check_flags", "--process-id")),
    (("localhost", 2, 0), ("--coordinator", "'localhost'")),
    (("localhost:0", 2, 0), ("--coordinator", "'localhost:0'")),
    ((ADDRESS, 0, 0), ("--processes", ">= 1")),
    ((ADDRESS, 2, 2), ("--process-id",)),
])
def test_flags_that_do_not_fit(offline, flags, message):
    with refused(*message):
        start_processes(*flags)


def test_a_port_in_use_is_told(monkeypatch):
    monkeypatch.setattr(jax.distributed, "initialize", lambda **_: pytest.fail("not reached"))
    with socket.socket() as other:
        other.bind(("", 0))
        other.listen()
        port = other.getsockname()[1]
        with refused("--coordinator", f"127.0.0.1:{port}: port {port}", "already in use"):
            start_processes(f"127.0.0.1:{port}", 2, 0)


def test_a_coordinator_that_does_not_answer_is_told(monkeypatch):
    monkeypatch.setattr(jax.distributed, "initialize", lambda **_: pytest.fail("not reached"))
    with socket.socket() as closed:  # bound, but nobody listens
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
        with refused("--coordinator", f"127.0.0.1:{port}", "1 s"):
            start_processes(f"127.0.0.1:{port}", 2, 1, timeout=1)


def test_what_jax_says_is_one_line(monkeypatch):
    def fail(**arguments):
        assert arguments["cluster_detection_method"] == "slurm"
        raise RuntimeError("first\nsecond")

    monkeypatch.setattr(jax.distributed, "initialize", fail)
    for name, value in SLURM.items():
        monkeypatch.setenv(name, value)
    with refused("processes.start_processes"):
        start_processes()


def test_alone_there_is_nobody_to_agree_with():
    assert first(lambda: 3) == together(lambda: 3) == 3
    with refused("nothing"):
        together(lambda: (_ for _ in ()).throw(UserError("no", code="nothing")))


def test_one_process_holds_every_row():
    mesh = make_mesh(MeshSpec(data=2, fsdp=2, tensor=2))
    np.testing.assert_array_equal(process_rows(8, mesh), np.arange(8))
    values = np.arange(16).reshape(8, 2)
    batch = global_batch({"video": values}, mesh, 8)
    np.testing.assert_array_equal(batch["video"], values)
    assert {shard.data.shape for shard in batch["video"].addressable_shards} == {(2, 2)}
    with pytest.raises(ValueError, match="7 rows where the devices of this process hold 8 of 8"):
        global_batch({"video": values[:7]}, mesh, 8)
