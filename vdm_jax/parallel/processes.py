"""Processes: one program on several hosts, started, distinguished and kept in agreement.

Every process runs the same command, holds the devices of its host, and makes the same calls in the same order; JAX
joins their devices to one mesh. A cluster is recognised by the environment that its launcher leaves, so a lone machine
contacts nobody. `first` and `together` are for what touches files: a failure in one process is raised in all of them,
and nobody waits for a process that has given up.
"""

from __future__ import annotations

import importlib.util
import os
import socket
import time
from collections.abc import Callable, Mapping
from typing import Annotated, TypeVar

import jax
import numpy as np

from vdm_jax.configuration import Count, Range, check_value
from vdm_jax.errors import UserError

T = TypeVar("T")

TIMEOUT = 300  # seconds in which all processes must have started
HEARTBEAT = 100  # seconds of silence after which a process is taken for dead; JAX's own value
_SHUTDOWN = 120  # seconds a process that ends waits for the others to end
_MESSAGE_BYTES = 4096  # of an error that is sent to the other processes
_SLURM = ("SLURM_JOB_ID", "SLURM_STEP_NODELIST", "SLURM_NTASKS", "SLURM_PROCID", "SLURM_LOCALID")
_FLAGS = "--coordinator HOST:PORT --processes N --process-id I"


def start_processes(coordinator: str | None = None, processes: int | None = None, process_id: int | None = None, *,
                    timeout: int = TIMEOUT, heartbeat: int = HEARTBEAT) -> str:
    """Join this process to the others, if there are any. Call it once, before anything looks for a device.

    Args:
      coordinator: `host:port` at which process 0 listens, the same in every process.
      processes: how many there are; 1 alone means that this one is on its own whatever the environment says.
      process_id: number of this one, from 0. The three are given together, or none of them: then the environment
        of a TPU slice, SLURM, Open MPI or Kubernetes decides, and without one the process is on its own.
      timeout: seconds in which all processes must have started. JAX ends a process with a message and signal 6 when
        the others do not come in time.
      heartbeat: seconds of silence after which a process is taken for dead; JAX then ends all others likewise.

    Returns:
      What was started, in words.

    Raises:
      UserError: flags that do not fit together, a port in use, a coordinator that does not answer, a cluster whose
        launcher does not say enough.
    """
    check_value(heartbeat, Count, "--heartbeat")
    if (coordinator, processes, process_id) == (None, None, None):
        method = detect_cluster(os.environ, on_tpu_vm())
        if method is None:
            return "one process"
        # JAX has no name for Kubernetes, which is what its own detection comes to last.
        arguments = {"cluster_detection_method": None if method == "k8s" else method}
    elif processes == 1 and process_id in (None, 0):
        return "one process"
    else:
        check_flags(coordinator, processes, process_id)
        _check_address(coordinator, process_id, timeout)
        method = "flags"
        arguments = {"coordinator_address": coordinator, "num_processes": processes, "process_id": process_id,
                     "cluster_detection_method": "deactivate"}
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    try:
        jax.distributed.initialize(**arguments, initialization_timeout=timeout, heartbeat_timeout_seconds=heartbeat,
                                   shutdown_timeout_seconds=_SHUTDOWN)
        count = jax.process_count()
    except (RuntimeError, ValueError, OSError, KeyError) as error:
        reason = " ".join(str(error).split())[:500]
        raise UserError(f"the processes could not be joined (by {method}): {reason}; permitted: the same command in "
                        f"every process within {timeout} s, with {_FLAGS} where the launcher is not recognised, or "
                        "--processes 1 for a process on its own") from error
    return f"{count} processes (by {method}), {jax.device_count()} devices"


def detect_cluster(environment: Mapping[str, str], tpu_vm: bool) -> str | None:
    """JAX's name of the cluster that this process belongs to, judged without contacting anybody; None: no cluster.

    Args:
      environment: of the process.
      tpu_vm: whether the machine has TPU chips.

    Raises:
      UserError: there are other processes, but the launcher does not say where.
    """
    if _number(environment, "OMPI_COMM_WORLD_SIZE") > 1:
        if "OMPI_MCA_orte_hnp_uri" in environment:
            return "ompi"
        if importlib.util.find_spec("mpi4py"):
            return "mpi4py"
        raise UserError("mpirun has started several processes, and Open MPI 5 does not say where process 0 is; "
                        "permitted: pip install mpi4py, or --coordinator HOST:PORT --processes $OMPI_COMM_WORLD_SIZE "
                        "--process-id $OMPI_COMM_WORLD_RANK, or --processes 1")
    if all(name in environment for name in _SLURM) and _number(environment, "SLURM_NTASKS") > 1:
        return "slurm"
    if tpu_vm and environment.get("JAX_PLATFORMS", "") in ("", "tpu", "tpu,cpu"):
        hosts = environment.get("TPU_PROCESS_ADDRESSES") or environment.get("TPU_WORKER_HOSTNAMES")
        if hosts is not None:  # Kubernetes says so, and also for a slice of one host
            return "gketpu" if "," in hosts or _number(environment, "MEGASCALE_NUM_SLICES") > 1 else None
        if "TPU_SKIP_MDS_QUERY" not in environment:
            return "gcetpu"  # only the virtual machine's own metadata knows of other hosts
    if "KUBERNETES_SERVICE_HOST" in environment and "JOB_COMPLETION_INDEX" in environment:
        if not importlib.util.find_spec("kubernetes"):  # with which JAX asks the cluster
            raise UserError("this is a pod of an indexed Kubernetes job, and the package to ask for the others is not "
                            f"there; permitted: pip install kubernetes, or {_FLAGS}, or --processes 1")
        return "k8s"
    return None


