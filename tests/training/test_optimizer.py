import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from swjax.mesh import make_mesh
from swjax.models.adapters import choose_targets
from swjax.models.parameters import match_paths
from swjax.training.config import base_config, check_config
from swjax.training.optimizer import OPTIMIZERS, SCHEDULES, learning_rate_schedule, make_optimizer, split_frozen
from swjax.training.step import initial_state, state_shardings

PARAMETERS = {"visual/patch_weight_cd": 1, "visual/blocks/norm_d": 2, "visual/merger/up_mf": 3, "decoder/head_vd": 4}


def test_the_learning_rate_rises_over_three_percent_and_falls_as_a_cosine() -> None:
    schedule = learning_rate_schedule(2e-5, steps=1000, warmup_fraction=0.03)
    rates = np.array([schedule(step) for step in (0, 15, 30, 515, 1000)])
    np.testing.assert_allclose(rates, [0, 1e-5, 2e-5, 1e-5, 0], atol=1e-12)


def test_the_shortest_runs_have_a_schedule() -> None:
    assert learning_rate_schedule(0.5, steps=1, warmup_fraction=0.03)(0) == 0.5
    assert [float(learning_rate_schedule(0.5, steps=2, warmup_fraction=0.03)(step)) for step in (0, 1)] == [0, 0.5]


def test_the_paper_s_choice_freezes_the_vision_tower_but_for_its_merger() -> None:
    trainable, frozen = split_frozen(PARAMETERS, ("visual/(?!merger)",))
    assert trainable == {"visual/merger/up_mf": 3, "decoder/head_vd": 4}
    assert frozen == {"visual/patch_weight_cd": 1, "visual/blocks/norm_d": 2}


@pytest.mark.parametrize(
    ("patterns", "message"),
    [
        (("vision/",), "'vision/' matches no parameter; parameters begin with decoder/head_vd, visual/blocks"),
        (("visual/(",), "is not a regular expression"),
        (("visual", "decoder"), "leaves no parameter to train"),
    ],
)
def test_patterns_that_cannot_be_meant_are_refused(patterns: tuple[str, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message.replace("(", r"\(")):
        split_frozen(PARAMETERS, patterns)


def test_matrices_decay_and_norms_and_biases_do_not() -> None:
    optimizer = make_optimizer(lambda _: 1.0, clip_norm=1.0, weight_decay=0.5, b1=0.9, b2=0.999)
    parameters = {"q_weight_dnh": jnp.ones((2, 1, 2)), "norm_d": jnp.ones(2)}
    parameters |= {path: jnp.ones((3, 1, 2)) for path in ("layers/q_bias_nh", "layers/q_lora_m_nh")}
    nothing = {path: jnp.zeros_like(leaf) for path, leaf in parameters.items()}
    updates, _ = optimizer.update(nothing, optimizer.init(parameters), parameters)
    np.testing.assert_allclose(updates["q_weight_dnh"], -0.5)
    np.testing.assert_array_equal(updates["layers/q_bias_nh"], 0)
    for path in ("layers/q_lora_m_nh", "norm_d"):
        np.testing.assert_array_equal(updates[path], 0)


def test_the_gradient_is_clipped_by_its_global_norm() -> None:
    """Two steps: Adam forgets the size of one gradient, but not how two compare."""
    optimizer = make_optimizer(lambda _: 1.0, clip_norm=1.0, weight_decay=0.0, b1=0.9, b2=0.999)
    plain = optax.adamw(1.0, b1=0.9, b2=0.999, weight_decay=0.0)
    parameters = {"w_dd": jnp.zeros((2, 1)), "b_d": jnp.zeros(1)}
    large = {"w_dd": jnp.array([[3.0], [0.0]]), "b_d": jnp.array([4.0])}
    small = {"w_dd": jnp.array([[0.1], [0.2]]), "b_d": jnp.array([0.3])}
    state, plain_state = optimizer.init(parameters), plain.init(parameters)
    for gradients, clipped in ((large, {path: leaf / 5 for path, leaf in large.items()}), (small, small)):
        updates, state = optimizer.update(gradients, state, parameters)
        expected, plain_state = plain.update(clipped, plain_state, parameters)
    for path in parameters:
        np.testing.assert_allclose(updates[path], expected[path], rtol=1e-6)


def one_update(**changes: object) -> dict[str, np.ndarray]:
    """The first update of three parameters of one under a gradient of one, at a learning rate of one."""
    settings: dict = {"clip_norm": 9.0, "weight_decay": 0.5, "b1": 0.9, "b2": 0.999} | changes
    optimizer = make_optimizer(lambda _: 1.0, **settings)
    parameters = {path: jnp.ones((2, 2)) for path in ("visual/merger/up_mf", "decoder/q_dn", "decoder/head_vd")}
    updates, _ = optimizer.update(parameters, optimizer.init(parameters), parameters)
    return {path: np.asarray(leaf)[0, 0] for path, leaf in updates.items()}


def test_groups_multiply_the_learning_rate_and_the_first_that_matches_counts() -> None:
    updates = one_update(groups=(("visual/merger", 0.5), ("decoder/head", 3.0), ("decoder", 2.0)))
    plain = one_update()
    factors = {path: updates[path] / plain[path] for path in updates}
    assert factors == pytest.approx({"visual/merger/up_mf": 0.5, "decoder/q_dn": 2.0, "decoder/head_vd": 3.0})


def test_what_a_pattern_spares_does_not_decay() -> None:
    updates = one_update(no_decay=("decoder/head", "visual"))
    assert updates == pytest.approx({"visual/merger/up_mf": -1, "decoder/q_dn": -1.5, "decoder/head_vd": -1}, rel=1e-5)


@pytest.mark.parametrize(
    ("change", "key"), [({"groups": (("head", 2.0),)}, "groups"), ({"no_decay": ("norm",)}, "no_decay")]
)
def test_patterns_of_the_optimizer_that_match_nothing_are_refused(change: dict, key: str) -> None:
    with pytest.raises(ValueError, match=rf"config\.optimizer\.{key}: .* matches no parameter"):
        one_update(**change)


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("constant", [0, 1, 1, 1, 1]),
        ("linear", [0, 1, 0.6, 0.3, 0.2]),
        ("cosine", [0, 1, 0.6, 0.2 + 0.8 * (1 + np.cos(np.pi * 7 / 8)) / 2, 0.2]),
        ("wsd", [0, 1, 1, 0.6, 0.2]),
    ],
)
def test_schedules_after_a_warm_up_of_two_of_ten_steps_down_to_a_fifth(kind: str, expected: list[float]) -> None:
    schedule = learning_rate_schedule(
        1.0, steps=10, warmup_fraction=0.2, kind=kind, final_fraction=0.2, decay_fraction=0.25
    )
    np.testing.assert_allclose([schedule(step) for step in (0, 2, 6, 9, 10)], expected, atol=1e-6)


