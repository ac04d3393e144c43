"""Films of Moving Shapes Live: what they show, what happens in them, and what is due of questions about them."""

import dataclasses
import itertools

import numpy as np
import pytest

from swjax.data.decisions import add_decisions, find_decisions
from swjax.data.encoding import encode_example
from swjax.data.example import ExampleError
from swjax.data.manifest import read_manifest
from swjax.data.moving_shapes.asking import (
    BACKWARD,
    FORWARD,
    PRESENT,
    Asked,
    draw_film,
    draw_questions,
)
from swjax.data.moving_shapes.drawing import COLOUR_RGB, mover_colours, positions
from swjax.data.moving_shapes.film import Film, happenings, play, shown_at, visits
from swjax.data.moving_shapes.prepare import PrepareError
from swjax.data.moving_shapes.prepare_live import prepare_films
from swjax.data.moving_shapes.scene import scene_identity
from swjax.data.pipeline_config import PipelineConfig
from swjax.data.tokenizer import load_tokenizer
from swjax.streaming import SpecialTokens

FILM = Film((0, 2, 7))
SECONDS = 40
SIZE = 64


@pytest.fixture(scope="module")
def told():
    return tuple(itertools.takewhile(lambda one: one.frame < SECONDS, happenings(FILM)))


@pytest.fixture(scope="module")
def seen():
    return list(itertools.takewhile(lambda visit: visit.begins_s < SECONDS, visits(FILM)))


def test_one_thing_happens_at_a_time_and_one_of_each_shape_is_there(told, seen):
    frames = [one.frame for one in told]
    assert frames == sorted(set(frames))
    assert max(sum(visit.begins_s <= second < visit.ends_s for visit in seen) for second in range(SECONDS)) > 1
    for first, second in itertools.combinations(seen, 2):
        if first.begins_s < second.ends_s and second.begins_s < first.ends_s:
            assert first.scene.shape != second.scene.shape


def test_pictures_show_the_shapes_that_are_there(told, seen):
    """At each shape's centre is its colour, in the frame that first shows it, and whatever stands beside it."""
    pictures = dict(itertools.islice(play(FILM, size=SIZE, fps=2), 2 * SECONDS))
    checked = 0
    for visit, second in itertools.product(seen, range(SECONDS)):
        at = np.array([float(second - visit.begins_s)])
        (x, y), inside = positions(visit.scene, at)[0], visit.begins_s < second < visit.ends_s
        if inside and 0.05 < x < 0.95 and 0.05 < y < 0.95:
            np.testing.assert_allclose(
                pictures[float(second)][int(y * SIZE), int(x * SIZE)], mover_colours(visit.scene, at)[0], atol=1
            )
            checked += 1
    assert checked > SECONDS / 2
    names = {tuple(rgb): name for name, rgb in COLOUR_RGB.items()}
    for frame in range(SECONDS):
        there = shown_at(told, frame)
        for visit in seen:
            gone = visit.happenings[-1].frame <= frame
            if visit.begins_s <= frame and not gone:
                colour = names[
                    tuple(mover_colours(visit.scene, np.array([frame + 0.5 - visit.begins_s]))[0].astype(int))
                ]
                assert f"a {colour} {visit.scene.shape}" in there
        assert there.count(" a ") == sum(
            visit.begins_s <= frame and visit.happenings[-1].frame > frame for visit in seen
        )


def test_a_film_is_that_of_its_seed_from_its_beginning_on(told):
    again = itertools.islice(play(FILM, size=SIZE, fps=2), 8)
    for (time, picture), (other, same) in zip(itertools.islice(play(FILM, size=SIZE, fps=2), 8), again, strict=True):
        assert time == other
        np.testing.assert_array_equal(picture, same)
    assert tuple(itertools.islice(happenings(FILM), 5)) == told[:5]
    assert tuple(itertools.islice(happenings(Film((0, 2, 8))), 5)) != told[:5]


@pytest.mark.parametrize("kind", ["turn", "recolour"])
def test_what_never_happens_in_a_film_does_not(kind):
    some = itertools.islice(happenings(Film((0, 0, 1), without=kind)), 12)
    assert kind not in {one.event.kind for one in some}


