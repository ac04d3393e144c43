"""Plans that were made before are found again, whole, and by all that they follow from."""

import dataclasses

import jax
import pytest

from swjax.planning.clock import Operation, Schedule
from swjax.planning.estimate import Estimate, KernelEstimate
from swjax.planning.kept import REFUSED, keep, kept_file, read_kept
from swjax.planning.plan import Plan
from swjax.training.flops import Rows


def make_plan() -> Plan:
    operations = [Operation("fusion.1", "fusion", "swjax/models/layers.py:7", "decoder/mlp", 28.0, 0.5, "copies")]
    kernel = KernelEstimate(2694, 2729, 170.0, 0.5, 28.0, 0.1)
    return Plan(
        **dict.fromkeys([field.name for field in dataclasses.fields(Plan)], 1.0)
        | {
            "device_kind": "TPU v5",
            "seconds": {"compute": 1.0},
            "sent": {"fsdp": 2.0},
            "needed_flops": {"decoder": 3.0},
        }
        | {"rows": Rows(1, 2, 3, 4, 5.0, 6.0, 7.0)}
        | {"estimate": Estimate(Schedule(operations, 0.3, 0.2, 1), {"span_attention_forward.1": kernel})}
    )


@pytest.fixture
def lowered(monkeypatch, tmp_path):
    monkeypatch.setenv("SWJAX_CACHE", str(tmp_path / "cache"))
    return jax.jit(lambda x: x + 1).lower(1.0)


def test_a_plan_is_read_back_as_it_was(lowered):
    file, plan = kept_file(lowered, "v5p:2x2x1"), make_plan()
    assert read_kept(file) is None
    keep(file, plan)
    fields = read_kept(kept_file(lowered, "v5p:2x2x1"))
    assert Plan(**fields | {"rows": Rows(**fields["rows"])}) == plan
    keep(file, {REFUSED: "it needs 20G of 16G"})
    assert read_kept(file) == {REFUSED: "it needs 20G of 16G"}


def test_another_program_or_topology_is_another_plan(lowered):
    other = jax.jit(lambda x: x + 2).lower(1.0)
    files = {kept_file(lowered, "v5p:2x2x1"), kept_file(lowered, "v5e:2x2"), kept_file(other, "v5p:2x2x1")}
    assert len(files) == 3
