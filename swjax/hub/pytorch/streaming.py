"""A model that speaks while it watches, in PyTorch: this file, torch and transformers (4.57 or 5) are all it needs.

    python streaming.py VIDEO --question "What happens?"

or

    from streaming import load, read_pictures, stream

    model, processor = load("FOLDER")
    for word in stream(model, processor, read_pictures("VIDEO", fps=2), "What happens?"):
        print(word.text, end="", flush=True)

Two groups of tokens share a stream (arXiv 2601.06843, section 3). Sources (prompt, frames) see earlier sources alone;
words see the frames that had arrived when they were spoken, and earlier words. Stored with the words in reverse before
the sources,

    slot:   ... -3  -2  -1 |  0   1   2 ...
    token:  ... a3  a2  a1 | s1  s2  s3 ...

all that a token sees is one span of slots. So a stream needs three things, and they are this file: position ids and
spans (`Track`), a cache that grows at both ends (`TwoEndedCache`), and the order of events (`stream`). Each frame is
encoded once and each token computed once. `finetuning.py`, beside this file, trains on the same ids and spans.

Videos are read with PyAV and resized with Pillow, as in training: pip install av pillow.
"""

import argparse
import dataclasses
import json
import math
import sys
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors.torch import load_file
from tokenizers.decoders import DecodeStream
from transformers import AutoModelForImageTextToText, AutoTokenizer

HERE = Path(__file__).parent
MOST_WORDS = 300
SYSTEM = "You are a helpful assistant."
QUESTION = "Describe the scene in this video and the activity that takes place in it."
PIXEL_MEAN = np.array([0.48145466, 0.4578275, 0.40821073], np.float32)
PIXEL_STD = np.array([0.26862954, 0.26130258, 0.27577711], np.float32)


@dataclass(frozen=True)
class Spec:
    """What a model was trained to do: the block `streaming` of config.json, or streaming.json beside an adapter.

    variant: position design. wait_k: words (tokens) after each frame. gap: first id of the answer in gipe. fps:
    pictures a second; two make a frame. min_pixels, max_pixels: area of a resized picture. max_tail: most words after
    the last frame. speaking: wait_k, or decide: after each frame <skip>, or words and </think>. memory, drop: what
    streams keep and what frames lose in swjax; here everything is kept.
    """

    variant: str = "gdpe"
    wait_k: int = 3
    gap: int = 10_000
    fps: float = 2.0
    min_pixels: int = 56 * 56
    max_pixels: int = 448 * 448
    max_tail: int = 300
    speaking: str = "wait_k"
    memory: str = "keep_all"
    drop: str = "none"

    def __post_init__(self):
        if self.drop != "none":
            warnings.warn(f"trained on frames without what {self.drop} drops; it sees whole ones here", stacklevel=3)
        if self.variant not in DESIGNS:
            raise ValueError(f"unknown variant {self.variant!r}; the designs are {', '.join(DESIGNS)}")

    @classmethod
    def of(cls, model: Any) -> "Spec":
        """That of a model from `load`, or of any whose config has the block."""
        return cls(**model.config.streaming)


class Design(NamedTuple):
    """order: of storage, and with it who sees whom. count: of position ids: one for all, two, or overlapped (ospe)."""

    order: str
    count: str


DESIGNS = {
    "offline": Design("chat", "one"),
    "offline_gdpe": Design("chat", "two"),
    "interleave": Design("arrival", "one"),
    "ospe": Design("grouped", "overlapped"),
    "gdpe": Design("grouped", "two"),
    "gipe": Design("grouped", "two"),
}


class Placed(NamedTuple):
    """Temporal, height and width ids of tokens [3, N], their slots [N], and the span of slots that each sees."""

    positions: np.ndarray
    slots: np.ndarray
    start: np.ndarray
    stop: np.ndarray


