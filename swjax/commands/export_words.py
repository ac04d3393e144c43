"""What an exported folder says in PyTorch beside what it says here, of a video that is made up on the spot."""

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from jaxtyping import UInt8

from swjax.data.tokenizer import load_tokenizer
from swjax.inference import Sampling, StreamSession, StreamSettings
from swjax.inference.frames import make_frame
from swjax.inference.voice import voice_of
from swjax.runs.streaming_model import StreamingModel
from swjax.streaming import Variant

FRAMES, SIDE, TAIL = 4, 112, 8
QUESTION = "What happens?"


def compare_words(folder: Path, load_ours: Callable[[], StreamingModel]) -> tuple[list[int], list[int]]:
    """Tokens of the greedy answer by the folder's own streaming.py, and by `StreamSession`, both in float32.

    Args:
        folder: exported.
        load_ours: gives the model that it should be, in float32.
    """
    pictures = _pictures(np.random.default_rng(0))
    return _their_words(folder, pictures), _our_words(load_ours(), pictures)


def load_exported(folder: Path) -> tuple[Any, Any]:
    """Model and tokenizer of an exported folder in PyTorch, in float32, by its own streaming.py."""
    import torch

    return _imported(folder / "streaming.py").load(folder, dtype=torch.float32)


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
    stream = _imported(folder / "streaming.py").stream
    return [word.token_id for word in stream(*load_exported(folder), pictures, QUESTION, max_tail=TAIL)]


def _our_words(loaded: StreamingModel, pictures: list[np.ndarray]) -> list[int]:
    spec, geometry = loaded.record, loaded.model.config.geometry
    depth = geometry.temporal_patch_size
    tokenizer = load_tokenizer(loaded.tokenizer, loaded.model.config.chat)
    settings = StreamSettings(
        variant=Variant(spec.variant),
        wait_k=spec.wait_k,
        gap=spec.gap,
        second_per_grid_t=geometry.frame_seconds(spec.fps),
        max_tail=TAIL,
        sampling=Sampling(),
        **voice_of(spec, tokenizer),
    )
    session = StreamSession(loaded.model, tokenizer, question=QUESTION, settings=settings)
    frames = (
        make_frame(
            pictures[depth * number : depth * (number + 1)],
            video_s=(depth * (number + 1) - 1) / spec.fps,
            min_pixels=spec.min_pixels,
            max_pixels=spec.max_pixels,
            geometry=geometry,
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
