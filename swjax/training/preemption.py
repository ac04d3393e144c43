"""Being asked to stop: a machine that is taken away says so with SIGTERM, and the run leaves a checkpoint behind.

Launchers start a run again that ends with `EXIT_PREEMPTED`. The checkpoint must be written in the time between SIGTERM
and SIGKILL: give it some minutes (Kubernetes: terminationGracePeriodSeconds, Slurm: --signal=TERM@300).
"""

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator

import jax
from jax.experimental import multihost_utils

EXIT_PREEMPTED = os.EX_TEMPFAIL
"""Exit status 75 of a run that was asked to stop, has saved its state, and resumes when it is started again."""


class PreemptedError(RuntimeError):
    """The run was asked to stop, and its checkpoint is written to its end."""


@contextlib.contextmanager
def watch_preemption() -> Iterator[Callable[[int], bool]]:
    """Takes SIGTERM for a request to stop after the current step.

    Of several processes, one that is asked tells the others, and all stop after the same step; JAX does that itself
    from `jax.distributed.initialize` on. Only a program's main thread can take signals: in another one, SIGTERM ends
    the program as ever.

    Yields:
        Step number -> whether to stop after this step. Ask it once a step, in every process.
    """
    if jax.distributed.is_initialized():
        yield multihost_utils.reached_preemption_sync_point
        return
    asked = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield lambda _: False
        return
    before = signal.signal(signal.SIGTERM, lambda *_: asked.set())
    try:
        yield lambda _: asked.is_set()
    finally:
        signal.signal(signal.SIGTERM, before)
