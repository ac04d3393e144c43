"""Predictions over a few frames: schedules, times, and what is kept on disk."""

import json
import sys
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
from flax import nnx
from obvious_stream import ObviousStream

from swjax.data.example import ExampleError, Picture, Question, Rejected, Sentence, VideoExample
from swjax.data.tokenizer import load_tokenizer
from swjax.evaluation import (
    EvaluationError,
    Prediction,
    later_predictions,
    perturbed_schedule,
    predict,
    score_predictions,
    wall_times,
)
from swjax.evaluation.predictions import open_predictions, read_predictions, write_authors_results
from swjax.evaluation.scores import average_lagging
from swjax.inference import BatchEngine, Frame, FrameSeen, Mode, StreamSession, StreamSettings, TokenSpoken
from swjax.inference.memory import Window
from swjax.models.qwen2_5_vl import Qwen2_5_VL, Qwen2_5_VLConfig
from swjax.streaming import DecisionTokens, SpecialTokens, Variant, speaking_of

FRAMES = 5
LENGTHS = {"a": 5, "b": 2, "c": 7, "d": 1, "e": 4}
"""Frames of each video; the others have `FRAMES`, all alike."""
SHORT = StreamSettings(max_tail=4)
SETTINGS = {"weights": "abc", "wait_k": 3}
MODES = [(variant, mode) for variant in Variant for mode in Mode if mode.allows(variant)]


def read(example):
    if example.key == "broken":
        raise ExampleError("no video")
    for index in range({"wide": 1, "long": 60}.get(example.key, 0)):
        yield make_frame(6, index, (4, 6))
    if example.key == "long":
        return
    seed = ord(example.key[0]) if example.key in LENGTHS else 4
    for index in range(LENGTHS.get(example.key, FRAMES)):
        yield make_frame(seed, index, (2, 2))
    if example.key == "damaged":
        raise ExampleError("breaks off")


def make_frame(seed, index, grid):
    rng = np.random.default_rng((seed, index))
    return Frame(rng.integers(0, 256, (grid[0] * grid[1], 1176), dtype=np.uint8), grid, index + 0.5)


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer(None)


@pytest.fixture(scope="module")
def model(tokenizer):
    config = Qwen2_5_VLConfig.preset(
        "tiny",
        text={"vocab_size": len(tokenizer), "initializer_range": 0.25, "num_layers": 1},
        vision={"initializer_range": 0.15, "depth": 1, "full_attention_blocks": (0,)},
        video_token_id=SpecialTokens.from_tokenizer(tokenizer).video_pad,
    )
    return Qwen2_5_VL(config, rngs=nnx.Rngs(3))


@pytest.fixture(scope="module")
def watch(model, tokenizer):
    """Predictions of a model with random weights, by key."""

    def watch(*keys, settings=SHORT, duration_s=5.0, later=(), questions=(), **changes):
        more = {"later": later, "questions": questions}
        examples = [VideoExample(key, Path("x.mp4"), duration_s, "A caption.", **more) for key in keys]
        how = {"question": "What?", "settings": settings, "read": read, "frame_units": 1, "rows": 2, **changes}
        outcomes = list(predict(model, tokenizer, examples, **how))
        found = {one.where if isinstance(one, Rejected) else one.key: one for one in outcomes}
        assert len(found) == len(outcomes)
        return [found[key] for key in keys]

    return watch


def without_walls(predictions):
    return [replace(one, wall_s=(), frame_wall_s=(), mode="", rows=0) for one in predictions]


@pytest.mark.parametrize(("variant", "mode"), MODES, ids=str)
def test_what_is_said_depends_neither_on_the_rows_nor_on_the_mode(watch, model, tokenizer, variant, mode):
    schedule = perturbed_schedule(2, seed=3)
    # Words on the way only as far as the mode has them.
    told = (lambda key, frames: (0,) * frames) if mode is Mode.OFFLINE else schedule
    settings = StreamSettings(variant=variant, max_tail=6)
    alone = watch(*LENGTHS, settings=settings, schedule=schedule, mode=mode, rows=1)
    beside = watch(*LENGTHS, settings=settings, schedule=schedule, mode=mode, rows=2)
    assert without_walls(alone) == without_walls(beside)
    if mode is Mode.PARALLEL:
        assert without_walls(alone) == without_walls(watch(*LENGTHS, settings=settings, schedule=schedule, rows=8))
    for key, found in zip(LENGTHS, beside, strict=True):
        frames = list(read(VideoExample(key, Path("x.mp4"), 5.0, "")))
        counts = tuple(told(key, len(frames)))
        obvious = ObviousStream(model, tokenizer, question="What?", settings=replace(settings, counts=counts))
        events = list(obvious.run(frames))
        spoken = [event for event in events if isinstance(event, TokenSpoken)]
        assert found.token_ids == tuple(obvious.answer)
        assert found.after_frame == tuple(event.after_frame for event in spoken)
        assert (found.text, found.ended) == (obvious.text(), obvious.ended)
        assert found.frames == sum(isinstance(event, FrameSeen) for event in events)
        assert (found.mode, found.rows, found.duration_s) == (mode, 2, len(frames) - 0.5)
    assert len({found.token_ids[:4] for found in beside}) > 3, "the answers do not depend on the videos"


