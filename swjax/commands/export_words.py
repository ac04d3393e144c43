"""What an exported folder says in PyTorch beside what it says here, of a video that is made up on the spot."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from jaxtyping import UInt8

FRAMES, SIDE, TAIL = 4, 112, 8
QUESTION = "What happens?"


def compare_words(folder: Path) -> tuple[list[int], list[int]]:
    """Tokens of the greedy answer by the folder's own streaming.py, and by `StreamSession`, both in float32.

    Args:
        folder: exported, of a whole model.
    """
    pictures = _pictures(np.random.default_rng(0))
    return _their_words(folder, pictures), _our_words(folder, pictures)


def _pictures(rng: np.random.Generator) -> list[UInt8[np.ndarray, "H W 3"]]:
    """A bright square that wanders over noise."""
    pictures = []
    for number in range(2 * FRAMES):
        picture = rng.integers(0, 80, (SIDE, SIDE, 3), np.uint8)
        at = number * SIDE // (2 * FRAMES)
        picture[at : at + SIDE // 4, at : at + SIDE // 4] = (250, 200, 40)
        pictures.append(picture)
    return pictures


def _their_words(folder: Path, pictures: list[np.ndarray]) -> list[int]:
    import torch

    streaming = _imported(folder / "streaming.py")
    model, tokenizer = streaming.load(folder, dtype=torch.float32)
    return [word.token_id for word in streaming.stream(model, tokenizer, pictures, QUESTION, max_tail=TAIL)]


def _our_words(folder: Path, pictures: list[np.ndarray]) -> list[int]:
    from swjax.data.tokenizer import load_tokenizer
    from swjax.inference import Sampling, StreamSession, StreamSettings
    from swjax.inference.frames import make_frame
    from swjax.runs.streaming_model import load_streaming_model
    from swjax.streaming import Variant

    loaded = load_streaming_model(folder, dtype="float32")
    spec = loaded.record
    settings = StreamSettings(
        variant=Variant(spec.variant),
        wait_k=spec.wait_k,
        gap=spec.gap,
        second_per_grid_t=2 / spec.fps,
        max_tail=TAIL,
        sampling=Sampling(),
    )
    session = StreamSession(loaded.model, load_tokenizer(loaded.tokenizer), question=QUESTION, settings=settings)
    frames = (
        make_frame(
            pictures[2 * number : 2 * number + 2],
            video_s=(2 * number + 1) / spec.fps,
            min_pixels=spec.min_pixels,
            max_pixels=spec.max_pixels,
        )
        for number in range(FRAMES)
    )
    for _ in session.run(frames):
        continue
    return session.answer


def _imported(file: Path) -> ModuleType:
    """A module of a file, under a name that no other module has."""
    name = "swjax_exported_streaming"
    found: Any = importlib.util.spec_from_file_location(name, file)
    module = importlib.util.module_from_spec(found)
    sys.modules[name] = module  # where its dataclasses look themselves up
    try:
        found.loader.exec_module(module)
    finally:
        del sys.modules[name]
    return module
