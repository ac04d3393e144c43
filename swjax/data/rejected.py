"""Bad examples met on the way: counted, listed, and too many of them stop the run."""

import json

from swjax.data.example import Rejected
from swjax.data.json_lines import JsonLineError, cut_half_line, parse_line, read_lines
from swjax.storage import AnyPath, append_line, as_path

# Before so many examples are seen, a share says little: two bad ones among the first ten may be chance.
_FEWEST_FOR_A_SHARE = 100


class TooManyRejectedError(RuntimeError):
    """More examples fail than the run allows."""


class RejectedLog:
    """Examples that were set aside, each once however many epochs meet it.

    One process writes to one log: the pipeline's workers hand their failures back with the batches.
    """

    def __init__(self, path: str | AnyPath | None = None, *, max_share: float = 0.05) -> None:
        """Open a log.

        Args:
            path: a JSON lines file, `{"where": key, "reason": text}`, that bad examples are appended to. What it
                lists already (from before a restart) is kept, without half a line, which a killed process leaves.
                None keeps the list in memory only.
            max_share: the run stops when more than this share of the examples seen since its start is bad.

        Raises:
            ValueError: if the share is not between 0 and 1, or the file is something else.
        """
        if not 0 <= max_share <= 1:
            raise ValueError(f"max_share must be between 0 and 1, got {max_share}")
        self.path = None if path is None else as_path(path)
        self.max_share = max_share
        self._listed = {entry.where: entry for entry in _read(self.path)}
        self._seen: set[str] = set()
        self._bad: set[str] = set()

    @property
    def rejected(self) -> tuple[Rejected, ...]:
        """All bad examples that the log knows, in the order in which they were met."""
        return tuple(self._listed.values())

    @property
    def num_seen(self) -> int:
        """How many different examples were seen since the log was opened, good and bad."""
        return len(self._seen)

    @property
    def num_bad(self) -> int:
        """How many different bad examples were seen since the log was opened."""
        return len(self._bad)

    def note(self, key: str, reason: str | None = None) -> None:
        """Note that an example was seen, and if a reason is given, that it is bad."""
        self._seen.add(key)
        if reason is None:
            return
        self._bad.add(key)
        if key not in self._listed:
            self._listed[key] = Rejected(key, reason)
            if self.path is not None:
                append_line(self.path, json.dumps({"where": key, "reason": reason}))


def check_rejected(log: RejectedLog, *, num_examples: int) -> tuple[Rejected, ...]:
    """Return the list of bad examples, unless there are too many.

    Args:
        log: what was met so far.
        num_examples: size of the whole data set. The share is taken of the examples seen, but of no fewer than 100
            (or all, where there are fewer).

    Raises:
        TooManyRejectedError: if the share of bad examples is above the log's `max_share`, or all examples are bad.
    """
    seen = max(log.num_seen, min(num_examples, _FEWEST_FOR_A_SHARE))
    if log.num_bad > log.max_share * seen or log.num_bad >= num_examples > 0:
        first = "\n".join(f"  {entry.where}: {entry.reason}" for entry in log.rejected[:5])
        listed = f"all are listed in {log.path}" if log.path is not None else f"the first of {len(log.rejected)}"
        raise TooManyRejectedError(
            f"{log.num_bad} of {log.num_seen} examples seen cannot be used, and the run allows a share of "
            f"{log.max_share:.0%}; mend the data, or allow more ({listed}):\n{first}"
        )
    return log.rejected


def _read(path: AnyPath | None) -> list[Rejected]:
    if path is None or not path.exists():
        return []
    cut_half_line(path)
    entries = []
    for number, line in read_lines(path):
        try:
            record = parse_line(line)
            entries.append(Rejected(record["where"], record["reason"]))
        except (JsonLineError, KeyError) as error:
            raise ValueError(f"{path}:{number} is not a line of a list of rejected examples: {error!r}") from error
    return entries
