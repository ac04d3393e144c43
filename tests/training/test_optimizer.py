import jax.numpy as jnp
import numpy as np
import optax
import pytest

from swjax.training.optimizer import learning_rate_schedule, make_optimizer, split_frozen

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
    parameters = {"q_weight_dnh": jnp.ones((2, 1, 2)), "layers/q_bias_nh": jnp.ones((3, 1, 2)), "norm_d": jnp.ones(2)}
    nothing = {path: jnp.zeros_like(leaf) for path, leaf in parameters.items()}
    updates, _ = optimizer.update(nothing, optimizer.init(parameters), parameters)
    np.testing.assert_allclose(updates["q_weight_dnh"], -0.5)
    np.testing.assert_array_equal(updates["layers/q_bias_nh"], 0)
    np.testing.assert_array_equal(updates["norm_d"], 0)


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
