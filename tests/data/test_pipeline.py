"""Batches: what is in a row, order, resume, evaluation, and what happens to bad examples."""

import dataclasses
import json
import pickle
import subprocess
import sys
import time
from collections.abc import Sequence
from fractions import Fraction

import numpy as np
import pytest
from video_files import write_video

from swjax.data.chat import EVALUATION_QUESTION, TRAINING_QUESTIONS, encode_chat, sentence_tokens
from swjax.data.encoding import encode_example
from swjax.data.example import ExampleError, Sentence
from swjax.data.order import Mixture
from swjax.data.patches import video_to_patches
from swjax.data.pipeline import build_pipeline
from swjax.data.pipeline_config import PipelineConfig
from swjax.data.rejected import RejectedLog, TooManyRejectedError
from swjax.data.video import decode_video
from swjax.streaming import SpecialTokens, build_layout, pad_layout

CONFIG = PipelineConfig(batch_size=2, max_tokens=256, max_patches=64, max_pixels=168 * 168, threads=0)
NAMES = {
    "token_ids": ((2, 256), np.int32),
    "position_ids": ((2, 3, 256), np.int32),
    "span_start": ((2, 256), np.int32),
    "span_stop": ((2, 256), np.int32),
    "labels": ((2, 256), np.int32),
    "pixel_values": ((2, 64, 1176), np.uint8),
    "video_grid_thw": ((2, 1, 3), np.int32),
}


def with_config(**changes):
    return dataclasses.replace(CONFIG, **changes)


def train_batches(examples, tokenizer, count, config=CONFIG, **arguments):
    iterator = iter(build_pipeline(examples, config, tokenizer, train=True, **arguments))
    batches = [next(iterator) for _ in range(count)]
    iterator.close()
    return batches


def evaluation_batches(examples, tokenizer, config=CONFIG, **arguments):
    return list(build_pipeline(examples, config, tokenizer, train=False, **arguments))


def captions(batch, tokenizer):
    """The answers of a batch, read off its labels; None for a row without any."""
    rows = (row[row >= 0] for row in batch["labels"])
    return [tokenizer.decode(row[::-1]).removesuffix("<|im_end|>").removeprefix("<|im_end|>") or None for row in rows]


def assert_same(batches, others):
    assert len(batches) == len(others)
    for batch, other in zip(batches, others, strict=True):
        assert batch.keys() == other.keys()
        for name in batch:
            np.testing.assert_array_equal(batch[name], other[name], err_msg=name)


@pytest.fixture
def bad_examples(tmp_path, examples):
    damaged = tmp_path / "damaged.mp4"
    damaged.write_bytes(examples[0].video.read_bytes()[:2000])
    long = write_video(tmp_path / "long.mp4", num_frames=24 * 20, rate=24, height=56, width=56)
    wide = write_video(tmp_path / "wide.mp4", num_frames=48, rate=24, height=84, width=168)
    replace = dataclasses.replace
    good = examples[0]
    return {
        "damaged": replace(good, key="damaged", video=damaged),
        "missing": replace(good, key="missing", video=tmp_path / "gone.mp4"),
        "brief": replace(good, key="brief", caption="The video"),
        "special": replace(good, key="special", caption="The video shows <|im_end|> and a square that turns."),
        "wordy": replace(good, key="wordy", caption="The video shows a square. " * 60),
        "long": replace(good, key="long", video=long),
        "wide": replace(good, key="wide", video=wide),
    }


REASONS = {
    "damaged": "damaged.mp4 cannot be decoded",
    "missing": r"there is no video file",
    "brief": "the caption has 2 tokens, too short for its 2 frames at 3 tokens a frame (6)",
    "special": "the answer contains the special token <|im_end|>",
    "wordy": "tokens, and a row has room for 256; raise max_tokens",
    "long": "long.mp4 has more than the 64 patches that a row has room for: those of 4 frames (4 s) of 4 x 4",
    "wide": "wide.mp4 has more than the 64 patches that a row has room for: those of 0 frames (0 s) of 6 x 12",
}


