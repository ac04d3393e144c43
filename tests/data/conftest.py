"""Real videos, small, and a small tokenizer of Qwen2.5-VL's kind."""

import json
from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from swjax.data.example import VideoExample

CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n"
    "{% if message.content is string %}{{ message.content }}{% else %}{% for part in message.content %}"
    "{% if part.type == 'video' %}<|vision_start|><|video_pad|><|vision_end|>{% else %}{{ part.text }}{% endif %}"
    "{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SPECIAL_TOKENS = (
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|video_pad|>",
    "<|image_pad|>",
)


def numbered_frame(number: int, height: int = 64, width: int = 96) -> np.ndarray:
    """A frame that shows its number in base 16: the left half the low digit, the right half the high one."""
    frame = np.zeros((height, width, 3), np.uint8)
    frame[:, : width // 2] = 8 + 15 * (number % 16)
    frame[:, width // 2 :] = 8 + 15 * (number // 16 % 16)
    return frame


def number_of(frame: np.ndarray) -> int:
    """The number that a decoded frame shows."""
    width = frame.shape[1]
    low = frame[8:-8, 8 : width // 2 - 8].mean()
    high = frame[8:-8, width // 2 + 8 : -8].mean()
    return round((low - 8) / 15) + 16 * round((high - 8) / 15)


def write_video(
    path: Path,
    *,
    frames: Sequence[np.ndarray] | None = None,
    num_frames: int = 24,
    rate: int | Fraction = 24,
    times: Sequence[float] | None = None,
    height: int = 64,
    width: int = 96,
    rotation: int = 0,
    options: dict[str, str] | None = None,
) -> Path:
    """Encode H.264. Without frames, frame i shows the number i; times (seconds) make the frame rate variable."""
    if frames is None:
        frames = [numbered_frame(i, height, width) for i in range(len(times) if times else num_frames)]
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w", options=options or {}) as container:
        stream = container.add_stream("libx264", rate=rate, options={"preset": "ultrafast"})
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = "yuv420p"
        if rotation:
            stream.set_display_rotation(rotation)
        if times:
            stream.codec_context.time_base = Fraction(1, 1000)
        for index, pixels in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(pixels, "rgb24")
            frame.pts = round(1000 * times[index]) if times else index
            frame.time_base = Fraction(1, 1000) if times else 1 / Fraction(rate)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(pattern=Regex(" ?[^\\s]+|\\s+"), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    backend.train_from_iterator(
        ["system", "user", "assistant", "The video shows a red square that turns and leaves."] * 4,
        trainers.BpeTrainer(
            vocab_size=400,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            special_tokens=["<|endoftext|>", *SPECIAL_TOKENS],
            show_progress=False,
        ),
    )
    fast = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|im_end|>", pad_token="<|endoftext|>")
    fast.chat_template = CHAT_TEMPLATE
    return fast


@pytest.fixture
def manifest_file(tmp_path: Path) -> Callable[..., Path]:
    """Write a manifest of the given lines (objects or raw text) beside one video, videos/a.mp4."""
    write_video(tmp_path / "videos" / "a.mp4")

    def write(*lines: Any) -> Path:
        path = tmp_path / "manifest.jsonl"
        path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
        return path

    return write


@pytest.fixture(scope="session")
def examples(tmp_path_factory: pytest.TempPathFactory) -> tuple[VideoExample, ...]:
    """Seven good examples of 2 and 3 seconds."""
    folder = tmp_path_factory.mktemp("examples")
    made = []
    for i in range(7):
        seconds = 2 + i % 2
        frames = [numbered_frame(8 * i + f // 12, 56, 56) for f in range(24 * seconds)]
        path = write_video(folder / f"{i}.mp4", frames=frames)
        caption = f"The video shows a red square number {i} that turns and leaves."
        made.append(VideoExample(f"example{i}", path, float(seconds), caption))
    return tuple(made)
