"""Time and memory of a training step of Qwen2.5-VL in PyTorch with transformers, on the streaming row.

    python benchmarks/gpu_parts/torch_step.py --out FILE --case MODEL:METHOD [--dry-run]

The methods differ in the decoder's attention and in where there are logits:

    eager   the authors' way: attn_implementation="eager", a dense mask of numbers that is added to the scores, logits
            of every token
    sdpa    attn_implementation="sdpa" with the same mask as a dense boolean one, logits where there is a label
    flex    FlexAttention with a compiled block mask of the spans, logits where there is a label

All have bfloat16 weights (random), fused AdamW and a frozen vision tower whose merger is trained (with LoRA: frozen
too). Without flash-attn, transformers would compute the tower's attention one window after another, which takes more
time than the decoder's; all windows of this row are of one size, so here they are one batch, for every method;
`vision_seconds` is the tower's share. Masks are made before the steps, in `mask_seconds`. Activations are all kept
where they fit into memory, else recomputed (`gradient_checkpointing`).
"""

import gc
import os
import time
import warnings
from dataclasses import dataclass
from functools import partial
from typing import Any

os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")  # PyTorch may read it when imported

import numpy as np
import torch
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
from jaxtyping import Int32
from torch import nn
from torch.nn.attention.flex_attention import flex_attention
from torch.nn.functional import cross_entropy, scaled_dot_product_attention
from torch_common import (
    DENSE_FALLBACK,
    DEVICE,
    ON_GPU,
    block_mask,
    dense_mask,
    dense_of,
    forget_peak,
    on_device,
    peak_bytes,
    sees,
    wait,
)
from transformers import AttentionInterface, Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration
from transformers.initialization import no_init_weights
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import apply_rotary_pos_emb_vision

from swjax.streaming import KeySpans, SpecialTokens, StreamLayout

METHODS = {"eager": "eager", "sdpa": "sdpa", "flex": "flex_spans"}
NO_LABEL = -100
LORA_RANK = 16


compiled_flex = torch.compile(flex_attention)


def flex_spans(
    module: nn.Module, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: Any, **_: Any
) -> tuple[torch.Tensor, None]:
    """FlexAttention with a block mask, which transformers refuses this model by its own name; on a CPU a dense one."""
    if ON_GPU:
        out = compiled_flex(query, key, value, block_mask=mask, enable_gqa=True)
    else:
        out = scaled_dot_product_attention(query, key, value, attn_mask=dense_of(mask), enable_gqa=True)
    return out.transpose(1, 2).contiguous(), None


AttentionInterface.register("flex_spans", flex_spans)


