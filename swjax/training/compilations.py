"""Counts how often functions are compiled: a run should compile each of its steps once for every shape of its rows."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

import jax

_COMPILED = "/jax/core/compile/backend_compile_duration"


@dataclass
class Compilations:
    """Compilations of one function so far, loading from the persistent cache included.

    Attributes:
        count: how many.
        seconds: how long they took, all together.
    """

    count: int = 0
    seconds: float = 0.0


@contextlib.contextmanager
def count_compilations(function: str) -> Iterator[Compilations]:
    """Counts the compilations of a jitted function in this process, by its name, for as long as the context is open."""
    found = Compilations()

    def listen(event: str, duration_secs: float, **about: str | int) -> None:
        if event == _COMPILED and about.get("fun_name") in (function, f"jit({function})", f"jit_{function}"):
            found.count += 1
            found.seconds += duration_secs

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        yield found
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