def on_tpu_vm() -> bool:
    """Whether this machine has TPU chips and the library for them, which JAX finds out when it is imported."""
    from jax._src import cloud_tpu_init  # the public interface asks the network for more

    return cloud_tpu_init.running_in_cloud_tpu_vm


def check_flags(coordinator: str | None, processes: int | None, process_id: int | None) -> None:
    """Raises UserError unless the three describe one process of several."""
    given = {"--coordinator": coordinator, "--processes": processes, "--process-id": process_id}
    if missing := [name for name, value in given.items() if value is None]:
        raise UserError(f"{missing[0]} is missing; permitted: {_FLAGS} together, or none of them")
    host, _, port = coordinator.rpartition(":")
    if not host or not port.isdigit() or not 0 < int(port) < 65536:
        raise UserError(f"--coordinator={coordinator!r} is not valid; permitted: HOST:PORT of process 0")
    check_value(processes, Count, "--processes")
    check_value(process_id, Annotated[int, Range(least=0, most=processes - 1)], "--process-id")


def first(action: Callable[[], T]) -> T | None:
    """Run `action` in process 0 while the others wait; they get None. A UserError is raised in every process."""
    return together(lambda: action() if jax.process_index() == 0 else None)


def first_says(question: Callable[[], bool]) -> bool:
    """The answer of process 0, in all of them; the others do not look."""
    if jax.process_count() == 1:
        return question()
    from jax.experimental import multihost_utils

    return bool(multihost_utils.broadcast_one_to_all(np.int32(first(question) or 0)))


def together(action: Callable[[], T]) -> T:
    """Run `action` in every process, wait for all, and return its result.

    Raises:
      UserError: in every process, when it was raised in at least one.
    """
    if jax.process_count() == 1:
        return action()
    result, message = None, ""
    try:
        result = action()
    except UserError as error:
        message = str(error)
    messages = _exchange(message)
    failed = [index for index, text in enumerate(messages) if text]
    if not failed:
        return result
    text = messages[failed[0]]
    if failed == [0] or len(set(messages)) == 1:
        raise UserError(text)
    raise UserError(f"process {failed[0]}: {text}")


def _exchange(message: str) -> list[str]:
    """The messages of all processes, by their number."""
    from jax.experimental import multihost_utils

    data = message.encode()[:_MESSAGE_BYTES]
    padded = np.zeros(_MESSAGE_BYTES, np.uint8)
    padded[:len(data)] = np.frombuffer(data, np.uint8)
    gathered = np.asarray(multihost_utils.process_allgather(padded))
    return [row.tobytes().rstrip(b"\0").decode(errors="ignore") for row in gathered]


def _check_address(coordinator: str, process_id: int, timeout: int) -> None:
    """Raises UserError if process 0 cannot listen, or another one does not reach it: JAX would abort instead."""
    host, _, port = coordinator.rpartition(":")
    host = host.strip("[]")
    if process_id == 0:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("", int(port)))
            except OSError as error:
                raise UserError(f"--coordinator={coordinator}: port {port} cannot be used here ({error.strerror}); "
                                "permitted: a free port of process 0") from error
        return
    deadline = time.monotonic() + timeout
    while True:
        try:
            socket.create_connection((host, int(port)), timeout=min(5, timeout)).close()
            return
        except OSError as error:
            if time.monotonic() > deadline:
                raise UserError(f"--coordinator={coordinator} does not answer ({error}); permitted: the address of "
                                f"process 0, which must have started within {timeout} s") from error
            time.sleep(min(0.5, timeout / 10))


def _number(environment: Mapping[str, str], name: str) -> int:
    text = environment.get(name, "")
    return int(text) if text.isdigit() else 0
