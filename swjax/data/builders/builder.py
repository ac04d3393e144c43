"""What all builders have in common: a tensorflow_datasets builder that works in several processes or over Beam.

A release is divided into parts (a shard, a list of questions); reading a part gives examples with their videos
located, and `make_record` does the work. What cannot be used goes into rejected.jsonl, what the recipe does not want
is counted, by limit, in report.json; both lie beside the version folder of the data set.
"""

import collections
import dataclasses
import hashlib
import json
import multiprocessing
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from pathlib import Path
from typing import Any, ClassVar

import tensorflow_datasets as tfds

from swjax.atomic import write_text
from swjax.data.builders.recipe import LeftOut, Recipe, Record, make_record
from swjax.data.example import Rejected, VideoExample
from swjax.data.formats import AUTO
from swjax.data.json_lines import readable_lines
from swjax.data.records import FEATURES
from swjax.plain import Json
from swjax.storage import AnyPath, as_path, file_size

REJECTED = "rejected.jsonl"
REPORT = "report.json"

_PIECES = "outcomes"  # of a Beam run, before they are put together


class SourceError(ValueError):
    """A release cannot be read, or no data set can be made of it."""


@dataclasses.dataclass
class RecipeConfig(tfds.core.BuilderConfig):
    """A recipe as tensorflow_datasets wants it; its name is a folder's.

    Attributes:
        recipe: how records are made.
        source: folder or manifest of the release.
        data_set: name of the data set, and of its folder; "" for the builder's own.
        digest: what tells the source apart from another (`ReleaseBuilder.digest`).
        workers: processes that make records; 0 makes them in this one. Not used with Beam.
        max_rejected: share of bad examples beyond which nothing is made.
        beam: make records in a Beam pipeline.
        format: of the source, where it may be of several.
    """

    recipe: Recipe = dataclasses.field(default_factory=Recipe)
    source: AnyPath = Path()
    data_set: str = ""
    digest: str = ""
    workers: int = 0
    max_rejected: float = 0.05
    beam: bool = False
    format: str = AUTO

    def describe(self) -> Json:
        """All that the records depend on; kept beside them."""
        format = {} if self.format == AUTO else {"format": self.format}
        return self.recipe.to_json() | {"digest of the source": self.digest} | format


class ReleaseBuilder(tfds.core.GeneratorBasedBuilder, skip_registration=True):  # type: ignore[call-arg]
    """A builder over a local copy of a release."""

    VERSION = tfds.core.Version("1.2.0")
    RELEASE_NOTES: ClassVar[dict[str, str]] = {
        "1.0.0": "Frames as JPEG, several questions to a record.",
        "1.1.0": "The size of the video's own frames.",
        "1.2.0": "Images, several videos and text alone, and system prompts.",
    }
    HUB_ID = ""
    HUB_PATTERNS: tuple[str, ...] = ()

    builder_config: RecipeConfig

    def __init__(self, *, config: RecipeConfig, **options: Any) -> None:
        if config.data_set:
            self.name = config.data_set
        super().__init__(config=config, **options)

    @classmethod
    def digest(cls, source: AnyPath, format: str = AUTO) -> str:
        """SHA-256 of what a release is made of: the content of lists, the names and sizes of videos and archives."""
        digest = hashlib.sha256()
        for split, parts in sorted(cls.find_parts(source).items()):
            for part in map(as_path, parts):
                digest.update(f"{split} {part.name} {file_size(part)}\n".encode())
                for line in cls.content(part, format):
                    digest.update(line)
        return digest.hexdigest()

    @classmethod
    def content(cls, part: AnyPath, format: str) -> Iterator[bytes]:
        """What tells a part apart from one of the same name and size, as far as that is quickly known."""
        return iter(())

    @classmethod
    @abstractmethod
    def find_parts(cls, source: AnyPath) -> dict[str, list[str]]:
        """Split -> its parts, each a path."""

    @abstractmethod
    def read_part(self, part: str) -> Iterator[VideoExample | Rejected]:
        """The examples of a part, their videos located but not read."""

    @property
    def report_folder(self) -> Path:
        """Where rejected.jsonl and report.json go."""
        return Path(self.data_dir).parent

    def _info(self) -> tfds.core.DatasetInfo:
        return self.dataset_info_from_configs(
            features=FEATURES, metadata=tfds.core.MetadataDict(self.builder_config.describe())
        )

    def _split_generators(self, dl_manager: Any) -> Json:
        splits = self.find_parts(self.builder_config.source)
        return {split: self._generate_examples(split, parts) for split, parts in splits.items()}

    def _generate_examples(self, split: str, parts: Sequence[str]) -> Any:
        return (self._over_beam if self.builder_config.beam else self._in_processes)(split, parts)

    def _in_processes(self, split: str, parts: Sequence[str]) -> Iterator[tuple[str, Record]]:
        outcomes = Outcomes()
        found = (item for part in parts for item in self.read_part(part))
        for outcome in _work(found, self.builder_config.recipe, self.builder_config.workers):
            outcomes.note(outcome)
            if isinstance(outcome, dict):
                yield outcome["key"], outcome
        outcomes.write(self.report_folder, split)
        outcomes.check(split, self.builder_config.max_rejected, self.report_folder / REJECTED)

    def _over_beam(self, split: str, parts: Sequence[str]) -> Any:
        import apache_beam as beam

        recipe, read_part = self.builder_config.recipe, self.read_part
        pieces = self.report_folder / _PIECES / split

        def find(part: str) -> Iterator[VideoExample | Rejected]:
            yield from read_part(part)

        def make(item: VideoExample | Rejected) -> Iterator[Any]:
            outcome = item if isinstance(item, Rejected) else make_record(item, recipe)
            yield beam.pvalue.TaggedOutput("lines", outcome_line(outcome))
            if isinstance(outcome, dict):
                yield outcome["key"], outcome

        def build(pipeline: Any) -> Any:
            made = (
                pipeline
                | f"parts of {split}" >> beam.Create(list(parts))
                | f"examples of {split}" >> beam.FlatMap(find)
                | f"spread {split}" >> beam.Reshuffle()
                | f"records of {split}" >> beam.FlatMap(make).with_outputs("lines", main="records")
            )
            _ = made.lines | f"outcomes of {split}" >> beam.io.WriteToText(str(pieces))
            return made.records

        return beam.ptransform_fn(build)()


