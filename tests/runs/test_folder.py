import json
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from flax import nnx

from swjax.hub import CheckpointError
from swjax.models.parameters import merge_parameters, split_parameters
from swjax.models.qwen2_5_vl import Qwen2_5_VL, Qwen2_5_VLConfig
from swjax.runs.folder import list_steps, load_run, read_parameters, read_run_config

SIZES = Qwen2_5_VLConfig.preset(
    "tiny",
    text={"num_layers": 2, "hidden_size": 32, "num_heads": 2, "num_kv_heads": 1, "mrope_section": (2, 3, 3)},
    vision={"depth": 2, "out_hidden_size": 32},
)


@pytest.fixture(scope="module")
def parameters() -> dict[str, np.ndarray]:
    return {
        path: np.random.default_rng(0).standard_normal(leaf.shape, np.float32)
        for path, leaf in split_parameters(nnx.eval_shape(lambda: Qwen2_5_VL(SIZES, rngs=nnx.Rngs(0))))[1].items()
    }


@pytest.fixture
def write_run(parameters, tmp_path: Path) -> Callable[..., Path]:
    def write(changes: dict[str, np.ndarray | None] = {}, steps: tuple[int, ...] = (3, 6)) -> Path:  # noqa: B006
        (tmp_path / "config.json").write_text(json.dumps({"variant": "gdpe"}))
        (tmp_path / "model.json").write_text(json.dumps(SIZES.to_hf("float32")))
        with ocp.CheckpointManager(tmp_path / "checkpoints") as manager:
            for step in steps:
                content = {path: leaf for path, leaf in (parameters | changes).items() if leaf is not None}
                content = {path: leaf + step for path, leaf in content.items()}
                manager.save(step, args=ocp.args.Composite(parameters=ocp.args.StandardSave(content)))
        return tmp_path

    return write


def test_a_module_taken_apart_and_put_together_is_the_same() -> None:
    model = nnx.Linear(2, 3, rngs=nnx.Rngs(0))
    structure, found = split_parameters(model)
    again = merge_parameters(structure, found)
    assert set(found) == {"kernel", "bias"}
    np.testing.assert_array_equal(again(np.ones((1, 2))), model(np.ones((1, 2))))


def test_the_latest_checkpoint_or_the_one_asked_for_is_read(write_run, parameters) -> None:
    run_dir = write_run()
    assert list_steps(run_dir) == [3, 6]
    for step, run in ((6, load_run(run_dir)), (3, load_run(run_dir, step=3))):
        assert run.step == step
        assert run.config == {"variant": "gdpe"}
        assert run.model.config == SIZES
        for path, leaf in split_parameters(run.model)[1].items():
            np.testing.assert_array_equal(leaf, parameters[path] + step, err_msg=path)


def test_parameters_are_read_in_the_dtype_asked_for(write_run) -> None:
    run = load_run(write_run(), dtype="bfloat16")
    assert {str(leaf.dtype) for leaf in split_parameters(run.model)[1].values()} == {"bfloat16"}


def test_parameters_are_read_onto_the_mesh_asked_for(write_run, parameters) -> None:
    mesh = jax.make_mesh((8,), ("x",), axis_types=(jax.sharding.AxisType.Auto,))
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(None, "x"))
    whole = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    shapes = {
        path: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding if path.endswith("_vd") else whole)
        for path, leaf in parameters.items()
    }
    found = read_parameters(write_run(), 6, shapes)
    head = found["decoder/head_vd"]
    assert head.addressable_shards[0].data.shape == (512, 4)
    np.testing.assert_array_equal(head, parameters["decoder/head_vd"] + 6)


def test_what_is_no_run_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"config\.json is missing; a folder that `swjax train` wrote holds one"):
        load_run(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"config\.json is damaged"):
        read_run_config(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(CheckpointError, match="holds no finished checkpoint"):
        load_run(tmp_path)


def test_a_step_that_is_not_there_is_named_with_those_that_are(write_run) -> None:
    with pytest.raises(CheckpointError, match="no checkpoint of step 4, but of 3, 6"):
        load_run(write_run(), step=4)


def test_a_checkpoint_that_a_kill_cut_off_is_passed_over(write_run) -> None:
    run_dir = write_run()
    (run_dir / "checkpoints" / "9.orbax-checkpoint-tmp").mkdir()
    assert load_run(run_dir).step == 6


def test_a_checkpoint_without_parameters_is_half_written(write_run) -> None:
    run_dir = write_run()
    (run_dir / "checkpoints" / "9").mkdir()
    with pytest.raises(CheckpointError, match=rf"{run_dir}/checkpoints/9/parameters is missing.*delete"):
        load_run(run_dir)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"decoder/norm_d": None}, "lacks decoder/norm_d"),
        ({"decoder/extra_d": np.zeros(3)}, "has unexpected decoder/extra_d"),
        (
            {"decoder/head_vd": np.zeros((4, 32))},
            r"has decoder/head_vd with shape \(4, 32\), expected \(512, 32\)",
        ),
    ],
)
def test_a_checkpoint_of_another_model_is_refused_by_tensor(write_run, changes: dict, message: str) -> None:
    run_dir = write_run(changes)
    with pytest.raises(CheckpointError, match=rf"{run_dir}/checkpoints/6/parameters does not fit .* {message}"):
        load_run(run_dir)


def test_a_truncated_file_is_refused_by_tensor(write_run) -> None:
    run_dir = write_run(steps=(6,))
    largest = max((run_dir / "checkpoints" / "6").rglob("d/*"), key=lambda file: file.stat().st_size)
    largest.write_bytes(largest.read_bytes()[: largest.stat().st_size // 2])
    with pytest.raises(CheckpointError, match=rf"{run_dir}/checkpoints/6/parameters: tensor .*/.* cannot be read"):
        load_run(run_dir)


def test_a_missing_metadata_file_is_refused(write_run) -> None:
    run_dir = write_run(steps=(6,))
    (run_dir / "checkpoints" / "6" / "parameters" / "_METADATA").unlink()
    with pytest.raises(CheckpointError, match=rf"{run_dir}/checkpoints/6/parameters: the checkpoint cannot be read"):
        load_run(run_dir)