class Track:
    """Position ids, slots and spans of a stream's tokens, in the order in which they come.

    Slots count from the first source; in grouped designs words have slots below it. Words get their ids when they are
    spoken (`say`) and wait for their slots until their successor is wanted (`feed`): what they see is what has arrived
    by then.
    """

    def __init__(self, spec: Spec, stride: float):
        """stride: temporal ids from one frame to the next."""
        self.design, self.stride = DESIGNS[spec.variant], stride
        self.next_source, self.next_word = 0, spec.gap if spec.variant == "gipe" else 0
        self.video_start, self.ahead = 0, False
        self.sources = self.words = 0
        self.waiting, self.positions = [], np.zeros((3, 0), int)

    def text(self, length: int) -> Placed:
        """Text among the sources: M-RoPE counts its three ids on together."""
        start, self.next_source, self.ahead = self.next_source, self.next_source + length, True
        return self._source(np.tile(start + np.arange(length), (3, 1)))

    def frame(self, number: int, rows: int, columns: int) -> Placed:
        """A frame, among the sources.

        Args:
            number: of the frame in its video; 0 begins one.
            rows, columns: size in merged patches.
        """
        if self.design.count == "overlapped":
            self._catch_up()
        # Where ids of words come between those of frames, each frame is positioned like a video of its own.
        alone = self.design.count == "overlapped" or self.design.order == "arrival"
        if alone or number == 0:
            self.video_start = self.next_source
        time = 0 if alone else int(np.floor(np.float32(number) * np.float32(self.stride)))
        cells = np.indices((1, rows, columns)).reshape(3, -1) + np.array([[time], [0], [0]])
        self.next_source, self.ahead = max(self.next_source, self.video_start + cells.max() + 1), True
        return self._source(self.video_start + cells)

    def say(self, token_ids: Sequence[int]) -> None:
        """Words: the first three tokens of an answer, and then each word when it is spoken."""
        length = len(token_ids)
        if self.design.count == "one":
            start, self.next_source = self.next_source, self.next_source + length
        else:
            if self.design.count == "overlapped":
                self._catch_up()
            start, self.next_word = self.next_word, self.next_word + length
        self.waiting = [*self.waiting, *token_ids]
        self.positions = np.concatenate([self.positions, np.tile(start + np.arange(length), (3, 1))], axis=1)

    def feed(self, *, before_frame: bool = False) -> tuple[list[int], Placed]:
        """The words that wait, which then see all that has arrived.

        Before another frame these are, in order of arrival, all; in grouped designs, when nothing has been said since
        the first frame, the prefix of the answer but for its last token: these see that frame alone.
        """
        count = len(self.waiting)
        if before_frame and self.design.order != "arrival":
            count = max(0, count - 1) if self.design.order == "grouped" else 0
        number = np.arange(count)
        slots = self.sources + self.words + number
        start, stop = np.zeros_like(slots), slots + 1
        if self.design.order == "grouped":
            start = slots = -1 - self.words - number
            stop = np.full_like(slots, self.sources)
        fed = self.waiting[:count], Placed(self.positions[:, :count], slots, start, stop)
        self.words += count
        self.waiting, self.positions = self.waiting[count:], self.positions[:, count:]
        return fed

    def begin_turn(self) -> None:
        """A later question: in ospe it stands behind the last words."""
        if self.design.count == "overlapped":
            self.next_source = max(self.next_source, self.next_word)

    def _catch_up(self) -> None:
        """ospe: what comes after a frame, be it words or the next frame, starts behind all ids so far."""
        if self.ahead:
            self.next_source = self.next_word = max(self.next_source, self.next_word)
        self.ahead = False

    def _source(self, positions: np.ndarray) -> Placed:
        first = self.sources + (0 if self.design.order == "grouped" else self.words)
        slots = first + np.arange(positions.shape[1])
        self.sources += len(slots)
        return Placed(positions, slots, np.zeros_like(slots), slots + 1)


def sdpa_mask(start: torch.Tensor, stop: torch.Tensor, keys: int) -> torch.Tensor:
    """Spans as the mask of scaled_dot_product_attention: bool [..., 1, Q, keys], true where a key is seen.

    Args:
        start, stop: int [..., Q], the first key that each query sees, and the one after the last.
        keys: how many there are.
    """
    key = torch.arange(keys, device=start.device)
    return ((key >= start[..., None]) & (key < stop[..., None])).unsqueeze(-3)


