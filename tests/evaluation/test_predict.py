"""Predictions over a few frames: schedules, times, and what is kept on disk."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from flax import nnx

from swjax.data.example import ExampleError, Rejected, VideoExample
from swjax.data.tokenizer import load_tokenizer
from swjax.evaluation import EvaluationError, Prediction, perturbed_schedule, predict, score_predictions
from swjax.evaluation.predictions import open_predictions, write_authors_results
from swjax.inference import Engine, Frame, StreamSettings
from swjax.models.qwen2_5_vl import Qwen2_5_VL, Qwen2_5_VLConfig
from swjax.streaming import SpecialTokens

FRAMES = 5
SHORT = StreamSettings(max_tail=4)
SETTINGS = {"weights": "abc", "wait_k": 3}


@pytest.fixture(scope="module")
def watch():
    """Predictions of a model with random weights, under settings and a schedule, by key."""
    tokenizer = load_tokenizer(None)
    config = Qwen2_5_VLConfig.preset(
        "tiny",
        text={"vocab_size": len(tokenizer), "initializer_range": 0.25, "num_layers": 1},
        vision={"initializer_range": 0.15, "depth": 1, "full_attention_blocks": (0,)},
        video_token_id=SpecialTokens.from_tokenizer(tokenizer).video_pad,
    )
    engine = Engine(Qwen2_5_VL(config, rngs=nnx.Rngs(3)))

    def read(example):
        if example.key == "broken":
            raise ExampleError("no video")
        rng = np.random.default_rng(4)
        return (Frame(rng.integers(0, 256, (4, 1176), dtype=np.uint8), (2, 2), index + 0.5) for index in range(FRAMES))

    def watch(*keys, settings=SHORT, schedule=None):
        examples = [VideoExample(key, Path("x.mp4"), 5.0, "A caption.") for key in keys]
        return list(
            predict(engine, tokenizer, examples, question="What?", settings=settings, read=read, schedule=schedule)
        )

    return watch


def test_each_token_has_the_newest_frame_that_it_could_see_and_its_time(watch):
    broken, found = watch("broken", "a")
    assert broken == Rejected("broken", "no video")
    assert found.after_frame == tuple(sorted([0, 1, 2, 3] * 3 + [4] * 4))
    assert found.video_s == tuple(frame + 0.5 for frame in found.after_frame)
    assert "".join(found.words) == found.text
    assert list(found.wall_s) == sorted(found.wall_s)
    scores = score_predictions([found], references=False)
    assert scores["first_word_s"].value == 0.5
    assert scores["word_s"].value == pytest.approx(np.mean(found.video_s))
    assert scores["ended"].value == 0
    (offline,) = watch("a", settings=StreamSettings(variant="offline", max_tail=4))
    assert set(offline.video_s) == {FRAMES - 0.5}


def test_a_perturbed_schedule_is_spoken_by_and_depends_on_seed_and_key_alone(watch):
    schedule = perturbed_schedule(3, seed=1)
    found = watch("a", "b", "c", schedule=schedule)
    for prediction in found:
        counts = schedule(prediction.key, FRAMES)
        assert np.bincount(prediction.after_frame, minlength=FRAMES)[:-1].tolist() == list(counts[:-1])
    assert len({prediction.after_frame for prediction in found}) > 1, "the same frames, each by its own schedule"
    assert watch("c", schedule=schedule)[0].token_ids == found[2].token_ids
    assert perturbed_schedule(3, seed=2)("a", 50) != schedule("a", 50)
    many = np.array(schedule("a", 7000))
    assert set(many) == set(range(7)), "0 to 2k"
    assert many.mean() == pytest.approx(3, abs=0.1)


def test_an_explicit_schedule_that_ends_too_early_is_refused(watch):
    with pytest.raises(ValueError, match="counts for 2 frames, but frame 2 has come"):
        watch("a", settings=StreamSettings(counts=(1, 1)))
    with pytest.raises(ValueError, match="negative count"):
        StreamSettings(counts=(1, -1))


PREDICTION = Prediction("k", "A caption.", "Words", False, 2, (1, 2), ("Wo", "rds"), (0, 1), (0.5, 1.5), (0.1, 0.2))


def test_predictions_are_found_again_and_half_a_line_is_cut_off(tmp_path):
    file = open_predictions(tmp_path, SETTINGS)
    file.append(PREDICTION)
    file.append(replace(PREDICTION, key="l"))
    path = file.path
    path.write_text(path.read_text()[:-5])
    again = open_predictions(tmp_path, SETTINGS)
    assert again.found == {"k": PREDICTION}
    again.append(replace(PREDICTION, key="m"))
    assert list(open_predictions(tmp_path, SETTINGS).found) == ["k", "m"]


def test_predictions_made_otherwise_are_not_mixed(tmp_path):
    open_predictions(tmp_path, SETTINGS).append(PREDICTION)
    with pytest.raises(EvaluationError, match="wait_k was 3, is 4"):
        open_predictions(tmp_path, {**SETTINGS, "wait_k": 4})
    assert open_predictions(tmp_path, {**SETTINGS, "wait_k": 4}, name="blank.jsonl").found == {}
    assert open_predictions(tmp_path, SETTINGS).found == {"k": PREDICTION}, "another file, with its own settings"
    assert open_predictions(tmp_path, {**SETTINGS, "wait_k": 4}, overwrite=True).found == {}
    (tmp_path / "predictions.settings.json").unlink()
    with pytest.raises(EvaluationError, match="nobody knows how they were made"):
        open_predictions(tmp_path, SETTINGS)
    (tmp_path / "predictions.jsonl").unlink()
    open_predictions(tmp_path, SETTINGS)
    (tmp_path / "predictions.jsonl").write_text('{"key": "k"}\n')
    with pytest.raises(EvaluationError, match=r"predictions\.jsonl:1 cannot be read"):
        open_predictions(tmp_path, SETTINGS)


def test_the_authors_format_takes_funqas_task_from_the_key(tmp_path):
    file = tmp_path / "results.jsonl"
    write_authors_results(file, [replace(PREDICTION, key="H_A_1/H2"), replace(PREDICTION, key="dir/x")])
    first, second = map(json.loads, file.read_text().splitlines())
    assert first == {"video_id": "H_A_1", "annotation": "A caption.", "task": "H2", "result": "Words"}
    assert (second["video_id"], second["task"]) == ("dir/x", "description")
    write_authors_results(file, [PREDICTION], task="mine")
    assert json.loads(file.read_text())["task"] == "mine"
