"""What a training step has to compute by the sizes of the model alone, whatever a compiler makes of it."""

import numpy as np

from swjax.attention.tpu_work import products_of
from swjax.models.config import ModelConfig
from swjax.streaming import KeySpans, SpecialTokens, StreamLayout, Variant, build_layout
from swjax.training.flops import Rows

PROMPT_TOKENS = 40


def full_rows(model: ModelConfig, *, count: int, tokens: int, patches: int, wait_k: int, variant: str) -> Rows:
    """Rows whose video takes all of the patches that there is room for.

    Args:
        model: its sizes.
        count: rows of a step.
        tokens, patches: room in a row.
        wait_k: answer tokens a frame.
        variant: the position design.
    """
    layout, frames, side = _layout(model, tokens=tokens, patches=patches, wait_k=wait_k, variant=variant)
    used = frames * side * side
    mean = sum(_pairs(spans) * layers for spans, layers in _vision_spans(model, frames, side)) / model.vision.depth
    labels = int((layout.labels >= 0).sum())
    return Rows(count, len(layout.token_ids), used, labels, _pairs(layout.spans), mean, float(frames))


def spans_of_layers(
    model: ModelConfig, *, tokens: int, patches: int, wait_k: int, variant: str
) -> tuple[list[tuple[KeySpans, int]], list[tuple[KeySpans, int]]]:
    """The spans of one full row in the decoder, and in the vision tower, each with the number of its layers.

    Args:
        model: its sizes.
        tokens, patches: room in a row.
        wait_k: answer tokens a frame.
        variant: the position design.
    """
    layout, frames, side = _layout(model, tokens=tokens, patches=patches, wait_k=wait_k, variant=variant)
    return [(layout.spans, model.text.num_layers)], _vision_spans(model, frames, side)


def spans_of_frame(model: ModelConfig) -> tuple[list[tuple[KeySpans, int]], int]:
    """The spans of one frame of 448 x 448 pixels in the vision tower, each with the number of its layers, and its side.

    Args:
        model: its sizes.

    Returns:
        The spans, and the frame's patches along a side.
    """
    side = _side(model)
    return _vision_spans(model, 1, side), side


def _side(model: ModelConfig) -> int:
    merge = model.vision.spatial_merge_size
    return 448 // (model.vision.patch_size * merge) * merge  # patches: frames of 448 x 448 pixels


def _layout(
    model: ModelConfig, *, tokens: int, patches: int, wait_k: int, variant: str
) -> tuple[StreamLayout, int, int]:
    """A video that fills a row; its frames, and the patches along a side of one."""
    special, word = SpecialTokens(*range(8)), 8  # any ids: the spans alone are looked at
    merge = model.vision.spatial_merge_size
    room = tokens - PROMPT_TOKENS
    side = _side(model)
    while side > merge and (side * side > patches or side * side // merge**2 + wait_k > room):
        side -= merge
    frame_tokens = side * side // merge**2
    frames = max(1, min(patches // side**2, room // (frame_tokens + wait_k)))
    ids = np.concatenate(
        [
            [special.im_start, *[word] * (PROMPT_TOKENS - 12), special.vision_start],
            np.full(frames * frame_tokens, special.video_pad),
            special.trailer,
            special.prefix,
            np.full(max(wait_k * frames, 1), word),
            [special.im_end, special.newline],
        ]
    ).astype(np.int32)
    grid = np.array([[frames, side, side]])
    layout = build_layout(
        ids, grid, variant=Variant(variant), schedule=wait_k, merge_size=merge, special_tokens=special
    )
    return layout, frames, side


def _vision_spans(model: ModelConfig, frames: int, side: int) -> list[tuple[KeySpans, int]]:
    """Of a patch in its frame or its window, each with the number of such layers."""
    patch = np.arange(frames * side * side)
    return [
        (KeySpans(patch // width * width, np.minimum(patch // width * width + width, len(patch))), layers)
        for width, layers in model.vision.widths(side * side)
    ]


def _pairs(spans: KeySpans) -> float:
    return float((spans.stop.astype(np.int64) - spans.start).sum())


def kernel_flops(model: ModelConfig, rows: Rows, name: str, source: str) -> float:
    """Operations of one run of a kernel of span attention over all rows and heads, which the compiler cannot see.

    Args:
        model: its sizes.
        rows: of the whole step.
        name: the kernel's.
        source: where in the program it is called.

    Raises:
        ValueError: if it is not one of ours.
    """
    of_vision = "vision" in source
    part = model.vision if of_vision else model.text
    pairs = rows.vision_pairs if of_vision else rows.decoder_pairs
    return 2.0 * products_of(name) * rows.count * pairs * part.num_heads * part.head_dim
