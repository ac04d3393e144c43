import logging

import jax
import pytest
from jax.sharding import PartitionSpec

from swjax.training.mesh import batch_sharding, make_mesh, parameter_shardings


def shape(*sizes: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(sizes, "float32")


def test_minus_one_takes_the_devices_left() -> None:
    assert dict(make_mesh(-1, 1).shape) == {"data": 8, "fsdp": 1}
    assert dict(make_mesh(2, -1).shape) == {"data": 2, "fsdp": 4}


@pytest.mark.parametrize(("data", "fsdp"), [(3, -1), (2, 2), (16, 1), (-1, 3)])
def test_sizes_that_do_not_fit_the_devices_are_refused(data: int, fsdp: int) -> None:
    with pytest.raises(ValueError, match="does not fit 8 devices"):
        make_mesh(data, fsdp)


def test_sizes_that_mean_nothing_are_refused() -> None:
    with pytest.raises(ValueError, match="at most one may be"):
        make_mesh(-1, -1)
    with pytest.raises(ValueError, match=r"config\.mesh\.data is 0"):
        make_mesh(0, 8)


def test_parameters_are_sharded_by_the_letters_of_their_names() -> None:
    shardings = parameter_shardings(
        make_mesh(2, 4),
        {
            "decoder/embedding_vd": shape(30, 16),
            "decoder/layers/q_weight_dnh": shape(3, 16, 2, 8),  # stacked: a leading axis of layers
            "decoder/layers/o_weight_nhd": shape(3, 2, 8, 16),
            "decoder/layers/q_bias_nh": shape(3, 2, 8),
            "decoder/norm_d": shape(16),
        },
    )
    assert {path.rsplit("/", 1)[-1]: sharding.spec for path, sharding in shardings.items()} == {
        "embedding_vd": PartitionSpec(None, "fsdp"),
        "q_weight_dnh": PartitionSpec(None, "fsdp", None, None),
        "o_weight_nhd": PartitionSpec(None, None, None, "fsdp"),
        "q_bias_nh": PartitionSpec(None, None, None),
        "norm_d": PartitionSpec("fsdp"),
    }


def test_a_mesh_axis_shards_one_axis_of_a_parameter() -> None:
    shardings = parameter_shardings(make_mesh(2, 4), {"w_dd": shape(16, 16)})
    assert shardings["w_dd"].spec == PartitionSpec("fsdp", None)


def test_what_the_mesh_does_not_divide_is_left_whole_and_said_once(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        shardings = parameter_shardings(make_mesh(2, 4), {"a_d": shape(6), "b_d": shape(10), "c_d": shape(8)})
    assert shardings["a_d"].spec == PartitionSpec(None)
    assert shardings["c_d"].spec == PartitionSpec("fsdp")
    assert len(caplog.records) == 1
    assert "a_d (d = 6, fsdp = 4), b_d (d = 10, fsdp = 4)" in caplog.text


def test_a_name_that_does_not_spell_its_axes_is_refused() -> None:
    with pytest.raises(ValueError, match=r"decoder/weight_dn has 4 axes, but its name spells 2 \(dn\)"):
        parameter_shardings(make_mesh(), {"decoder/weight_dn": shape(1, 2, 3, 4)})


def test_rows_of_a_batch_are_split_over_all_devices() -> None:
    mesh = make_mesh(2, 4)
    assert batch_sharding(mesh).shard_shape((16, 5)) == (2, 5)
    assert batch_sharding(mesh, accumulated=True).shard_shape((3, 16, 5)) == (3, 2, 5)
