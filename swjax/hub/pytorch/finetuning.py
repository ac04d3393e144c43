"""Fine-tuning in PyTorch, on the position ids, spans and labels that the model was trained with.

    from finetuning import Collate, encode_example
    from streaming import Spec, load, read_pictures

    model, processor = load("FOLDER", dtype="bfloat16", device="cuda")
    spec, vision = Spec.of(model), model.config.vision_config
    examples = [encode_example(processor, read_pictures("VIDEO", spec.fps), "What happens?", "A man ...", spec, vision)]
    Trainer(
        model.train(),
        TrainingArguments("runs/more", remove_unused_columns=False),
        train_dataset=examples,
        data_collator=Collate(processor, spec, vision),
    ).train()

Any trainer that calls `model(**batch)` will do. In LLaMA-Factory, `Collate` takes the place of the data collator: it
wants of an example what Qwen2.5-VL's processor makes of a chat, `input_ids`, `pixel_values_videos` and
`video_grid_thw`. Rows are in the order of storage, in which a label stands at the query that predicts it: `labels` and
`shift_labels` are the same, and transformers shifts nothing. The whole answer is trained on, with its <|im_end|>.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from streaming import Placed, Spec, Track, encode_prompt, iter_frames, sdpa_mask
from torch.nn.utils.rnn import pad_sequence

NO_LABEL = -100


@dataclass(frozen=True)
class Layout:
    """A chat in the order of storage.

    Attributes:
        token_ids: [L]. position_ids: [3, L]. start, stop: [L], the slots that each token sees. labels: [L], the token
            that is predicted there; -100 where there is no loss.
    """

    token_ids: np.ndarray
    position_ids: np.ndarray
    start: np.ndarray
    stop: np.ndarray
    labels: np.ndarray


class _Recorder:
    """Goes through a chat as a stream would, and writes down what is stored and what is predicted by whom."""

    def __init__(self, track: Track):
        self.track, self.tokens, self.pieces = track, [], []
        self.labels: dict[int, int] = {}

    def write(self, tokens: Sequence[int], placed: Placed) -> None:
        self.tokens.extend(tokens)
        self.pieces.append(placed)
        if len(tokens):
            self.query = int(placed.slots[-1])

    def speak(self, words: Sequence[int]) -> None:
        for word in words:
            self.write(*self.track.feed())
            self.labels[self.query] = word
            self.track.say([word])


def lay_out(
    token_ids: Sequence[int],
    video_grid_thw: Iterable[Sequence[int]],
    tokenizer: Any,
    spec: Spec,
    vision: Any,
    schedule: int | Sequence[int] | None = None,
) -> Layout:
    """Lay out a chat of one or more questions about videos, with their answers.

    Args:
        token_ids: in the order of the chat template, with a <|video_pad|> for each token of a video.
        video_grid_thw: of each video, in patches.
        tokenizer: of the model.
        spec: what the model is trained to do.
        vision: `model.config.vision_config`.
        schedule: words after each frame: k (wait-k; by default the spec's), or a count for each frame of the chat.
    """
    ids, merge = [int(token) for token in token_ids], vision.spatial_merge_size
    video, image, end = tokenizer.convert_tokens_to_ids(["<|video_pad|>", "<|image_pad|>", "<|im_end|>"])
    prefix = tokenizer("<|im_start|>assistant\n", add_special_tokens=False).input_ids
    if image in ids:
        raise ValueError("the chat has images; streams are laid out of videos alone")
    grids = [(int(t), int(h) // merge, int(w) // merge) for t, h, w in video_grid_thw]
    frames = iter([(number, h, w) for t, h, w in grids for number in range(t)])
    total, cells = sum(t for t, _, _ in grids), sum(t * h * w for t, h, w in grids)
    if ids.count(video) != cells:
        raise ValueError(f"the chat has {ids.count(video)} tokens of videos, and their grids make {cells}")
    counts = [spec.wait_k if schedule is None else schedule] * total if not _is_list(schedule) else list(schedule)
    if len(counts) != total:
        raise ValueError(f"the schedule has counts for {len(counts)} frames, and there are {total}")
    track = Track(spec, vision.temporal_patch_size / spec.fps * vision.tokens_per_second)
    recorder, at, seen = _Recorder(track), 0, 0
    starts = [index for index in range(len(ids)) if ids[index : index + 3] == prefix]
    for turn, opens in enumerate(starts):
        after = next((index for index in range(opens + 1, len(ids)) if ids[index] == prefix[0]), len(ids))
        answer = ids[opens + len(prefix) : after]
        if end not in answer:
            raise ValueError(f"the answer of turn {turn} has no <|im_end|>")
        words = answer[: answer.index(end) + 1]
        spoken, waits, first = 0, True, True
        if turn:
            track.begin_turn()
        while at < opens:
            if ids[at] != video:
                length = next((index for index in range(at, opens) if ids[index] == video), opens) - at
                recorder.write(ids[at : at + length], track.text(length))
            else:
                number, rows, columns = next(frames)
                length = rows * columns
                if not first and track.design.order != "chat":  # what is said after the frame before
                    if waits:
                        track.say(prefix)
                        waits = False
                    count = counts[seen - 1]
                    if spoken + count > len(words) - 1:
                        raise ValueError(f"the answer of turn {turn} ends before its schedule reaches the last frame")
                    recorder.speak(words[spoken : spoken + count])
                    spoken += count
                    recorder.write(*track.feed(before_frame=True))
                recorder.write([video] * length, track.frame(number, rows, columns))
                first, seen = False, seen + 1
            at += length
        if waits:
            track.say(prefix)
        recorder.speak(words[spoken:])
        track.say(answer[len(words) :])
        recorder.write(*track.feed())
        at = after
    if at < len(ids):
        recorder.write(ids[at:], track.text(len(ids) - at))
    origin = track.words if track.design.order == "grouped" else 0
    slots, start, stop = (
        np.concatenate([getattr(piece, name) for piece in recorder.pieces]) + origin
        for name in ("slots", "start", "stop")
    )
    order, labels = np.argsort(slots), np.full(len(slots), NO_LABEL)
    for query, word in recorder.labels.items():
        labels[query + origin] = word
    positions = np.concatenate([piece.positions for piece in recorder.pieces], axis=1)
    return Layout(np.array(recorder.tokens)[order], positions[:, order], start[order], stop[order], labels)


def _is_list(schedule: Any) -> bool:
    return schedule is not None and not isinstance(schedule, int)


def encode_example(
    processor: Any, pictures: Iterable[np.ndarray], question: str, answer: str, spec: Spec, vision: Any
) -> dict[str, Any]:
    """What `Collate` wants of an example: a question about a video, and its answer.

    Args:
        processor: of the model, or its tokenizer.
        pictures: uint8 [height, width, 3], RGB, `spec.fps` a second, all of one size.
        question: what is asked.
        answer: its text, without <|im_end|>.
        spec: what the model is trained to do.
        vision: `model.config.vision_config`.
    """
    tokenizer = getattr(processor, "tokenizer", processor)
    prompt, trailer, prefix = encode_prompt(tokenizer, processor.chat_template, question)
    patches, grids = zip(*((pixels, grid) for pixels, grid, _ in iter_frames(pictures, spec, vision)), strict=True)
    if len(set(grids)) > 1:
        raise ValueError("the pictures of a video must be of one size")
    (rows, columns), frames = grids[0], len(patches)
    video = [tokenizer.convert_tokens_to_ids("<|video_pad|>")] * (
        frames * rows * columns // vision.spatial_merge_size**2
    )
    words = tokenizer(answer.strip(), add_special_tokens=False).input_ids
    return {
        "input_ids": [*prompt, *video, *trailer, *prefix, *words, *trailer[1:]],
        "pixel_values_videos": torch.from_numpy(np.concatenate(patches)),
        "video_grid_thw": torch.tensor([[frames, rows, columns]]),
    }


class Collate:
    """Makes a batch of examples.

    Args:
        processor: of the model, or its tokenizer.
        spec: what the model is trained to do.
        vision: `model.config.vision_config`.
        attention: the decoder's attn_implementation: "sdpa", "eager", or "flex" (`use_flex_attention`).
        device: where a block mask for "flex" is made; it must be the model's.
    """

    def __init__(self, processor: Any, spec: Spec, vision: Any, attention: str = "sdpa", device: str = "cpu"):
        if attention not in ("sdpa", "eager", "flex"):
            raise ValueError(f"{attention} cannot take the mask of a stream; choose sdpa, eager or flex")
        self.tokenizer = getattr(processor, "tokenizer", processor)
        self.spec, self.vision, self.attention, self.device = spec, vision, attention, device

    def __call__(self, examples: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """Tensors by the names of the model's arguments; rows are padded, and padding sees itself alone.

        An example may have a `schedule` of its own.
        """
        layouts = [
            lay_out(
                example["input_ids"],
                example["video_grid_thw"],
                self.tokenizer,
                self.spec,
                self.vision,
                example.get("schedule"),
            )
            for example in examples
        ]
        alone = torch.arange(max(len(layout.labels) for layout in layouts))

        def rows(name: str, padding: int) -> torch.Tensor:
            arrays = [torch.from_numpy(np.asarray(getattr(layout, name)).T) for layout in layouts]
            return pad_sequence(arrays, batch_first=True, padding_value=padding)

        start, stop = rows("start", -1), rows("stop", -1)
        start, stop = torch.where(stop < 0, alone, start), torch.where(stop < 0, alone + 1, stop)
        mask: Any = sdpa_mask(start, stop, len(alone))
        if self.attention == "flex":
            mask = flex_mask(start.to(self.device), stop.to(self.device))
        if self.attention == "eager":
            mask = torch.where(mask, 0.0, torch.finfo(torch.float32).min)
        labels = rows("labels", NO_LABEL)
        return {
            "input_ids": rows("token_ids", self.tokenizer.convert_tokens_to_ids("<|im_end|>")),
            "position_ids": rows("position_ids", 0).permute(2, 0, 1),
            "attention_mask": mask,
            "labels": labels,
            "shift_labels": labels,
            "pixel_values_videos": torch.cat([torch.as_tensor(one["pixel_values_videos"]) for one in examples]),
            "video_grid_thw": torch.cat([torch.as_tensor(one["video_grid_thw"]) for one in examples]),
        }


def flex_mask(start: torch.Tensor, stop: torch.Tensor) -> Any:
    """Spans [B, L] as the block mask of FlexAttention, on their device."""
    from torch.nn.attention.flex_attention import create_block_mask

    def sees(batch: Any, head: Any, query: Any, key: Any) -> Any:
        return (key >= start[batch, query]) & (key < stop[batch, query])

    return create_block_mask(sees, len(start), None, start.shape[1], start.shape[1], device=start.device)


def use_flex_attention(model: Any) -> None:
    """Let the decoder compute with FlexAttention, which skips what nobody sees (`Collate(..., attention="flex")`)."""
    from torch.nn.attention.flex_attention import flex_attention
    from transformers import AttentionInterface

    compiled = torch.compile(flex_attention)

    def attend(module: Any, query: Any, key: Any, value: Any, mask: Any, **_: Any) -> tuple[torch.Tensor, None]:
        return compiled(query, key, value, block_mask=mask, enable_gqa=True).transpose(1, 2).contiguous(), None

    AttentionInterface.register("streaming_flex", attend)
    model.config.get_text_config()._attn_implementation = "streaming_flex"