@pytest.mark.parametrize("variant", ["gdpe", "gipe", "offline"])
def test_a_row_is_the_layout_of_its_example(examples, tokenizer, variant):
    config = with_config(variant=variant, fps=3.0, wait_k=2)
    special = SpecialTokens.from_tokenizer(tokenizer)
    batch = evaluation_batches(examples, tokenizer, config)[0]
    assert {name: (array.shape, array.dtype) for name, array in batch.items()} == NAMES
    for row, example in enumerate(examples[:2]):
        patches, grid = video_to_patches(
            decode_video(example.video, fps=3.0), min_pixels=config.min_pixels, max_pixels=config.max_pixels
        )
        ids = encode_chat(tokenizer, question=EVALUATION_QUESTION, answer=example.caption, video_grid_thw=grid)
        layout = build_layout(
            ids, np.array([grid]), variant=variant, schedule=2, second_per_grid_t=2 / 3, special_tokens=special
        )
        padded = pad_layout(layout, 256)
        np.testing.assert_array_equal(batch["token_ids"][row], padded.token_ids)
        np.testing.assert_array_equal(batch["position_ids"][row], padded.position_ids)
        np.testing.assert_array_equal(batch["span_start"][row], padded.spans.start)
        np.testing.assert_array_equal(batch["span_stop"][row], padded.spans.stop)
        np.testing.assert_array_equal(batch["labels"][row], padded.labels)
        np.testing.assert_array_equal(batch["pixel_values"][row, : len(patches)], patches)
        assert not batch["pixel_values"][row, len(patches) :].any()
        np.testing.assert_array_equal(batch["video_grid_thw"][row], [grid])


def test_training_sees_everything_once_an_epoch_in_new_orders(examples, tokenizer):
    batches = train_batches(examples, tokenizer, 14)
    said = [caption for batch in batches for caption in captions(batch, tokenizer)]
    epochs = [said[start : start + 7] for start in range(0, 28, 7)]
    for epoch in epochs:
        assert sorted(epoch) == sorted(example.caption for example in examples)
    assert len({tuple(epoch) for epoch in epochs}) == 4


def test_training_is_deterministic(examples, tokenizer):
    batches = train_batches(examples, tokenizer, 8)
    assert_same(batches, train_batches(examples, tokenizer, 8))
    assert_same(batches, train_batches(examples, tokenizer, 8, with_config(threads=2)))
    assert_same(batches, train_batches(examples, tokenizer, 8, with_config(threads=2, cache_mb=1)))
    other = train_batches(examples, tokenizer, 8, with_config(seed=1))
    assert any((a["token_ids"] != b["token_ids"]).any() for a, b in zip(batches, other, strict=True))


def test_questions_change_between_epochs_and_the_manifest_wins(examples, tokenizer):
    asked = dataclasses.replace(examples[0], question="Who turns?")

    def questions(examples, train, count):
        pipeline = build_pipeline(examples, with_config(variant="offline", batch_size=1), tokenizer, train=train)
        iterator = iter(pipeline)
        texts = [tokenizer.decode(next(iterator)["token_ids"][0]) for _ in range(count)]
        return [text.split("user\n")[1].split("<|vision_start|>")[0] for text in texts]

    assert set(questions(examples[:1], True, 30)) == set(TRAINING_QUESTIONS)
    assert questions(examples[:1], False, 1) == [EVALUATION_QUESTION]
    assert set(questions([asked], True, 5)) == set(questions([asked], False, 1)) == {"Who turns?"}