def test_images_several_videos_and_text_alone_are_answered(model, tokenizer):
    key = next(iter(LENGTHS))
    picture, film = Picture(Path("a.png")), Path("x.mp4")
    asked = {
        "two": ("<image>Which?<video><video>", (picture, film, film)),
        "image": ("<image>What?", (picture,)),
        "text": ("Who?", ()),
    }
    examples = [
        VideoExample(name, None, None, "A.", question, media=media, system="Be short.", later=(("Why?", "So."),))
        for name, (question, media) in asked.items()
    ]
    examples.append(replace(examples[0], key="later", later=(("<video>?", "A."),)))
    examples[0] = replace(examples[0], media=(picture, film, film, picture), later=((" <image>Why?", "So."),))
    frames = list(read(VideoExample(key, film, 5.0, "")))
    how = {"question": "What?", "settings": SHORT, "frame_units": 1, "rows": 2}
    outcomes = predict(model, tokenizer, examples, read=lambda _: iter(frames), **how)
    found = {one.where if isinstance(one, Rejected) else one.key: one for one in outcomes}
    assert "a later turn shows a video" in found.pop("later").reason
    assert {name: one.frames for name, one in found.items()} == {"two": 2 * len(frames), "image": 0, "text": 0}
    assert found["two"].video_s[-1] == found["two"].duration_s == 2 * frames[-1].video_s
    assert found["text"].video_s == (0.0,) * len(found["text"].words)
    parts = {"two": [frames[0], "Which?", "<video>", "<video>"], "image": [frames[0], "What?"], "text": ["Who?"]}
    for name, one in found.items():
        session = StreamSession(model, tokenizer, question=parts[name], settings=SHORT, system="Be short.")
        films = [frames] * len([part for part in parts[name] if part == "<video>"])
        said = [event.token_id for event in session.run(*films) if isinstance(event, TokenSpoken)]
        assert list(one.token_ids) == said
        session.ask([frames[0], "Why?"] if name == "two" else "Why?", interrupt=True)
        assert [one.token_id for one in session.speak(SHORT.max_tail)] == list(one.later[0].token_ids) != []


def test_a_memory_bounds_the_rows_of_any_video(watch, monkeypatch):
    """Its numbers say how long they are, whatever the data set claims; while it drops nothing, nothing changes."""
    sizes, module = [], sys.modules[predict.__module__]
    monkeypatch.setattr(
        module, "BatchEngine", lambda *given, **how: sizes.append(how["slots"]) or BatchEngine(*given, **how)
    )
    memories = Window(sources=80, words=40), Window(sources=80, words=4, first_words=0)
    wide, narrow = (StreamSettings(max_tail=6, memory=memory) for memory in memories)
    kept = watch("a", "e", settings=wide, duration_s=1e6)
    assert without_walls(kept) == without_walls(watch("a", "e", settings=StreamSettings(max_tail=6)))
    forgot = watch("a", "e", settings=narrow)
    assert [len(one.token_ids) for one in forgot] == [len(one.token_ids) for one in kept]
    assert [one.text for one in forgot] != [one.text for one in kept]
    assert all("".join(one.words) == one.text for one in forgot)
    assert sizes[0] < 600 > sizes[2]


def test_a_variant_is_refused_in_modes_that_it_does_not_allow(watch):
    with pytest.raises(ValueError, match="offline cannot be streamed in mode parallel; its modes are offline"):
        watch("a", settings=StreamSettings(variant="offline"), mode=Mode.PARALLEL)


