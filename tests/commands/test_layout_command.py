"""`swjax layout`: its tables say what the layouts hold, its figures show what the spans say, bad input is refused."""

import itertools
import json
import re
import subprocess
import sys
import xml.etree.ElementTree as ET

import numpy as np
import pytest
from PIL import Image

from swjax.commands.layout_asked import asked_chat
from swjax.commands.layout_chat import example_chat
from swjax.commands.layout_figure import PAIR_COLOURS, draw_layouts, draw_slots
from swjax.commands.layout_view import Pair, pairs_seen, steps_in_time, time_order
from swjax.commands.main import main
from swjax.streaming import DESIGNS, SpecialTokens, Variant, build_conversation, build_layout, pack_layouts

SPECIAL = SpecialTokens.qwen2_5_vl()
FRAMES, ROWS, COLUMNS, WORDS = 4, 1, 2, 13
ROW = re.compile(
    r"^(\d+) +(source|target) +(\d+) +(text \d+|frame \d+|prefix|word \d+|end) +(\S*) +"
    r"(\d+) +(\d+) +(\d+) +(\S.*?)(?:  +(\S+))? *$"
)
PARTS = {"prefix": ["prefix"], "end": ["end"]}


@pytest.fixture(autouse=True)
def wide(monkeypatch):
    monkeypatch.setenv("COLUMNS", "400")


def lay_out(variant, **arguments):
    chat = example_chat((FRAMES, ROWS, COLUMNS), WORDS)
    return build_layout(chat.input_ids, chat.video_grid_thw, variant=variant, special_tokens=chat.special, **arguments)


def shown(capsys, *words):
    assert main(["layout", *map(str, words)]) == 0
    return capsys.readouterr().out


def names_in_chat():
    """What each token of the example is called, counted by hand."""
    names = [f"text {number}" for number in range(6)]
    names += [f"frame {frame}" for frame in range(FRAMES) for _ in range(ROWS * COLUMNS)]
    names += ["text 6", "text 7", "text 8", "prefix", "prefix", "prefix"]
    return [*names, *(f"word {number}" for number in range(WORDS)), "end", "end"]


def expand(phrase):
    """From "text 0-2, frames 0-1, prefix" to the parts that are seen whole, and those that are seen in part."""
    whole, partly, name = set(), set(), ""
    for piece in phrase.split(", "):
        target = partly if piece.startswith("part of ") else whole
        piece = piece.removeprefix("part of ")
        if piece in PARTS:
            target.add(piece)
            continue
        if " " in piece:
            name, piece = piece.split(" ")
        bounds = [int(bound) for bound in piece.split("-")]
        target.update(f"{name.removesuffix('s')} {number}" for number in range(bounds[0], bounds[-1] + 1))
    return whole, partly


def seen_by_hand(layout, slot, names):
    """The parts whose tokens a query sees, all of them or only some."""
    tokens = {name: [index for index, other in enumerate(names) if other == name] for name in names}
    seen = {int(layout.chat_index[key]) for key in range(layout.spans.start[slot], layout.spans.stop[slot])}
    whole = {name for name, members in tokens.items() if seen.issuperset(members)}
    return whole, {name for name, members in tokens.items() if seen.intersection(members)} - whole


@pytest.mark.parametrize("variant", Variant)
def test_the_table_of_a_design_says_what_the_layout_holds(capsys, variant):
    layout, names = lay_out(variant), names_in_chat()
    rows = [match.groups() for line in shown(capsys, "--variant", variant).splitlines() if (match := ROW.match(line))]
    assert len(rows) == len(layout) == len(names)
    slot_of = np.argsort(layout.chat_index)
    labels = {SPECIAL.im_end: "<|im_end|>", -100: None} | {100_000 + number: f"word{number}" for number in range(WORDS)}
    chat = [names.index(row[3]) for row in rows]
    chat = [first + chat[:place].count(first) for place, first in enumerate(chat)]  # tokens that share a name
    assert sorted(chat) == list(range(len(layout)))
    for place, (row, index) in enumerate(zip(rows, chat, strict=True)):
        time, group, _, _, _, *ids, sees, predicts = row
        slot = slot_of[index]
        assert int(time) == place
        assert group == ("target" if layout.is_target[slot] else "source")
        assert [int(value) for value in ids] == layout.position_ids[:, slot].tolist()
        assert expand(sees) == seen_by_hand(layout, slot, names), row
        assert predicts == labels[int(layout.labels[slot])]


