import dataclasses
import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from swjax.mesh import make_mesh
from swjax.models.parameters import merge_parameters, split_parameters
from swjax.streaming import KeySpans
from swjax.training.objectives.next_token import losses_by_row
from swjax.training.optimizer import learning_rate_schedule, make_optimizer, split_frozen
from swjax.training.step import (
    StepOptions,
    TrainState,
    initial_state,
    make_eval_step,
    make_train_step,
    put_batch,
    state_shardings,
)

OPTIONS = StepOptions(compute_dtype=jnp.dtype("float32"), max_labels=12)
Batches = Sequence[dict[str, np.ndarray]]


def train(
    model: nnx.Module,
    batches: Batches,
    *,
    accumulation: int = 1,
    frozen: tuple[str, ...] = (),
    mesh: tuple[int, int] = (1, 1),
    steps: int = 10,
    ema: float = 0.0,
) -> tuple[TrainState, list[dict[str, float]]]:
    device_mesh = make_mesh(*mesh, devices=jax.devices()[: mesh[0] * mesh[1]])
    structure, parameters = split_parameters(model)
    schedule = learning_rate_schedule(1e-2, steps=steps, warmup_fraction=0.0)
    optimizer = make_optimizer(schedule, clip_norm=1.0, weight_decay=0.1, b1=0.9, b2=0.999)
    start = functools.partial(initial_state, *split_frozen(parameters, frozen), optimizer, ema=ema)
    shardings = state_shardings(device_mesh, jax.eval_shape(start))
    state = jax.jit(start, out_shardings=shardings)()
    step = make_train_step(
        structure, optimizer, schedule, device_mesh, shardings, dataclasses.replace(OPTIONS, ema=ema)
    )
    history = []
    for batch in batches:
        state, metrics = step(state, put_batch(batch, device_mesh, max_labels=12, accumulation=accumulation))
        history.append({name: float(value) for name, value in metrics.items()})
    assert step._cache_size() == 1
    return state, history


def assert_close(left: TrainState, right: TrainState, relative: float = 1e-5) -> None:
    assert left.trainable.keys() == right.trainable.keys()
    for path, array in left.trainable.items():
        other = np.asarray(right.trainable[path])
        difference = np.linalg.norm(np.asarray(array) - other) / np.linalg.norm(other)
        assert difference < relative, f"{path}: {difference}"


def test_the_loss_is_the_mean_over_all_labels_of_obvious_cross_entropy(small_model, make_batch) -> None:
    model, batch = small_model(0), make_batch(8)
    _, history = train(model, [batch])

    @jax.jit
    def all_logits(batch: dict[str, jax.Array]) -> jax.Array:
        spans = KeySpans(start=batch["span_start"], stop=batch["span_stop"])
        positions = batch["position_ids"].swapaxes(0, 1)
        return model.logits(
            model.hidden(batch["token_ids"], positions, spans, batch["pixel_values"], batch["video_grid_thw"])
        )

    logits = np.asarray(all_logits(batch), np.float64)
    log_probabilities = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
    losses = [
        -log_probabilities[row, slot, label] for (row, slot), label in np.ndenumerate(batch["labels"]) if label != -100
    ]

    assert history[0]["loss"] == pytest.approx(np.mean(losses), rel=1e-5)
    assert history[0]["labels"] == len(losses)
    assert history[0]["tokens"] == (batch["token_ids"] != 0).sum()


def test_the_gradient_norm_is_that_of_the_mean_loss(small_model, make_batch) -> None:
    batch = make_batch(8)
    structure, parameters = split_parameters(small_model(0))

    def mean_loss(parameters: dict) -> jax.Array:
        losses = losses_by_row(merge_parameters(structure, parameters), batch, max_labels=12)
        return losses.sum() / (batch["labels"] != -100).sum()

    expected = optax.tree.norm(jax.jit(jax.grad(mean_loss))(parameters))
    _, history = train(small_model(0), [batch])
    assert history[0]["grad_norm"] == pytest.approx(float(expected), rel=1e-5)


