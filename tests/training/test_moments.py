import jax
import jax.numpy as jnp
import numpy as np
import optax

from swjax.training.moments import adamw, round_at_random


def settings(dtype: str) -> optax.GradientTransformation:
    return adamw(lambda _: 1e-2, b1=0.9, b2=0.999, weight_decay=0.1, mask=None, moments_dtype=dtype)


def test_rounding_is_exact_in_the_mean_and_goes_to_a_neighbour() -> None:
    value = np.float32(1.0 + 2**-7 / 4)  # a quarter of the way to the next bfloat16
    rounded = np.asarray(round_at_random(jnp.full(100_000, value), jax.random.key(0)), np.float32)
    assert set(np.unique(rounded)) == {np.float32(1.0), np.float32(1.0 + 2**-7)}
    np.testing.assert_allclose(rounded.mean(), value, rtol=1e-4)
    exact = jnp.array([0.0, -1.5, 3.0], jnp.float32)
    np.testing.assert_array_equal(round_at_random(exact, jax.random.key(1)).astype(jnp.float32), exact)


def test_bfloat16_moments_follow_float32_ones() -> None:
    rng = np.random.default_rng(0)
    parameters = {"w_df": jnp.asarray(rng.normal(size=(64, 64)), jnp.float32)}
    gradients = [{"w_df": jnp.asarray(rng.normal(size=(64, 64)), jnp.float32)} for _ in range(4)]

    def run(dtype: str) -> tuple[dict, optax.ScaleByAdamState]:
        optimizer = settings(dtype)
        update = jax.jit(optimizer.update)
        state, now = optimizer.init(parameters), parameters
        for step in range(200):
            # Gradients fall to a hundredth: a second moment that could not fall would hold the steps back.
            scale = 1.0 if step < 20 else 0.01
            updates, state = update(jax.tree.map(lambda g, s=scale: g * s, gradients[step % 4]), state, now)
            now = optax.apply_updates(now, updates)
        return now, state[0]

    (wide, wide_state), (narrow, narrow_state) = run("float32"), run("bfloat16")
    assert narrow_state.mu["w_df"].dtype == narrow_state.nu["w_df"].dtype == jnp.bfloat16
    assert wide_state.nu["w_df"].dtype == jnp.float32
    ratio = np.asarray(narrow_state.nu["w_df"], np.float32).sum() / np.asarray(wide_state.nu["w_df"]).sum()
    np.testing.assert_allclose(ratio, 1.0, rtol=1e-3)
    moved = np.linalg.norm(wide["w_df"] - parameters["w_df"])
    assert np.linalg.norm(narrow["w_df"] - wide["w_df"]) < 0.02 * moved
