"""One training step of swjax on one streaming row, with random weights: time, tokens a second, MFU and memory."""

import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import jax
import numpy as np
from common import (
    FRAME_PATCHES,
    MODELS,
    PATCH_NUMBERS,
    STEP_LENGTH,
    STEP_REPEATS,
    TINY_MODELS,
    TINY_STEP_LENGTH,
    TINY_STEP_REPEATS,
    ModelShape,
    Records,
    part_arguments,
    streaming_row,
    timed,
    visible_pairs,
)
from profiled import kernels_of

from swjax.chips import chip_of
from swjax.models.qwen2_5_vl import Qwen2_5_VLConfig
from swjax.training.config import base_config, freeze
from swjax.training.flops import Rows, model_flops
from swjax.training.program import make_program
from swjax.training.sections import Config
from swjax.training.start import make_state
from swjax.training.step import put_batch

MAX_LABELS = 512


def model_config(shape: ModelShape) -> Qwen2_5_VLConfig:
    """Our configuration of a shape."""
    half = shape.head_dim // 2
    sections = (half // 4, (half - half // 4) // 2, half - half // 4 - (half - half // 4) // 2)
    text = {
        "vocab_size": shape.vocab_size,
        "hidden_size": shape.hidden_size,
        "intermediate_size": shape.intermediate_size,
        "num_layers": shape.layers,
        "num_heads": shape.heads,
        "num_kv_heads": shape.key_heads,
        "mrope_section": sections,
        "tie_word_embeddings": shape.tied,
    }
    vision = {
        "out_hidden_size": shape.hidden_size,
        "depth": shape.vision_depth,
        "hidden_size": shape.vision_hidden,
        "intermediate_size": shape.vision_intermediate,
        "num_heads": shape.vision_heads,
        "full_attention_blocks": tuple(range(7, shape.vision_depth, 8)) or (shape.vision_depth - 1,),
    }
    return Qwen2_5_VLConfig.preset("3b", text=text, vision=vision, video_token_id=min(151_656, shape.vocab_size - 1))


def run_config(shape: ModelShape, attention: str, remat: str, patches: int, length: int) -> Config:
    """The run of one row, with the paper's parts that train."""
    config = base_config()
    config.attention, config.remat = attention, remat
    config.batch_size = config.accumulation = 1
    config.data.max_tokens, config.data.max_patches, config.data.max_labels = length, patches, MAX_LABELS
    config.lora.rank = 16 if shape.trains == "lora" else 0
    return freeze(config)


def measure(shape: ModelShape, attention: str, remat: str, length: int, repeats: int) -> dict[str, Any]:
    """Seconds of a step, and what follows from them."""
    layout, grid = streaming_row(length)
    patches = int(grid[0].prod())
    model = model_config(shape)
    token_ids = np.where(layout.token_ids == 151_656, model.video_token_id, layout.token_ids % (shape.vocab_size - 1))
    rng = np.random.default_rng(0)
    batch = {
        "token_ids": token_ids.astype(np.int32)[None],
        "position_ids": layout.position_ids[None],
        "span_start": layout.spans.start[None],
        "span_stop": layout.spans.stop[None],
        "labels": np.where(layout.labels >= 0, layout.labels % (shape.vocab_size - 1), -100).astype(np.int32)[None],
        "pixel_values": rng.integers(0, 256, (1, patches, PATCH_NUMBERS), np.uint8),
        "video_grid_thw": grid[None],
    }
    config = run_config(shape, attention, remat, patches, length)
    device = jax.devices()[0]
    program = make_program(config, model, devices=[device])
    state = make_state(model, config, program.optimizer, program.shapes)
    placed = put_batch(batch, program.mesh, max_labels=MAX_LABELS, accumulation=1)
    compiled = program.train_step.lower(state, placed).compile()
    losses = []

    def step() -> Any:
        nonlocal state
        state, metrics = compiled(state, placed)
        losses.append(metrics["loss"])
        return metrics

    found = timed(step, jax.block_until_ready, repeats)
    tokens = int((layout.spans.stop - layout.spans.start > 1).sum())
    rows = Rows(1, tokens, patches, int((layout.labels >= 0).sum()), visible_pairs(layout.spans), 0.0, 0.0)
    full = len(model.vision.full_attention_blocks)
    window = (full * FRAME_PATCHES + (model.vision.depth - full) * 64) / model.vision.depth
    rows = Rows(1, tokens, patches, rows.labels, rows.decoder_pairs, patches * window, float(grid[0, 0]))
    flops = model_flops(model, rows, {**state.trainable, **state.frozen}, state.trainable)
    if shape.trains == "lora":
        flops["decoder"] *= 4 / 6  # frozen weights need no gradients of their own
    total = sum(flops.values())
    memory = device.memory_stats() or {}
    mfu = total / found["seconds"] / chip_of(device.device_kind).flops if device.platform == "gpu" else None
    return {
        **found,
        "tokens": tokens,
        "tokens_per_second": tokens / found["seconds"],
        "flops": total,
        "mfu": mfu,
        "peak_bytes": memory.get("peak_bytes_in_use"),
        "loss": float(losses[-1]),
        "profile": kernels_of(lambda: jax.block_until_ready(step())),
    }


def main() -> None:
    """One case, as its process has the device for itself."""
    choices = [
        f"{model}:{attention}:{remat}"
        for model in MODELS
        for attention in ("gpu", "mosaic", "auto")
        for remat in ("minimal", "full", "nothing")
    ]
    args = part_arguments(__doc__, choices)
    name, attention, remat = args.case.split(":")
    shape = (TINY_MODELS if args.dry_run else MODELS)[name]
    length, repeats = (TINY_STEP_LENGTH, TINY_STEP_REPEATS) if args.dry_run else (STEP_LENGTH, STEP_REPEATS)
    Records(args.out, "step").attempt(
        lambda: measure(shape, "auto" if args.dry_run else attention, remat, length, repeats),
        model=name,
        method=f"swjax {attention}, remat={remat}",
        trains=shape.trains,
    )


if __name__ == "__main__":
    main()