def test_four_micro_batches_of_two_rows_are_one_batch_of_eight(small_model, make_batch) -> None:
    batches = [make_batch(8, seed=seed) for seed in range(3)]
    whole, whole_history = train(small_model(0), batches)
    divided, divided_history = train(small_model(0), batches, accumulation=4)
    for left, right in zip(whole_history, divided_history, strict=True):
        assert left == pytest.approx(right, rel=1e-5)
    assert_close(whole, divided)


def test_a_mesh_trains_as_one_device_and_shards_moments_as_parameters(small_model, make_batch) -> None:
    mesh = (2, 4)
    batches = [make_batch(8, seed=seed) for seed in range(4)]
    expected, expected_history = train(small_model(0), batches)
    actual, history = train(small_model(0), batches, mesh=mesh)
    for left, right in zip(history, expected_history, strict=True):
        assert left == pytest.approx(right, rel=1e-5)
    assert_close(actual, expected)
    moments = actual.opt_state[1][0].mu["decoder/q_weight_dnh"]
    assert moments.sharding.spec == actual.trainable["decoder/q_weight_dnh"].sharding.spec
    assert moments.addressable_shards[0].data.shape[1] == 16 // mesh[1]


def test_frozen_parameters_stay_and_have_no_optimizer_state(small_model, make_batch) -> None:
    model = small_model(0)
    before = split_parameters(model)[1]
    state, _ = train(model, [make_batch(8)], frozen=("visual/(?!merger)",))
    assert set(state.frozen) == {"visual/patch_weight_cd"}
    assert set(state.opt_state[1][0].mu) == set(state.trainable) == set(before) - {"visual/patch_weight_cd"}
    np.testing.assert_array_equal(state.frozen["visual/patch_weight_cd"], before["visual/patch_weight_cd"])
    for path, array in state.trainable.items():
        assert not np.array_equal(array, before[path]), path


def test_a_running_mean_of_the_parameters_is_kept_and_evaluated(small_model, make_batch) -> None:
    batches = [make_batch(8, seed=seed) for seed in range(2)]
    mean = split_parameters(small_model(0))[1]
    for taken in (1, 2):
        now = train(small_model(0), batches[:taken])[0].trainable
        mean = {path: 0.75 * np.asarray(mean[path]) + 0.25 * np.asarray(leaf) for path, leaf in now.items()}
    state, _ = train(small_model(0), batches, ema=0.75, mesh=(2, 4))
    for path, leaf in mean.items():
        np.testing.assert_allclose(state.ema[path], leaf, rtol=1e-4, atol=1e-6, err_msg=path)
        assert state.ema[path].sharding == state.trainable[path].sharding

    mesh = make_mesh(2, 4)
    structure, parameters = split_parameters(small_model(0))
    optimizer = make_optimizer(lambda _: 0.0, clip_norm=1.0, weight_decay=0.0, b1=0.9, b2=0.999)
    averaged = dataclasses.replace(initial_state(parameters, {}, optimizer, ema=0.5), ema=mean)
    plain = initial_state(mean, {}, optimizer)
    rows = put_batch(make_batch(8), mesh, max_labels=12)
    losses = [
        make_eval_step(structure, mesh, state_shardings(mesh, found), OPTIONS)(found, rows)[0]["loss"]
        for found in (averaged, plain)
    ]
    assert float(losses[0]) == pytest.approx(float(losses[1]), rel=1e-6)


def test_frozen_parameters_cost_no_backward_pass(small_model, make_batch) -> None:
    """Neither the product that gives the frozen projection's gradient nor the one that leads back to it is there."""
    mesh = make_mesh()
    schedule = learning_rate_schedule(1e-2, steps=10, warmup_fraction=0.0)
    optimizer = make_optimizer(schedule, clip_norm=1.0, weight_decay=0.0, b1=0.9, b2=0.999)
    structure, parameters = split_parameters(small_model(0))
    batch = put_batch(make_batch(8), mesh, max_labels=12, accumulation=1)

    def products(frozen: tuple[str, ...]) -> int:
        state = initial_state(*split_frozen(parameters, frozen), optimizer)
        step = make_train_step(structure, optimizer, schedule, mesh, state_shardings(mesh, state), OPTIONS)
        return step.lower(state, batch).as_text().count("stablehlo.dot_general")

    assert products(("visual/(?!merger)",)) == products(()) - 2