def test_videos_that_cannot_be_used_do_not_disturb_the_others(watch):
    (alone,) = watch("a")
    first, broken, damaged, second = watch("a", "broken", "damaged", "e")
    assert without_walls([first]) == without_walls([alone])
    assert broken == Rejected("broken", "no video")
    assert damaged == Rejected("damaged", "breaks off"), "it has frames, and nothing is said about them"
    assert without_walls([second]) == without_walls(watch("e"))
    assert watch("broken") == [broken]


def test_a_question_that_cannot_be_asked_does_not_disturb_the_others(model, tokenizer, watch):
    good, special, half = (
        VideoExample(key, Path("x.mp4"), None, "A caption.", question)
        for key, question in (("a", None), ("b", "What <|im_end|>?"), ("c", "What \ud83d?"))
    )
    how = {"question": "What?", "settings": SHORT, "read": read, "frame_units": 1, "rows": 2}
    outcomes = {
        getattr(one, "where", None) or one.key: one for one in predict(model, tokenizer, [special, good, half], **how)
    }
    assert without_walls([outcomes["a"]]) == without_walls(watch("a"))
    assert outcomes["b"].reason == "the question contains the special token <|im_end|>; remove it from the text"
    assert outcomes["c"].reason.startswith("the question has half a character")
    assert list(predict(model, tokenizer, [half], **how)) == [outcomes["c"]]


def test_larger_frames_than_usual_have_an_engine_of_their_own(watch):
    small, wide = watch("a", "wide")
    assert wide.frames == FRAMES + 1
    assert without_walls([small]) == without_walls(watch("a"))
    assert without_walls([wide]) == without_walls(watch("wide", frame_units=6))


def test_rows_grow_and_a_video_that_fits_into_none_is_set_aside(watch):
    how = {"settings": StreamSettings(variant="offline", max_tail=4), "frame_units": 6}
    claimed, grown = (watch("a", "long", duration_s=claim, **how) for claim in (60.0, 0.0))
    assert without_walls(grown) == without_walls(claimed)
    assert grown[1].frames == 60
    first, long = watch("a", "long", duration_s=0.0, all_slots=512, **how)
    assert without_walls([first]) == without_walls(claimed[:1])
    assert "does not fit into the 256 slots that a row may have with 2 rows" in long.reason


def test_each_token_has_the_newest_frame_that_it_could_see_and_its_time(watch):
    (found,) = watch("a")
    assert found.after_frame == tuple(sorted([0, 1, 2, 3] * 3 + [4] * 4))
    assert found.video_s == tuple(frame + 0.5 for frame in found.after_frame)
    assert "".join(found.words) == found.text
    assert list(found.wall_s) == sorted(found.wall_s)
    scores = score_predictions([found])
    assert scores["first_word_s"].value == 0.5
    assert scores["word_s"].value == pytest.approx(np.mean(found.video_s))
    assert scores["ended"].value == 0
    (offline,) = watch("a", settings=StreamSettings(variant="offline", max_tail=4))
    assert set(offline.video_s) == {FRAMES - 0.5}
    scores = score_predictions([offline])
    assert scores["lag_s"].value == offline.duration_s, "the first token alone: the others wait for nothing more"


def test_lagging_is_behind_a_speaker_who_spreads_the_answer_evenly():
    # Four tokens in 2 s: the even speaker has said them by 0, 0.5, 1 and 1.5 s.
    assert average_lagging((0.5, 0.5, 2.0, 2.0), 2.0) == pytest.approx((0.5 + 0 + 1.0) / 3)
    assert average_lagging((0.5, 1.0), 4.0) == pytest.approx((0.5 - 1.0) / 2), "ended early: ahead of the video"


def test_wall_times_are_of_one_engine_alone():
    slow = replace(PREDICTION, key="l", wall_s=(1.0, 2.0), frame_wall_s=(0.5, 0.5))
    other = replace(PREDICTION, key="m", rows=1)
    times = wall_times([PREDICTION, slow, other], mode="parallel", rows=8)
    assert times == {
        "mode": "parallel",
        "rows": 8,
        "videos": 2,
        "first_word_wall_s": pytest.approx((0.1 + 1.0) / 2),
        "lag_wall_s": pytest.approx((0.05 + 1.0) / 2),
    }
    assert wall_times([other], mode="parallel", rows=8) == {"mode": "parallel", "rows": 8, "videos": 0}


