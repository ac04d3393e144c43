"""Decision tokens in a tokenizer, and answers that decide after each frame whether there is something to say."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int32
from tokenizers import AddedToken

from swjax.data.between_frames import encode_question
from swjax.data.chat import encode_chat
from swjax.data.example import ExampleError, Sentence, VideoExample
from swjax.data.text import check_text, join_texts
from swjax.data.tokenizer import TokenizerError
from swjax.streaming import (
    ChatRule,
    DecisionTokens,
    SourceFrame,
    SourceText,
    SpecialTokens,
    Spoken,
    number_items,
    order_by_time,
    speak_after_items,
    thoughts_by_item,
)
from swjax.streaming.tokens import Tokenizer

SKIP, END = "<skip>", "</think>"

DECISION_TEXTS = (SKIP, "<think>", END)
"""What is added to a tokenizer, as TaYS does: so in Qwen2.5-VL's they are the tokens 151,665 to 151,667."""


def add_decisions(tokenizer: Tokenizer) -> None:
    """Add the tokens of decisions to a tokenizer that has none; where it has them, they stay as they are."""
    added = {token.content for token in tokenizer.added_tokens_decoder.values()}
    new = [AddedToken(text, special=True, normalized=False) for text in DECISION_TEXTS if text not in added]
    tokenizer.add_tokens(new, special_tokens=True)


def find_decisions(tokenizer: Tokenizer) -> DecisionTokens:
    """The tokens of decisions in a tokenizer.

    Args:
        tokenizer: the model's.

    Raises:
        TokenizerError: it has none, so its model was not trained to decide.
    """
    ids = {token.content: number for number, token in tokenizer.added_tokens_decoder.items()}
    missing = [text for text in (SKIP, END) if text not in ids]
    if missing:
        raise TokenizerError(
            f"the tokenizer {getattr(tokenizer, 'name_or_path', '')!r} has no {' and no '.join(missing)}: its model "
            "was not trained to decide when to speak; train with config.speaking='decide', or use another rule"
        )
    return DecisionTokens(ids[SKIP], ids[END])


def encode_decisions(
    example: VideoExample,
    tokenizer: Tokenizer,
    *,
    question: str,
    grid: tuple[int, int, int],
    arrival_s: Float[np.ndarray, "F"],
    merge_size: int,
    chat: ChatRule,
) -> tuple[Int32[np.ndarray, "L"], list[int]]:
    """A chat whose answer has, after each frame, a skip token, or what is due and an end of thought.

    Args:
        example: its sentences say what is due, and when.
        tokenizer: the model's, with the tokens of decisions.
        question: what the user asks.
        grid: the video in patches (t, h, w).
        arrival_s: when each frame has arrived, in seconds.
        merge_size: patches on a side of a token.
        chat: how the model's family chats.

    Returns:
        Its token ids, and the answer tokens after each frame.

    Raises:
        ExampleError: if the example has a caption without times.
    """
    if example.caption and not example.sentences:
        raise ExampleError("the caption has no times, and when to speak is learned from them; give `sentences`")
    decisions = find_decisions(tokenizer)
    said = [
        [*words, decisions.end] if words else [decisions.skip]
        for words in _thoughts(example.sentences, tokenizer, decisions, arrival_s)
    ]
    begun, whole = (
        encode_chat(
            tokenizer,
            question=question,
            answer=answer,
            later=later,
            video_grid_thw=grid,
            merge_size=merge_size,
            chat=chat,
        )
        for answer, later in ((None, ()), ("", example.later))
    )
    answer = np.concatenate([np.array(words, np.int32) for words in said])
    return np.concatenate([begun, answer, whole[len(begun) :]]), [len(words) for words in said]


