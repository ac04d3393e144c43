"""Where the time of a run goes: the steps that count, and everything else by its cause, over all starts of the run.

    start       from the process's beginning to its first step: imports, data, the state read or made
    compile     of the training step
    input       waiting for a batch
    validation  passes over the validation examples
    checkpoint  what saving holds the steps up for
    restart     from the end of one start, as far as it is known, to the beginning of the next
    repeated    steps that a kill has undone, and that were taken again
    bad_steps   steps without effect, as their loss or gradient was not finite

metrics.jsonl says what was computed, and is the same to the last bit however often a run was killed; these are times,
and stand in goodput.jsonl, a line a checkpoint.
"""

import contextlib
import json
import time
from collections.abc import Iterator, Mapping

from swjax.data.json_lines import cut_half_line, readable_lines
from swjax.storage import AnyPath, append_line
from swjax.training.processes import is_first

GOODPUT = "goodput.jsonl"
CAUSES = ("start", "compile", "input", "validation", "checkpoint", "restart", "repeated", "bad_steps")

_IMPORTED = time.time()


class Goodput:
    """The clock of one start of a run."""

    def __init__(self, run_dir: AnyPath, *, start: int, lost_steps: int = 0, began: float = _IMPORTED) -> None:
        """Looks at what earlier starts took.

        Args:
            run_dir: the run folder.
            start: steps taken before.
            lost_steps: how many an earlier start took beyond them, that are taken again.
            began: when this process began, in seconds since the epoch.
        """
        self._file, self._start, self._began = run_dir / GOODPUT, start, began
        cut_half_line(self._file)
        last: dict[float, Mapping[str, float]] = {}
        for line in readable_lines(self._file, ["began", "ended", "steps", "productive", *CAUSES]):
            last[line["began"]] = line
        self._earlier = [line for line in last.values() if line["began"] != began]
        self._spent = dict.fromkeys(CAUSES, 0.0)
        if self._earlier:
            before = max(self._earlier, key=lambda line: line["ended"])
            self._spent["restart"] = max(0.0, began - before["ended"])
            if before["steps"]:
                self._spent["repeated"] = lost_steps * before["productive"] / before["steps"]
        self._spent["start"] = time.time() - began

    @contextlib.contextmanager
    def spending(self, cause: str) -> Iterator[None]:
        """Counts what runs within as time of a cause."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self.spend(cause, time.perf_counter() - began)

    def spend(self, cause: str, seconds: float) -> None:
        """Counts seconds as time of a cause."""
        self._spent[cause] += seconds

    def line(self, step: int, bad_steps: int = 0) -> dict[str, float]:
        """What this start took so far, in seconds by cause; `productive` is what is left of the time.

        Args:
            step: steps taken.
            bad_steps: those since the start that had no effect.
        """
        now, steps = time.time(), step - self._start
        here = {cause: seconds for cause, seconds in self._spent.items() if cause not in ("restart", "repeated")}
        stepping = max(0.0, now - self._began - sum(here.values()))
        bad = stepping * min(bad_steps, steps) / steps if steps else 0.0
        # What a kill has undone was counted as productive by the start before.
        productive = stepping - bad - self._spent["repeated"]
        return {
            "began": self._began,
            "ended": now,
            "step": step,
            "steps": steps,
            "productive": productive,
            **self._spent,
            "bad_steps": bad,
        }

    def record(self, step: int, bad_steps: int = 0) -> None:
        """Writes the line of this start; of several lines of one start, the last counts."""
        if is_first():
            append_line(self._file, json.dumps(self.line(step, bad_steps)))

    def describe(self, step: int, bad_steps: int = 0) -> str:
        """One line: the share of productive time since the first start, and the causes of the rest."""
        lines = [*self._earlier, self.line(step, bad_steps)]
        totals = {name: sum(line[name] for line in lines) for name in ("productive", *CAUSES)}
        whole = sum(totals.values()) or 1.0
        causes = [f"{cause.replace('_', ' ')} {totals[cause] / whole:.1%}" for cause in CAUSES if totals[cause] > 0]
        starts = f" over {len(lines)} starts" if len(lines) > 1 else ""
        return f"goodput {totals['productive'] / whole:.1%} of {_duration(whole)}{starts}: {', '.join(causes)}"


def last_step(metrics: AnyPath) -> int:
    """The last step that metrics.jsonl knows, before it is cut to those of a checkpoint; 0 for none."""
    return max((line["step"] for line in readable_lines(metrics, ["step"])), default=0)


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"
