"""Objectives from outside, through the public API alone: a z-loss by a configuration, weights by label in a step."""

import json
from collections.abc import Mapping
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import Array, Float
from rich.console import Console

from swjax.mesh import make_mesh
from swjax.models.parameters import merge_parameters, split_parameters
from swjax.training.config import ConfigError, base_config, changed_keys, check_config
from swjax.training.objectives import LOSS, Batch, Objective, Predictor, find_objective, register_objective
from swjax.training.objectives.labels import IGNORED, label_losses
from swjax.training.objectives.next_token import losses_by_row
from swjax.training.optimizer import learning_rate_schedule, make_optimizer
from swjax.training.run import train
from swjax.training.step import (
    StepOptions,
    initial_state,
    make_eval_step,
    make_train_step,
    put_batch,
    state_shardings,
)

Z = 10.0


def z_counts(batch: Batch) -> Mapping[str, Array]:
    labels = (batch["labels"] != IGNORED).sum().astype(jnp.float32)
    return {LOSS: labels, "head": labels}


def z_sums(model: Predictor, batch: Batch, *, max_labels: int, constrain) -> Mapping[str, Float[Array, ""]]:
    """Cross entropy, and for each label a pull on the head's weights."""
    losses = losses_by_row(model, batch, max_labels=max_labels, constrain=constrain).sum()
    head = (batch["labels"] != IGNORED).sum() * jnp.square(model.head()).mean().astype(jnp.float32)
    return {LOSS: losses + Z * head, "head": head}


@pytest.fixture(scope="module")
def z_loss() -> str:
    register_objective("z_loss", Objective(fields={}, counts=z_counts, sums=z_sums))
    return "z_loss"


def weighted_counts(batch: Batch) -> Mapping[str, Array]:
    weights = jnp.where(batch["labels"] == IGNORED, 0.0, batch["label_weights"]).sum()
    return {LOSS: weights, "unweighted": (batch["labels"] != IGNORED).sum().astype(jnp.float32)}


def weighted_sums(model: Predictor, batch: Batch, *, max_labels: int, constrain) -> Mapping[str, Float[Array, ""]]:
    losses, slots, is_labelled = label_losses(model, batch, max_labels=max_labels, constrain=constrain)
    weights = jnp.take_along_axis(batch["label_weights"], slots, axis=-1)
    return {
        LOSS: jnp.sum(losses * weights, where=is_labelled),
        "unweighted": jnp.sum(losses, where=is_labelled),
    }


WEIGHTED = Objective(fields={"label_weights": "BL"}, counts=weighted_counts, sums=weighted_sums)


def step_of(model, objective: Objective, mesh_shape: tuple[int, int] = (1, 1)):
    mesh = make_mesh(*mesh_shape, devices=jax.devices()[: mesh_shape[0] * mesh_shape[1]])
    structure, parameters = split_parameters(model)
    schedule = learning_rate_schedule(1e-2, steps=20, warmup_fraction=0.0)
    optimizer = make_optimizer(schedule, clip_norm=1.0, weight_decay=0.0, b1=0.9, b2=0.999)
    state = initial_state(parameters, {}, optimizer)
    shardings = state_shardings(mesh, jax.eval_shape(lambda: state))
    options = StepOptions(compute_dtype=jnp.dtype("float32"), max_labels=12, objective=objective)
    state = jax.device_put(state, shardings)
    steps = make_train_step(structure, optimizer, schedule, mesh, shardings, options)
    return mesh, state, steps, make_eval_step(structure, mesh, shardings, options)


def test_a_run_by_an_objective_of_one_s_own_trains_and_reports_what_it_names(
    z_loss: str, make_config, tmp_path: Path
) -> None:
    config = make_config(tmp_path / "run")
    config.objective, config.steps, config.eval_every = z_loss, 2, 2
    state = train(config, console=Console(quiet=True))
    assert int(state.step) == 2
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    steps = [line for line in lines if "loss" in line]
    assert [line["loss"] > Z * line["head"] > 0 for line in steps] == [True, True]
    (validated,) = (line for line in lines if "validation_loss" in line and line["step"] == 2)
    assert validated["validation_head"] > 0


