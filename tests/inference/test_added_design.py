"""A position design that somebody else has added, streamed."""

from full_passes import QUESTION, decode_frames, make_frames

from swjax.inference import StreamSession, StreamSettings
from swjax.streaming import DESIGNS, Counting, Design, Storage

SPACED = Counting(
    first_source=lambda before, opens_turn, xp: 100 + xp.where(opens_turn, before.target, before.words),
    first_word=lambda before, next_source, xp: next_source + 7,
    words_move_sources=True,
)


def test_streamed_tokens_equal_full_passes(model, weights, tokenizer, monkeypatch):
    monkeypatch.setitem(DESIGNS, "toy", Design(Storage.GROUPED, SPACED, "steps 100 ids apart"))
    frames, answers = make_frames(4, 0), {}
    for variant in ("toy", "ospe"):
        settings = StreamSettings(variant=variant, wait_k=2, max_tail=6)
        session = StreamSession(weights, tokenizer, question=QUESTION, settings=settings)
        list(session.run(frames))
        assert session.answer == decode_frames(model, tokenizer, frames, settings, len(session.answer))
        answers[variant] = session.answer
    assert answers["toy"] != answers["ospe"], "the answer does not depend on the design, so this test shows nothing"
