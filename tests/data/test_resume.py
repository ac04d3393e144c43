"""A stream of three hundred batches, fifty epochs, read straight, and stopped and resumed in a new pipeline."""

import dataclasses
import functools
import json
import pickle
import zlib

import numpy as np
import pytest
from video_files import numbered_frame, write_video

from swjax.data.builders.prepare import prepare_records
from swjax.data.builders.recipe import Recipe
from swjax.data.order import Mixture
from swjax.data.pipeline import build_pipeline
from swjax.data.pipeline_config import PipelineConfig
from swjax.data.records import open_records

CONFIG = PipelineConfig(
    batch_size=2, max_tokens=128, max_patches=48, max_videos=2, batching="pack", window=8, min_pixels=28 * 28, threads=2
)
BATCHES, STOP = 300, 120


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    """Two data sets of small clips, one with several questions to a clip."""
    sets = []
    for name, count in (("many", 23), ("few", 5)):
        folder = tmp_path_factory.mktemp(name)
        lines = []
        for i in range(count):
            frames = [numbered_frame(8 * i + f, 28, 28) for f in range(4 + 2 * (i % 2))]
            write_video(folder / f"{i}.mp4", frames=frames, rate=2)
            caption = f"The video shows a red square number {i} that turns and leaves."
            lines.append({"video_path": f"{i}.mp4", "video_duration_in_s": 2.0, "human_caption": caption})
        (folder / "manifest.jsonl").write_text("\n".join(map(json.dumps, lines)))
        prepare_records("manifest", folder / "manifest.jsonl", folder / "out", Recipe(min_pixels=28 * 28))
        sets.append(open_records(folder / "out", "train"))
    return Mixture(tuple(sets), (3.0, 1.0))


def open_stream(records, tokenizer, workers, process, processes):
    config = dataclasses.replace(CONFIG, workers=workers)
    pipeline = build_pipeline(records, config, tokenizer, train=True, process_index=process, process_count=processes)
    return iter(pipeline)


def read(stream, count):
    """A checksum of every batch."""
    return [
        zlib.crc32(b"".join(np.ascontiguousarray(batch[name]).tobytes() for name in sorted(batch)))
        for batch in (next(stream) for _ in range(count))
    ]


@pytest.fixture(scope="module")
def straight(records, tokenizer):
    """Checksums of the whole stream of a process, read once."""

    @functools.cache
    def read_straight(process, processes):
        stream = open_stream(records, tokenizer, 0, process, processes)
        found = read(stream, BATCHES)
        stream.close()
        assert len(set(found)) > BATCHES // 2
        return found

    return read_straight


@pytest.mark.parametrize(
    ("workers", "then", "processes"), [(0, 0, 1), (2, 0, 1), (0, 2, 2), (4, 4, 1)], ids=lambda value: str(value)
)
def test_a_resumed_stream_is_the_one_read_straight(records, tokenizer, straight, workers, then, processes):
    for process in range(processes):
        first = open_stream(records, tokenizer, workers, process, processes)
        found = read(first, STOP)
        state = first.get_state()
        first.close()
        second = open_stream(records, tokenizer, then, process, processes)
        second.set_state(pickle.loads(pickle.dumps(state)))
        found += read(second, BATCHES - STOP)
        second.close()
        assert found == straight(process, processes)
