"""The training step: one pure function of state and batch, jitted and sharded, and its sister for validation."""

import dataclasses
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int32, PRNGKeyArray, Shaped

from swjax.attention import stripe_order
from swjax.compiler import TRAINING_OPTIONS
from swjax.mesh import BATCH_AXES, batch_sharding, parameter_shardings, replicated, row_share
from swjax.models.adapters import attach_adapters
from swjax.models.layers import Constrain, unconstrained
from swjax.models.parameters import Parameters, merge_parameters, widened
from swjax.training.objectives import LOSS, NEXT_TOKEN, Batch, Objective
from swjax.training.objectives.labels import IGNORED, count_labels, count_tokens

Metrics = dict[str, Float[Array, ""]]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """All that a step changes, and the frozen parameters that it reads.

    Attributes:
        step: steps taken, those without effect among them.
        bad_steps: steps without effect, as their loss or gradient was not finite.
        trainable: path -> float32 master parameter. Only these have gradients and optimizer state.
        frozen: path -> parameter that stays as it is, in the dtype of the computations.
        opt_state: the optimizer's state for `trainable`.
        ema: path -> running mean of a trainable parameter; empty where the run keeps none.
    """

    step: Int32[Array, ""]
    bad_steps: Int32[Array, ""]
    trainable: Parameters
    frozen: Parameters
    opt_state: optax.OptState
    ema: Parameters


@dataclasses.dataclass(frozen=True)
class StepOptions:
    """What a step is compiled for.

    Attributes:
        compute_dtype: dtype that parameters are cast to for the forward and backward pass.
        max_labels: most labelled slots a row may have.
        constrain: lays the loss's activations out over devices, as the model's do its own.
        lora_alpha: numerator of the scale of the adapters among the parameters, if there are any.
        lora_dropout: share of the adapters' inputs that a training step drops.
        seed: of what is dropped.
        ema: decay of the running mean of the parameters; 0 keeps none.
        objective: what is made small.
        width_tiles: axis inside of layers -> what it is filled up to a multiple of while it is computed with.
    """

    compute_dtype: jnp.dtype
    max_labels: int
    constrain: Constrain = unconstrained
    lora_alpha: float = 1.0
    lora_dropout: float = 0.0
    seed: int = 0
    ema: float = 0.0
    objective: Objective = NEXT_TOKEN
    width_tiles: Mapping[str, int] = dataclasses.field(default_factory=dict)


def initial_state(
    trainable: Parameters, frozen: Parameters, optimizer: optax.GradientTransformation, *, ema: float = 0.0
) -> TrainState:
    """The state before the first step. Under `jax.eval_shape` it gives the shapes that `state_shardings` asks for.

    Args:
        trainable, frozen: parameters by path.
        optimizer: of the trainable ones.
        ema: decay of their running mean; 0 keeps none.
    """
    # A copy, as the step is given the whole state to write over.
    mean = jax.tree.map(jnp.copy, trainable) if ema else {}
    # An array each, as one that is given away twice would be freed twice.
    step, bad_steps = jnp.zeros((), jnp.int32), jnp.zeros((), jnp.int32)
    return TrainState(step, bad_steps, trainable, frozen, optimizer.init(trainable), mean)


def state_shardings(mesh: Mesh, state: TrainState) -> TrainState:
    """The sharding of every leaf of a state: optimizer moments lie where their parameters lie.

    Args:
        mesh: from `make_mesh`.
        state: a state or its shapes.
    """
    shardings = parameter_shardings(mesh, state.trainable | state.frozen)
    trainable = {path: shardings[path] for path in state.trainable}
    whole = replicated(mesh)

    def of_moment(keys: jax.tree_util.KeyPath, leaf: Array) -> jax.sharding.NamedSharding:
        names = (getattr(key, "key", None) for key in reversed(keys))
        path = next((name for name in names if name in trainable), None)
        # Factored moments have fewer axes than their parameters, and are small.
        return trainable[path] if path and leaf.shape == state.trainable[path].shape else whole

    return dataclasses.replace(
        jax.tree.map(lambda _: whole, state),
        trainable=trainable,
        frozen={path: shardings[path] for path in state.frozen},
        ema={path: shardings[path] for path in state.ema},
        opt_state=jax.tree_util.tree_map_with_path(of_moment, state.opt_state),
    )