def encode_questions(
    example: VideoExample,
    tokenizer: Tokenizer,
    special: SpecialTokens,
    *,
    question: str,
    grid: tuple[int, int, int],
    arrival_s: Float[np.ndarray, "F"],
    merge_size: int,
    chat: ChatRule,
) -> tuple[SourceFrame | SourceText | Spoken, ...]:
    """The conversation about a video in which questions are asked, as a stream has it that decides when to speak.

    A question comes behind the frames that have arrived by its time. It breaks off the answer before it, so what is due
    is due of the newest question alone.

    Args:
        example: its questions, and what is due of the one before the video and of each.
        tokenizer, question, grid, arrival_s, merge_size, chat: as for `encode_decisions`.
        special: ids of the tokens that give the chat its structure.

    Raises:
        ExampleError: if a question comes behind the last frame, or what is due of one is due behind the next one.
    """
    if example.caption and not example.sentences:
        raise ExampleError("the caption has no times, and when to speak is learned from them; give `sentences`")
    if example.later:
        raise ExampleError("questions in mid-video and turns that follow the video exclude each other")
    decisions = find_decisions(tokenizer)
    frames, rows, columns = grid
    begun = encode_chat(
        tokenizer, question=question, answer=None, video_grid_thw=grid, merge_size=merge_size, chat=chat
    )
    prompt = begun[: int(np.flatnonzero(begun == special.video_pad)[0])]
    asked_s = [float(time) for time in question_times([one.time_s for one in example.questions], arrival_s)]
    texts = [encode_question(tokenizer, special, one.text, chat) for one in example.questions]
    sources, item_s = order_by_time(
        [SourceFrame(rows // merge_size, columns // merge_size)] * frames,
        arrival_s,
        list(zip(asked_s, texts, strict=True)),
        prompt=SourceText(tuple(prompt.tolist()), is_item=False),
        close=SourceText(special.trailer, is_item=False),
    )
    asked = [item for source, item in zip(sources, number_items(sources), strict=True) if source in texts]
    begins, spoken = [0, *asked], [list[int]() for _ in item_s]
    for begin, stop, sentences in zip(
        begins,
        [*asked, len(item_s)],
        [example.sentences, *(one.sentences for one in example.questions)],
        strict=True,
    ):
        # An answer that is due when its question comes is due behind it, not behind the frame before.
        thoughts = _thoughts(sentences, tokenizer, decisions, item_s[begin:])
        if any(thoughts[stop - begin :]):
            raise ExampleError(f"of the question at {item_s[begin]:g} s something is due behind the next question")
        spoken[begin] += special.prefix
        for item, words in enumerate(thoughts[: stop - begin], start=begin):
            spoken[item] += [*words, decisions.end] if words else [decisions.skip]
    spoken[-1] += special.im_end, special.newline
    return speak_after_items(sources, spoken)


def question_times(asked_s: Sequence[float], arrival_s: Float[np.ndarray, "F"]) -> Float[np.ndarray, "questions"]:
    """When questions come: at the first frame those before it.

    Args:
        asked_s: when they are asked.
        arrival_s: when each frame arrives.

    Raises:
        ExampleError: if one comes behind the last frame, where a turn of its own would follow.
    """
    if len(asked_s) and max(asked_s) >= arrival_s[-1]:
        raise ExampleError(
            f"a question is asked at {max(asked_s):g} s, and the last frame arrives at {arrival_s[-1]:g} s; ask before"
        )
    return np.maximum(np.asarray(asked_s, np.float64), arrival_s[:1])


def _thoughts(
    sentences: Sequence[Sentence], tokenizer: Tokenizer, decisions: DecisionTokens, item_s: Float[np.ndarray, "items"]
) -> list[list[int]]:
    """The words after each source item, without what ends them."""
    due = [(min(one.time_s, float(item_s[-1])), (number,)) for number, one in enumerate(sentences)]
    thoughts = []
    for numbers in thoughts_by_item(due, item_s):
        text, _ = join_texts([check_text(sentences[number].text, "caption") for number in numbers])
        words = tokenizer.encode(text, add_special_tokens=False) if text else []
        if {decisions.skip, decisions.end} & set(words):
            raise ExampleError(f"the caption contains {SKIP} or {END} written out; remove it from the text")
        thoughts.append(words)
    return thoughts
