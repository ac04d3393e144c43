"""Counts of a server, as Prometheus reads them (text format 0.0.4)."""

import threading
from collections import Counter
from collections.abc import Mapping

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

_COUNTERS = {
    "streams_opened": "Streams that got a row of the engine.",
    "streams_ended": "Streams that had a row and have ended, by reason.",
    "refused": "Clients that were refused or gave up before they had a row, by reason.",
    "pictures": "Pictures that have been received.",
    "picture_bytes": "Bytes of these.",
    "frames_seen": "Frames that words could see.",
    "frames_behind": "Frames that came too fast, by what became of them.",
    "words": "Answer tokens that have been spoken.",
}


class Counts:
    """Counters that any thread may raise."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._values: Counter[tuple[str, str]] = Counter({(name, ""): 0 for name in _COUNTERS})

    def add(self, name: str, amount: int = 1, *, by: str = "") -> None:
        """Raise a counter, with a label if it has one.

        Args:
            name: of the counter, without `swjax_` and `_total`.
            amount: by how much.
            by: the label, which is rendered as its `reason`; "" for none.
        """
        assert name in _COUNTERS
        with self._lock:
            self._values[name, by] += amount

    def get(self, name: str, *, by: str = "") -> int:
        """A counter's value."""
        with self._lock:
            return self._values[name, by]

    def render(self, gauges: Mapping[str, tuple[int, str]]) -> str:
        """All counters, and what is measured now: for each name its value and what it is."""
        with self._lock:
            values = dict(self._values)
        lines = []
        for name, text in _COUNTERS.items():
            lines += [f"# HELP swjax_{name}_total {text}", f"# TYPE swjax_{name}_total counter"]
            labelled = any(by for one, by in values if one == name)
            for (one, by), value in sorted(values.items()):
                if one == name and (by or not labelled):
                    label = f'{{reason="{by}"}}' if by else ""
                    lines.append(f"swjax_{name}_total{label} {value}")
        for name, (measured, text) in gauges.items():
            lines += [f"# HELP swjax_{name} {text}", f"# TYPE swjax_{name} gauge", f"swjax_{name} {measured}"]
        return "\n".join(lines) + "\n"
