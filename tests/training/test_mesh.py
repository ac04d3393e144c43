import logging

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from swjax.mesh import (
    ConstrainOnMesh,
    batch_sharding,
    choose_stripe,
    make_mesh,
    parameter_shardings,
    row_share,
)


def shape(*sizes: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(sizes, "float32")


def test_minus_one_takes_the_devices_left() -> None:
    assert dict(make_mesh(-1, 1).shape) == {"data": 8, "fsdp": 1, "context": 1, "tensor": 1}
    assert dict(make_mesh(2, -1, 2).shape) == {"data": 2, "fsdp": 2, "context": 2, "tensor": 1}


@pytest.mark.parametrize(("data", "fsdp"), [(3, -1), (2, 2), (16, 1), (-1, 3)])
def test_sizes_that_do_not_fit_the_devices_are_refused(data: int, fsdp: int) -> None:
    with pytest.raises(ValueError, match="does not fit 8 devices"):
        make_mesh(data, fsdp)


def test_sizes_that_mean_nothing_are_refused() -> None:
    with pytest.raises(ValueError, match="at most one may be"):
        make_mesh(-1, -1)
    with pytest.raises(ValueError, match=r"config\.mesh\.data is 0"):
        make_mesh(0, 8)
    with pytest.raises(ValueError, match=r"config\.mesh\.data is 3; the 2 slices must divide it"):
        make_mesh(3, 2, slices=2, devices=jax.devices()[:6])


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


def test_parameters_use_every_axis_that_divides_them(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        shardings = parameter_shardings(
            make_mesh(1, 2, 2, 2), {"q_weight_dnh": shape(16, 4, 8), "k_weight_dkh": shape(6, 3, 8)}
        )
    assert shardings["q_weight_dnh"].spec == PartitionSpec(("fsdp", "context"), "tensor", None)
    assert shardings["k_weight_dkh"].spec == PartitionSpec("fsdp", None, None)  # 3 key heads are left whole
    assert "d = 6, fsdp = 2 x context = 2" in caplog.text
    assert "k = 3, tensor = 2" in caplog.text


def test_products_back_from_the_width_of_mlps_are_divided_along_their_first_axis_where_that_can_be() -> None:
    mesh = make_mesh(1, 2, 2, 2)
    shardings = parameter_shardings(
        mesh,
        {
            "down_weight_fd": shape(3, 16, 8),
            "up_weight_df": shape(3, 8, 16),
            "odd_weight_fd": shape(3, 12, 8),
            "down_bias_d": shape(3, 8),
            "down_lora_a_fr": shape(3, 16, 2),
        },
    )
    assert {path: sharding.spec for path, sharding in shardings.items()} == {
        "down_weight_fd": PartitionSpec(None, ("tensor", "fsdp", "context"), None),
        "up_weight_df": PartitionSpec(None, ("fsdp", "context"), "tensor"),
        "odd_weight_fd": PartitionSpec(None, "tensor", ("fsdp", "context")),
        "down_bias_d": PartitionSpec(None, ("fsdp", "context")),
        "down_lora_a_fr": PartitionSpec(None, "tensor", None),
    }


def test_batches_are_split_by_rows_and_along_them() -> None:
    mesh = make_mesh(1, 2, 2, 2)
    tokens, pixels = (16, 8), (16, 12, 5)
    assert batch_sharding(mesh, "token_ids", tokens).shard_shape(tokens) == (8, 4)
    assert batch_sharding(mesh, "pixel_values", pixels).shard_shape(pixels) == (8, 3, 5)  # patches over all devices
    accumulated = (3, *tokens)
    assert batch_sharding(mesh, "token_ids", accumulated, accumulated=True).shard_shape(accumulated) == (3, 8, 4)
    with pytest.raises(ValueError, match=r"labels of shape \(3, 8\) does not fit the mesh: B = 3, fsdp = 2"):
        batch_sharding(mesh, "labels", (3, 8))


def test_activations_are_laid_out_by_their_letters() -> None:
    constrain = ConstrainOnMesh(make_mesh(1, 2, 2, 2))
    assert constrain == ConstrainOnMesh(make_mesh(1, 2, 2, 2))
    assert hash(constrain) == hash(ConstrainOnMesh(make_mesh(1, 2, 2, 2)))

    def spec(axes: str, *sizes: int) -> PartitionSpec:
        return jax.jit(lambda x: constrain(x, axes))(jnp.zeros(sizes)).sharding.spec

    assert spec("BLNH", 2, 4, 2, 8) == PartitionSpec("fsdp", "context", "tensor")
    assert spec("BPNH", 2, 4, 2, 8) == PartitionSpec("fsdp", ("context", "tensor"))
    assert spec("BLKH", 2, 4, 1, 8) == PartitionSpec("fsdp", "context")


def test_one_process_reads_all_rows() -> None:
    assert row_share(make_mesh(2, 2, 2)) == (0, 1)


def test_processes_that_hold_the_same_rows_read_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    class Device:
        def __init__(self, process_index: int) -> None:
            self.process_index = process_index

    class FakeMesh:
        def __init__(self, processes: list[int], **shape: int) -> None:
            self.shape = {"data": 1, "fsdp": 1, "context": 1, "tensor": 1} | shape
            self.devices = np.array([Device(process) for process in processes]).reshape(*self.shape.values())

    monkeypatch.setattr(jax, "process_index", lambda: 3)
    assert row_share(FakeMesh([0, 0, 1, 1, 2, 2, 3, 3], fsdp=8)) == (3, 4)
    assert row_share(FakeMesh([0, 0, 1, 1, 2, 2, 3, 3], fsdp=2, tensor=4)) == (1, 2)
    assert row_share(FakeMesh([0, 0, 1, 1, 2, 2, 3, 3], tensor=8)) == (0, 1)
    with pytest.raises(ValueError, match="rows that overlap in part"):
        row_share(FakeMesh([0, 0, 3, 3, 3, 3], fsdp=2, tensor=3))


def test_stripes_deal_every_row_out_whole() -> None:
    mesh = make_mesh(2, 1, 4)
    assert choose_stripe(make_mesh(), [100]) is None
    assert choose_stripe(mesh, [8192]) == 128
    assert choose_stripe(mesh, [8192, 96]) == 4
    assert choose_stripe(mesh, [12]) == 1
    with pytest.raises(ValueError, match=r"rows of 8192, 18 slots cannot be cut into config\.mesh\.context=4"):
        choose_stripe(mesh, [8192, 18])