class Outcomes:
    """What came of the examples of a split."""

    def __init__(self) -> None:
        self.made = 0
        self.rejected: list[Rejected] = []
        self.left_out: collections.Counter[str] = collections.Counter()

    def note(self, outcome: Record | Rejected | LeftOut) -> None:
        """Count one."""
        if isinstance(outcome, Rejected):
            self.rejected.append(outcome)
        elif isinstance(outcome, LeftOut):
            self.left_out[outcome.limit] += 1
        else:
            self.made += 1

    def write(self, folder: Path, split: str) -> None:
        """Put the split's outcomes into the two files of the data set, in the place of what stood there before."""
        folder.mkdir(parents=True, exist_ok=True)
        rejected = [line for line in readable_lines(folder / REJECTED) if line.get("split") != split]
        rejected += [{"split": split, "where": r.where, "reason": r.reason} for r in self.rejected]
        write_text(folder / REJECTED, "".join(json.dumps(line) + "\n" for line in rejected))
        report = json.loads((folder / REPORT).read_text(encoding="utf-8")) if (folder / REPORT).is_file() else {}
        report[split] = {"records": self.made, "rejected": len(self.rejected), "left_out": dict(self.left_out)}
        write_text(folder / REPORT, json.dumps(report, indent=2) + "\n")

    def check(self, split: str, max_share: float, listed: Path) -> None:
        """Refuse a split with too many bad examples, or without a good one.

        Args:
            split: its name, for the message.
            max_share: the largest share of bad examples, from 0 to 1, of all examples with those that were left out.
            listed: the file that lists the bad ones, for the message.

        Raises:
            SourceError: says how many, the first reasons, and where all are listed.
        """
        total = self.made + len(self.rejected) + self.left_out.total()
        first = "".join(f"\n  {bad.where}: {bad.reason}" for bad in self.rejected[:5])
        if len(self.rejected) > max_share * total:
            raise SourceError(
                f"{len(self.rejected)} of {total} examples of {split} cannot be used, more than the share of "
                f"{max_share:.0%} that is allowed; mend them, or allow more with --max-rejected (all are listed in "
                f"{listed}):{first}"
            )
        if not self.made:
            limits = ", ".join(f"{count} {limit}" for limit, count in self.left_out.most_common(3)) or "none was found"
            raise SourceError(f"no example of {split} is left to make records of: {limits}")


def outcome_line(outcome: Record | Rejected | LeftOut) -> str:
    """An outcome in one line of JSON, without frames."""
    if isinstance(outcome, Rejected):
        return json.dumps({"rejected": [outcome.where, outcome.reason]})
    if isinstance(outcome, LeftOut):
        return json.dumps({"left_out": [outcome.where, outcome.limit]})
    return json.dumps({"made": outcome["key"]})


def gather_outcomes(builder: ReleaseBuilder) -> Mapping[str, Outcomes]:
    """Put together what the workers of a Beam run have noted, and take away their pieces."""
    folder = builder.report_folder / _PIECES
    gathered: dict[str, Outcomes] = {}
    for path in sorted(folder.glob("*-of-*")):
        outcomes = gathered.setdefault(path.name.rsplit("-", 3)[0], Outcomes())
        for line in readable_lines(path):
            ((kind, what),) = line.items()
            outcomes.note(Rejected(*what) if kind == "rejected" else LeftOut(*what) if kind == "left_out" else {})
        path.unlink()
    if folder.is_dir():
        folder.rmdir()
    return gathered


def _work(
    found: Iterator[VideoExample | Rejected], recipe: Recipe, workers: int
) -> Iterator[Record | Rejected | LeftOut]:
    """Records in the order of their examples, made by several processes, of which none is far ahead."""
    if not workers:
        for item in found:
            yield item if isinstance(item, Rejected) else make_record(item, recipe)
        return
    # Spawned, not forked: tensorflow_datasets and JAX may have started threads, which a fork would copy in mid-air.
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        waiting: collections.deque[Rejected | Future] = collections.deque()
        for item in found:
            waiting.append(item if isinstance(item, Rejected) else pool.submit(make_record, item, recipe))
            if len(waiting) > 4 * workers:
                yield _result(waiting.popleft())
        while waiting:
            yield _result(waiting.popleft())


def _result(outcome: Rejected | Future) -> Record | Rejected | LeftOut:
    return outcome if isinstance(outcome, Rejected) else outcome.result()