def test_the_step_trains(small_model, make_batch) -> None:
    _, history = train(small_model(0), [make_batch(8)] * 30, steps=100)
    assert history[-1]["loss"] < 0.5 * history[0]["loss"]


def test_bfloat16_computes_in_bfloat16_and_keeps_float32_masters(small_model, make_batch) -> None:
    mesh = make_mesh()
    schedule = learning_rate_schedule(1e-2, steps=10, warmup_fraction=0.0)
    optimizer = make_optimizer(schedule, clip_norm=1.0, weight_decay=0.0, b1=0.9, b2=0.999)
    structure, parameters = split_parameters(small_model(0))
    state = initial_state(parameters, {}, optimizer)
    options = StepOptions(compute_dtype=jnp.dtype("bfloat16"), max_labels=12)
    step = make_train_step(structure, optimizer, schedule, mesh, state_shardings(mesh, state), options)
    batch = put_batch(make_batch(8), mesh, max_labels=12, accumulation=1)
    assert "xbf16>" in step.lower(state, batch).as_text()
    state, metrics = step(state, batch)
    assert {leaf.dtype for leaf in state.trainable.values()} == {jnp.dtype("float32")}
    assert metrics["loss"].dtype == jnp.float32


def test_validation_sums_losses_and_labels(small_model, make_batch) -> None:
    mesh = make_mesh(2, 4)
    structure, parameters = split_parameters(small_model(0))
    optimizer = make_optimizer(lambda _: 0.0, clip_norm=1.0, weight_decay=0.0, b1=0.9, b2=0.999)
    state = initial_state(parameters, {}, optimizer)
    step = make_eval_step(structure, mesh, state_shardings(mesh, state), OPTIONS)
    batch = make_batch(8)
    sums, counts = step(state, put_batch(batch, mesh, max_labels=12))
    loss, labels = sums["loss"], counts["loss"]
    assert labels == (batch["labels"] != -100).sum()
    _, history = train(small_model(0), [batch])
    assert float(loss / labels) == pytest.approx(history[0]["loss"], rel=1e-5)


def test_a_row_with_too_many_labels_names_the_key(make_batch) -> None:
    with pytest.raises(ValueError, match=r"12 labelled tokens, more than config\.data\.max_labels = 4"):
        put_batch(make_batch(8, length=30) | {"labels": np.ones((8, 12), np.int32)}, make_mesh(), max_labels=4)


def test_a_step_that_is_not_finite_changes_nothing_and_is_counted(small_model, make_batch) -> None:
    """The run with a bad batch between two good ones is the run of the two good ones, learning rate included."""
    good = [make_batch(8, seed=seed) for seed in range(2)]
    good = [batch | {"pixel_values": batch["pixel_values"].astype(np.float32)} for batch in good]
    bad = good[0] | {"pixel_values": np.full_like(good[0]["pixel_values"], np.nan)}
    state, history = train(small_model(0), [good[0], bad, good[1]], ema=0.5)
    expected, expected_history = train(small_model(0), good, ema=0.5)
    assert (int(state.step), int(state.bad_steps)) == (3, 1)
    assert [metrics["bad_steps"] for metrics in history] == [0, 1, 1]
    assert not np.isfinite(history[1]["loss"])
    assert history[2] | {"bad_steps": 0.0} == expected_history[1]
    for left, right in (
        (state.trainable, expected.trainable),
        (state.ema, expected.ema),
        (state.opt_state, expected.opt_state),
    ):
        jax.tree.map(np.testing.assert_array_equal, left, right)
