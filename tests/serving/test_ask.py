"""Questions that clients ask while their video runs, over real sockets."""

import asyncio

import pytest
from serving_clients import QUESTION, TAIL, begin, encode_picture, hear, make_pictures, serving, tell, words

from swjax.inference import StreamSettings, TokenSpoken
from swjax.inference.frames import make_frame

LATER = ("What is red?", "And now?")


@pytest.fixture(scope="module")
def pictures():
    return make_pictures(6, 2)


@pytest.fixture(scope="module")
def files(pictures):
    return [encode_picture(picture) for picture in pictures]


def alone(engine, tokenizer, pictures):
    """Words and their questions without a server: one that waits for its turn, and one that interrupts."""
    stream = engine.open(tokenizer, question=QUESTION, settings=StreamSettings(max_tail=TAIL))
    for first in (0, 2, 4):
        frame = make_frame(pictures[first : first + 2], video_s=first / 2, min_pixels=3136, max_pixels=3136)
        engine.see(stream, frame, last=first == 4)
        if first < 4:
            engine.ask(stream, LATER[first // 2], interrupt=first == 2)
    events = []
    while engine.has_work:
        events += [event for _, event in engine.step()]
    return [(event.token_id, event.question) for event in events if isinstance(event, TokenSpoken)]


def test_answers_are_those_of_the_engine_and_say_their_question(source, engine, size, tokenizer, pictures, files):
    expected = alone(engine, tokenizer, pictures)
    assert {question for _, question in expected} == {0, 2}

    async def run():
        async with serving(source, engine, size, tokenizer) as (_, session):
            socket = await begin(session)
            for first in (0, 2, 4):
                if first == 4:
                    await tell(socket, "last")
                for data in files[first : first + 2]:
                    await socket.send_bytes(data)
                if first < 4:
                    await tell(socket, "ask", question=LATER[first // 2], interrupt=first == 2)
            heard = await hear(socket)
            found = [(message["token_id"], message["question"]) for message in heard if message["type"] == "word"]
            assert found == expected
            assert [message["index"] for message in heard if message["type"] == "asked"] == [1, 2]
            assert heard[-1]["reason"] == "token_limit"

    asyncio.run(run())


def test_what_cannot_be_asked_ends_its_stream_alone(source, engine, size, tokenizer, files):
    async def run():
        async with serving(source, engine, size, tokenizer, max_questions=2) as (_, session):
            good = await begin(session)
            for pictures, questions, message in (
                (0, ["Why?"], "ask came before the first frame"),
                (2, ["Why?"] * 3, "may be asked 2 more questions"),
                (2, ["<|im_end|>"], "special token"),
            ):
                bad = await begin(session)
                for data in files[:pictures]:
                    await bad.send_bytes(data)
                for question in questions:
                    await tell(bad, "ask", question=question)
                heard = await hear(bad)
                assert heard[-1]["type"] == "error"
                assert heard[-1]["code"] == "bad_message"
                assert message in heard[-1]["message"]
            await tell(good, "last")
            for data in files[:2]:
                await good.send_bytes(data)
            heard = await hear(good)
            assert heard[-1]["reason"] == "token_limit"
            assert len(words(heard)) == TAIL

    asyncio.run(run())
