"""Records: prepared examples in ArrayRecord files, as `swjax prepare` writes them with tensorflow_datasets.

A record holds the clip at the training frame rate and resolution, so that training never opens an hour-long file to
read five seconds, and its questions and answers. Any record can be read alone, which is what shuffling needs.
"""

import contextlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, overload

import numpy as np
import tensorflow_datasets as tfds

from swjax.data.example import EncodedClip, ExampleError, Picture, Question, Sentence, VideoExample
from swjax.data.shards import BucketRecords
from swjax.plain import Json
from swjax.storage import AnyPath, StorageError, as_path, is_remote, list_files, local_folder

_TEXTS = tfds.features.Sequence(tfds.features.Text())

FEATURES = tfds.features.FeaturesDict(
    {
        "key": tfds.features.Text(),
        "source": tfds.features.Text(),
        "frames": _TEXTS,
        "height": np.int32,
        "width": np.int32,
        "fps": np.float64,
        "questions": _TEXTS,
        "answers": _TEXTS,
        "sentences": _TEXTS,
        "sentence_times": tfds.features.Sequence(np.float64),
        "asked": _TEXTS,
        "later_questions": _TEXTS,
        "later_answers": _TEXTS,
        "system": tfds.features.Text(),
        "media": tfds.features.Sequence(np.int32),
        "media_heights": tfds.features.Sequence(np.int32),
        "media_widths": tfds.features.Sequence(np.int32),
    }
)
"""What a record holds: its key and where it came from; frames as JPEG files, the size that they had in the video,
and how many there are a second; questions (empty for a generic one) and answers about the video, of which training
draws one each epoch; the parts of the first answer and when each may be said, if known; the questions in mid-video,
each as JSON; the turns that follow; the system prompt, if it has its own. A mixed chat has the height 0: `frames`
are those of all its images and videos, `media` says how many each has, 0 for an image, and `media_heights` and
`media_widths` what size they had."""

_ADDED = frozenset({"asked", "system", "media", "media_heights", "media_widths"})
"""Fields that data sets of older versions lack."""


class RecordsError(ValueError):
    """A data set of records cannot be opened."""


@dataclass(frozen=True)
class Records(Sequence[VideoExample]):
    """The examples of a split, read when they are asked for. Can be sent to worker processes.

    Attributes:
        folder: of the data set, with dataset_info.json.
        split: its name.
        source: tensorflow_datasets' reader, or that of records in a bucket.
    """

    folder: AnyPath
    split: str
    source: Any

    def __len__(self) -> int:
        return len(self.source)

    @overload
    def __getitem__(self, number: int) -> VideoExample: ...
    @overload
    def __getitem__(self, number: slice) -> "Sequence[VideoExample]": ...

    def __getitem__(self, number: Any) -> Any:
        """An example.

        Raises:
            ExampleError: if the record is damaged.
        """
        if isinstance(number, slice):
            return [self[i] for i in range(*number.indices(len(self)))]
        if not -len(self) <= number < len(self):
            raise IndexError(f"{self.folder}:{self.split} has {len(self)} records, not one of number {number}")
        try:
            record = self.source[number % len(self)]
            return _example(record)
        except StorageError:
            raise
        except Exception as error:  # array_record and protobuf raise many kinds, none of their own
            raise ExampleError(
                f"record {number} of {self.folder}:{self.split} is damaged ({error}); prepare the data set again"
            ) from error


