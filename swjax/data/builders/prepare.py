"""Makes records of a release: runs its builder here or over Beam, and reports what came of it."""

import contextlib
import json
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType

import tensorflow_datasets as tfds

from swjax.data.builders.builder import (
    REJECTED,
    REPORT,
    RecipeConfig,
    ReleaseBuilder,
    SourceError,
    gather_outcomes,
)
from swjax.data.builders.funqa import Funqa
from swjax.data.builders.manifests import Manifest, MovingShapes
from swjax.data.builders.pe_video import PeVideo
from swjax.data.builders.recipe import Recipe
from swjax.data.formats import AUTO
from swjax.plain import JsonView
from swjax.storage import AnyPath, copy_file, is_remote, list_files, upload

BUILDERS: Mapping[str, type[ReleaseBuilder]] = MappingProxyType(
    {"pe_video": PeVideo, "funqa": Funqa, "moving_shapes": MovingShapes, "manifest": Manifest}
)

PAPER_LIMITS: Mapping[str, float] = MappingProxyType(
    {"min_seconds": 5.0, "max_seconds": 30.0, "min_rate": 3.0, "max_rate": 6.0}
)
"""Which examples the paper takes: 5 to 30 s long, with 3 to 6 answer tokens a second."""


_NAME = re.compile("[a-z][a-z0-9_]*")

DATASET_INFO = "dataset_info.json"


@dataclass(frozen=True)
class Prepared:
    """A data set of records.

    Attributes:
        folder: what `open_records` takes.
        rejected: the file that lists the bad examples.
        report: split -> how many records, rejected examples, and how many were left out by which limit.
    """

    folder: AnyPath
    rejected: AnyPath
    report: JsonView


