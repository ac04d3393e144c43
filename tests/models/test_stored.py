"""Blocks of parameters out of files, and parameters onto devices, beside the whole arrays."""

import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import NamedSharding, PartitionSpec, SingleDeviceSharding

from swjax.hub import CheckpointError, load_hf, open_hf
from swjax.models import stored
from swjax.models.parameters import split_parameters
from swjax.models.stored import StoredArray, place
from swjax.runs.orbax_files import open_arrays

GOLDEN = Path(__file__).parents[1] / "golden" / "tiny_qwen2_5_vl"


@functools.cache
def golden() -> tuple[dict[str, StoredArray], dict[str, np.ndarray]]:
    whole = {path: np.asarray(leaf) for path, leaf in split_parameters(load_hf(GOLDEN))[1].items()}
    return open_hf(GOLDEN)[1], whole


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_any_block_of_any_parameter_is_read(data):
    opened, whole = golden()
    path = data.draw(st.sampled_from(sorted(opened)))
    block = []
    for size in whole[path].shape:
        start = data.draw(st.integers(0, size - 1))
        block.append(slice(start, data.draw(st.integers(start + 1, size))))
    np.testing.assert_array_equal(opened[path].read(tuple(block)), whole[path][tuple(block)], err_msg=path)


@pytest.mark.parametrize("spec", [(), ("x",), (None, "x"), (None, ("x", "y")), ("y", None, "x")])
@pytest.mark.parametrize("rows", [1, 3, 8])
def test_arrays_are_placed_as_asked(monkeypatch, spec, rows):
    monkeypatch.setattr(stored, "_SMALL_BYTES", 0)
    monkeypatch.setattr(stored, "_TINY_BYTES", 0)
    mesh = jax.make_mesh((4, 2), ("x", "y"))
    whole = np.random.default_rng(0).standard_normal((8, 16, 12), np.float32)
    reads = []

    def read(block):
        reads.append(block)
        return whole[block]

    sharding = NamedSharding(mesh, PartitionSpec(*spec))
    found = place(StoredArray(whole.shape, whole.dtype, read, rows), sharding, jnp.bfloat16)
    assert found.sharding.is_equivalent_to(sharding, 3)
    np.testing.assert_array_equal(found, whole.astype(jnp.bfloat16))
    assert len(reads) == len(set(map(str, reads))), "nothing is read twice"
    assert sum(whole[block].size for block in reads) == whole.size


def test_many_tiny_rows_are_read_together():
    array = StoredArray((100_000, 256), np.dtype(np.float32), lambda block: np.empty(0), rows=1)
    ranges = list(array.row_ranges())
    assert len(ranges) < 30
    assert [start for start, _ in ranges[1:]] == [stop for _, stop in ranges[:-1]]
    assert (ranges[0][0], ranges[-1][1]) == (0, 100_000)


def test_without_shardings_a_model_can_be_moved_to_any_device(monkeypatch):
    monkeypatch.setattr(stored, "_SMALL_BYTES", 0)
    monkeypatch.setattr(stored, "_TINY_BYTES", 0)
    for leaf in split_parameters(load_hf(GOLDEN))[1].values():
        assert not leaf.committed
        assert len(leaf.sharding.device_set) == 1


def test_shardings_by_a_rule_and_by_path(monkeypatch):
    monkeypatch.setattr(stored, "_SMALL_BYTES", 0)
    monkeypatch.setattr(stored, "_TINY_BYTES", 0)
    mesh = jax.make_mesh((8,), ("x",))

    def rule(shapes):
        last = {path: [None] * (len(leaf.shape) - 1) + ["x"] for path, leaf in shapes.items()}
        return {
            path: NamedSharding(mesh, PartitionSpec(*(last[path] if leaf.shape[-1] % 8 == 0 else ())))
            for path, leaf in shapes.items()
        }

    _, whole = golden()
    one = split_parameters(load_hf(GOLDEN, shardings=rule))[1]
    other = split_parameters(load_hf(GOLDEN, shardings={path: leaf.sharding for path, leaf in one.items()}))[1]
    for path, leaf in whole.items():
        assert one[path].sharding == other[path].sharding
        np.testing.assert_array_equal(one[path], leaf, err_msg=path)
        np.testing.assert_array_equal(other[path], leaf, err_msg=path)
    head = one["decoder/head_vd"]
    assert head.addressable_shards[0].data.shape[1] * 8 == head.shape[1]
    with pytest.raises(ValueError, match="shardings say nothing of decoder/"):
        load_hf(GOLDEN, shardings={})


@pytest.fixture
def saved(tmp_path):
    arrays = {
        "decoder/layers/a_df": np.random.default_rng(0).standard_normal((6, 8, 16)).astype(np.float32),
        "decoder/zero_d": np.zeros(5, np.float32),
    }
    chunked = {name: ocp.SaveArgs(chunk_byte_size=2 * 8 * 16 * 4, shard_axes=(0,)) for name in arrays}
    with ocp.CheckpointManager(tmp_path / "run") as manager:
        manager.save(1, args=ocp.args.Composite(parameters=ocp.args.StandardSave(arrays, save_args=chunked)))
    return tmp_path / "run" / "1" / "parameters", arrays


def test_blocks_of_what_orbax_wrote(saved):
    folder, arrays = saved
    opened = open_arrays(folder)
    assert opened.keys() == arrays.keys()
    for name, whole in arrays.items():
        block = tuple(slice(1, size) for size in whole.shape)
        np.testing.assert_array_equal(opened[name].read(block), whole[block])
        found = place(opened[name], SingleDeviceSharding(jax.devices()[3]), np.float32)
        np.testing.assert_array_equal(found, whole)
    assert opened["decoder/layers/a_df"].rows < 6, "layers that are stored apart are read apart"


def test_a_lost_chunk_is_an_error_and_not_zeros(saved):
    folder, _ = saved
    opened = open_arrays(folder)
    for file in folder.rglob("d/*"):
        file.unlink()
    with pytest.raises(CheckpointError, match=rf"{folder}: .* cannot be read"):
        opened["decoder/layers/a_df"].read_rows(0, 6)