def test_weights_by_label_give_the_obvious_mean_however_rows_are_divided(small_model, make_batch) -> None:
    batch = make_batch(8)
    weights = np.random.default_rng(0).random(batch["labels"].shape).astype(np.float32)
    weighted = batch | {"label_weights": weights}
    structure, parameters = split_parameters(small_model(0))

    @jax.jit
    def of_slots(batch: Batch) -> tuple[Array, Array, Array]:
        return label_losses(merge_parameters(structure, parameters), batch, max_labels=12)

    losses, slots, is_labelled = map(np.asarray, of_slots(batch))
    chosen = np.where(is_labelled, np.take_along_axis(weights, slots, axis=-1), 0.0)
    expected = (losses * chosen).sum() / chosen.sum()
    plain = losses[is_labelled].mean()
    found = []
    for mesh_shape, accumulation in (((1, 1), 4), ((2, 4), 1)):
        mesh, state, step, validate = step_of(small_model(0), WEIGHTED, mesh_shape)
        placed = put_batch(weighted, mesh, max_labels=12, fields=WEIGHTED.fields)
        sums, counts = validate(state, placed)
        assert float(sums[LOSS] / counts[LOSS]) == pytest.approx(expected, rel=1e-5)
        placed = put_batch(weighted, mesh, max_labels=12, accumulation=accumulation, fields=WEIGHTED.fields)
        state, metrics = step(state, placed)
        assert float(metrics["loss"]) == pytest.approx(expected, rel=1e-5)
        assert float(metrics["unweighted"]) == pytest.approx(plain, rel=1e-5)
        found.append(np.asarray(state.trainable["decoder/head_vd"]))
    np.testing.assert_allclose(found[1], found[0], atol=1e-6)


def test_an_objective_of_one_s_own_trains(small_model, make_batch) -> None:
    batch = make_batch(8)
    batch["label_weights"] = np.ones(batch["labels"].shape, np.float32)
    mesh, state, step, _ = step_of(small_model(0), WEIGHTED)
    placed = put_batch(batch, mesh, max_labels=12, accumulation=1, fields=WEIGHTED.fields)
    history = []
    for _ in range(10):
        state, metrics = step(state, placed)
        history.append(float(metrics["loss"]))
    assert history[-1] < 0.8 * history[0]


def test_a_batch_without_what_the_objective_needs_is_named(small_model, make_batch) -> None:
    mesh, state, step, _ = step_of(small_model(0), WEIGHTED)
    placed = put_batch(make_batch(8), mesh, max_labels=12, accumulation=1)
    with pytest.raises(ValueError, match=r"the batch lacks label_weights, which config\.objective needs; it has"):
        step(state, placed)


def test_a_name_is_given_once() -> None:
    register_objective("twice", WEIGHTED)
    register_objective("twice", WEIGHTED)
    assert find_objective("twice") is WEIGHTED
    with pytest.raises(ValueError, match="there is an objective 'twice' already"):
        register_objective("twice", find_objective("next_token"))


def test_an_unknown_objective_is_named() -> None:
    config = base_config()
    config.data.train, config.model.preset, config.objective = "manifest.jsonl", "tiny", "dpo"
    with pytest.raises(ConfigError, match=r"config\.objective: unknown objective 'dpo'; choose one of: next_token"):
        check_config(config)


def test_a_run_from_before_there_was_a_choice_may_be_resumed() -> None:
    config = base_config()
    recorded = config.to_dict()
    del recorded["objective"]
    assert changed_keys(recorded, config) == []
    config.objective = "other"
    assert changed_keys(recorded, config) == ["config.objective was 'next_token', is 'other'"]
