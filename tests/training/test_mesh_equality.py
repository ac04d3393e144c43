"""Training of the real model on every kind of mesh against training on one device."""

import jax
import numpy as np
import pytest

from swjax.models.qwen2_5_vl import Qwen2_5_VLConfig
from swjax.training.config import base_config, freeze
from swjax.training.program import batch_shapes, make_program
from swjax.training.start import make_state
from swjax.training.step import put_batch

STEPS, ROWS, LENGTH, GRID, VIDEO_PAD = 20, 8, 32, (2, 4, 4), 60
MODEL = Qwen2_5_VLConfig.preset(
    "tiny",
    text={
        "vocab_size": 64,
        "num_layers": 1,
        "hidden_size": 32,
        "intermediate_size": 32,
        "num_heads": 4,
        "num_kv_heads": 2,
        "mrope_section": (1, 1, 2),
    },
    vision={
        "depth": 2,
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_heads": 2,
        "out_hidden_size": 32,
        "full_attention_blocks": (1,),
        "patch_size": 4,
        "window_size": 16,
    },
    video_token_id=VIDEO_PAD,
    image_token_id=59,
)


def make_rows(seed):
    """Rows of a video, text and answer, each with its own number of labels and of padding."""
    rng = np.random.default_rng(seed)
    token_ids = rng.integers(1, 50, (ROWS, LENGTH)).astype(np.int32)
    num_video = GRID[0] * GRID[1] * GRID[2] // 4
    token_ids[:, 2 : 2 + num_video] = VIDEO_PAD
    stop = np.tile(np.arange(1, LENGTH + 1, dtype=np.int32), (ROWS, 1))
    start = np.zeros_like(stop)
    labels = np.full((ROWS, LENGTH), -100, np.int32)
    for row in range(ROWS):
        labels[row, 12 : 16 + row] = rng.integers(1, 50, 4 + row)
        padded = LENGTH - row
        token_ids[row, padded:], start[row, padded:] = 0, np.arange(padded, LENGTH)
    return {
        "token_ids": token_ids,
        "position_ids": np.tile(np.arange(LENGTH, dtype=np.int32), (ROWS, 3, 1)),
        "span_start": start,
        "span_stop": stop,
        "labels": labels,
        "pixel_values": rng.integers(0, 256, (ROWS, np.prod(GRID), MODEL.vision.patch_dim)).astype(np.uint8),
        "video_grid_thw": np.tile(np.array([[GRID]], np.int32), (ROWS, 1, 1)),
    }


def train(*, devices=8, remat="nothing", attention="auto", rank=0, **mesh):
    config = base_config()
    config.dtype, config.frozen, config.remat, config.attention = "float32", (), remat, attention
    config.data.max_tokens, config.data.max_patches, config.data.max_labels = LENGTH, int(np.prod(GRID)), 16
    config.steps, config.batch_size, config.accumulation = STEPS, ROWS, 1
    config.optimizer.learning_rate = 1e-3
    config.mesh.update(mesh)
    if rank:
        config.lora.rank, config.lora.dora = rank, True  # LoRA's products and lengths of what they change
        config.optimizer.learning_rate = 7e-3  # adapters learn slowly
    config = freeze(config)
    program = make_program(config, MODEL, devices=jax.devices()[:devices])
    state = make_state(MODEL, config, program.optimizer, program.shapes)
    batches = [
        put_batch(make_rows(seed), program.mesh, max_labels=16, accumulation=1, stripe=program.stripe)
        for seed in range(4)
    ]
    shapes = batch_shapes((1, ROWS), config.data, MODEL, program, dtype=config.dtype)
    # Compiling it well would take longer than the steps.
    step = program.train_step.lower(program.shapes, shapes).compile({"xla_backend_optimization_level": 0})
    losses = []
    for index in range(STEPS):
        state, metrics = step(state, batches[index % 4])
        losses.append(metrics["loss"])
    return state, np.array(jax.device_get(losses))


@pytest.fixture(scope="module")
def on_one_device():
    return train(devices=1)


def assert_same(found, expected):
    (state, losses), (expected_state, expected_losses) = found, expected
    assert expected_losses[-4:].mean() < 0.95 * expected_losses[:4].mean()  # over the same four batches
    np.testing.assert_allclose(losses, expected_losses, rtol=1e-5)
    for path, array in state.trainable.items():
        # A bias of all keys adds about the same to every score, which softmax does not see: what is left of its
        # gradient is rounding, of which Adam makes steps as large as any.
        if not path.endswith(("k_bias_kh", "qkv_bias_xnh")):
            other = np.asarray(expected_state.trainable[path])
            difference = np.linalg.norm(np.asarray(array) - other) / np.linalg.norm(other)
            assert difference < 1e-5, f"{path}: {difference}"


@pytest.mark.parametrize(
    "mesh",
    [
        {"data": 8},
        {"fsdp": 8},
        {"fsdp": 4, "tensor": 2},
        {"fsdp": 2, "context": 2, "tensor": 2},
        {"fsdp": 2, "tensor": 4},  # more tensor shards than key heads
    ],
    ids=lambda mesh: ",".join(f"{axis}={size}" for axis, size in mesh.items()),
)
def test_every_mesh_trains_as_one_device(on_one_device, mesh, capfd):
    assert_same(train(**{"data": 1} | mesh), on_one_device)
    assert "nvoluntary full rematerialization" not in capfd.readouterr().err


@pytest.mark.parametrize("remat", ["minimal", "attention", "full", "offload"])
def test_what_is_computed_again_is_the_same(on_one_device, remat):
    assert_same(train(devices=1, remat=remat), on_one_device)


def test_adapters_train_on_a_mesh_as_on_one_device(capfd):
    mesh = {"data": 1, "fsdp": 2, "context": 2, "tensor": 2}
    assert_same(train(rank=8, remat="attention", **mesh), train(devices=1, rank=8, remat="full"))
    assert "nvoluntary full rematerialization" not in capfd.readouterr().err