@pytest.mark.parametrize("threads", [0, 2])
def test_resume_is_exact(examples, bad_examples, tokenizer, threads):
    everything = (*examples, bad_examples["damaged"], bad_examples["brief"])
    pipeline = build_pipeline(
        everything, with_config(threads=threads), tokenizer, train=True, rejected=RejectedLog(max_share=1)
    )
    iterator = iter(pipeline)
    states, batches = [iterator.get_state()], []
    for _ in range(9):
        batches.append(next(iterator))
        states.append(json.loads(json.dumps(iterator.get_state())))
    for start in (0, 1, 4, 8):
        resumed = iter(pipeline)
        resumed.set_state(states[start])
        assert_same([next(resumed) for _ in range(9 - start)], batches[start:])


WORKERS_SCRIPT = """
import dataclasses, json, pickle, sys

from swjax.data.pipeline import build_pipeline
from swjax.data.rejected import RejectedLog


def main() -> None:
    with open(sys.argv[1], "rb") as file:
        examples, config, tokenizer = pickle.load(file)
    config = dataclasses.replace(config, workers=2, threads=1, prefetch=2)
    log = RejectedLog(max_share=1)
    pipeline = build_pipeline(examples, config, tokenizer, train=True, rejected=log)
    iterator = iter(pipeline)
    batches, states = [], []
    for _ in range(7):
        batches.append(next(iterator))
        states.append(iterator.get_state())
    iterator.close()
    resumed = iter(pipeline)
    resumed.set_state(json.loads(json.dumps(states[2])))
    again = [next(resumed) for _ in range(4)]
    resumed.close()
    with open(sys.argv[2], "wb") as file:
        pickle.dump([[dict(b) for b in batches], again, log.rejected], file)


if __name__ == "__main__":
    main()
"""


@pytest.mark.slow
def test_workers_make_the_same_batches_and_resume(examples, bad_examples, tokenizer, tmp_path):
    """In a plain script, as workers are started anew from it; failures come back from the workers too."""
    everything = (*examples, bad_examples["damaged"], bad_examples["brief"])
    (tmp_path / "in.pkl").write_bytes(pickle.dumps((everything, CONFIG, tokenizer)))
    (tmp_path / "script.py").write_text(WORKERS_SCRIPT)
    subprocess.run(
        [sys.executable, tmp_path / "script.py", tmp_path / "in.pkl", tmp_path / "out.pkl"], check=True, timeout=120
    )
    batches, again, rejected = pickle.loads((tmp_path / "out.pkl").read_bytes())
    log = RejectedLog(max_share=1)
    assert_same(batches, train_batches(everything, tokenizer, 7, rejected=log))
    assert_same(again, batches[3:])
    assert rejected == log.rejected
    assert {entry.where for entry in rejected} == {"damaged", "brief"}


def test_evaluation_loses_nothing(examples, tokenizer):
    batches = evaluation_batches(examples, tokenizer)
    said = [caption for batch in batches for caption in captions(batch, tokenizer)]
    assert said == [example.caption for example in examples] + [None]
    last = batches[-1]
    assert not last["pixel_values"][1].any()
    assert not last["video_grid_thw"][1].any()
    np.testing.assert_array_equal(last["span_stop"][1] - last["span_start"][1], 1)


@pytest.mark.parametrize("process_count", [2, 3])
def test_evaluation_over_processes(examples, bad_examples, tokenizer, process_count):
    everything = (examples[0], bad_examples["damaged"], *examples[1:])
    shares = [
        evaluation_batches(
            everything,
            tokenizer,
            rejected=RejectedLog(max_share=1),
            process_index=index,
            process_count=process_count,
        )
        for index in range(process_count)
    ]
    assert len({len(share) for share in shares}) == 1
    said = [caption for share in shares for batch in share for caption in captions(batch, tokenizer) if caption]
    assert sorted(said) == sorted(example.caption for example in examples)


def test_training_over_processes(examples, tokenizer):
    shares = [
        train_batches(examples, tokenizer, 7, with_config(batch_size=1), process_index=index, process_count=2)
        for index in range(2)
    ]
    alone = train_batches(examples, tokenizer, 14, with_config(batch_size=1))
    assert_same([batch for pair in zip(*shares, strict=True) for batch in pair], alone)


