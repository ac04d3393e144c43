"""A small model with the signature of the real one, and batches for it."""

from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jaxtyping import Array
from ml_collections import ConfigDict
from rich.console import Console

from swjax.data.moving_shapes.prepare import prepare
from swjax.streaming import KeySpans
from swjax.training.config import base_config

VOCAB, WIDTH, HEADS, PATCH = 32, 16, 2, 12


def normal(rng: np.random.Generator, shape: tuple[int, ...]) -> Array:
    return jnp.asarray(rng.standard_normal(shape, np.float32))


class SmallVision(nnx.Module):
    def __init__(self, rng: np.random.Generator) -> None:
        self.patch_weight_cd = nnx.Param(normal(rng, (PATCH, WIDTH)) * 0.1)
        self.merger = SmallMerger(rng)

    def __call__(self, pixels: Array) -> Array:
        return self.merger(jnp.tanh((pixels / 255) @ self.patch_weight_cd).mean(axis=1))


class SmallMerger(nnx.Module):
    def __init__(self, rng: np.random.Generator) -> None:
        self.weight_md = nnx.Param(normal(rng, (WIDTH, WIDTH)) * 0.1)

    def __call__(self, features: Array) -> Array:
        return features @ self.weight_md


class SmallDecoder(nnx.Module):
    def __init__(self, rng: np.random.Generator) -> None:
        def stacked(*shape: int) -> nnx.Param:
            return nnx.Param(normal(rng, (2, *shape)) * 0.2)

        self.embedding_vd = nnx.Param(normal(rng, (VOCAB, WIDTH)))
        self.q_weight_dnh = stacked(WIDTH, HEADS, WIDTH // HEADS)
        self.k_weight_dnh = stacked(WIDTH, HEADS, WIDTH // HEADS)
        self.v_weight_dnh = stacked(WIDTH, HEADS, WIDTH // HEADS)
        self.o_weight_nhd = stacked(HEADS, WIDTH // HEADS, WIDTH)
        self.scale_d = nnx.Param(np.ones((2, WIDTH), np.float32))
        self.head_vd = nnx.Param(normal(rng, (VOCAB, WIDTH)) * 0.2)

    def __call__(self, x: Array, positions: Array, spans: KeySpans) -> Array:
        x = x + jnp.sin(positions.sum(axis=0)[..., None] * 0.1)
        mask = spans.to_mask(x.shape[1])[:, None]
        for layer in range(2):
            y = x * self.scale_d[layer]
            q = jnp.einsum("btd,dnh->bnth", y, self.q_weight_dnh[layer])
            k = jnp.einsum("btd,dnh->bnth", y, self.k_weight_dnh[layer])
            v = jnp.einsum("btd,dnh->bnth", y, self.v_weight_dnh[layer])
            weights = jax.nn.softmax(jnp.where(mask, jnp.einsum("bnth,bnsh->bnts", q, k), -1e9), axis=-1)
            x = x + jnp.einsum("bnts,bnsh,nhd->btd", weights, v, self.o_weight_nhd[layer])
        return x


class SmallModel(nnx.Module):
    def __init__(self, *, rng: np.random.Generator) -> None:
        self.visual = SmallVision(rng)
        self.decoder = SmallDecoder(rng)

    def hidden(
        self,
        token_ids: Array,
        position_ids: Array,
        spans: KeySpans,
        pixel_values: Array,
        video_grid_thw: Array,
        slots: Array | None = None,
    ) -> Array:
        x = self.decoder.embedding_vd[...][token_ids] + self.visual(pixel_values)[:, None]
        return self.decoder(x, position_ids, spans)

    def head(self) -> Array:
        return self.decoder.head_vd[...]

    def logits(self, hidden: Array) -> Array:
        return hidden @ self.head().T


@pytest.fixture
def small_model() -> Callable[[int], SmallModel]:
    return lambda seed: SmallModel(rng=np.random.default_rng(seed))


@pytest.fixture
def make_batch() -> Callable[..., dict[str, np.ndarray]]:
    """Random rows, each with its own number of labels and its own padding."""

    def make(rows: int, *, seed: int = 0, length: int = 12, patches: int = 8) -> dict[str, np.ndarray]:
        rng = np.random.default_rng(seed)
        stop = np.tile(np.arange(1, length + 1, dtype=np.int32), (rows, 1))
        labels = rng.integers(1, VOCAB, (rows, length)).astype(np.int32)
        labels[rng.random((rows, length)) < rng.random((rows, 1)) * 0.8] = -100
        labels[:, 0] = 3
        token_ids = rng.integers(1, VOCAB, (rows, length)).astype(np.int32)
        start = np.zeros_like(stop)
        for row in range(rows):
            padded = length - rng.integers(0, 3)
            token_ids[row, padded:], labels[row, padded:] = 0, -100
            start[row, padded:] = np.arange(padded, length)
        return {
            "token_ids": token_ids,
            "position_ids": np.tile(np.arange(length, dtype=np.int32), (rows, 3, 1)),
            "span_start": start,
            "span_stop": stop,
            "labels": labels,
            "pixel_values": rng.integers(0, 256, (rows, patches, PATCH)).astype(np.uint8),
            "video_grid_thw": np.tile(np.array([[1, 2, 4]], np.int32), (rows, 1, 1)),
        }

    return make


@pytest.fixture(scope="session")
def moving_shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The embedded data set, with 12 videos to train on and 5 to validate on."""
    folder = tmp_path_factory.mktemp("moving_shapes")
    prepare(folder, train=12, validation=5, test=1, seed=0, workers=1, console=Console(quiet=True))
    return folder


@pytest.fixture(scope="session")
def make_config(moving_shapes: Path) -> Callable[[Path], ConfigDict]:
    """The configuration of a run with a model of some thousand parameters, of six steps of 8 rows."""

    def make(run_dir: Path) -> ConfigDict:
        config = base_config()
        config.run_dir = str(run_dir)
        config.model.preset = "tiny"
        config.model.overrides = ConfigDict(
            {
                "text": {
                    "num_layers": 1,
                    "hidden_size": 32,
                    "intermediate_size": 32,
                    "num_heads": 2,
                    "num_kv_heads": 1,
                    "mrope_section": (2, 3, 3),
                },
                "vision": {
                    "depth": 2,
                    "hidden_size": 16,
                    "intermediate_size": 16,
                    "num_heads": 1,
                    "out_hidden_size": 32,
                    "full_attention_blocks": (1,),
                },
            }
        )
        config.dtype, config.frozen, config.remat = "float32", (), "nothing"
        config.data.train = str(moving_shapes / "train" / "manifest.jsonl")
        config.data.validation = str(moving_shapes / "validation" / "manifest.jsonl")
        config.data.max_pixels = 56 * 56
        config.data.max_tokens, config.data.max_patches, config.data.max_labels = 160, 192, 64
        config.optimizer.learning_rate = 1e-2
        config.steps, config.batch_size, config.accumulation = 6, 8, 1
        config.checkpoint_every, config.eval_every = 2, 3
        return config

    return make