@pytest.mark.parametrize("variant", Variant)
def test_time_is_when_frames_arrive_and_words_are_spoken(capsys, variant):
    rows = [match.groups() for line in shown(capsys, "--variant", variant).splitlines() if (match := ROW.match(line))]
    parts = [part for part, _ in itertools.groupby(row[3] for row in rows)]
    video = [part for part in parts if part.startswith("frame")]
    assert video == [f"frame {frame}" for frame in range(FRAMES)]
    words = {part: place for place, part in enumerate(parts)}
    if variant in (Variant.OFFLINE, Variant.OFFLINE_GDPE):
        assert words["prefix"] > words["frame 3"]
        assert {row[2] for row in rows if row[1] == "target"} == {"3"}
        return
    # Three words after each frame, the prefix before the first of them, the rest after the last.
    for number in range(WORDS):
        frame = min(number // 3, FRAMES - 1)
        assert words[f"frame {frame}"] < words[f"word {number}"]
        assert frame == FRAMES - 1 or words[f"word {number}"] < words[f"frame {frame + 1}"]
        assert next(row[2] for row in rows if row[3] == f"word {number}") == str(frame)


def test_designs_stand_beside_one_another_and_share_what_they_see(capsys):
    text = shown(capsys, "--variant", "all", "--gap", 500)
    ids, seen = text.split("what each query sees")
    assert re.search(r"offline +offline_gdpe +interleave +ospe +gdpe +gipe", ids)
    assert re.search(r"offline, offline_gdpe +interleave +ospe, gdpe, gipe", seen)
    values = {variant: lay_out(variant, gap=500) for variant in Variant}
    word = next(line for line in ids.splitlines() if line.startswith("word 5 ")).split()
    expected = [layout.position_ids[0, layout.token_ids == 100_005].item() for layout in values.values()]
    assert [int(value) for value in word[3:]] == expected
    assert expected[-1] == 500 + 3 + 5


def test_options_change_the_chat_and_the_schedule(capsys):
    text = shown(capsys, "--variant", "ospe", "--frames", 3, "--grid", "2x2", "--schedule", "2,0,1", "--answer", 4)
    found = re.findall(r"^\d+ +target +(\d+) +(word \d+)", text, re.M)
    assert [step for step, _ in found] == ["0", "0", "2", "2"]
    assert len(re.findall(r" frame 2 {2,}\d", text)) == 4


def test_questions_arrive_between_frames_and_are_answered_in_turn(capsys):
    text = shown(capsys, "--variant", "gdpe", "--ask", 0, "--ask", 1, "--wait-k", 2, "--answer", 3)
    rows = [match.groups() for line in text.splitlines() if (match := ROW.match(line))]
    happened = [re.sub(r"^text \d+$", "text", row[3]) for row in rows]
    assert [part for part, _ in itertools.groupby(happened)] == [
        *("text", "frame 0", "word 0", "word 1", "text", "word 2", "frame 1", "word 3", "word 4", "text", "word 5"),
        *("frame 2", "word 6", "word 7", "frame 3", "text", "word 8"),
    ]
    chat = asked_chat((4, 1, 2), 3, [0, 1], np.full(6, 2))
    layout = build_conversation(chat.events, variant="gdpe", special_tokens=SPECIAL)
    slots = time_order(layout, DESIGNS["gdpe"])
    for time, _, _, _, _, *ids, _, _ in rows:
        assert [int(value) for value in ids] == layout.position_ids[:, slots[int(time)]].tolist()


def test_ids_of_time_follow_the_frame_rate(capsys):
    """Two ids a second, a frame of two video frames: 2 apart at 2 fps, 4 apart at 1, half an id rounded down at 8."""
    for fps, expected in ((2, [6, 8, 10, 12]), (1, [6, 10, 14, 18]), (8, [6, 6, 7, 7])):
        text = shown(capsys, "--grid", "1x1", "--fps", fps)
        assert [int(number) for number in re.findall(r" frame \d {2,}(\d+)", text)] == expected


def test_random_schedules_follow_the_seed(capsys):
    arguments = ["--frames", 9, "--random", "0:6"]
    first, same, other = (shown(capsys, *arguments, "--seed", seed) for seed in (1, 1, 2))
    assert first == same != other


def test_long_sequences_take_few_lines(capsys):
    text = shown(capsys, "--frames", 600, "--grid", "16x16", "--lines", 20)
    assert len(text.splitlines()) < 30
    assert "\n..." in text
    last = next(line for line in text.splitlines() if " frame 599 " in line)
    assert re.search(r"1204 +6-21 +6-21", last), "2 ids a second from 6 on, and 16 rows and columns"


def test_a_text_is_laid_out_in_the_tokenizers_tokens(capsys):
    text = shown(capsys, "--frames", 2, "--text", "The video shows a red circle.", "--every-token")
    answer = re.findall(r"^\d+ +target +\d+ +word \d+ +(\S+)", text, re.M)
    assert "".join(answer) == "Thevideoshowsaredcircle."


def two_turns():
    """A picture and a video in the first turn, nothing but words in the second; token ids of Qwen2.5-VL."""
    special = SPECIAL
    user = [special.im_start, 872, special.newline]
    first = [*user, special.vision_start, special.image_pad, special.vision_end, special.vision_start]
    first += [special.video_pad] * 2 + [*special.trailer, *special.prefix, 10, 11, 12, special.im_end, special.newline]
    second = [*user, 20, special.im_end, special.newline, *special.prefix, 21, special.im_end, special.newline]
    return {"input_ids": first + second, "video_grid_thw": [[2, 2, 2]], "image_grid_thw": [[1, 2, 2]]}


def test_token_ids_of_several_turns_come_from_a_file(capsys, tmp_path):
    file = tmp_path / "chat.json"
    file.write_text(json.dumps(two_turns()))
    text = shown(capsys, "--tokens", file, "--wait-k", 1)
    layout = build_layout(
        np.array(two_turns()["input_ids"]),
        np.array([[2, 2, 2]]),
        image_grid_thw=np.array([[1, 2, 2]]),
        variant="gdpe",
        schedule=1,
        special_tokens=SPECIAL,
    )
    lines = [line for line in text.splitlines() if re.match(r"\d", line)]
    assert len(lines) == len(layout)
    assert any(re.search(r" image 0 ", line) for line in lines)
    word = next(line for line in lines if re.search(r" word 3 +21 ", line))
    assert str(layout.position_ids[0, layout.token_ids == 21].item()) in word
    # Everything has arrived and all but the end of the last answer has been spoken.
    assert "text 0-14, image 0, frames 0-1, prefixes 0-1, words 0-3, end 0" in word


def test_an_example_of_a_data_set_has_its_own_grid_and_caption(capsys, tmp_path):
    made = tmp_path / "shapes"
    counts = ["--train", "1", "--validation", "1", "--test", "2", "--workers", "1"]
    assert main(["prepare", "moving_shapes", "--output", str(made), *counts]) == 0
    capsys.readouterr()
    manifest = made / "test" / "manifest.jsonl"
    record = json.loads(manifest.read_text().splitlines()[1])
    text = shown(capsys, "--manifest", manifest, "--key", record["video_id"], "--max-pixels", 3136, "--every-token")
    frames = {int(number) for number in re.findall(r" frame (\d+) {2,}\d", text)}
    assert frames == set(range(int(record["video_duration_in_s"])))
    assert len(re.findall(r" frame 1 {2,}\d", text)) == 4, "56 x 56 pixels are 2 x 2 tokens"
    answer = re.findall(r"^\d+ +target +\d+ +word \d+ +(\S+)", text, re.M)
    assert "".join(answer) == record["human_caption"].replace(" ", "")
    turns = [{"question": "What?", "answer": record["human_caption"]}, {"question": "And then?", "answer": "It ends."}]
    sentences = [{"text": "It waits.", "start_s": 2.5}, {"text": "It ends.", "start_s": 4.0}]
    video = {"video_path": record["video_path"]}
    lines = [video | {"video_id": "chat", "turns": turns}, video | {"video_id": "timed", "sentences": sentences}]
    more = manifest.with_name("more.jsonl")
    more.write_text("".join(json.dumps(line) + "\n" for line in lines))
    chat = shown(capsys, "--manifest", more, "--key", "chat", "--max-pixels", 3136, "--every-token")
    answer = re.findall(r"^\d+ +target +\d+ +word \d+ +(\S+)", chat, re.M)
    assert "".join(answer) == record["human_caption"].replace(" ", "") + "Itends."
    timed = shown(capsys, "--manifest", more, "--key", "timed", "--max-pixels", 3136, "--every-token")
    order = re.findall(r" (frame \d+|word \d+) {2,}", timed)
    assert order.index("word 0") > order.index("frame 2"), "it may not be said before 2.5 s"
    assert order.index("word 0") < order.index("frame 4")
    assert main(["layout", "--manifest", str(manifest), "--key", "nobody"]) == 2
    assert "no usable example 'nobody'" in capsys.readouterr().err


@pytest.mark.parametrize("variant", Variant)
def test_the_masks_colours_are_those_of_the_spans(variant):
    layout = lay_out(variant)
    order = time_order(layout, DESIGNS[variant])
    pairs = pairs_seen(layout, order)
    kinds = {
        (False, False): Pair.SOURCE_SEES_SOURCE,
        (True, False): Pair.TARGET_SEES_SOURCE,
        (True, True): Pair.TARGET_SEES_TARGET,
        (False, True): Pair.SOURCE_SEES_TARGET,
    }
    for query, key in itertools.product(range(len(layout)), repeat=2):
        slot, other = order[query], order[key]
        seen = layout.spans.start[slot] <= other < layout.spans.stop[slot]
        kind = kinds[bool(layout.is_target[slot]), bool(layout.is_target[other])]
        assert pairs[query, key] == (kind if seen else Pair.UNSEEN)
    assert (Pair.SOURCE_SEES_TARGET in pairs) == (variant is Variant.INTERLEAVE)
    steps = steps_in_time(layout, DESIGNS[variant])
    assert (np.diff(steps) >= 0).all()
    assert steps[-1] == FRAMES - 1


def images_of(figure):
    return [axes.images[0].get_array() for axes in figure.axes if axes.images and axes.images[0].get_array().ndim == 2]


def test_a_figure_shows_ids_and_masks_of_all_designs():
    layouts = {variant: lay_out(variant) for variant in Variant}
    figure = draw_layouts(layouts, SPECIAL)
    masks = images_of(figure)
    assert len(masks) == len(Variant)
    for mask, (variant, layout) in zip(masks, layouts.items(), strict=True):
        np.testing.assert_array_equal(mask, pairs_seen(layout, time_order(layout, DESIGNS[variant])))
    above = [axes for axes in figure.axes if axes.get_title(loc="left")]
    for axes, (variant, layout) in zip(above, layouts.items(), strict=True):
        drawn = np.asarray(axes.collections[2].get_offsets())[:, 1]
        temporal = layout.position_ids[0, time_order(layout, DESIGNS[variant])]
        if variant is Variant.GIPE:  # drawn with a short gap, whose true ids stand beside the axis and in it
            assert np.ptp(drawn) < 100
            assert [label.get_text() for label in axes.get_yticklabels()] == ["0", "15", "10,000", "10,017"]
            assert axes.texts[0].get_text() == "ids 16 to 9,999 are unused"
        else:
            np.testing.assert_array_equal(drawn, temporal)


def test_packed_rows_are_drawn_in_slot_order_with_padding():
    layouts = [lay_out("gdpe"), lay_out("interleave")]
    row = pack_layouts(layouts, 80).rows[0]
    (mask,) = images_of(draw_slots({"packed": row}))
    lengths = [len(layout) for layout in layouts]
    assert (mask[: lengths[0], lengths[0] :] == Pair.UNSEEN).all()
    assert (mask[lengths[0] :, : lengths[0]] == Pair.UNSEEN).all()
    assert (np.diag(mask)[sum(lengths) :] == Pair.PADDING).all()
    assert (mask[sum(lengths) :] != Pair.UNSEEN).sum() == 80 - sum(lengths)


def test_figures_are_real_files_and_the_same_every_time(capsys, tmp_path):
    files = [tmp_path / "new" / "designs.png", tmp_path / "designs.svg"]
    figures = [word for file in files for word in ("--figure", file)]
    text = shown(capsys, "--variant", "all", *figures)
    assert all(str(file) in text for file in files)
    first = [file.read_bytes() for file in files]
    picture = np.asarray(Image.open(files[0]).convert("RGB"))
    assert picture.shape[1] > 1000
    for pair in set(Pair) - {Pair.PADDING}:
        colour = [int(PAIR_COLOURS[pair][start : start + 2], 16) for start in (1, 3, 5)]
        assert (picture == colour).all(axis=-1).sum() > 500, pair
    root = ET.fromstring(first[1])
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    assert b"dc:date" not in first[1]
    shown(capsys, "--variant", "all", *figures)
    assert [file.read_bytes() for file in files] == first


def test_a_figure_without_matplotlib_names_the_extra(capsys, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert main(["layout", "--figure", str(tmp_path / "a.png")]) == 2
    assert "'swjax[plots]'" in capsys.readouterr().err
    assert "word 3" in shown(capsys), "a table needs none"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--variant diagonal", "unknown variant 'diagonal'; choose one of: offline (alias origin)"),
        ("--frames 0", "--frames 0 and --grid 1x2 must be at least 1"),
        ("--grid 2", "--grid is '2'; give rows and columns such as 2x3"),
        ("--schedule 1,2", "counts for 2 frames, 2 fewer than the 4 there are"),
        ("--schedule a", "--schedule is 'a'; give counts such as 3,0,2"),
        ("--random 3", "--random is '3'; give bounds such as 1:5"),
        ("--random 5:1", "random counts need 0 <= low <= high"),
        ("--answer 2", "the answer of turn 0 has 2 tokens, 7 fewer than the schedule speaks"),
        ("--answer -1", "--answer must be at least 0"),
        ("--wait-k 0", "wait-k needs k >= 1"),
        ("--gap -1", "gap must be at least 0"),
        ("--fps 0", "--fps must be above 0"),
        ("--key a", "--key means nothing for the example"),
        ("--text a --answer 3", "--answer means nothing for --text"),
        ("--tokens a.json --max-pixels 3", "--max-pixels means nothing for --tokens"),
        ("--manifest a.jsonl --frames 3", "--frames means nothing for --manifest"),
        ("--ask 1 --ask 4", "--ask takes a frame from 0 to 3, got 1 to 4"),
        ("--text a --ask 1", "--ask means nothing for --text"),
        ("--lines 1", "--lines must be at least 2"),
        ("--figure a.pdf", "a file that ends in .png or .svg, not to a.pdf"),
        ("--frames 600 --figure a.png", "has 3,015 tokens, and a figure shows at most 600"),
        ("--figure /proc/a.png", "/proc/a.png cannot be written"),
        ("--tokens nowhere.json", "nowhere.json cannot be read"),
        ("--manifest nowhere.jsonl", "there is no manifest nowhere.jsonl"),
        ("--text <|im_end|>", "the answer contains the special token <|im_end|>"),
        ("--text a --tokenizer nowhere", "nowhere"),
    ],
)
def test_bad_input_is_one_clear_line(capsys, words, message):
    assert main(["layout", *words.split()]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error.splitlines()) == 1


@pytest.mark.parametrize(
    "record", [[], {}, {"input_ids": [[1]]}, {"input_ids": [1.5]}, {"input_ids": [1], "video_grid_thw": [1, 2]}]
)
def test_a_file_of_tokens_that_is_none_is_refused(capsys, tmp_path, record):
    file = tmp_path / "chat.json"
    file.write_text(json.dumps(record))
    assert main(["layout", "--tokens", str(file)]) == 2
    assert f"{file} cannot be read" in capsys.readouterr().err


def test_whoever_has_seen_enough_of_the_output_may_close_it():
    words = ["layout", "--variant", "gdpe", "--frames", "2000", "--grid", "2x2"]
    command = [sys.executable, "-c", "import sys; from swjax.commands.main import main; sys.exit(main())", *words]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as running:
        running.stdout.close()
        assert running.stderr.read() == ""
    assert running.returncode == 1