@pytest.mark.parametrize("kind", REASONS)
def test_bad_examples_are_skipped_counted_and_listed(examples, bad_examples, tokenizer, kind, tmp_path):
    log = RejectedLog(tmp_path / "rejected.jsonl", max_share=0.2)
    batches = train_batches((*examples[:2], bad_examples[kind], *examples[2:]), tokenizer, 12, rejected=log)
    said = [caption for batch in batches for caption in captions(batch, tokenizer)]
    assert set(said) == {example.caption for example in examples}
    assert (log.num_seen, log.num_bad) == (8, 1)
    (line,) = log.path.read_text().splitlines()
    entry = json.loads(line)
    assert entry["where"] == kind
    assert REASONS[kind] in entry["reason"]


def test_too_many_bad_examples_stop_the_run(examples, bad_examples, tokenizer):
    with pytest.raises(TooManyRejectedError, match=r"1 of \d examples seen cannot be used, .* 5%(.|\n)*damaged.mp4"):
        train_batches((*examples, bad_examples["damaged"]), tokenizer, 8)
    with pytest.raises(TooManyRejectedError, match="2 of 2 examples seen"):
        train_batches((bad_examples["damaged"], bad_examples["brief"]), tokenizer, 1, rejected=RejectedLog(max_share=1))


def test_other_faults_are_not_swallowed(examples, tokenizer, monkeypatch):
    def broken(*args, **kwargs):
        raise ValueError("a fault of the program")

    monkeypatch.setattr("swjax.data.encoding.video_to_patches", broken)
    with pytest.raises(ValueError, match="a fault of the program"):
        train_batches(examples, tokenizer, 1)


def test_time_ids_follow_the_sampling_rate(examples, tokenizer):
    """Twice the frames a second, half the step in temporal ids: a second is 2 ids at any rate."""
    special = SpecialTokens.from_tokenizer(tokenizer)
    for fps, ids in ((2.0, [0, 2]), (4.0, [0, 1, 2, 3])):
        row = encode_example(examples[0], with_config(fps=fps), tokenizer, special, question="?")
        temporal = row["position_ids"][0][row["token_ids"] == special.video_pad]
        assert list(np.unique(temporal) - temporal.min()) == ids


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"variant": "nope"}, "unknown variant 'nope'"),
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        (
            {"max_patches": 1999},
            "max_patches and the patches of buckets must be multiples of 4, .* got 1999; give 1996",
        ),
        ({"max_patches": 3}, "got 3; give 4"),
        ({"workers": -1}, "workers must be at least 0, got -1"),
        ({"fps": 0.0}, "fps must be above 0, got 0"),
        ({"max_pixels": 100}, r"max_pixels must be at least min_pixels \(3136\)"),
    ],
)
def test_config_is_checked(changes, message):
    with pytest.raises(ValueError, match=message):
        with_config(**changes)


def test_arguments_are_checked(examples, tokenizer):
    with pytest.raises(ValueError, match="there are no examples"):
        build_pipeline((), CONFIG, tokenizer, train=True)
    with pytest.raises(ValueError, match="two examples share a key"):
        build_pipeline((examples[0], examples[0]), CONFIG, tokenizer, train=True)
    with pytest.raises(ValueError, match=r"process_index must be in 0\.\.1, got 2"):
        build_pipeline(examples, CONFIG, tokenizer, train=True, process_index=2, process_count=2)


def test_rates_are_not_mixed_up(tmp_path, examples, tokenizer):
    path = write_video(tmp_path / "ntsc.mp4", num_frames=61, rate=Fraction(30000, 1001), height=56, width=56)
    example = dataclasses.replace(examples[0], video=path)
    row = encode_example(example, CONFIG, tokenizer, SpecialTokens.from_tokenizer(tokenizer), question="?")
    np.testing.assert_array_equal(row["video_grid_thw"], [[2, 4, 4]])