class TwoEndedCache:
    """Keys and values of one stream, by slot: what a piece of tokens sees is a slice, and nothing ever moves."""

    def __init__(self):
        self.layers: list[list[torch.Tensor]] = []
        self.origin = self.room = 0

    def expect(self, placed: Placed) -> None:
        """Make room for tokens that are written next, doubling the end that would run over."""
        low, high = int(placed.slots.min()), int(placed.slots.max()) + 1
        left = max(-low - self.origin, self.origin, 256) if -low > self.origin else 0
        right = max(high + self.origin - self.room, self.room, 256) if high + self.origin > self.room else 0
        if left or right:
            pad = (0, 0, left, right)
            self.layers = [[torch.nn.functional.pad(side, pad) for side in layer] for layer in self.layers]
            self.origin, self.room = self.origin + left, self.room + left + right
        self.write = slice(low + self.origin, high + self.origin)
        self.first, self.last = int(placed.start.min()) + self.origin, int(placed.stop.max()) + self.origin
        self.reversed = bool(placed.slots[0] > placed.slots[-1])

    def update(self, keys: torch.Tensor, values: torch.Tensor, layer: int, *_: Any, **__: Any) -> tuple[Any, Any]:
        """What transformers calls in each layer: write, and return all that the tokens see.

        Args:
            keys, values: [1, heads, N, features], of the tokens that `expect` has made room for.
            layer: its number.
        """
        if layer == len(self.layers):
            self.layers.append([new.new_zeros(*new.shape[:2], self.room, new.shape[3]) for new in (keys, values)])
        for side, new in zip(self.layers[layer], (keys, values), strict=True):
            side[:, :, self.write] = new.flip(2) if self.reversed else new
        keys, values = (side[:, :, self.first : self.last] for side in self.layers[layer])
        return keys, values

    def get_seq_length(self, layer: int = 0) -> int:
        """Positions are given, so transformers has nothing to count."""
        return 0