def download_release(name: str, source: Path) -> None:
    """Fetch a release from the Hugging Face Hub into a folder; what is there already is not fetched again.

    Raises:
        SourceError: if it has no home there, or cannot be reached.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    builder = BUILDERS[name]
    if not builder.HUB_ID:
        raise SourceError(f"{name} is not on the Hub; give its folder with --source")
    try:
        snapshot_download(
            builder.HUB_ID, repo_type="dataset", local_dir=source, allow_patterns=list(builder.HUB_PATTERNS)
        )
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise SourceError(f"{builder.HUB_ID} cannot be fetched: {error}") from error


def prepare_records(
    name: str,
    source: AnyPath,
    output: AnyPath,
    recipe: Recipe,
    *,
    workers: int = 0,
    data_set: str = "",
    format: str = AUTO,
    overwrite: bool = False,
    max_rejected: float = 0.05,
    beam_runner: str | None = None,
    beam_options: Sequence[str] = (),
) -> Prepared:
    """Make the records of a release, unless they are there already, of the same source by the same recipe.

    Args:
        name: one of `BUILDERS`.
        source: folder or manifest of the release.
        output: folder of data sets; this one goes to output/NAME/RATE_PIXELS/VERSION. What goes to a bucket is made on
            disk, in the folder for temporary files, and then uploaded.
        recipe: how records are made.
        data_set: what to call the data set; "" for the name of the builder.
        format: of the source, one of `swjax.data.formats`; `auto` looks.
        overwrite: make it anew, in the place of one of that name.
        workers: processes that make them; 0 makes them in this one.
        max_rejected: share of bad examples of a split beyond which nothing is made.
        beam_runner: a runner of Apache Beam to make them with, such as DirectRunner or DataflowRunner; not to a
            bucket, as the workers share the folder.
        beam_options: options of the pipeline, as Beam's command line takes them.

    Raises:
        SourceError: if the release cannot be read, too much of it is bad, nothing is left, the folder holds a data
            set of another source or recipe, or a data set cannot be called so.
    """
    if data_set and not _NAME.fullmatch(data_set):
        raise SourceError(
            f"a data set cannot be called {data_set!r}; use small letters, digits and _, such as my_videos"
        )
    if not source.exists():
        raise SourceError(f"there is no {source}; give the release's folder with --source")
    config = RecipeConfig(
        name=f"{recipe.fps:g}fps_{recipe.max_pixels}px",
        recipe=recipe,
        source=source,
        data_set=data_set,
        digest=BUILDERS[name].digest(source, format),
        workers=workers,
        max_rejected=max_rejected,
        beam=beam_runner is not None,
        format=format,
    )
    if not is_remote(output):
        return _prepare(BUILDERS[name], Path(output), config, overwrite, beam_runner, beam_options)
    if beam_runner is not None:
        raise SourceError(f"the workers of --beam-runner share a folder, and {output} is in a bucket; mount it")
    with _in_bucket(output, data_set or name) as staged:
        made = _prepare(BUILDERS[name], staged, config, overwrite)
    folder, rejected = (output / str(Path(path).relative_to(staged)) for path in (made.folder, made.rejected))
    return replace(made, folder=folder, rejected=rejected)


def _prepare(
    make: type[ReleaseBuilder],
    output: Path,
    config: RecipeConfig,
    overwrite: bool,
    beam_runner: str | None = None,
    beam_options: Sequence[str] = (),
) -> Prepared:
    builder = make(data_dir=str(output), config=config, file_format="array_record")
    folder = Path(builder.data_dir)
    if (folder / DATASET_INFO).exists() and overwrite:
        shutil.rmtree(folder)
        builder = make(data_dir=str(output), config=config, file_format="array_record")
    if (folder / DATASET_INFO).exists():
        _check_same(folder, builder)
        return _prepared(builder)
    for file in (REPORT, REJECTED):  # of records that are no longer there
        (builder.report_folder / file).unlink(missing_ok=True)
    if beam_runner is None:
        builder.download_and_prepare()
    else:
        _prepare_over_beam(builder, beam_runner, beam_options)
    return _prepared(builder)


@contextlib.contextmanager
def _in_bucket(output: AnyPath, name: str) -> Iterator[Path]:
    """A folder on disk for a data set that goes to a bucket: with what describes the one there, uploaded at the end.

    dataset_info.json, by which a data set is one, is taken away before the first shard of another, and written last.
    """
    there = list_files(output / name)
    with tempfile.TemporaryDirectory(prefix="swjax-") as folder:
        staged = Path(folder) / name
        for file in (one for one in there if one.endswith((".json", ".jsonl"))):
            (staged / file).parent.mkdir(parents=True, exist_ok=True)
            copy_file(output / name / file, staged / file)
        before = {file: (staged / file).read_bytes() for file in list_files(staged)}
        try:
            yield Path(folder)
        except SourceError as error:  # names the folder that is about to go
            raise SourceError(str(error).replace(folder, str(output))) from error
        finally:
            found = [file for file in list_files(staged) if "incomplete" not in file]
            made = {file.rpartition("/")[0] for file in found if ".array_record" in file}
            old = [file for file in there if file.rpartition("/")[0] in made]
            for file in sorted(old, key=lambda one: not one.endswith(DATASET_INFO)):
                (output / name / file).unlink(missing_ok=True)
            for file in sorted(found, key=lambda one: one.endswith(DATASET_INFO)):
                if file.rpartition("/")[0] in made or before.get(file) != (staged / file).read_bytes():
                    upload(staged / file, output / name / file)


def _prepared(builder: ReleaseBuilder) -> Prepared:
    report = json.loads((builder.report_folder / REPORT).read_text(encoding="utf-8"))
    return Prepared(Path(builder.data_dir), builder.report_folder / REJECTED, report)


def _prepare_over_beam(builder: ReleaseBuilder, runner: str, options: Sequence[str]) -> None:
    try:
        from apache_beam.options.pipeline_options import PipelineOptions
    except ImportError as error:
        raise SourceError("--beam-runner needs the extra `beam`: pip install 'swjax[beam]'") from error
    gather_outcomes(builder)  # what an interrupted run has left
    builder.download_and_prepare(
        download_config=tfds.download.DownloadConfig(beam_runner=runner, beam_options=PipelineOptions(list(options)))
    )
    gathered = gather_outcomes(builder)
    for split, outcomes in gathered.items():
        outcomes.write(builder.report_folder, split)
    try:
        for split, outcomes in gathered.items():
            outcomes.check(split, builder.builder_config.max_rejected, builder.report_folder / REJECTED)
    except SourceError:
        shutil.rmtree(builder.data_dir)  # only now is it known that it was not to be made
        raise


def _check_same(folder: Path, builder: ReleaseBuilder) -> None:
    found = dict(builder.info.metadata or {})
    differing = [
        f"{key} was {found.get(key)!r}, is {value!r}"
        for key, value in builder.builder_config.describe().items()
        if found.get(key) != value
    ]
    if differing:
        raise SourceError(
            f"{folder} holds a data set of another source or recipe ({'; '.join(differing)}); give this one another "
            "--name or --output, or put it in the place of that one with --overwrite"
        )
