"""Makes the Moving Shapes data set on disk.

    ROOT/recipe.json                     what it was made with
    ROOT/{train,validation,test}/
        videos/train-00000.mp4 ...       H.264, 8 fps, 5 to 12 s
        events.jsonl                     a line a video: its events and their times, in seconds
        timed.jsonl                      the same videos, each event told when it can be seen: `speaking=decide`
        asked.jsonl                      each video once for each of `ASKED`: events of that kind alone are told
        manifest.jsonl                   a line a video, in the fields of PE-Video; written last

Scene number i of a split depends on the seed, the split and i alone, so that neither the number of workers nor that of
videos changes it. A run that was interrupted resumes where it stopped: a video has its name only once it is whole.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import multiprocessing
import os
from collections.abc import Collection, Iterable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from swjax.atomic import write_text
from swjax.data.moving_shapes.grammar import KINDS, Kind, split_tokens, write_sentence
from swjax.data.moving_shapes.narration import MAX_TOKENS_PER_SECOND, MIN_TOKENS_PER_SECOND
from swjax.data.moving_shapes.render import FPS, SIZE, is_whole, render
from swjax.data.moving_shapes.scene import Scene, draw_scene, scene_identity
from swjax.data.tokenizer import load_tokenizer
from swjax.storage import AnyPath, as_path, make_folder

SPLITS = ("train", "validation", "test")
RECIPE_VERSION = 2  # to be raised whenever the same seed makes something else
TIMED_QUESTION = "Tell each event as soon as it can be seen."
ASKED: dict[Kind, str] = {
    "turn": "Tell me when it turns.",
    "hit": "Tell me when it hits a shape.",
    "recolour": "Tell me when it becomes another colour.",
    "leave": "Tell me when it leaves.",
}
"""Kinds of events, and the question that asks for them. In a third of the episodes there is nothing to tell."""

_CHUNK = 8  # videos that a worker takes at a time


class PrepareError(ValueError):
    """The data set cannot be made as asked, or not in that folder."""


@dataclasses.dataclass(frozen=True)
class PreparedSplit:
    """A split on disk: its manifest and events, how many videos it has and how many of these were there before."""

    name: str
    manifest: AnyPath
    events: AnyPath
    num_videos: int
    num_reused: int
    duration_s: int
    num_tokens: int


@dataclasses.dataclass(frozen=True)
class PreparedDataset:
    """The data set on disk."""

    root: AnyPath
    splits: tuple[PreparedSplit, ...]


@dataclasses.dataclass(frozen=True)
class _Job:
    seed: tuple[int, int, int]
    key: str
    path: AnyPath
    size: int


@dataclasses.dataclass(frozen=True)
class _Done:
    manifest_line: str
    timed_line: str
    asked_lines: tuple[str, ...]
    events_line: str
    caption: str
    duration_s: int
    identity: str
    reused: bool


def prepare(
    root: str | AnyPath,
    *,
    train: int = 3000,
    validation: int = 100,
    test: int = 100,
    seed: int = 0,
    workers: int | None = None,
    size: int = SIZE,
    console: Console | None = None,
) -> PreparedDataset:
    """Make the data set under `root`, or what is missing of it.

    Args:
        root: the folder, on disk or in a bucket; made if it is not there.
        train, validation, test: how many videos each split has. Splits with none are left out.
        seed: other seeds give other scenes.
        workers: processes that render; None for one a core that this process may use. The result is the same.
        size: height and width of the videos in pixels, even.
        console: where the progress bar goes; None for a new one on the standard output.

    Raises:
      PrepareError: for a negative number, for nothing to make, for an odd size, or if the folder holds a data set that
        was made with another seed, size or version.
    """
    counts = {"train": train, "validation": validation, "test": test}
    check_arguments(counts, seed, workers, size)
    root = as_path(root)
    claim(root, {"data_set": "moving_shapes", "version": RECIPE_VERSION, "seed": seed, "size": size, "fps": FPS})
    jobs = {name: _jobs(root / name, name, count, seed, size) for name, count in counts.items() if count}
    done: dict[str, list[_Done]] = {}
    with mapper(workers or num_cores(), sum(counts.values())) as run, show_progress(console) as progress:
        for name, split_jobs in jobs.items():
            bar = progress.add_task(name, total=len(split_jobs))
            done[name] = []
            for result in run(_work, split_jobs):
                done[name].append(result)
                progress.advance(bar)
    _check_scenes(done)
    return PreparedDataset(root, tuple(_write_split(root / name, name, results) for name, results in done.items()))


def split_seed(seed: int, split: str, index: int) -> tuple[int, int, int]:
    """The seed of scene number `index` of a split: different for any two splits.

    Args:
        seed: of the data set.
        split: one of `SPLITS`.
        index: of the scene in its split, from 0.
    """
    return seed, SPLITS.index(split), index


def check_arguments(counts: Mapping[str, int], seed: int, workers: int | None, size: int) -> None:
    """Refuse numbers that cannot be.

    Args:
        counts: name of a split -> how many videos it has.
        seed: of the data set.
        workers: processes that render; None for one a core.
        size: height and width of the videos in pixels.

    Raises:
      PrepareError: names the number.
    """
    for name, count in counts.items():
        if count < 0:
            raise PrepareError(f"the number of {name} videos is {count}; expected 0 or more")
    if not any(counts.values()):
        raise PrepareError("no split has any video; ask for at least one")
    if seed < 0:
        raise PrepareError(f"the seed is {seed}; expected 0 or more")
    if workers is not None and workers < 1:
        raise PrepareError(f"the number of workers is {workers}; expected 1 or more")
    if size % 2 or size < 32:
        raise PrepareError(f"the size of the videos is {size} pixels; expected an even number from 32 on")


def claim(root: AnyPath, recipe: dict[str, object]) -> None:
    """Write down what the folder is made with, or see that it was made with the same.

    Raises:
      PrepareError: if it was made otherwise.
    """
    make_folder(root)
    path = root / "recipe.json"
    if path.exists():
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise PrepareError(f"{path} is not JSON ({error}); delete {root} or choose another folder") from error
        if found != recipe:
            raise PrepareError(
                f"{root} holds a data set made with {json.dumps(found)}, not with {json.dumps(recipe)}; "
                "choose another folder, or delete that one"
            )
        return
    write_lines(path, [json.dumps(recipe)])


def _jobs(folder: AnyPath, name: str, count: int, seed: int, size: int) -> list[_Job]:
    videos = folder / "videos"
    make_folder(videos)
    keys = [f"{name}-{index:05d}" for index in range(count)]
    return [_Job(split_seed(seed, name, i), key, videos / f"{key}.mp4", size) for i, key in enumerate(keys)]


def _work(job: _Job) -> _Done:
    """Draw a scene and render its video, unless that is there already and whole. Runs in a worker."""
    scene = draw_scene(job.seed)
    reused = is_whole(job.path, scene.duration_s * FPS)
    if not reused:
        render(scene, job.path, size=job.size)
    return _Done(
        json.dumps(_manifest_line(job, scene)),
        json.dumps(_timed_line(job, scene)),
        tuple(json.dumps(line) for line in _asked_lines(job, scene)),
        json.dumps(_events_line(job, scene)),
        scene.caption,
        scene.duration_s,
        scene_identity(scene),
        reused,
    )


def _manifest_line(job: _Job, scene: Scene) -> dict[str, object]:
    return {**_video(job, scene), "human_caption": scene.caption}


def _timed_line(job: _Job, scene: Scene) -> dict[str, object]:
    return {**_video(job, scene), "question": TIMED_QUESTION, "sentences": _sentences(scene, KINDS)}


def _asked_lines(job: _Job, scene: Scene) -> Iterator[dict[str, object]]:
    for kind, question in ASKED.items():
        of_kind = {**_video(job, scene), "video_id": f"{job.key}-{kind}"}
        yield {**of_kind, "question": question, "sentences": _sentences(scene, (kind,))}


def _sentences(scene: Scene, kinds: Collection[Kind]) -> list[dict[str, object]]:
    """A sentence an event of these kinds, from when the first sample shows it."""
    return [
        {"text": write_sentence(timed.event, None), "start_s": float(timed.visible_s)}
        for timed in scene.events
        if timed.event.kind in kinds
    ]


def _video(job: _Job, scene: Scene) -> dict[str, object]:
    return {
        "video_id": job.key,
        "video_path": f"videos/{job.path.name}",
        "video_duration_in_s": float(scene.duration_s),
    }


def _events_line(job: _Job, scene: Scene) -> dict[str, object]:
    """Of each event: kind, slots, when it happens, and when the first sample (at 2 fps) shows it."""
    events = [
        {
            "kind": timed.event.kind,
            **timed.event.slots(),
            "time_s": round(timed.time_s, 3),
            "visible_s": timed.visible_s,
        }
        for timed in scene.events
    ]
    return {"video_id": job.key, "events": events}


@contextmanager
def mapper(workers: int, num_jobs: int) -> Iterator:
    """A function like `map`, in this process or in several.

    Args:
        workers: processes; 1 is this one.
        num_jobs: how many there are; few are done in this process.
    """
    if workers == 1 or num_jobs <= _CHUNK:
        yield map
        return
    # spawned, not forked: the caller may have started threads (JAX does), which a fork would copy in mid-air
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        yield functools.partial(pool.map, chunksize=_CHUNK)


def num_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def show_progress(console: Console | None) -> Progress:
    """A bar a split; None for a new console on the standard output."""
    return Progress(
        TextColumn("{task.description:>10}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("videos"),
        TimeRemainingColumn(elapsed_when_finished=True),
        console=console,
    )


def _check_scenes(done: Mapping[str, Iterable[_Done]]) -> None:
    """No two videos, of one split or of two, show the same scene, and every caption passes the paper's filter."""
    tokenizer = load_tokenizer()
    seen: set[str] = set()
    for name, results in done.items():
        for result in results:
            if result.identity in seen:
                raise PrepareError(f"two videos show the same scene, one of them in {name}: {result.manifest_line}")
            seen.add(result.identity)
            tokens = len(tokenizer.encode(result.caption))
            if not MIN_TOKENS_PER_SECOND <= tokens / result.duration_s <= MAX_TOKENS_PER_SECOND:
                raise PrepareError(f"a caption of {tokens} tokens does not fit its video: {result.manifest_line}")


def _write_split(folder: AnyPath, name: str, results: list[_Done]) -> PreparedSplit:
    events, manifest = folder / "events.jsonl", folder / "manifest.jsonl"
    write_lines(events, [result.events_line for result in results])
    write_lines(folder / "timed.jsonl", [result.timed_line for result in results])
    write_lines(folder / "asked.jsonl", [line for result in results for line in result.asked_lines])
    write_lines(manifest, [result.manifest_line for result in results])
    return PreparedSplit(
        name=name,
        manifest=manifest,
        events=events,
        num_videos=len(results),
        num_reused=sum(result.reused for result in results),
        duration_s=sum(result.duration_s for result in results),
        num_tokens=sum(len(split_tokens(result.caption)) for result in results),
    )


def write_lines(path: AnyPath, lines: list[str]) -> None:
    """Write a file of lines."""
    write_text(path, "".join(line + "\n" for line in lines))