class Speaker:
    """A model in the middle of a stream: what has been written, and the words that wait to be."""

    def __init__(self, model: Any, spec: Spec):
        model = model.get_base_model() if hasattr(model, "get_base_model") else model  # of PEFT
        self.kind = model.config.get_text_config()._attn_implementation
        if model.training or self.kind not in ("sdpa", "eager"):
            raise ValueError("load the model with attn_implementation='sdpa', and call model.eval() before it streams")
        self.model, self.vision = model, model.config.vision_config
        self.track = Track(spec, self.vision.temporal_patch_size / spec.fps * self.vision.tokens_per_second)
        self.cache, self.hidden = TwoEndedCache(), None

    @torch.no_grad()
    def write(self, tokens: Sequence[int] | torch.Tensor, placed: Placed) -> None:
        """Run tokens, ids or features [N, D], through the decoder; `hidden` is then what their last one leads to."""
        if not len(tokens):
            return
        if not isinstance(tokens, torch.Tensor):
            tokens = self.model.get_input_embeddings()(torch.tensor(tokens, device=self.model.device))
        self.cache.expect(placed)
        mask = None
        if len(placed.slots) > 1:
            shift = self.cache.origin - self.cache.first
            edges = (torch.from_numpy(edge + shift).to(tokens.device) for edge in (placed.start, placed.stop))
            mask = sdpa_mask(*edges, self.cache.last - self.cache.first)[None]
            if self.kind == "eager":
                mask = torch.where(mask, 0.0, torch.finfo(tokens.dtype).min).to(tokens.dtype)
        self.hidden = self.model.model.language_model(
            inputs_embeds=tokens[None],
            position_ids=torch.from_numpy(placed.positions).to(tokens.device)[:, None],
            attention_mask={"full_attention": mask, "sliding_attention": mask},
            past_key_values=self.cache,
            use_cache=True,
        ).last_hidden_state[0, -1]

    @torch.no_grad()
    def see(self, number: int, pixels: np.ndarray, grid: tuple[int, int]) -> None:
        """Write a frame, and before it the words that come before it.

        Args:
            number: of the frame in its video; 0 begins one.
            pixels: its patches, from `make_patches`.
            grid: rows and columns in patches.
        """
        self.write(*self.track.feed(before_frame=True))
        visual, merge = self.model.model.visual, self.vision.spatial_merge_size
        patches = torch.from_numpy(pixels).to(self.model.device, visual.dtype)
        found = visual(patches, grid_thw=torch.tensor([[1, *grid]], device=self.model.device))
        features = getattr(found, "pooler_output", found)  # of transformers 5, of 4
        self.write(features, self.track.frame(number, grid[0] // merge, grid[1] // merge))

    @torch.no_grad()
    def scores(self) -> torch.Tensor:
        """Of the next word, float32[V]: it follows the last word, or in order of arrival the frame behind it."""
        self.write(*self.track.feed())
        return self.model.lm_head(self.hidden).float()


class Word(NamedTuple):
    """A token that was spoken: its text ('' within a character), its id, and the frame that had arrived last, with the
    time in seconds of its later picture."""

    text: str
    token_id: int
    frame: int
    time_s: float


def stream(
    model: Any,
    processor: Any,
    pictures: Iterable[np.ndarray],
    question: str = QUESTION,
    *,
    spec: Spec | None = None,
    schedule: int | Sequence[int] | None = None,
    max_tail: int | None = None,
    threshold: float = 0.0,
    temperature: float = 0.0,
    top_k: int = 0,
    top_p: float = 1.0,
    repetition_penalty: float = 1.0,
    seed: int = 0,
) -> Iterator[Word]:
    """Watch pictures as they come and speak meanwhile, until the end token or `max_tail` words after the last frame.

    Args:
        model: from `load`, or a Qwen2.5-VL of transformers, bare or in PEFT's form.
        processor: its processor or tokenizer.
        pictures: uint8 [height, width, 3], RGB, `spec.fps` a second; one frame is read ahead, to know the last.
        question: what is asked.
        spec: what the model was trained to do; by default as its config says.
        schedule: words after each frame: k (wait-k; by default as trained), or a count for each frame but the last. A
            model that decides needs none.
        max_tail: most words after the last frame; by default as the spec says.
        threshold: of a model that decides: probability of silence below which it speaks.
        temperature, top_k, top_p: 0 takes the likeliest word; else one is drawn from the likeliest.
        repetition_penalty: divides positive scores of tokens that the answer has already, multiplies negative ones.
        seed: of what is drawn.
    """
    spec = spec or Spec.of(model)
    decides = spec.speaking == "decide" and schedule is None
    schedule = MOST_WORDS if decides else spec.wait_k if schedule is None else schedule
    max_tail = spec.max_tail if max_tail is None else max_tail
    tokenizer = getattr(processor, "tokenizer", processor)
    speaker = Speaker(model, spec)
    prompt, trailer, prefix = encode_prompt(tokenizer, processor.chat_template, question)
    generator = torch.Generator(speaker.model.device).manual_seed(seed)
    pauses = tuple(tokenizer.convert_tokens_to_ids(token) for token in ("<skip>", "</think>")) if decides else ()
    decoder, said, begun, speaking, gap = DecodeStream(skip_special_tokens=True), [], False, False, ""
    track, per_frame = speaker.track, speaker.vision.temporal_patch_size
    speaker.write(prompt, track.text(len(prompt)))
    for frame, (patches, grid, last) in enumerate(iter_frames(pictures, spec, speaker.vision)):
        speaker.see(frame, patches, grid)
        if last:
            speaker.write(trailer, track.text(len(trailer)))
        elif track.design.order == "chat":
            continue  # it speaks after the video
        if not begun:
            track.say(prefix)
            begun = True
        if not last and not isinstance(schedule, int) and frame >= len(schedule):
            raise ValueError(f"the schedule has counts for {len(schedule)} frames, but frame {frame} is not the last")
        for number in range(max_tail if last else schedule if isinstance(schedule, int) else schedule[frame]):
            scores = speaker.scores()
            unlikely = decides and not (number or speaking) and scores.softmax(0)[pauses[0]] < threshold
            without = pauses[0] if unlikely else None
            token = choose(scores, said, temperature, top_k, top_p, repetition_penalty, generator, without)
            if token == trailer[1]:  # <|im_end|>
                return
            track.say([token])
            text, speaking = "", token not in pauses
            if speaking:
                said.append(token)
                text = decoder.step(tokenizer.backend_tokenizer, token) or ""
                text, gap = gap * bool(text) + text, "" if text else gap
            else:
                decoder, gap = DecodeStream(skip_special_tokens=True), " " * bool(said)
            yield Word(text, token, frame, ((frame + 1) * per_frame - 1) / spec.fps)
            if decides and not speaking and not last:
                break


def choose(
    scores: torch.Tensor,
    said: Sequence[int],
    temperature: float,
    top_k: int,
    top_p: float,
    penalty: float,
    generator: torch.Generator,
    without: int | None = None,
) -> int:
    """The next token, likeliest or drawn.

    Args:
        scores: float32 [V], finite; they are changed in place.
        said: token ids of the answer so far, which the penalty is for.
        temperature: divides the scores; 0 takes the likeliest.
        top_k: draw from so many of the likeliest; 0 for all.
        top_p: draw from the fewest of the likeliest whose probabilities reach this sum.
        penalty: divides positive scores of what has been said, multiplies negative ones.
        generator: draws, on the device of the scores.
        without: id of a token that is not to be chosen.
    """
    if not torch.isfinite(scores).all():
        raise FloatingPointError(f"the scores of word {len(said)} are not finite; use float32 or bfloat16")
    if said and penalty != 1:
        before = torch.tensor(sorted(set(said)), device=scores.device)
        kept = scores[before]
        scores[before] = torch.where(kept > 0, kept / penalty, kept * penalty)
    if without is not None:
        scores[without] = -torch.inf
    if temperature <= 0:
        return int(scores.argmax())
    falling, order = (scores / temperature).sort(descending=True, stable=True)
    falling[top_k or len(falling) :] = -torch.inf
    chances = falling.softmax(0)
    chances[1:][(chances.cumsum(0) - chances)[1:] >= top_p] = 0
    return int(order[torch.multinomial(chances, 1, generator=generator)])


def encode_prompt(tokenizer: Any, template: str | None, question: str) -> tuple[list[int], list[int], list[int]]:
    """Token ids before the first frame, after the last, and at the beginning of the answer.

    Args:
        tokenizer: of the model.
        template: the chat template, which must put the video last; None for the tokenizer's own.
        question: its text, with no special token in it.
    """
    special = {number for number, token in tokenizer.added_tokens_decoder.items() if token.special}
    if special & set(tokenizer(question, add_special_tokens=False).input_ids):
        raise ValueError("the question has a special token written out; take it out of the text")
    content = [{"type": "text", "text": question.strip()}, {"type": "video"}]
    text = tokenizer.apply_chat_template(
        [{"role": "system", "content": SYSTEM}, {"role": "user", "content": content}],
        chat_template=template,
        tokenize=False,
        add_generation_prompt=True,
    )
    before, video, behind = text.partition("<|video_pad|>")
    trailer, opening, prefix = behind.partition("<|im_start|>")
    if not video or trailer != "<|vision_end|><|im_end|>\n" or prefix != "assistant\n":
        raise ValueError(f"the chat template does not end a question with its video and an answer, but with {behind!r}")
    pieces = (before, trailer, opening + prefix)
    return tuple(tokenizer(piece, add_special_tokens=False).input_ids for piece in pieces)


def iter_frames(pictures: Iterable[np.ndarray], spec: Spec, vision: Any) -> Iterator[tuple[np.ndarray, Any, bool]]:
    """Patches of each frame, its grid, and whether it is the last; pictures that make no whole frame are left out.

    Args:
        pictures: uint8 [height, width, 3], RGB, `spec.fps` a second.
        spec: what the model is trained to do.
        vision: `model.config.vision_config`.

    Raises:
        ValueError: the pictures are too few for a frame.
    """
    group: list[np.ndarray] = []
    waiting = None
    for picture in pictures:
        group.append(np.asarray(picture))
        if len(group) == vision.temporal_patch_size:
            if waiting is not None:
                yield *waiting, False
            waiting, group = make_patches(group, spec, vision), []
    if waiting is None:
        raise ValueError(f"the video is shorter than a frame, which takes {vision.temporal_patch_size} pictures")
    yield *waiting, True


def make_patches(pictures: Sequence[np.ndarray], spec: Spec, vision: Any) -> tuple[np.ndarray, tuple[int, int]]:
    """Normalized patches of a frame, float32 [rows * columns, C * T * P * P] in the processor's order, and its grid.

    Args:
        pictures: the T of the frame, uint8 [height, width, 3], RGB; all are resized alike.
        spec: what the model is trained to do.
        vision: `model.config.vision_config`.
    """
    from PIL import Image

    patch, merge, times = vision.patch_size, vision.spatial_merge_size, len(pictures)
    height, width = resized_size(*pictures[0].shape[:2], spec, patch * merge)
    rows, columns = height // patch, width // patch
    resized = [Image.fromarray(picture).resize((width, height), Image.Resampling.BICUBIC) for picture in pictures]
    pixels = (np.stack([np.asarray(picture) for picture in resized]).astype(np.float32) / 255 - PIXEL_MEAN) / PIXEL_STD
    blocks = pixels.reshape(times, rows // merge, merge, patch, columns // merge, merge, patch, 3)
    blocks = blocks.transpose(1, 4, 2, 5, 7, 0, 3, 6)  # rows and columns of tokens, of their patches; channel, time
    return np.ascontiguousarray(blocks.reshape(rows * columns, -1)), (rows, columns)


def resized_size(height: int, width: int, spec: Spec, factor: int) -> tuple[int, int]:
    """The size that Qwen2-VL's processor gives a picture: near its shape, whole factors, an area within the budget.

    Args:
        height, width: of the picture, in pixels.
        spec: its min_pixels and max_pixels are the budget.
        factor: pixels on a side of a merged patch, which both sides become multiples of.
    """
    rows, columns = round(height / factor), round(width / factor)
    if rows * columns * factor**2 > spec.max_pixels:
        scale = math.sqrt(height * width / spec.max_pixels)
        rows, columns = (max(1, math.floor(side / scale / factor)) for side in (height, width))
    elif rows * columns * factor**2 < spec.min_pixels:
        scale = math.sqrt(spec.min_pixels / (height * width))
        rows, columns = (math.ceil(side * scale / factor) for side in (height, width))
    return rows * factor, columns * factor


def read_pictures(video: str | Path, fps: float) -> Iterator[np.ndarray]:
    """Decode a file: at 0, 1/fps, 2/fps ... seconds after its first picture, what is on screen then. Needs PyAV."""
    try:
        import av
    except ImportError as error:
        raise ImportError("reading a video needs PyAV (pip install av)") from error
    due, shown, began = 0, None, 0.0
    with av.open(str(video)) as container:
        if not container.streams.video:
            raise ValueError(f"{video} has no video stream")
        for picture in container.decode(container.streams.video[0]):
            began = picture.time if shown is None else began
            while shown is not None and due / fps < picture.time - began - 0.0011:  # times are rounded to milliseconds
                yield _rgb(shown)
                due += 1
            step = picture.time - shown.time if shown is not None else 0.0
            shown = picture
    if shown is None:
        raise ValueError(f"{video} has no picture that can be decoded")
    length = float(shown.duration * shown.time_base) if shown.duration else step
    while due / fps < shown.time + length - began - 0.0011:
        yield _rgb(shown)
        due += 1


def _rgb(picture: Any) -> np.ndarray:
    return np.ascontiguousarray(np.rot90(picture.to_ndarray(format="rgb24"), picture.rotation // 90))


def load(
    folder: str | Path = HERE, *, base: str | None = None, dtype: Any = "auto", device: str = "cpu"
) -> tuple[Any, Any]:
    """The model of an exported folder, and its tokenizer; an adapter is merged into its base.

    Args:
        folder: by default that of this file.
        base: of an adapter: folder or hub id of the model that it belongs to; by default as the adapter says.
        dtype: of the weights, as transformers takes it; "auto" for that in which they are stored.
        device: where the model goes.
    """
    folder = Path(folder)
    adapter, weights = _read(folder / "adapter_config.json"), folder
    if base and not adapter:
        raise ValueError(f"{folder} is no adapter, so it takes no base (--base)")
    if adapter:
        weights = base or adapter.get("base_model_name_or_path")
        if not weights:
            raise ValueError(f"{folder} is an adapter that does not name its base; give the base (--base)")
    model, report = AutoModelForImageTextToText.from_pretrained(
        weights, dtype=dtype, attn_implementation="sdpa", output_loading_info=True
    )
    faults = {kind: sorted(report[kind]) for kind in ("missing_keys", "unexpected_keys") if report[kind]}
    if faults:
        raise ValueError(f"{weights}: transformers finds {faults}")
    if adapter:
        rank = adapter["r"]
        scale = adapter["lora_alpha"] / (rank**0.5 if adapter.get("use_rslora") else rank)
        _merge(model, load_file(folder / "adapter_model.safetensors"), scale)
        model.config.streaming = dataclasses.asdict(Spec(**_read(folder / "streaming.json")))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    # Where there is a template for processors, that of the tokenizer may know of text alone.
    for name in ("chat_template.json", "processor_config.json"):
        tokenizer.chat_template = _read(folder / name).get("chat_template") or tokenizer.chat_template
    return model.to(device).eval(), tokenizer


def _merge(model: Any, tensors: dict[str, torch.Tensor], scale: float) -> None:
    """W + alpha / r * B A, for each linear layer that has an adapter; what was trained beside them as it is.

    Of DoRA each output's weights get the length that the adapter gives.
    """
    for name in (name for name in tensors if ".lora_" not in name):
        parameter = model.get_parameter(name.removeprefix("base_model.model."))
        parameter.data = tensors[name].to(parameter.dtype)
    for name in (name for name in tensors if name.endswith(".lora_A.weight")):
        layer = model.get_submodule(name.removeprefix("base_model.model.").removesuffix(".lora_A.weight"))
        change = tensors[name.replace("lora_A", "lora_B")].float() @ tensors[name].float()
        merged = layer.weight.detach().float() + scale * change
        lengths = tensors.get(name.replace("lora_A.weight", "lora_magnitude_vector"))
        if lengths is not None:
            merged *= (lengths.float() / merged.norm(dim=1))[:, None]
        layer.weight.data = merged.to(layer.weight.dtype)


def _read(file: Path) -> dict[str, Any]:
    return json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}


def main(words: Sequence[str] | None = None) -> None:
    """The program: a line for each frame, with the words that were spoken after it."""
    parser = argparse.ArgumentParser(description="Let a model describe a video while it watches.")
    parser.add_argument("video", help="a file that PyAV can decode")
    parser.add_argument("--question", default=QUESTION)
    parser.add_argument("--model", default=HERE, help="exported folder (default: that of this file)")
    parser.add_argument("--base", help="of an adapter: the model that it belongs to (default: as it says)")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", default="auto", help="float32, bfloat16 ... (default: the weights')")
    parser.add_argument("--schedule", help="words after each frame: 3, or 3,0,5,... (default: as trained)")
    parser.add_argument("--max-tail", type=int, help="most words after the last frame (default: as trained)")
    for name, value in (("temperature", 0.0), ("top-k", 0), ("top-p", 1.0), ("seed", 0)):
        parser.add_argument(f"--{name}", type=type(value), default=value)
    parser.add_argument("--repetition-penalty", type=float, default=1.0, help="the paper evaluates with 1.15")
    given = vars(parser.parse_args(words))
    video, folder, base, device, dtype = (given.pop(name) for name in ("video", "model", "base", "device", "dtype"))
    counts = [int(count) for count in (given.pop("schedule") or "").split(",") if count]
    given["schedule"] = counts if len(counts) > 1 else counts[0] if counts else None
    model, processor = load(folder, base=base, dtype=dtype, device=device)
    shown = -1
    for word in stream(model, processor, read_pictures(video, Spec.of(model).fps), **given):
        if word.frame != shown:
            print(f"\n{word.time_s:7.1f} s  frame {word.frame:3}  ", end="")
            shown = word.frame
        print(word.text, end="", flush=True)
    print()


if __name__ == "__main__":
    try:
        main()
    except (ValueError, ImportError, OSError) as error:
        sys.exit(f"streaming.py: {error}")
