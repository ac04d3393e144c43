"""Where the time on the device goes: the kernels of a trace, by the time that they take."""

import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax


def kernels_of(run: Callable[[], Any], *, most: int = 25) -> dict[str, Any]:
    """Traces one run.

    Args:
        run: returns when its work is done.
        most: kernels to list.

    Returns:
        `busy_ms`, the time that kernels take together; `span_ms`, from the beginning of the first to the end of the
        last; and `kernels`, the most expensive: [name, ms, runs].
    """
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            run()
        (file,) = Path(folder).rglob("*.xplane.pb")
        trace = jax.profiler.ProfileData.from_file(str(file))
        taken: Counter[str] = Counter()
        runs: Counter[str] = Counter()
        begins, ends = [], []
        for plane in trace.planes:
            if not plane.name.startswith("/device:"):
                continue
            for line in plane.lines:
                if not line.name.startswith("Stream"):
                    continue
                for event in line.events:
                    taken[event.name] += event.duration_ns
                    runs[event.name] += 1
                    begins.append(event.start_ns)
                    ends.append(event.start_ns + event.duration_ns)
    return {
        "busy_ms": sum(taken.values()) / 1e6,
        "span_ms": (max(ends) - min(begins)) / 1e6 if ends else 0.0,
        "launches": sum(runs.values()),
        "kernels": [[name[:100], nanoseconds / 1e6, runs[name]] for name, nanoseconds in taken.most_common(most)],
    }
