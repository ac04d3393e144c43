"""Packing changes nothing: logits of every token are those of its example alone, images and several videos included."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from swjax.data.batching import make_row, pack_rows, pad_rows
from swjax.models.qwen2_5_vl import Qwen2_5_VL, Qwen2_5_VLConfig
from swjax.streaming import KeySpans, SpecialTokens, Variant, build_layout

CONFIG = Qwen2_5_VLConfig.preset("tiny")
SPECIAL = SpecialTokens(
    im_start=1,
    im_end=2,
    vision_start=3,
    vision_end=4,
    video_pad=CONFIG.video_token_id,
    image_pad=CONFIG.image_token_id,
    assistant=5,
    newline=6,
)


def example(seed: int, videos, images, variant):
    """A chat with its images, then its videos; then an answer."""
    rng = np.random.default_rng(seed)
    ids = [SPECIAL.im_start, 7, SPECIAL.newline, *rng.integers(10, 200, 4)]
    for grid, pad in [(grid, SPECIAL.image_pad) for grid in images] + [(grid, SPECIAL.video_pad) for grid in videos]:
        ids += [SPECIAL.vision_start, *[pad] * (np.prod(grid) // 4), SPECIAL.vision_end]
    ids += [SPECIAL.im_end, SPECIAL.newline, *SPECIAL.prefix, *rng.integers(10, 200, 14 + seed)]
    ids += [SPECIAL.im_end, SPECIAL.newline]
    layout = build_layout(
        ids,
        np.array(videos).reshape(-1, 3),
        image_grid_thw=np.array(images).reshape(-1, 3),
        variant=variant,
        special_tokens=SPECIAL,
    )
    grids = np.array([*images, *videos]).reshape(-1, 3)
    patches = rng.integers(0, 256, (int(grids.prod(axis=1).sum()), 1176), dtype=np.uint8)
    return make_row(layout, patches, grids)


def logits_of(model, rows, *, tokens):
    batch = pad_rows(rows, tokens=tokens, patches=160, videos=6)

    @jax.jit
    def forward(batch):
        return model(
            batch["token_ids"],
            jnp.moveaxis(batch["position_ids"], 1, 0),
            KeySpans(batch["span_start"], batch["span_stop"]),
            pixel_values=batch["pixel_values"],
            video_grid_thw=batch["video_grid_thw"],
        )

    return np.asarray(forward(batch))


@pytest.mark.parametrize("variant", ["interleave", "ospe", "gdpe", "offline"])
def test_packed_and_unpacked_logits_agree(variant):
    model = Qwen2_5_VL(CONFIG, rngs=nnx.Rngs(0))
    rows = [
        example(0, [(3, 4, 4)], [], variant),
        example(1, [(2, 4, 6), (1, 4, 4)], [(1, 4, 4)], variant),
        example(2, [], [], Variant.GDPE),
        example(3, [(4, 2, 2)], [(1, 2, 6)], Variant.GIPE),
    ]
    alone = logits_of(model, rows, tokens=128)
    packed = pack_rows(rows, tokens=256, patches=160, videos=6, labels=200)
    assert len(packed) == 1
    together = logits_of(model, packed, tokens=256)[0]
    start, found = 0, []
    while start < len(packed[0]["token_ids"]):
        number = next(
            number
            for number, row in enumerate(rows)
            if np.array_equal(packed[0]["token_ids"][start : start + len(row["token_ids"])], row["token_ids"])
        )
        stop = start + len(rows[number]["token_ids"])
        np.testing.assert_allclose(together[start:stop], alone[number, : stop - start], atol=1e-5)
        found.append(number)
        start = stop
    assert sorted(found) == [0, 1, 2, 3]


def test_images_are_seen():
    model = Qwen2_5_VL(CONFIG, rngs=nnx.Rngs(0))
    row = example(0, [(2, 4, 4)], [(1, 4, 4)], "gdpe")
    other = {**row, "pixel_values": np.where(np.arange(48)[:, None] < 16, 0, row["pixel_values"])}
    first, second = logits_of(model, [row, other], tokens=64)
    length = len(row["token_ids"])
    assert np.abs(first[:length] - second[:length]).max() > 1e-3