PACKED = {"batching": "pack", "max_tokens": 512, "max_videos": 4, "window": 7, "batch_size": 1}


def test_packing_fills_rows_with_whole_examples(examples, tokenizer):
    """An epoch is a window of 7 examples here, so every two batches hold each of them once."""
    config = with_config(**PACKED, max_patches=128)
    batches = train_batches(examples, tokenizer, 4, config)
    alone = {caption for batch in train_batches(examples, tokenizer, 4) for caption in captions(batch, tokenizer)}
    assert {name: array.shape for name, array in batches[0].items()} == {
        "token_ids": (1, 512),
        "position_ids": (1, 3, 512),
        "span_start": (1, 512),
        "span_stop": (1, 512),
        "labels": (1, 512),
        "pixel_values": (1, 128, 1176),
        "video_grid_thw": (1, 4, 3),
    }
    videos = [int((batch["video_grid_thw"][0, :, 0] > 0).sum()) for batch in batches]
    assert max(videos) > 1
    said = [tokenizer.decode(batch["labels"][0][batch["labels"][0] >= 0][::-1]) for batch in batches]
    for caption in alone:
        assert any(caption in text for text in said), caption
    for batch in batches:
        patches = batch["video_grid_thw"][0].prod(axis=1).sum()
        assert batch["pixel_values"][0, :patches].any(axis=1).all()
        assert not batch["pixel_values"][0, patches:].any()


def test_the_next_window_is_read_while_this_one_lasts(examples, tokenizer):
    """A window is asked for at once: what is read only then keeps the devices waiting."""
    config = with_config(**PACKED | {"window": 24}, threads=2, prefetch=2)
    read = CountedReads(examples)
    iterator = iter(build_pipeline(read, config, tokenizer, train=True))
    next(iterator)
    deadline = time.monotonic() + 60
    while read.count < 2 * 24 and time.monotonic() < deadline:
        time.sleep(0.01)
    iterator.close()
    assert 2 * 24 <= read.count <= 2 * 24 + config.threads


class CountedReads(Sequence):
    """Examples, and how many were asked for."""

    def __init__(self, examples):
        self._examples, self.count = examples, 0

    def __len__(self):
        return len(self._examples)

    def __getitem__(self, index):
        self.count += 1
        return self._examples[index]


def test_a_row_holds_no_more_labels_than_it_may(examples, tokenizer):
    most = max((batch["labels"] >= 0).sum(axis=1).max() for batch in train_batches(examples, tokenizer, 4))
    batches = train_batches(examples, tokenizer, 6, with_config(**PACKED, max_patches=128, max_labels=int(most)))
    assert max((batch["labels"] >= 0).sum() for batch in batches) <= most


def test_buckets_are_few_shapes_and_lose_nothing(examples, tokenizer):
    config = with_config(batching="bucket", window=6, batch_size=2, buckets=((128, 32), (160, 48)))
    batches = train_batches(examples, tokenizer, 7, config)
    shapes = {(batch["token_ids"].shape[1], batch["pixel_values"].shape[1]) for batch in batches}
    assert shapes <= {(128, 32), (160, 48), (256, 64)}
    assert len(shapes) > 1
    said = [caption for batch in batches for caption in captions(batch, tokenizer)]
    assert len(set(said)) == len(examples)
    with pytest.raises(ValueError, match="bucketing works in one process, and there are 2"):
        build_pipeline(examples, config, tokenizer, train=True, process_count=2)


