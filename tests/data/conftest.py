"""Examples with real videos, and a small tokenizer of Qwen2.5-VL's kind."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast
from video_files import numbered_frame, write_video

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
