"""Scenes: every one is told truthfully and in time, and the pictures show what it says."""

import itertools
import math

import numpy as np
import pytest

from swjax.data.moving_shapes.drawing import COLOUR_RGB, draw_frames, mover_colours, positions
from swjax.data.moving_shapes.grammar import event_accuracy, parse_caption, split_tokens
from swjax.data.moving_shapes.narration import seen_until
from swjax.data.moving_shapes.prepare import SPLITS, split_seed
from swjax.data.moving_shapes.scene import BACKGROUNDS, draw_scene, scene_identity

STEP = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}


@pytest.fixture(scope="module")
def scenes():
    return [draw_scene((0, 0, index)) for index in range(300)]


def test_captions_fit_the_filter_and_the_grammar(scenes):
    for scene in scenes:
        assert 5 <= scene.duration_s <= 12
        assert 3 <= len(split_tokens(scene.caption)) / scene.duration_s <= 6
        parsed = parse_caption(scene.caption)
        assert parsed.consistent
        said = [event for event in parsed.events if event.kind != "move"]
        assert said == [timed.event for timed in scene.events]


def test_no_sentence_about_an_event_begins_before_the_event_shows(scenes):
    for scene in scenes:
        told = [sentence for sentence in scene.sentences if sentence.event.kind != "move"]
        assert [sentence.event for sentence in told] == [timed.event for timed in scene.events]
        for sentence, timed in zip(told[1:], scene.events[1:], strict=True):
            assert timed.time_s <= timed.visible_s <= seen_until(sentence.first_token, scene.duration_s)
        # the opening begins with "The video shows"; its first word about the scene is token 3, spoken after frame 1
        assert scene.events[0].visible_s < seen_until(3, scene.duration_s)


def test_first_tokens_count_the_tokens_before(scenes):
    for scene in scenes:
        for sentence in scene.sentences:
            before = "".join(split_tokens(scene.caption)[: sentence.first_token])
            assert scene.caption == before + scene.caption[len(before) :]
            assert scene.caption[len(before) :].strip().startswith(sentence.text)


def test_events_fall_between_frames_and_never_two_in_one(scenes):
    for scene in scenes:
        times = [timed.time_s for timed in scene.events[1:] if timed.event.kind != "leave"]
        assert all(0.5 < time % 1 < 0.95 for time in times)
        assert len({int(time) for time in times}) == len(times)
        assert sorted(timed.time_s for timed in scene.events) == [timed.time_s for timed in scene.events]


def test_motion_is_what_the_events_say(scenes):
    for scene in scenes:
        for timed in scene.events:
            event, time = timed.event, timed.time_s
            if event.kind == "turn":
                before, until, since, after = positions(scene, time + np.array([-0.4, -0.1, 0.1, 0.4]))
                assert np.sign(np.round(after - since, 6)).tolist() == list(STEP[event.direction])
                assert abs(np.dot(until - before, STEP[event.direction])) < 1e-6
            elif event.kind == "hit":
                before, at, after = positions(scene, np.array([time - 0.4, time, time + 0.4]))
                np.testing.assert_allclose(before, after, atol=0.01)
                reach = (scene.radius + scene.obstacle.radius) * 1.2
                assert math.dist(at, (scene.obstacle.x, scene.obstacle.y)) < reach
                assert (event.colour, event.shape) == (scene.obstacle.colour, scene.obstacle.shape)
            elif event.kind == "leave":
                (x, y), outside = positions(scene, np.array([timed.visible_s]))[0], -scene.radius + 0.01
                assert {"left": x, "right": 1 - x, "top": y, "bottom": 1 - y}[event.side] < outside


def test_colours_are_what_the_events_say(scenes):
    for scene in scenes:
        changes = [timed for timed in scene.events if timed.event.kind in ("enter", "recolour")]
        until = [timed.time_s for timed in changes[1:]] + [float(scene.duration_s)]
        for timed, end in zip(changes, until, strict=True):
            seen = mover_colours(scene, np.array([timed.time_s + 0.11, end]))
            np.testing.assert_allclose(seen, [COLOUR_RGB[timed.event.colour]] * 2, atol=1e-3)


def test_frames_show_the_mover_in_its_colour_at_its_place(scenes):
    for scene in scenes[:20]:
        frames = draw_frames(scene, size=64, fps=2)
        assert frames.shape == (2 * scene.duration_s, 64, 64, 3)
        assert frames.dtype == np.uint8
        times = np.arange(2 * scene.duration_s) / 2
        for frame, (x, y), colour in zip(frames, positions(scene, times), mover_colours(scene, times), strict=True):
            if 0.05 < x < 0.95 and 0.05 < y < 0.95:
                np.testing.assert_allclose(frame[int(y * 64), int(x * 64)], colour, atol=2)


def test_a_shape_out_of_sight_leaves_the_picture_as_it_was(scenes):
    left = [scene for scene in scenes[:100] if scene.events[-1].event.kind == "leave" and scene.obstacle is None]
    assert left
    for scene in left[:10]:
        frames = draw_frames(scene, size=64, fps=24)
        (gone,) = {int(timed.visible_s * 24) for timed in scene.events if timed.event.kind == "leave"}
        assert (frames[gone:] == frames[0]).all() or scene.events[0].time_s == 0
        assert (frames[24] != frames[0]).any()


def test_the_same_seed_gives_the_same_scene_and_another_another(scenes):
    assert [draw_scene((0, 0, index)) for index in range(20)] == scenes[:20]
    assert len({scene_identity(scene) for scene in scenes}) == len(scenes)
    assert draw_scene((1, 0, 0)) != scenes[0]


def test_splits_share_no_scene():
    of_split = {name: [draw_scene(split_seed(7, name, index)) for index in range(60)] for name in SPLITS}
    for one, other in itertools.combinations(SPLITS, 2):
        assert not {scene_identity(s) for s in of_split[one]} & {scene_identity(s) for s in of_split[other]}
        for part in ("background", "path", "obstacle"):
            assert not {getattr(s, part) for s in of_split[one]} & {getattr(s, part) for s in of_split[other]} - {None}


def test_scenes_vary(scenes):
    assert len({scene.caption for scene in scenes}) > 0.95 * len(scenes)
    assert {scene.duration_s for scene in scenes} == set(range(5, 13))
    assert {scene.background.kind for scene in scenes} == set(BACKGROUNDS)
    first = {scene.events[0].event for scene in scenes}
    assert len(first) > 60
    kinds = [timed.event.kind for scene in scenes for timed in scene.events]
    assert all(kinds.count(kind) > 100 for kind in ("turn", "hit", "recolour", "leave"))


def test_no_constant_caption_scores_well(scenes):
    held_out = [draw_scene((0, 1, index)) for index in range(100)]
    true = [[timed.event for timed in scene.events] for scene in held_out]
    best = max(
        np.mean([event_accuracy([timed.event for timed in scene.events], events) for events in true])
        for scene in scenes
    )
    assert best < 0.25