@pytest.mark.parametrize(
    "changes", [PACKED, {"batching": "bucket", "window": 6, "buckets": ((96, 32),)}], ids=["pack", "bucket"]
)
@pytest.mark.parametrize("at", [0, 1, 2, 5])
def test_resume_of_packed_and_bucketed_batches(examples, tokenizer, changes, at):
    config = with_config(**changes)
    straight = train_batches(examples, tokenizer, 9, config)
    iterator = iter(build_pipeline(examples, config, tokenizer, train=True))
    for _ in range(at):
        next(iterator)
    state = iterator.get_state()
    iterator.close()
    resumed = iter(build_pipeline(examples, config, tokenizer, train=True))
    resumed.set_state(state)
    assert_same([next(resumed) for _ in range(9 - at)], straight[at:])
    resumed.close()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batching": "heap"}, "batching must be one of pad, pack, bucket, got 'heap'"),
        ({"batching": "bucket", "window": 3}, r"window must be a multiple of batch_size \(2\), got 3"),
        ({"buckets": ((512, 10),)}, r"buckets must grow up to \(max_tokens, max_patches\)"),
        ({"window": 0}, "window must be at least 1"),
    ],
)
def test_impossible_batching(changes, message):
    with pytest.raises(ValueError, match=message):
        with_config(**changes)


@pytest.mark.parametrize("batching", ["pad", "pack"])
def test_resume_with_another_number_of_workers(examples, tokenizer, batching):
    changes = PACKED if batching == "pack" else {}
    straight = train_batches(examples, tokenizer, 12, with_config(**changes))
    state, read = None, []
    for workers, threads, count in ((0, 0, 3), (2, 1, 4), (0, 2, 2), (3, 0, 3)):
        config = with_config(**changes, workers=workers, threads=threads)
        iterator = iter(build_pipeline(examples, config, tokenizer, train=True))
        if state is not None:
            iterator.set_state(state)
        read += [next(iterator) for _ in range(count)]
        state = json.loads(json.dumps(iterator.get_state()))
        iterator.close()
    assert_same(read, straight)


def test_a_mixture_draws_by_weight_and_sees_each_set_whole(examples, tokenizer):
    mixture = Mixture((examples[:5], examples[5:]), (3.0, 1.0))
    batches = train_batches(mixture, tokenizer, 20)
    assert_same(batches[:5], train_batches(mixture, tokenizer, 5))
    said = [caption for batch in batches for caption in captions(batch, tokenizer)]
    first = {caption for batch in train_batches(examples[:5], tokenizer, 3) for caption in captions(batch, tokenizer)}
    share = [caption in first for caption in said]
    assert sum(share) == 30
    assert sorted(caption for caption, is_first in zip(said, share, strict=True) if is_first) == sorted([*first] * 6)
    everything = [caption for batch in evaluation_batches(mixture, tokenizer) for caption in captions(batch, tokenizer)]
    assert everything == [
        caption for batch in evaluation_batches(examples, tokenizer) for caption in captions(batch, tokenizer)
    ]


@pytest.mark.parametrize("weights", [(1.0,), (1.0, 0.0), (1.0, float("nan"))])
def test_impossible_mixtures(examples, weights):
    with pytest.raises(ValueError, match="weight"):
        Mixture((examples, examples), weights)


def test_one_of_several_questions_is_drawn_each_epoch(examples, tokenizer):
    """The same one whenever an epoch is read; evaluation asks the first."""
    others = tuple((f"Question {i}?", f"The video shows a red square, answer {i}.") for i in range(3))
    (first,) = (dataclasses.replace(examples[0], question="Question?", others=others),)
    config = with_config(batch_size=1)
    drawn = [captions(batch, tokenizer)[0] for batch in train_batches([first], tokenizer, 40, config)]
    assert set(drawn) == {first.caption, *(answer for _, answer in others)}
    assert drawn == [captions(batch, tokenizer)[0] for batch in train_batches([first], tokenizer, 40, config)]
    (batch,) = evaluation_batches([first], tokenizer, config)
    assert captions(batch, tokenizer) == [first.caption]
    row = batch["token_ids"][0].tolist()
    asked = tokenizer.encode("Question?", add_special_tokens=False)
    assert any(row[i : i + len(asked)] == asked for i in range(len(row)))