def put_batch(
    batch: Mapping[str, Shaped[np.ndarray, "rows ..."]],
    mesh: Mesh,
    *,
    max_labels: int,
    accumulation: int | None = None,
    stripe: int | None = None,
    fields: Mapping[str, str] | None = None,
) -> dict[str, Array]:
    """Moves this process's rows of a batch to the devices.

    Args:
        batch: host arrays, rows first: this process's part (`swjax.mesh.row_share`).
        mesh: from `make_mesh`.
        max_labels: most labelled slots a row may have (`config.data.max_labels`).
        accumulation: number of micro-batches A that a training step runs through; None for validation.
        stripe: slots of the stripes in which rows are dealt out along the context axis; None leaves them in order.
        fields: what the objective adds to a batch, and its axes (`Objective.fields`).

    Returns:
        Global arrays [B, ...], or [A, B, ...] where `accumulation` is given; with `slots` where rows are dealt out.

    Raises:
        ValueError: a row has more labels than `max_labels` (the pipeline skips such examples), or the mesh does
            not divide the batch.
    """
    most = int((batch["labels"] != IGNORED).sum(axis=-1).max())
    if most > max_labels:
        raise ValueError(f"an example has {most} labelled tokens, more than config.data.max_labels = {max_labels}")
    axes = {**BATCH_AXES, **(fields or {})}
    if stripe is not None:
        batch = _striped(batch, axes, stripe_order(batch["token_ids"].shape[1], mesh.shape["context"], stripe))
    parts = row_share(mesh)[1]
    if accumulation is not None:
        batch = {name: rows.reshape(accumulation, -1, *rows.shape[1:]) for name, rows in batch.items()}
    accumulated = accumulation is not None

    def put(name: str, rows: np.ndarray) -> Array:
        shape = list(rows.shape)
        shape[int(accumulated)] *= parts
        sharding = batch_sharding(mesh, name, tuple(shape), accumulated=accumulated, axes=axes)
        return jax.make_array_from_process_local_data(sharding, rows, tuple(shape))

    return {name: put(name, rows) for name, rows in batch.items()}


def make_train_step(
    structure: nnx.GraphDef,
    optimizer: optax.GradientTransformation,
    schedule: optax.Schedule,
    mesh: Mesh,
    shardings: TrainState,
    options: StepOptions,
) -> Callable[[TrainState, Batch], tuple[TrainState, Metrics]]:
    """Compiles `step(state, batch) -> (state, metrics)`; the state given is donated.

    The batch has a leading axis of micro-batches, [A, B, ...] (`put_batch`). Their gradients are summed one after
    another in float32 and divided by the objective's count of them all, so that A x B rows give the same step however
    they are divided. A step whose loss or gradient is not finite changes nothing but the two counts of steps.

    Args:
        structure: of the model, from `split_parameters`.
        optimizer: of the trainable parameters.
        schedule: the learning rate by step, for the metrics.
        mesh: the devices.
        shardings: of the state, from `state_shardings`.
        options: what else it does.

    Returns:
        A function whose metrics are float32 scalars: `loss` (of next_token: mean over labelled tokens, nats) and
        what the objective gives beside it, `grad_norm` (before clipping), `learning_rate`, `bad_steps` (so far),
        `labels` (labelled tokens), `tokens` (all tokens but padding) and `token_share` (their share of the batch's
        slots).

    Raises:
        ValueError: when it is called, if the batch lacks a field that the objective needs.
    """

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        counts = _counts(batch, options)
        keys = None
        if options.lora_dropout:
            of_step = jax.random.fold_in(jax.random.key(options.seed), state.step)
            keys = jax.random.split(of_step, len(batch["token_ids"]))

        def loss_of(
            trainable: Parameters, micro_batch: Batch, key: PRNGKeyArray | None
        ) -> tuple[Float[Array, ""], Metrics]:
            sums = _sums(structure, trainable, state.frozen, micro_batch, options, key)
            means = {name: total / counts[name] for name, total in sums.items()}
            return means[LOSS], means

        def accumulate(
            carry: tuple[Metrics, Parameters], given: tuple[Batch, PRNGKeyArray | None]
        ) -> tuple[tuple[Metrics, Parameters], None]:
            gradients, means = jax.grad(loss_of, has_aux=True)(state.trainable, *given)
            return jax.tree.map(jnp.add, carry, (means, gradients)), None

        nothing = ({name: jnp.zeros(()) for name in counts}, jax.tree.map(jnp.zeros_like, state.trainable))
        (means, gradients), _ = jax.lax.scan(accumulate, nothing, (batch, keys))
        loss = means[LOSS]
        with jax.named_scope("optimizer"):
            updates, opt_state = optimizer.update(gradients, state.opt_state, state.trainable)
            trainable = optax.apply_updates(state.trainable, updates)
            ema = optax.incremental_update(trainable, state.ema, 1 - options.ema) if options.ema else {}
            grad_norm = optax.tree.norm(gradients)
            is_good = jnp.isfinite(loss) & jnp.isfinite(grad_norm)
            trainable, opt_state, ema = jax.tree.map(
                lambda new, old: jnp.where(is_good, new, old),
                (trainable, opt_state, ema),
                (state.trainable, state.opt_state, state.ema),
            )
            bad_steps = state.bad_steps + ~is_good
        metrics = {
            **means,
            "grad_norm": grad_norm,
            # The optimizer counts the steps that had an effect.
            "learning_rate": jnp.asarray(schedule(state.step - state.bad_steps), jnp.float32),
            "bad_steps": bad_steps.astype(jnp.float32),
            "labels": count_labels(batch["labels"]),
            "tokens": count_tokens(batch).astype(jnp.float32),
            "token_share": count_tokens(batch) / batch["token_ids"].size,
        }
        return TrainState(state.step + 1, bad_steps, trainable, state.frozen, opt_state, ema), metrics

    return jax.jit(
        train_step,
        donate_argnames="state",
        in_shardings=(shardings, None),  # a batch lies where `put_batch` has put it
        out_shardings=(shardings, replicated(mesh)),
        compiler_options=TRAINING_OPTIONS.get(mesh.devices.flat[0].platform),
    )