def open_records(folder: str | AnyPath, split: str) -> Records:
    """Open a split of a prepared data set.

    Args:
        folder: the data set's folder, or one that holds a single data set somewhere below it.
        split: train, validation or test.

    Raises:
        RecordsError: if there is no data set or several, the split is missing, or a file of it is missing or cut short.
    """
    folder = _find(as_path(folder))
    try:
        builder = tfds.builder_from_directory(str(local_folder(folder, ("*.json",))))
    except Exception as error:  # of many kinds
        raise RecordsError(f"{folder} does not hold a data set that can be read: {error}") from error
    if split not in builder.info.splits:
        raise RecordsError(f"{folder} has no split {split!r}; it has {', '.join(builder.info.splits)}")
    info = builder.info.splits[split]
    if not set(FEATURES) - _ADDED <= set(builder.info.features or ()) <= set(FEATURES):
        raise RecordsError(f"{folder} holds other fields than swjax's records; make it with `swjax prepare`")
    if is_remote(folder):
        there = list_files(folder)
        for name in info.filenames:
            if name not in there:
                raise RecordsError(f"{folder / name} is missing; prepare the data set again, or upload the file")
        files = [folder / name for name in sorted(info.filenames)]
        return Records(folder, split, BucketRecords(files, info.shard_lengths, builder.info.features))
    for path, length in zip(info.filepaths, info.shard_lengths, strict=True):
        _check_file(Path(path), length)
    return Records(folder, split, builder.as_data_source(split))


def _find(folder: AnyPath) -> AnyPath:
    descriptions = [name for name in list_files(folder) if name.rpartition("/")[2] == "dataset_info.json"]
    found = sorted((folder / name).parent for name in descriptions if "incomplete" not in name)
    if len(found) == 1:
        return found[0]
    if not found:
        raise RecordsError(f"there is no data set in {folder}; make one with `swjax prepare`")
    listed = "\n  ".join(map(str, found))
    raise RecordsError(f"{folder} holds several data sets; name one of them:\n  {listed}")


def _check_file(path: Path, length: int) -> None:
    from array_record.python.array_record_module import ArrayRecordReader

    if not path.is_file():
        raise RecordsError(f"{path} is missing; prepare the data set again, or fetch the file")
    with _damage(path), contextlib.closing(ArrayRecordReader(str(path))) as reader:
        found = reader.num_records()
    if found != length:
        raise RecordsError(f"{path} holds {found} of its {length} records; prepare the data set again, or fetch it")


@contextlib.contextmanager
def _damage(path: Path) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # array_record raises ValueError, RuntimeError and others
        raise RecordsError(
            f"{path} is damaged or cut short; prepare the data set again, or fetch it: {error}"
        ) from error


def _example(record: Json) -> VideoExample:
    questions, answers = ([_text(text) for text in record[name]] for name in ("questions", "answers"))
    (question, caption), *others = zip(questions, answers, strict=True)
    key, frames = _text(record["key"]), tuple(bytes(frame) for frame in record["frames"])
    fps, name = float(record["fps"]), f"{key} ({_text(record['source'])})"
    media = tuple(_media(record, frames, fps, name))
    is_mixed = not int(record["height"])
    return VideoExample(
        key=key,
        video=None if is_mixed else EncodedClip(name, frames, fps, (int(record["height"]), int(record["width"]))),
        duration_s=None if is_mixed else len(frames) / fps,
        caption=caption,
        question=question or None,
        sentences=tuple(
            Sentence(_text(text), float(time))
            for text, time in zip(record["sentences"], record["sentence_times"], strict=True)
        ),
        questions=tuple(_question(json.loads(_text(asked))) for asked in record.get("asked", ())),
        later=tuple(
            (_text(asked), _text(answered))
            for asked, answered in zip(record["later_questions"], record["later_answers"], strict=True)
        ),
        others=tuple(others),
        media=media,
        system=_text(record.get("system", b"")) or None,
    )


def _media(record: Json, frames: tuple[bytes, ...], fps: float, name: str) -> Iterator[Picture | EncodedClip]:
    """The images and videos of a mixed chat."""
    sizes = zip(*(map(int, record.get(field, ())) for field in ("media_heights", "media_widths")), strict=True)
    first = 0
    for count, size in zip(map(int, record.get("media", ())), sizes, strict=True):
        clip = EncodedClip(name, frames[first : first + (count or 1)], fps, size)
        first += count or 1
        yield clip if count else Picture(clip)


def _question(values: Json) -> Question:
    return Question(**values | {"sentences": tuple(Sentence(**sentence) for sentence in values["sentences"])})


def _text(value: bytes) -> str:
    return bytes(value).decode("utf-8")