def test_sentences_wait_for_their_time(examples, tokenizer):
    """No token of a sentence is scheduled before the frame that shows its time has arrived."""
    sentences = (Sentence("The square turns.", 0.0), Sentence("It leaves.", 2.4))
    long = dataclasses.replace(examples[1], caption="The square turns. It leaves.", sentences=sentences)
    special = SpecialTokens.from_tokenizer(tokenizer)
    row = encode_example(long, with_config(wait_k=100), tokenizer, special, question="Q?")
    (first, second) = sentence_tokens(tokenizer, [sentence.text for sentence in sentences])
    # Three frames: the first sentence is spoken after frame 0, the second waits for frame 2, which arrives at 2.5 s.
    queries = np.flatnonzero(row["labels"] >= 0)[::-1]
    seen = np.unique(row["span_stop"][queries], return_counts=True)[1]
    assert seen.tolist() == [first, second + 1]
    late = dataclasses.replace(long, sentences=(sentences[0], Sentence("It leaves.", 60.0)))
    with pytest.raises(ExampleError, match=r"a sentence starts at 60 s, but the video ends at 3 s"):
        encode_example(late, with_config(), tokenizer, special, question="Q?")


def test_later_turns(examples, tokenizer):
    chat = dataclasses.replace(examples[0], question="First?", later=(("Second?", "It is red."),))
    (batch,) = evaluation_batches([chat], tokenizer, with_config(batch_size=1))
    (said,) = captions(batch, tokenizer)
    assert "It is red." in said
    assert chat.caption in said


@pytest.mark.parametrize("batching", ["pad", "pack"])
def test_tokens_of_frames_that_are_dropped_take_no_room(examples, tokenizer, batching):
    """Every second token of each frame: the others keep their ids, and what is seen is what is left of it."""
    config = with_config(batching=batching, max_videos=3, max_patches=192, window=4, max_pixels=56 * 56)
    whole = evaluation_batches(examples[:2], tokenizer, config)[0]
    pruned = evaluation_batches(examples[:2], tokenizer, dataclasses.replace(config, drop="uniform:share=0.5"))[0]
    pad = SpecialTokens.from_tokenizer(tokenizer).video_pad
    for row, frames in enumerate((2, 3)):
        stays = np.ones(256, bool)
        stays[whole["token_ids"][row] == pad] = [False, True] * 2 * frames
        count = np.count_nonzero(stays) - np.count_nonzero(whole["token_ids"][row] == 0)
        for name in ("token_ids", "labels", "position_ids"):
            np.testing.assert_array_equal(pruned[name][row][..., :count], whole[name][row][..., stays][..., :count])
        kept = np.repeat([False, True] * 2 * frames, 4)
        np.testing.assert_array_equal(pruned["kept"][row], np.pad(kept, (0, 192 - len(kept))))
        see = [np.arange(256) >= b["span_start"][row][:, None] for b in (whole, pruned)]
        see = [a & (np.arange(256) < b["span_stop"][row][:, None]) for a, b in zip(see, (whole, pruned), strict=True)]
        np.testing.assert_array_equal(see[1][:count, :count], see[0][stays][:, stays][:count, :count])
    assert "kept" not in whole
    (batch,) = train_batches(examples, tokenizer, 1, dataclasses.replace(config, drop="uniform:share=0.5"))
    assert batch["kept"].sum() == 8 * batch["video_grid_thw"][..., 0].sum() == 4 * (batch["token_ids"] == pad).sum()


def test_a_rule_that_looks_at_features_is_refused_before_training():
    with pytest.raises(ValueError, match="use a rule that needs none: dtd_pixels, random, uniform"):
        with_config(drop="dtd:tau=0.5")
    with pytest.raises(ValueError, match="unknown rule of dropping 'nothing'"):
        with_config(drop="nothing")
