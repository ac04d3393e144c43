"""Records read from a store beside records on disk, as one process reads them in a random order.

    python benchmarks/buckets.py                        # a store on loopback (fake-gcs-server), with clips of its own
    python benchmarks/buckets.py --url gs://BUCKET/data/pe_video:train --local /data/pe_video:train

  - disk: the records where they lie.
  - first epoch: from the store, each shard fetched to an empty cache when it is first needed, the others ahead.
  - later epochs: from the store, by way of the cache that the first has filled.

A row reads the same examples in the same order and decodes all their frames, once over; of several rounds, in which the
three take turns, the best of each is shown, so that other work on the machine counts little. What is made here: clips
of 10 s at 2 frames a second, 448 x 448 pixels of noise that JPEG cannot make small, so that bytes count.
"""

import argparse
import contextlib
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import av
import numpy as np

from swjax.data.builders.prepare import prepare_records
from swjax.data.builders.recipe import Recipe
from swjax.data.sources import open_source
from swjax.data.video import decode_video
from swjax.storage import as_path, copy_file, list_files


def write_clip(file: Path, rng: np.random.Generator) -> None:
    """Ten seconds of coarse noise that changes twice a second."""
    with av.open(str(file), "w") as container:
        stream = container.add_stream("libx264", rate=2)
        stream.width = stream.height = 448
        stream.pix_fmt = "yuv420p"
        for _ in range(20):
            picture = rng.integers(0, 256, (112, 112, 3), dtype=np.uint8).repeat(4, 0).repeat(4, 1)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture)))
        container.mux(stream.encode())


def make_records(folder: Path, clips: int) -> str:
    """Records of clips; returns them as a data set's name."""
    rng, lines = np.random.default_rng(0), []
    for number in range(clips):
        write_clip(folder / f"{number}.mp4", rng)
        lines.append(f'{{"video_path": "{number}.mp4", "human_caption": "Noise number {number}."}}\n')
    (folder / "manifest.jsonl").write_text("".join(lines))
    prepare_records("manifest", folder / "manifest.jsonl", folder / "records", Recipe(min_pixels=28 * 28))
    return f"{folder / 'records'}:train"


@contextlib.contextmanager
def store_on_loopback() -> Iterator[str]:
    """An emulator of Google Cloud Storage, and the URL of a folder in it."""
    sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
    import stores

    proxy = stores.Proxy()
    server = stores.start_gcs(proxy)
    url = f"http://127.0.0.1:{proxy.port}"  # without the proxy, which is slow
    os.environ |= {"STORAGE_EMULATOR_HOST": url, "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false", "NO_GCE_CHECK": "true"}
    try:
        yield "gs://bucket/records"
    finally:
        server.kill()
        proxy.close()


def read(name: str, order: Sequence[int]) -> tuple[float, float]:
    """Examples and megabytes of frames a second, over one pass."""
    began, frames = time.perf_counter(), 0
    examples: Any = open_source(name).examples
    for number in order:
        frames += decode_video(examples[int(number)].video).nbytes
    seconds = time.perf_counter() - began
    return len(order) / seconds, frames / 1e6 / seconds


def main() -> None:
    """Measures, and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--url", help="records in a bucket; with --local")
    parser.add_argument("--local", help="the same records on disk")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as work, contextlib.ExitStack() as stack:
        os.environ["SWJAX_CACHE"] = f"{work}/cache"
        if args.url:
            local, url = args.local, args.url
        else:
            local = make_records(Path(work), args.clips)
            folder = as_path(stack.enter_context(store_on_loopback()))
            for name in list_files(Path(work) / "records"):
                copy_file(Path(work) / "records" / name, folder / name)
            url = f"{folder}:train"
        order = np.random.default_rng(1).permutation(len(open_source(local).examples))
        read(local, order)  # into the page cache, as the store's are
        rounds = []
        for _ in range(args.rounds):
            shutil.rmtree(os.environ["SWJAX_CACHE"], ignore_errors=True)
            rounds.append((read(local, order), read(url, order), read(url, order)))
        rows = dict(zip(("disk", "first epoch", "later epochs"), map(max, zip(*rounds, strict=True)), strict=True))
        for name, (examples, megabytes) in rows.items():
            ratio = examples / rows["disk"][0]
            print(f"{name:<14}{examples:8.1f} examples/s {megabytes:8.0f} MB/s of frames {ratio:6.2f} of the disk's")


if __name__ == "__main__":
    main()
