"""Anything at all as messages, pictures and settings: the answer is always one of those that the documents name."""

import asyncio
import contextlib
import json
from typing import get_args

import hostile_files
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from serving_clients import ROWS, begin, encode_picture, hear, make_pictures, serving, watch, words

from swjax.data.pictures import PictureError, measure, pictures_to_patches
from swjax.serving import Limits, Offer
from swjax.serving.parsing import _open_checks, parse
from swjax.serving.pictures import check_picture
from swjax.serving.protocol import Failed, FailureCode, Open, ProtocolError, encode
from swjax.streaming import StreamSpec

LIMITS = Limits(max_message_bytes=200_000, max_picture_pixels=200_000)
OFFER = Offer("m", StreamSpec(), limits=LIMITS)
QUICK = settings(max_examples=3600, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)

SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(10**300, 10**420)
    | st.floats()
    | st.text(st.characters())
    | st.text(st.characters(categories=["Cs"]), max_size=4)
    | st.sampled_from(["gdpe", "gipe", "interleave", "parallel", "offline", "drop", "<|im_end|>", "\x00"])
)
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3)
)
FIELDS = st.dictionaries(st.sampled_from([*_open_checks(LIMITS), "type", "other"]), VALUES, max_size=5)
OPENS = FIELDS.map(lambda fields: json.dumps({"type": "open", **fields}))
TEXTS = OPENS | VALUES.map(json.dumps) | st.text(st.characters()) | st.integers(1, 40_000).map(lambda n: "[" * n)

PICTURES = [encode_picture(make_pictures(1, 0)[0], kind) for kind in ("JPEG", "PNG", "WEBP")]
PICTURES += [hostile_files.scans(20), hostile_files.exif(bytes(60)), hostile_files.webp_of_two_sizes()]
PICTURES += [
    hostile_files.png_texts(2),
    hostile_files.small("PNG", exif=bytes(40)),
    hostile_files.small(progressive=True),
]


@st.composite
def mutants(draw) -> bytes:
    """A picture in which some bytes are others, are missing, or come twice."""
    data = bytearray(draw(st.sampled_from(PICTURES)))
    for _ in range(draw(st.integers(0, 6))):
        at = draw(st.integers(0, max(0, min(len(data) - 1, 400))))
        match draw(st.sampled_from(["set", "cut", "insert", "repeat"])):
            case "set":
                data[at : at + 1] = draw(st.binary(min_size=1, max_size=4))
            case "cut":
                del data[at : at + draw(st.integers(1, 30))]
            case "insert":
                data[at:at] = draw(st.binary(max_size=12))
            case "repeat":
                data[at:at] = data[at : at + 40] * draw(st.integers(1, 20))
    return bytes(data)


@QUICK
@given(TEXTS)
def test_any_text_is_a_message_or_is_refused(text):
    refused = None
    try:
        message = parse(text, LIMITS)
        if isinstance(message, Open):
            OFFER.choose(message).question.encode()
    except ProtocolError as error:
        refused = error
    if refused is not None:
        assert refused.code in get_args(FailureCode)
        assert len(str(refused)) < 600
        assert encode(Failed(refused.code, str(refused))).encode()


@QUICK
@given(mutants() | st.binary(max_size=200))
def test_any_file_is_a_picture_or_is_refused(data):
    with contextlib.suppress(ProtocolError, PictureError):
        size = check_picture(data, 3, LIMITS)
        assert size == measure(data)
        assert size[0] * size[1] <= LIMITS.max_picture_pixels
        patches, grid = pictures_to_patches([data, data], [size, size], 3, min_pixels=3136, max_pixels=3136)
        assert patches.shape == (grid[0] * grid[1], 1176)


def test_a_server_answers_anything_with_what_is_documented(source, engine, size, tokenizer):
    """Whole conversations: messages and pictures in any order, some of them right."""
    good = [encode_picture(picture) for picture in make_pictures(6, 0)]
    parts = st.lists(
        TEXTS | mutants() | st.sampled_from(['{"type": "last"}', '{"type": "finish"}', *good]), min_size=1, max_size=6
    )

    async def converse(session, opened, messages):
        with contextlib.suppress(ConnectionError):
            socket = await (begin(session) if opened else session.ws_connect("/ws"))
            for message in messages:
                await (socket.send_bytes(message) if isinstance(message, bytes) else socket.send_str(message))
            await socket.send_str('{"type": "close"}')
            heard = await asyncio.wait_for(hear(socket, "ended", "error"), 20)
            if heard and heard[-1]["type"] == "error":
                assert heard[-1]["code"] in set(get_args(FailureCode)) - {"stream_failure", "engine_failure"}, heard[-1]

    async def run():
        async with serving(source, engine, size, tokenizer) as (server, session):
            expected = words(await watch(session, good))
            loop = asyncio.get_running_loop()

            @settings(QUICK, max_examples=720)
            @given(st.booleans(), parts)
            def talk(opened, messages):
                texts = [one if isinstance(one, bytes) else one.encode(errors="replace").decode() for one in messages]
                asyncio.run_coroutine_threadsafe(converse(session, opened, texts), loop).result(30)

            async with asyncio.timeout(60):
                await asyncio.to_thread(talk)
            assert server.failure is None
            assert words(await watch(session, good)) == expected

    asyncio.run(run())
    assert engine.free == ROWS
