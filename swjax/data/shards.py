"""Shards of records in a bucket: fetched to the cache of `swjax.storage` when they are first read, the next ones ahead.

Drawing examples at random reads all shards, so a data set that is larger than the cache is fetched again and again.
"""

import threading
from collections.abc import Sequence
from typing import Any

import numpy as np

from swjax.plain import Json
from swjax.storage import AnyPath, StorageError, cache_bytes, file_size, local_file


class BucketRecords(Sequence[Any]):
    """The records of a split, read and decoded when they are asked for. Can be sent to worker processes."""

    def __init__(self, files: Sequence[AnyPath], lengths: Sequence[int], features: Any) -> None:
        """Notes where the records are; nothing is fetched yet.

        Args:
            files: the shards, in order.
            lengths: records in each.
            features: tensorflow_datasets' description of a record.
        """
        self._files, self._lengths, self._features = tuple(files), tuple(lengths), features
        self._ends = np.cumsum(self._lengths)
        self._forget()

    def _forget(self) -> None:
        self._readers: dict[int, Any] = {}
        self._lock = threading.Lock()
        self._ahead: threading.Thread | None = None

    def __getstate__(self) -> Json:
        return {name: getattr(self, name) for name in ("_files", "_lengths", "_features", "_ends")}

    def __setstate__(self, state: Json) -> None:
        self.__dict__.update(state)
        self._forget()

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def __getitem__(self, number: Any) -> Any:
        """A record.

        Raises:
            StorageError: the store does not give its shard.
            ValueError: the shard is damaged or cut short.
        """
        shard = int(np.searchsorted(self._ends, number, side="right"))
        within = int(number - self._ends[shard] + self._lengths[shard])
        return self._features.deserialize_example_np(self._open(shard).read([within])[0])

    def _open(self, shard: int) -> Any:
        """The reader of a shard. What is open can be read even when the cache has given its copy up."""
        from array_record.python.array_record_module import ArrayRecordReader

        with self._lock:
            if self._ahead is None:
                self._ahead = threading.Thread(target=self._fetch_ahead, name="shards", daemon=True)
                self._ahead.start()
        reader = self._readers.get(shard)
        if reader is None:
            reader = ArrayRecordReader(str(local_file(self._files[shard])))
            if reader.num_records() != self._lengths[shard]:
                raise ValueError(
                    f"{self._files[shard]} holds {reader.num_records()} of its {self._lengths[shard]} records"
                )
            self._readers[shard] = reader
        return reader

    def _fetch_ahead(self) -> None:
        """Fetches all shards that fit into the cache; a failure is left to whoever needs the shard."""
        left = cache_bytes()
        for file in self._files:
            try:
                left -= file_size(file)
                if left < 0:
                    return
                local_file(file)
            except (OSError, StorageError):
                continue
