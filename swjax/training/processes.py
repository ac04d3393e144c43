"""Several processes that train as one: how they find each other, and who of them speaks and writes.

Every process runs the same program on its own devices. On TPU pods, GKE, Slurm and Open MPI, JAX knows from the
environment how many there are; elsewhere they are told, by arguments or by these variables:

    JAX_COORDINATOR_ADDRESS   host:port of the first process
    JAX_NUM_PROCESSES         how many there are
    JAX_PROCESS_ID            which of them this is, from 0
"""

import os
from collections.abc import Mapping

import jax
from jax.experimental import multihost_utils

from swjax.training.config import ConfigError

VARIABLES = {
    "coordinator": "JAX_COORDINATOR_ADDRESS",
    "processes": "JAX_NUM_PROCESSES",
    "process": "JAX_PROCESS_ID",
}
# What Slurm, Open MPI and indexed jobs of Kubernetes say to each of their tasks.
OF_A_CLUSTER = ("SLURM_NTASKS", "OMPI_COMM_WORLD_SIZE", "JOB_COMPLETION_INDEX")


def start_processes(coordinator: str | None = None, processes: int | None = None, process: int | None = None) -> None:
    """Joins this process to the others of its run; does nothing where it is alone. Call it before any use of devices.

    Args:
        coordinator: host:port of the first process; None looks into the environment, as for the others.
        processes: how many there are.
        process: which of them this is, from 0.

    Raises:
        ConfigError: some of the three are given and some are not, or they do not fit together.
        RuntimeError: this is a task of a cluster, and devices are in use already.
    """
    given = _by_hand(coordinator, processes, process, os.environ)
    if given is not None:
        coordinator, processes, process = given
        if processes > 1:
            jax.distributed.initialize(coordinator, processes, process, cluster_detection_method="deactivate")
        return
    if os.environ.get("SLURM_NTASKS") == "1":
        return  # JAX would start a run of one process, and leave it one of the task's GPUs
    try:
        jax.distributed.initialize()
    except ValueError as error:  # JAX knows no cluster here, and so no coordinator
        if "coordinator_address should be defined" not in str(error):
            raise
    except RuntimeError as error:  # devices are in use, so that it is too late to join others, if there are any
        others = any(name in os.environ for name in OF_A_CLUSTER) or jax.default_backend() == "tpu"
        if others or "must be called before" not in str(error):
            raise


def is_first() -> bool:
    """Whether this process is the one that speaks and writes what is written once."""
    return jax.process_index() == 0


def meet(where: str) -> None:
    """Waits for all processes to come here."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(f"swjax: {where}")


def check_shared(number: int, what: str) -> None:
    """Makes sure that all processes read the same number off their disks.

    Raises:
        ConfigError: they do not.
    """
    if jax.process_count() == 1:
        return
    of_first = int(multihost_utils.broadcast_one_to_all(number))
    differ = int(multihost_utils.process_allgather(number != of_first).sum())
    if differ:
        raise ConfigError(
            f"{differ} of {jax.process_count()} processes see another {what} than the first (which sees {of_first}); "
            "config.run_dir must be a folder that all processes share"
        )


def _by_hand(
    coordinator: str | None, processes: int | None, process: int | None, environment: Mapping[str, str]
) -> tuple[str, int, int] | None:
    """What the user said, by argument or else by variable; None if nothing."""
    said: dict[str, str | int | None] = {"coordinator": coordinator, "processes": processes, "process": process}
    values = {name: environment.get(VARIABLES[name]) if value is None else value for name, value in said.items()}
    missing = [f"--{name} (or {VARIABLES[name]})" for name, value in values.items() if value is None]
    if len(missing) == len(values):
        return None
    if missing:
        raise ConfigError(f"processes started by hand need all three of {', '.join(VARIABLES)}; add {missing[0]}")
    try:
        count, index = int(str(values["processes"])), int(str(values["process"]))
    except ValueError as error:
        raise ConfigError(f"--processes and --process must be whole numbers: {error}") from None
    if not 0 <= index < count:
        raise ConfigError(f"--process is {index} of --processes {count}; it must be from 0 to {count - 1}")
    address = str(values["coordinator"])
    if ":" not in address:
        raise ConfigError(f"--coordinator is {address!r}; give host:port of the first process, such as host0:8476")
    return address, count, index
