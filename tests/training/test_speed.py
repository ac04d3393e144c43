"""How fast a run says it is, and what it says of its parameters."""

import jax
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from swjax.models.qwen2_5_vl import Qwen2_5_VLConfig
from swjax.planning.work import full_rows
from swjax.training import speed
from swjax.training.flops import Rows, model_flops, rows_of_batch
from swjax.training.overview import describe_parameters, parameter_lines
from swjax.training.speed import StepClock
from swjax.training.step import TrainState


def test_a_step_s_time_is_without_pauses_and_the_first_step_is_not_what_the_others_take(monkeypatch) -> None:
    now = [100.0]
    monkeypatch.setattr(speed.time, "perf_counter", lambda: now[0])
    clock = StepClock(10, lambda rows: 40.0, peak=50.0)
    clock.begin(1, {})
    now[0] += 20  # it compiles
    assert clock.read(1, 80.0) == {
        "seconds_per_step": 20.0,
        "tokens_per_second": 4.0,
        "mfu": 40 / 20 / 50,
        "seconds_left": 180.0,
    }
    now[0] += 7  # validation
    clock.pause()
    clock.begin(2, {})
    now[0] += 2
    found = clock.read(2, 80.0)
    assert (found["seconds_per_step"], found["mfu"], found["seconds_left"]) == (2.0, 0.4, 16.0)
    assert "mfu" not in StepClock(10, lambda rows: 40.0, peak=None).read(1, 80.0)


def test_rows_that_are_full_hold_what_planning_takes_full_rows_to_hold() -> None:
    """One video of 3 frames of 4 x 8 patches by hand, a second row of padding."""
    model = Qwen2_5_VLConfig.preset("tiny", vision={"depth": 3, "full_attention_blocks": (1,), "window_size": 56})
    batch = {
        "token_ids": np.array([[5, 6, 7, 0], [0, 0, 0, 0]]),
        "span_start": np.array([[0, 0, 1, 3], [0, 1, 2, 3]]),
        "span_stop": np.array([[1, 2, 3, 4], [1, 2, 3, 4]]),
        "labels": np.array([[-100, 3, 4, -100], [-100] * 4]),
        "video_grid_thw": np.array([[[3, 4, 8]], [[0, 0, 0]]]),
    }
    rows = rows_of_batch(model, batch)
    assert (rows.tokens, rows.labels, rows.patches, rows.decoder_pairs) == (3, 2, 96, 1 + 2 + 2)
    windows = 56 // model.vision.patch_size
    assert rows.vision_pairs == 96 * (32 + 2 * windows**2) / 3  # one layer sees the frame, two their window
    planned = full_rows(model, count=2, tokens=64, patches=96, wait_k=1, variant="gdpe")
    assert type(planned) is type(rows)


def test_frozen_weights_behind_trained_ones_need_their_gradient_of_what_goes_in_alone() -> None:
    model = Qwen2_5_VLConfig.preset("tiny")
    shapes = {
        "decoder/embedding_vd": (8, 4),
        "decoder/layers/q_weight_dnh": (2, 4, 1, 5),
        "decoder/layers/q_lora_a_dr": (2, 4, 3),
        "decoder/layers/q_lora_b_rnh": (2, 3, 1, 5),
        "visual/merger/up_weight_mf": (4, 4),
        "visual/patch_weight_cd": (6, 4),
    }
    leaves = {path: jax.ShapeDtypeStruct(shape, np.float32) for path, shape in shapes.items()}
    rows = Rows(count=1, tokens=1, patches=4, labels=0, decoder_pairs=0, vision_pairs=0, seconds=1.0)
    merge = model.vision.spatial_merge_size**2

    def needed(*trained: str) -> tuple[float, float]:
        found = model_flops(model, rows, leaves, trained)
        return found["decoder"], found["vision"]

    merger, patches = 16 * 4 / merge, 24 * 4
    adapters = [path for path in shapes if "_lora_" in path]
    assert needed(*adapters) == (4 * 40 + 6 * (24 + 30), 2 * merger + 2 * patches)
    assert needed(*(path for path in shapes if "_lora_" not in path)) == (6 * 40 + 4 * 54, 6 * merger + 6 * patches)
    assert needed("visual/merger/up_weight_mf")[1] == 6 * merger + 2 * patches


def test_the_overview_says_what_trains_and_the_table_where_it_lies() -> None:
    mesh = Mesh(np.array(jax.devices()[:2]), ("fsdp",))

    def leaf(*shape: int, spec: PartitionSpec = PartitionSpec()) -> jax.ShapeDtypeStruct:  # noqa: B008
        return jax.ShapeDtypeStruct(shape, np.float32, sharding=NamedSharding(mesh, spec))

    trainable = {"decoder/layers/q_weight_dn": leaf(4, 6, spec=PartitionSpec("fsdp")), "visual/merger/up_mf": leaf(2)}
    frozen = {"decoder/layers/norm_d": leaf(3), "visual/blocks/norm_d": leaf(5)}
    state = TrainState(leaf(), leaf(), trainable, frozen, (), {})
    assert list(describe_parameters(state)) == [
        "34 parameters, 26 of them train",
        "  decoder/layers               27  24 train",
        "  visual/blocks                 5  frozen",
        "  visual/merger                 2  all train",
    ]
    lines = [line.split() for line in parameter_lines(state)]
    assert lines[1] == ["decoder/layers/q_weight_dn", "4", "x", "6", "float32", "24", "trains", "over", "fsdp"]
    assert [line[-1] for line in lines] == ["frozen", "fsdp", "frozen", "trains"]


@pytest.mark.parametrize(("seconds", "shown"), [(0.0, "0:00:00"), (59.6, "0:01:00"), (3600.0, "1:00:00")])
def test_the_time_left_is_hours_minutes_and_seconds(seconds: float, shown: str) -> None:
    metrics = {"loss": 1, "learning_rate": 1, "tokens_per_second": 1, "seconds_per_step": 1, "seconds_left": seconds}
    assert speed.describe_step(1, 2, metrics).endswith(f" {shown} left")