def test_a_perturbed_schedule_is_spoken_by_and_depends_on_seed_and_key_alone(watch):
    schedule = perturbed_schedule(3, seed=1)
    found = watch("x", "y", "z", schedule=schedule)
    for prediction in found:
        counts = schedule(prediction.key, FRAMES)
        assert np.bincount(prediction.after_frame, minlength=FRAMES)[:-1].tolist() == list(counts[:-1])
    assert len({prediction.after_frame for prediction in found}) > 1, "the same frames, each by its own schedule"
    assert watch("z", schedule=schedule)[0].token_ids == found[2].token_ids
    assert perturbed_schedule(3, seed=2)("a", 50) != schedule("a", 50)
    many = np.array(schedule("a", 7000))
    assert set(many) == set(range(7)), "0 to 2k"
    assert many.mean() == pytest.approx(3, abs=0.1)


def test_a_video_that_outlasts_an_explicit_schedule_is_set_aside(watch):
    (found,) = watch("a", settings=StreamSettings(counts=(1, 1)))
    assert "counts for 2 frames, but frame 2 has come" in found.reason
    with pytest.raises(ValueError, match="negative count"):
        StreamSettings(counts=(1, -1))


def test_later_turns_are_asked_behind_the_video(watch, tmp_path):
    alone = watch("a", "b")
    found = watch("a", "b", later=(("And then?", "Nothing."), ("", "No.")))
    assert without_walls(replace(one, later=()) for one in found) == without_walls(alone)
    for one in found:
        first, second = one.later
        assert (first.question, first.reference) == ("And then?", "Nothing.")
        assert (second.question, second.reference) == ("What?", "No."), "the question of all, where there is none"
        assert [len(later.words) for later in one.later] == [SHORT.max_tail] * 2
        assert not first.ended
        assert first.token_ids != second.token_ids
        assert one.wall_s[-1] < first.wall_s[0] < second.wall_s[0]
    file = open_predictions(tmp_path, SETTINGS)
    for one in found:
        file.append(one)
    assert read_predictions(file.path) == found
    later = later_predictions(found)
    assert [one.key for one in later] == ["a#1", "a#2", "b#1", "b#2"]
    references = {"captions": {one.key: one.reference for one in later}}
    assert score_predictions(later, truths=references)["words"].value == SHORT.max_tail


PREDICTION = Prediction(
    key="k",
    reference="A caption.",
    text="Words",
    ended=False,
    frames=2,
    duration_s=1.5,
    token_ids=(1, 2),
    words=("Wo", "rds"),
    after_frame=(0, 1),
    video_s=(0.5, 1.5),
    wall_s=(0.1, 0.2),
    frame_wall_s=(0.05, 0.15),
    mode="parallel",
    rows=8,
)


def test_questions_in_mid_video_come_behind_the_frames_of_their_time(watch, tmp_path):
    """At 1.5 s with the second frame, behind it; at 0 s behind the first, the earliest that a question can come."""
    asked = (Question("And now?", 0.0, (Sentence("This.", 0.0),), "present"), Question("When?", 1.5))
    rule = {"speaking_rule": speaking_of("always:most=2"), "decisions": DecisionTokens(-2, -2)}
    settings = StreamSettings(max_tail=4, **rule)
    (found,) = watch("a", questions=asked, settings=settings)
    assert [answer.asked_after for answer in found.later] == [0, 1]
    assert [answer.reference for answer in found.later] == ["This.", ""]
    assert all(answer.token_ids for answer in found.later)
    for answer in found.later:
        assert len(answer.after_frame) == len(answer.token_ids)
        assert min(answer.after_frame) >= answer.asked_after
    open_predictions(tmp_path, SETTINGS).append(found)
    assert read_predictions(tmp_path / "predictions.jsonl") == [found]
    assert later_predictions([found]) == [], "they are no turns behind the video"
    (late,) = watch("b", questions=(Question("Late?", 1.5),))
    assert "asked at 1.5 s, and the last frame arrives at 1.5 s" in late.reason


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


def test_predictions_that_another_program_wrote_again_are_read(tmp_path):
    """With characters that end no line, Windows' line ends and a byte order mark."""
    predictions = [replace(PREDICTION, key=key, reference="One.\u2028Two.\x85Three.") for key in ("k", "l")]
    lines = [json.dumps(asdict(one), ensure_ascii=False) for one in predictions]
    path = tmp_path / "predictions.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + "".join(f"{line}\r\n" for line in lines).encode())
    assert read_predictions(path) == predictions


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