def test_questions_have_the_answers_that_the_film_gives(told):
    questions = draw_questions(FILM, SECONDS)
    assert [one.frame for one in questions] == sorted({one.frame for one in questions})
    stops = [*(one.frame for one in questions[1:]), SECONDS - 1]
    for asked, stop in zip(questions, stops, strict=True):
        before = [one for one in told if one.frame <= asked.frame]
        match asked.kind:
            case "backward":
                assert (asked.text, asked.due[0][1]) == (BACKWARD, before[-1].sentence)
            case "present":
                assert (asked.text, asked.due[0][1]) == (PRESENT, shown_at(told, asked.frame))
            case "forward":
                (kind,) = [kind for kind, text in FORWARD.items() if text == asked.text]
                expected = [
                    (one.visible_s, one.sentence)
                    for one in told
                    if asked.frame < one.frame <= stop and one.event.kind == kind
                ]
                assert list(asked.due) == expected
    assert {one.kind for one in questions} == {"backward", "present", "forward"}


def test_what_is_due_at_once_is_due_when_it_is_asked():
    record = Asked(BACKWARD, "backward", 3, ((3.5, "Nothing."),)).to_record()
    assert record == {
        "text": BACKWARD,
        "kind": "backward",
        "video_s": 3.75,
        "sentences": [{"text": "Nothing.", "start_s": 3.75}],
    }


def test_a_film_becomes_a_row_in_which_each_frame_and_question_has_its_decision(tmp_path):
    made = prepare_films(tmp_path, train=1, validation=0, test=0, seconds=12, seed=1, workers=1, size=SIZE)
    (example,) = read_manifest(made["train"], strict=True).examples
    tokenizer = load_tokenizer()
    add_decisions(tokenizer)
    special, decisions = SpecialTokens.from_tokenizer(tokenizer), find_decisions(tokenizer)
    config = PipelineConfig(
        batch_size=1, max_tokens=512, max_patches=192, min_pixels=56**2, max_pixels=56**2, speaking="decide"
    )
    row = encode_example(example, config, tokenizer, special, question=example.question)
    assert np.count_nonzero(row["token_ids"] == special.video_pad) == 12 * 4
    assert row["video_grid_thw"].tolist() == [[12, 4, 4]]
    answered = sum(len(question.sentences) for question in example.questions)
    counts = [np.count_nonzero(row["labels"] == token) for token in (decisions.skip, decisions.end)]
    assert counts == [12 + len(example.questions) - answered, answered]
    wait_k = dataclasses.replace(config, speaking="wait_k")
    with pytest.raises(ExampleError, match="train with speaking='decide'"):
        encode_example(example, wait_k, tokenizer, special, question=example.question)


def test_splits_share_no_scene_and_films_on_disk_have_their_questions(tmp_path):
    counts = {"train": 1, "validation": 1, "test": 1}
    made = prepare_films(tmp_path, **counts, seconds=10, seed=1, workers=1, size=SIZE)
    identities = []
    for number, (split, manifest) in enumerate(made.items()):
        (example,) = read_manifest(manifest, strict=True).examples
        film = draw_film((1, number, 0))
        assert (example.key, example.duration_s, example.caption) == (f"{split}-00000", 10.0, "")
        wanted = draw_questions(film, 10)
        assert [one.text for one in example.questions] == [one.text for one in wanted]
        assert [one.kind for one in example.questions] == [one.kind for one in wanted]
        identities += [scene_identity(visit.scene) for visit in itertools.islice(visits(film), 4)]
    assert len(set(identities)) == len(identities)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.mp4")}
    assert len(before) == 3
    prepare_films(tmp_path, **counts, seconds=10, seed=1, workers=1, size=SIZE)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.mp4")} == before, "whole films are kept"
    with pytest.raises(PrepareError, match="choose another folder"):
        prepare_films(tmp_path, **counts, seconds=11, seed=1, workers=1, size=SIZE)
    with pytest.raises(PrepareError, match="no time for a question; give at least 10"):
        prepare_films(tmp_path, **counts, seconds=9, seed=1, workers=1, size=SIZE)
