import dataclasses
import json

import pytest

from swjax.inference import Mode, StreamSettings
from swjax.serving import Limits, Offer
from swjax.serving.parsing import parse
from swjax.serving.protocol import Ask, Close, Ended, Finish, Last, Open, ProtocolError, Word, encode
from swjax.streaming import StreamSpec, Variant

LIMITS = Limits()


def test_messages_of_clients_are_read():
    assert parse('{"type": "open"}', LIMITS) == Open()
    full = Open("Why?", "gipe", "sequential", 2, 5, 9, "drop", 0.5, 4, 0.9, 1.15, 7, True)
    assert parse(json.dumps({"type": "open", **dataclasses.asdict(full)}), LIMITS) == full
    assert parse('{"type": "open", "wait_k": null}', LIMITS) == Open()
    kinds = [parse(json.dumps({"type": kind}), LIMITS) for kind in ("last", "finish", "close")]
    assert kinds == [Last(), Finish(), Close()]
    assert parse('{"type": "ask", "question": "Why?"}', LIMITS) == Ask("Why?")
    assert parse('{"type": "ask", "question": "Why?", "interrupt": true}', LIMITS) == Ask("Why?", interrupt=True)


@pytest.mark.parametrize(
    ("message", "names"),
    [
        ("no json", "JSON object"),
        ("[1]", "JSON object"),
        ("[" * 10_000, "JSON object"),
        ("{}", '"type" must be open, ask, last, finish or close'),
        ('{"type": "opne"}', '"opne"'),
        ('{"type": ["open"]}', '"type" must be'),
        ('{"type": "finish", "now": 1}', '"finish" has no field "now"'),
        ('{"type": "open", "waitk": 3}', '"waitk".*wait_k'),
        ('{"type": "open", "wait_k": 0}', '"wait_k" must be a whole number from 1 to 64, got 0'),
        ('{"type": "open", "wait_k": true}', '"wait_k"'),
        ('{"type": "open", "wait_k": 1e400}', '"wait_k"'),
        ('{"type": "open", "max_tail": 301}', '"max_tail" must be a whole number from 1 to 300'),
        ('{"type": "open", "temperature": NaN}', '"temperature" must be a number'),
        ('{"type": "open", "top_p": 0}', '"top_p"'),
        ('{"type": "open", "temperature": ' + "9" * 400 + "}", '"temperature" must be a number from 0 to 100'),
        ('{"type": "open", "temperature": ' + "9" * 9000 + "}", "JSON object"),
        ('{"type": "open", "question": "\\ud83d"}', "UTF-8 can encode, and character 0 is half of a surrogate pair"),
        ('{"type": "open", "seed": ' + "[" * 900 + "]" * 900 + "}", '"seed" must be a whole number|JSON object'),
        ('{"type": "open", "seed": 4294967296}', '"seed"'),
        ('{"type": "open", "question": "  "}', '"question" must be a text of 1 to 2000'),
        (json.dumps({"type": "open", "question": "x" * 2001}), '"question" must be .*xxx\\.\\.\\.'),
        ('{"type": "open", "mode": "fast"}', '"mode" must be one of parallel, sequential'),
        ('{"type": "open", "when_behind": "skip"}', '"when_behind" must be one of delay, drop, merge'),
        ('{"type": "open", "watches_on": 1}', '"watches_on" must be true or false'),
        ('{"type": "ask"}', '"ask" must have a "question"'),
        ('{"type": "ask", "question": " "}', '"question" must be a text of 1 to 2000'),
        ('{"type": "ask", "question": "Why?", "interrupt": "yes"}', '"interrupt" must be true or false'),
        ('{"type": "ask", "question": "Why?", "wait_k": 3}', '"ask" has no field "wait_k"; its fields are question'),
        ('{"type": "open", "variant": {}}', '"variant" must be one of'),
    ],
)
def test_what_is_no_message_is_refused_with_its_field_and_the_mend(message, names):
    with pytest.raises(ProtocolError, match=names) as refused:
        parse(message, LIMITS)
    assert refused.value.code == "bad_message"
    assert len(str(refused.value)) < 400


def test_a_long_text_is_refused_before_it_is_read():
    with pytest.raises(ProtocolError) as refused:
        parse("[" * 40_000, LIMITS)
    assert refused.value.code == "too_big"


def test_messages_of_the_server_carry_their_type():
    assert json.loads(encode(Word(3, 17, " a", 1, 0.5))) == {
        "type": "word", "index": 3, "token_id": 17, "text": " a", "after_frame": 1, "wall_s": 0.5,
        "question": 0,
    }  # fmt: skip
    assert json.loads(encode(Ended("end_token", "a", 1.0)))["type"] == "ended"


def test_what_a_client_leaves_out_is_as_the_model_was_trained():
    record = StreamSpec(variant="gipe", wait_k=5, gap=77, fps=4.0)
    choice = Offer("m", record).choose(Open())
    assert choice.settings == StreamSettings(variant="gipe", wait_k=5, gap=77, second_per_grid_t=0.5)
    assert (choice.mode, choice.when_behind) == (Mode.PARALLEL, None)
    other = Offer("m", record).choose(Open(variant="interleave", wait_k=1, when_behind="merge"))
    assert (other.settings.variant, other.settings.wait_k, other.mode) == (Variant.INTERLEAVE, 1, Mode.INTERLEAVED)
    assert other.when_behind == "merge"


def test_a_mode_that_the_variant_or_the_server_does_not_allow_is_refused():
    with pytest.raises(ProtocolError, match='"mode" must be one of interleaved, offline for variant interleave'):
        Offer("m", StreamSpec()).choose(Open(variant="interleave", mode="parallel"))
    with pytest.raises(ProtocolError, match='"mode" must be one of parallel'):
        Offer("m", StreamSpec()).choose(Open(mode="recompute"))
    only = Offer("m", StreamSpec(), modes=(Mode.SEQUENTIAL,))
    with pytest.raises(ProtocolError, match='"variant" interleave has no mode'):
        only.choose(Open(variant="interleave"))
    assert only.choose(Open()).mode is Mode.SEQUENTIAL
    assert set(only.hello().modes) == {"gdpe", "gipe", "ospe"}
    with pytest.raises(ValueError, match="variant interleave has none of the modes parallel"):
        Offer("m", StreamSpec(variant="interleave"), modes=(Mode.PARALLEL,))


def test_the_longest_video_is_a_whole_number_of_frames():
    assert Offer("m", StreamSpec(), limits=Limits(max_video_s=3.5)).max_pictures == 6
    assert Offer("m", StreamSpec(), limits=Limits(max_video_s=0.1)).max_pictures == 2


def test_limits_must_make_sense():
    with pytest.raises(ValueError, match="idle_s must be above 0"):
        Limits(idle_s=0)
    assert Limits(max_waiting=0).max_waiting == 0