def update_of(name: str, gradients: dict, **changes: object) -> dict[str, np.ndarray]:
    settings: dict = {"clip_norm": 0.0, "weight_decay": 0.0, "b1": 0.9, "b2": 0.99} | changes
    optimizer = make_optimizer(lambda _: 0.5, name=name, **settings)
    parameters = {path: jnp.ones_like(leaf) for path, leaf in gradients.items()}
    updates, _ = optimizer.update(gradients, optimizer.init(parameters), parameters)
    return {path: np.asarray(leaf) for path, leaf in updates.items()}


GRADIENTS = {
    "decoder/layers/q_weight_dnh": jnp.asarray(np.random.default_rng(0).standard_normal((2, 6, 2, 3)), jnp.float32),
    "decoder/layers/q_lora_a_dr": jnp.asarray(np.random.default_rng(1).standard_normal((2, 6, 2)), jnp.float32),
    "decoder/head_vd": jnp.asarray(np.random.default_rng(2).standard_normal((8, 6)), jnp.float32),
    "decoder/norm_d": jnp.full(6, -3.0),
}


def test_rules_and_schedules_are_added_by_one_row(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(OPTIMIZERS, "descent", lambda rule: optax.sgd(rule.schedule))
    monkeypatch.setitem(SCHEDULES, "half", lambda peak, steps, final, decay: optax.constant_schedule(peak / 2))
    config = base_config()
    config.data.train, config.model.preset = "manifest.jsonl", "tiny"
    config.optimizer.name, config.optimizer.schedule = "descent", "half"
    check_config(config)
    assert learning_rate_schedule(1.0, steps=4, warmup_fraction=0.0, kind="half")(3) == 0.5
    np.testing.assert_allclose(update_of("descent", GRADIENTS)["decoder/norm_d"], 0.5 * 3.0)


def test_lion_steps_by_the_sign() -> None:
    for path, update in update_of("lion", GRADIENTS).items():
        np.testing.assert_allclose(update, -0.5 * np.sign(GRADIENTS[path]), rtol=1e-6)


def test_muon_makes_the_matrix_of_each_layer_orthogonal_and_leaves_head_and_norms_to_adam() -> None:
    updates = update_of("muon", GRADIENTS)
    for path, width in (("decoder/layers/q_weight_dnh", 6), ("decoder/layers/q_lora_a_dr", 2)):
        for layer in range(2):
            values = np.linalg.svd(updates[path][layer].reshape(6, width), compute_uv=False)
            # Of the size of AdamW's updates, and near to one another: five steps of Newton and Schulz come so far.
            assert values.max() / values.min() < 2.5
            assert np.sqrt((updates[path][layer] ** 2).mean()) == pytest.approx(0.5 * 0.2, rel=0.25)
    nadam = optax.nadamw(0.5, b1=0.9, b2=0.99, weight_decay=0.0)
    others, _ = nadam.update(GRADIENTS, nadam.init(GRADIENTS), GRADIENTS)
    for path in ("decoder/head_vd", "decoder/norm_d"):
        np.testing.assert_allclose(updates[path], others[path], rtol=1e-6)


def test_adafactor_keeps_a_number_a_row_and_column_and_decays_as_adamw() -> None:
    large = {"q_weight_dn": jnp.ones((128, 256))}
    optimizer = make_optimizer(lambda _: 0.5, name="adafactor", clip_norm=1.0, weight_decay=0.1, b1=0.9, b2=0.99)
    state = optimizer.init(large)
    assert sum(leaf.size for leaf in jax.tree.leaves(state)) < 400 + 128 * 256 * 0.01
    updates, _ = optimizer.update(large, state, large)
    np.testing.assert_allclose(updates["q_weight_dn"], -0.5 * (1 + 0.1), rtol=1e-3)


@pytest.mark.parametrize("name", ["adafactor", "lion", "muon"])
def test_moments_lie_where_their_parameters_lie_if_they_have_their_shape(name: str) -> None:
    optimizer = make_optimizer(lambda _: 0.5, name=name, clip_norm=1.0, weight_decay=0.1, b1=0.9, b2=0.99)
    parameters = {"decoder/layers/up_weight_df": jnp.ones((2, 128, 128)), "decoder/norm_d": jnp.ones(128)}
    shardings = state_shardings(make_mesh(1, 8, 1, 1), initial_state(parameters, {}, optimizer))
    state = jax.jit(optimizer.init, out_shardings=shardings.opt_state)(parameters)
    divided = [leaf.shape for leaf in jax.tree.leaves(state) if not leaf.sharding.is_fully_replicated]
    assert ((2, 128, 128) in divided) == (name != "adafactor")


def test_layers_that_are_frozen_stay_and_nothing_is_clipped_at_0() -> None:
    updates = update_of("adamw", GRADIENTS, frozen_layers=(1,), weight_decay=0.5)
    for path in ("decoder/layers/q_weight_dnh", "decoder/layers/q_lora_a_dr"):
        np.testing.assert_array_equal(updates[path][1], 0)
        assert np.abs(updates[path][0]).min() > 0
    assert np.abs(updates["decoder/norm_d"]).min() > 0
    plain = make_optimizer(lambda _: 1.0, clip_norm=0.0, weight_decay=0.0, b1=0.9, b2=0.999)
    assert len(plain.init(GRADIENTS)) == len(optax.chain(optax.adamw(1.0)).init(GRADIENTS))


def test_names_of_the_hub_s_modules_choose_their_parameters() -> None:
    paths = [
        "decoder/layers/q_weight_dnh",
        "decoder/layers/q_bias_nh",
        "decoder/head_vd",
        "visual/blocks/gate_weight_df",
    ]
    assert match_paths("q_proj", paths, key="frozen") == set(paths[:2])
    assert match_paths("lm_head", paths, key="frozen") == {"decoder/head_vd"}
    assert choose_targets(("q_proj",), paths) == paths[:1]
    with pytest.raises(ValueError, match=r"config\.lora\.targets: 'gate_proj' matches no parameter"):
        choose_targets(("gate_proj",), paths)