def make_eval_step(
    structure: nnx.GraphDef, mesh: Mesh, shardings: TrainState, options: StepOptions
) -> Callable[[TrainState, Batch], tuple[Metrics, Metrics]]:
    """Compiles `step(state, batch [B, ...]) -> (sums, counts)` of the objective, for means over batches.

    Where the state has running means of the parameters, these are what is evaluated.

    Args:
        structure, mesh, shardings, options: as for `make_train_step`.

    Returns:
        A function whose sums and counts are by the same names, `loss` among them.
    """

    def eval_step(state: TrainState, batch: Batch) -> tuple[Metrics, Metrics]:
        counts = _counts(batch, options)
        return _sums(structure, state.trainable | state.ema, state.frozen, batch, options), counts

    return jax.jit(
        eval_step,
        in_shardings=(shardings, None),
        out_shardings=(replicated(mesh), replicated(mesh)),
        compiler_options=TRAINING_OPTIONS.get(mesh.devices.flat[0].platform),
    )


def _striped(
    batch: Mapping[str, np.ndarray], axes: Mapping[str, str], order: Int32[np.ndarray, "L"]
) -> dict[str, np.ndarray]:
    """Rows dealt out in stripes, and the slot of each of their tokens."""
    striped = {name: rows[..., order] if axes[name].endswith("L") else rows for name, rows in batch.items()}
    return striped | {"slots": np.tile(order, (len(batch["token_ids"]), 1))}


def _sums(
    structure: nnx.GraphDef,
    trainable: Parameters,
    frozen: Parameters,
    batch: Batch,
    options: StepOptions,
    key: PRNGKeyArray | None = None,
) -> dict[str, Float[Array, ""]]:
    wide = widened(trainable | frozen, options.width_tiles)
    parameters = attach_adapters(
        wide, alpha=options.lora_alpha, dtype=options.compute_dtype, dropout=options.lora_dropout, key=key
    )
    model = merge_parameters(structure, parameters)
    sums = options.objective.sums(model, batch, max_labels=options.max_labels, constrain=options.constrain)
    return dict(sums)


def _counts(batch: Batch, options: StepOptions) -> dict[str, Float[Array, ""]]:
    """What each sum is divided by, of a batch that has all that the objective asks for."""
    missing = sorted(set(options.objective.fields) - set(batch))
    if missing:
        raise ValueError(f"the batch lacks {', '.join(missing)}, which config.objective needs; it has {sorted(batch)}")
    return dict(options.objective.counts(batch))
