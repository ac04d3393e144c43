"""A checkpoint's logits beside those of transformers: the proof that what was written is the model that was trained."""

import gc
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Float, Int32

from swjax.hub.errors import CheckpointError
from swjax.hub.position_ids import chat_position_ids
from swjax.hub.reader import load_hf, read_config
from swjax.models.config import ModelConfig
from swjax.models.family import family_of
from swjax.models.model import VideoLanguageModel
from swjax.streaming import KeySpans

_TEXT_LENGTHS = (16, 24)
_TEXT_AROUND_VIDEO = 8
_FRAMES = 2


@dataclass(frozen=True)
class Probe:
    """An input, in chat order with causal attention.

    Attributes:
        name: what it is, in words.
        token_ids: the tokens.
        position_ids: temporal, height and width ids.
        pixel_values: normalised patches of a video, or None.
        grid_thw: size of the video in patches, or None.
    """

    name: str
    token_ids: Int32[np.ndarray, "L"]
    position_ids: Int32[np.ndarray, "3 L"]
    pixel_values: Float[np.ndarray, "P C"] | None = None
    grid_thw: Int32[np.ndarray, "3"] | None = None


def require_torch() -> None:
    """Says what is missing where torch is not installed.

    Raises:
        CheckpointError: it is not.
    """
    if importlib.util.find_spec("torch") is None:
        raise CheckpointError("comparing with transformers needs PyTorch, which is not installed: pip install torch")


def compare_logits(folder: str | Path, *, seed: int = 0) -> dict[str, float]:
    """Compare logits in float32 on random tokens and a small random video, with position ids by Qwen2.5-VL's rule.

    The two models are in memory one after the other, at 4 bytes a parameter.

    Args:
        folder: a Hugging Face folder.
        seed: of the inputs.

    Returns:
        For each input, by a name in words: the largest difference, relative to transformers' largest logit.

    Raises:
        CheckpointError: the folder cannot be used, torch is missing, or transformers has no class for
            the model, or finds weights missing or left over.
    """
    require_torch()
    return compare_models(
        read_config(Path(folder)),
        lambda: _load_theirs(folder),
        lambda: load_hf(folder, dtype=jnp.float32),
        seed=seed,
    )


def compare_models(
    config: ModelConfig,
    load_theirs: Callable[[], Any],
    load_ours: Callable[[], VideoLanguageModel],
    *,
    seed: int = 0,
) -> dict[str, float]:
    """Compare as `compare_logits` does, models of any origin.

    Args:
        config: of both.
        load_theirs: gives the model of transformers, in float32.
        load_ours: gives ours, in float32; it is called when theirs is out of memory.
        seed: of the inputs.
    """
    probes = make_probes(config, np.random.default_rng(seed))
    theirs = _their_logits(load_theirs(), probes)
    gc.collect()
    ours = _our_logits(load_ours(), probes)
    return {
        probe.name: float(np.abs(mine - other).max() / np.abs(other).max())
        for probe, mine, other in zip(probes, ours, theirs, strict=True)
    }


def make_probes(config: ModelConfig, rng: np.random.Generator) -> list[Probe]:
    """Random token sequences, and one with a video of two frames, each of one and a half attention windows."""
    special = [config.video_token_id, config.image_token_id, config.vision_start_token_id, config.vision_end_token_id]
    words = np.setdiff1d(np.arange(config.text.vocab_size, dtype=np.int32), special)
    probes = [
        Probe(f"{length} random tokens", rng.choice(words, length), np.tile(np.arange(length, dtype=np.int32), (3, 1)))
        for length in _TEXT_LENGTHS
    ]
    vision = config.vision
    window = vision.window_units or 4
    rows, columns = window, window + max(1, window // 2)
    grid = np.array([_FRAMES, rows * vision.spatial_merge_size, columns * vision.spatial_merge_size], np.int32)
    token_ids = np.concatenate(
        [
            rng.choice(words, _TEXT_AROUND_VIDEO),
            [config.vision_start_token_id],
            np.full(_FRAMES * rows * columns, config.video_token_id),
            [config.vision_end_token_id],
            rng.choice(words, _TEXT_AROUND_VIDEO),
        ]
    ).astype(np.int32)
    pixels = rng.standard_normal((int(grid.prod()), config.geometry.patch_dim), np.float32)
    position_ids = chat_position_ids(
        token_ids,
        [grid],
        pads=(config.image_token_id, config.video_token_id),
        tokens_per_second=vision.tokens_per_second,
        merge=vision.spatial_merge_size,
    ).astype(np.int32)
    return [*probes, Probe(f"a video of {_FRAMES} frames among random tokens", token_ids, position_ids, pixels, grid)]


def _load_theirs(folder: str | Path) -> Any:
    import torch
    import transformers

    family = family_of(read_config(Path(folder)))
    if not family.architecture:
        raise CheckpointError(f"{folder}: transformers has no class for a {family.name} to compare with")
    model, report = getattr(transformers, family.architecture).from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager", output_loading_info=True
    )
    faults = {kind: sorted(report[kind]) for kind in ("missing_keys", "unexpected_keys") if report[kind]}
    if faults:
        raise CheckpointError(f"{folder}: transformers finds {faults}")
    return model


def _their_logits(model: Any, probes: list[Probe]) -> list[Float[np.ndarray, "L V"]]:
    import torch

    logits = []
    with torch.no_grad():
        for probe in probes:
            video = {}
            if probe.pixel_values is not None and probe.grid_thw is not None:
                video["pixel_values_videos"] = torch.from_numpy(probe.pixel_values)
                video["video_grid_thw"] = torch.from_numpy(probe.grid_thw)[None].long()
            found = model(
                input_ids=torch.from_numpy(probe.token_ids)[None].long(),
                position_ids=torch.from_numpy(probe.position_ids)[:, None].long(),
                **video,
            )
            logits.append(found.logits[0].numpy())
    return logits


@nnx.jit
def _compiled(model: VideoLanguageModel, *inputs: Any, **video: Any) -> Any:
    """As a whole, or every operation would be compiled by itself for every shape."""
    return model(*inputs, **video)


def _our_logits(model: VideoLanguageModel, probes: list[Probe]) -> list[Float[np.ndarray, "L V"]]:
    logits = []
    for probe in probes:
        stop = jnp.arange(1, len(probe.token_ids) + 1, dtype=jnp.int32)[None]
        found = _compiled(
            model,
            jnp.asarray(probe.token_ids)[None],
            jnp.asarray(probe.position_ids)[:, None],
            KeySpans(jnp.zeros_like(stop), stop),
            pixel_values=None if probe.pixel_values is None else jnp.asarray(probe.pixel_values)[None],
            video_grid_thw=None if probe.grid_thw is None else jnp.asarray(probe.grid_thw)[None, None],
        )
        logits.append(np.asarray(found[0]))
    return logits
