"""Makes films of Moving Shapes Live on disk, with the questions that are asked about each and what is to be said when.

    ROOT/recipe.json                     what it was made with
    ROOT/{train,validation,test}/
        videos/train-00000.mp4 ...       H.264, 8 fps
        manifest.jsonl                   a line a film, with its `questions`; written last

A film depends on the seed, the split and its number alone. One that is there and whole is not made again.
"""

from __future__ import annotations

import itertools
import json

from rich.console import Console

from swjax.data.moving_shapes.asking import FRAMES_BETWEEN, WAIT, draw_film, draw_questions
from swjax.data.moving_shapes.film import play
from swjax.data.moving_shapes.prepare import (
    PrepareError,
    check_arguments,
    claim,
    mapper,
    num_cores,
    show_progress,
    split_seed,
    write_lines,
)
from swjax.data.moving_shapes.render import FPS, SIZE, is_whole, write_video
from swjax.storage import AnyPath, as_path, make_folder

RECIPE_VERSION = 1  # to be raised whenever the same seed makes something else


def prepare_films(
    root: str | AnyPath,
    *,
    train: int = 400,
    validation: int = 20,
    test: int = 20,
    seconds: int = 60,
    seed: int = 0,
    workers: int | None = None,
    size: int = SIZE,
    console: Console | None = None,
) -> dict[str, AnyPath]:
    """Make the films under `root`, or what is missing of them.

    Args:
      root: the folder, on disk or in a bucket; made if it is not there.
      train, validation, test: how many films each split has. Splits with none are left out.
      seconds: length of each.
      seed: other seeds give other films.
      workers: processes that render; None for one a core that this process may use. The result is the same.
      size: height and width of the films in pixels, even.
      console: where the progress bar goes; None for a new one on the standard output.

    Returns:
      The manifest of each split.

    Raises:
      PrepareError: for a number that cannot be, or if the folder holds a data set that was made otherwise.
    """
    counts = {"train": train, "validation": validation, "test": test}
    check_arguments(counts, seed, workers, size)
    if seconds < (least := FRAMES_BETWEEN[1] + 2):
        raise PrepareError(f"a film of {seconds} s may have no time for a question; give at least {least}")
    root = as_path(root)
    recipe = {"data_set": "moving_shapes_live", "version": RECIPE_VERSION, "seed": seed, "size": size, "fps": FPS}
    claim(root, {**recipe, "seconds": seconds})
    manifests = {}
    with mapper(workers or num_cores(), sum(counts.values())) as run, show_progress(console) as progress:
        for name, count in counts.items():
            if not count:
                continue
            bar = progress.add_task(name, total=count)
            make_folder(root / name / "videos")
            jobs = [(str(root / name), name, split_seed(seed, name, index), seconds, size) for index in range(count)]
            lines = []
            for line in run(_work, jobs):
                lines.append(line)
                progress.advance(bar)
            manifests[name] = root / name / "manifest.jsonl"
            write_lines(manifests[name], lines)
    return manifests


def _work(job: tuple[str, str, tuple[int, int, int], int, int]) -> str:
    """Render a film, unless it is there and whole; its line of the manifest. Runs in a worker."""
    folder, split, seed, seconds, size = job
    film, key = draw_film(seed), f"{split}-{seed[-1]:05d}"
    path = as_path(folder) / "videos" / f"{key}.mp4"
    if not is_whole(path, seconds * FPS):
        pictures = itertools.islice(play(film, size=size, fps=FPS), seconds * FPS)
        write_video((picture for _, picture in pictures), path)
    record = {
        "video_id": key,
        "video_path": f"videos/{path.name}",
        "video_duration_in_s": float(seconds),
        "question": WAIT,
        "questions": [asked.to_record() for asked in draw_questions(film, seconds)],
    }
    return json.dumps(record)