def model_config(shape: ModelShape) -> Qwen2_5_VLConfig:
    """The released configuration with the sizes of `shape`; special tokens are wrapped into a small vocabulary."""
    special = SpecialTokens.qwen2_5_vl()
    quarter = shape.head_dim // 8
    text = {
        "hidden_size": shape.hidden_size,
        "intermediate_size": shape.intermediate_size,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.key_heads,
        "vocab_size": shape.vocab_size,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1_000_000.0,
        "rope_scaling": {"type": "mrope", "mrope_section": [quarter, *[(shape.head_dim // 2 - quarter) // 2] * 2]},
        "tie_word_embeddings": shape.tied,
        "bos_token_id": None,
        "eos_token_id": None,
    }
    depth = shape.vision_depth
    vision = {
        "depth": depth,
        "hidden_size": shape.vision_hidden,
        "intermediate_size": shape.vision_intermediate,
        "num_heads": shape.vision_heads,
        "out_hidden_size": shape.hidden_size,
        "tokens_per_second": 2,
        "fullatt_block_indexes": [depth // 4 * n - 1 for n in (1, 2, 3, 4)] if depth >= 4 else [depth - 1],
    }
    return Qwen2_5_VLConfig(
        text_config=text,
        vision_config=vision,
        tie_word_embeddings=shape.tied,
        video_token_id=special.video_pad % shape.vocab_size,
        image_token_id=special.image_pad % shape.vocab_size,
        vision_start_token_id=special.vision_start % shape.vocab_size,
        vision_end_token_id=(special.vision_start + 1) % shape.vocab_size,
    )


def windows_at_once(
    attention: nn.Module,
    hidden_states: torch.Tensor,
    cu_seqlens: torch.Tensor,
    position_embeddings: tuple[torch.Tensor, torch.Tensor],
    **_: Any,
) -> torch.Tensor:
    """The tower's attention where all windows have one size, as one batch; for the `forward` of a module of it."""
    patches, windows = len(hidden_states), len(cu_seqlens) - 1
    query, key, value = attention.qkv(hidden_states).view(patches, 3, attention.num_heads, -1).unbind(1)
    query, key = apply_rotary_pos_emb_vision(query, key, *position_embeddings)
    batch = [x.view(windows, patches // windows, attention.num_heads, -1).transpose(1, 2) for x in (query, key, value)]
    out = scaled_dot_product_attention(*batch, scale=attention.scaling)
    return attention.proj(out.transpose(1, 2).reshape(patches, -1))


def build_model(
    shape: ModelShape, attention: str, dtype: torch.dtype = torch.bfloat16
) -> Qwen2_5_VLForConditionalGeneration:
    """A model with random weights, made on the device, with what `shape.trains` asks for trainable."""
    torch.manual_seed(0)
    with DEVICE, no_init_weights():
        model = Qwen2_5_VLForConditionalGeneration._from_config(
            model_config(shape), dtype=dtype, attn_implementation={"": attention, "text_config": attention}
        )
    model.tie_weights()
    with torch.no_grad():
        for name, weights in model.named_parameters():
            if weights.ndim > 1:
                weights.normal_(std=0.02)
            else:
                weights.fill_(0.0 if name.endswith("bias") else 1.0)
    for block in model.model.visual.blocks:
        block.attn.forward = partial(windows_at_once, block.attn)
    model.requires_grad_(False)
    if shape.trains == "lora":
        add_lora(model)
    else:
        for part in (model.model.language_model, model.lm_head, model.model.visual.merger):
            part.requires_grad_(True)
    return model.train()


def add_lora(model: nn.Module) -> None:
    """Adapters of rank 16 on all products of the decoder, trainable."""
    from peft import LoraConfig, inject_adapter_in_model

    products = r".*language_model.*\.(q|k|v|o|gate|up|down)_proj"
    config = LoraConfig(r=LORA_RANK, lora_alpha=2 * LORA_RANK, lora_dropout=0.0, target_modules=products)
    inject_adapter_in_model(config, model)
    dtype = model.lm_head.weight.dtype
    for name, weights in model.named_parameters():
        if "lora_" in name:
            weights.data = weights.data.to(dtype)
            weights.requires_grad_(True)


def attention_mask(method: str, spans: KeySpans, dtype: torch.dtype = torch.bfloat16) -> Any:
    """The mask of the row as the method takes it."""
    if method == "flex":
        return block_mask(sees(spans), len(spans.start))
    mask = dense_mask(spans)
    if method == "sdpa":
        return mask
    return torch.zeros(mask.shape, dtype=dtype, device=DEVICE).masked_fill_(~mask, torch.finfo(dtype).min)


@dataclass(frozen=True)
class Batch:
    """What a step reads, on the device.

    Attributes:
        inputs: what the model's forward takes, with token and position ids in slot order; without a mask.
        labels: int64[L], aligned to the queries.
    """

    inputs: dict[str, torch.Tensor]
    labels: torch.Tensor


def make_batch(
    layout: StreamLayout, grid: Int32[np.ndarray, "videos 3"], vocab_size: int, dtype: torch.dtype = torch.bfloat16
) -> Batch:
    """The row with random pixels; token ids are wrapped into the vocabulary."""
    pixels = torch.randn(int(grid[:, 0].sum()) * FRAME_PATCHES, PATCH_NUMBERS, device=DEVICE, dtype=dtype)
    labels = on_device(layout.labels).long()
    inputs = {
        "input_ids": on_device(layout.token_ids).long()[None] % vocab_size,
        "position_ids": on_device(layout.position_ids).long()[:, None],
        "pixel_values_videos": pixels,
        "video_grid_thw": on_device(grid).long(),
    }
    return Batch(inputs, torch.where(labels == NO_LABEL, labels, labels % vocab_size))


def loss_of(model: nn.Module, batch: Batch, mask: Any, *, every_logit: bool) -> torch.Tensor:
    """Mean loss of the labels, from the logits of every token or of those that have a label."""
    labels, kept = batch.labels, {}
    if not every_logit:
        slots = torch.nonzero(labels != NO_LABEL)[:, 0]
        labels, kept = labels[slots], {"logits_to_keep": slots}
    logits = model(**batch.inputs, attention_mask=mask, use_cache=False, **kept).logits
    return cross_entropy(logits[0].float(), labels, ignore_index=NO_LABEL)


def time_steps(model: nn.Module, batch: Batch, mask: Any, method: str, repeats: int) -> dict[str, Any]:
    """Seconds of a step and its peak memory, with the optimizer made anew."""
    trained = [weights for weights in model.parameters() if weights.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-6, fused=True)
    losses = []

    def step() -> None:
        loss = loss_of(model, batch, mask, every_logit=method == "eager")
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.detach())

    forget_peak()
    found = timed(step, wait, repeats)
    return {
        **found,
        "peak_bytes": peak_bytes(),
        "loss": float(losses[0]),
        "last_loss": float(losses[-1]),
        "trained_weights": sum(weights.numel() for weights in trained),
    }


def time_either(model: nn.Module, *arguments: Any) -> dict[str, Any]:
    """`time_steps` with all activations kept, or with them recomputed where they do not fit."""
    try:
        return {"gradient_checkpointing": False, **time_steps(model, *arguments)}
    except torch.OutOfMemoryError as error:
        why = str(error).splitlines()[0][:200]
    model.zero_grad()
    gc.collect()  # the frames of the error kept the activations
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    return {"gradient_checkpointing": True, "kept_did_not_fit": why, **time_steps(model, *arguments)}


def measure(shape: ModelShape, method: str, length: int, repeats: int) -> dict[str, Any]:
    """All figures of a case."""
    layout, grid = streaming_row(length)
    began = time.perf_counter()
    model = build_model(shape, METHODS[method])
    batch = make_batch(layout, grid, shape.vocab_size)
    wait()
    built = time.perf_counter()
    mask_times = timed(lambda: attention_mask(method, layout.spans), wait, 3, warm=1)
    mask = attention_mask(method, layout.spans)
    with torch.no_grad():
        tower = partial(model.model.visual, batch.inputs["pixel_values_videos"], batch.inputs["video_grid_thw"])
        vision_times = timed(tower, wait, min(repeats, 3), warm=1)
    found = time_either(model, batch, mask, method, repeats)
    tokens = int((layout.chat_index >= 0).sum())
    return {
        **found,
        "tokens": tokens,
        "tokens_per_second": tokens / found["seconds"],
        "labels": int((layout.labels != NO_LABEL).sum()),
        "mask_seconds": mask_times["seconds"],
        "vision_seconds": vision_times["seconds"],
        "build_seconds": built - began,
        "attention": METHODS[method] if ON_GPU or method != "flex" else DENSE_FALLBACK,
    }


def main() -> None:
    """Measures and records one case."""
    arguments = part_arguments(__doc__, [f"{model}:{method}" for model in MODELS for method in METHODS])
    warnings.filterwarnings("ignore", message=".*_checkpoint_without_reentrant.*")
    model, method = arguments.case.split(":")
    shape = (TINY_MODELS if arguments.dry_run else MODELS)[model]
    length = TINY_STEP_LENGTH if arguments.dry_run else STEP_LENGTH
    repeats = TINY_STEP_REPEATS if arguments.dry_run else STEP_REPEATS
    pairs = visible_pairs(streaming_row(length)[0].spans)
    Records(arguments.out, "step").attempt(
        lambda: measure(shape, method, length, repeats),
        method=f"HF {method}",
        model=model,
        trains=shape.trains,
        length=length,
        layout="gdpe",
        pairs=pairs,
    )


if __name__ == "__main__":
    main()
