"""Grids, and the table of a sweep."""

import json
from pathlib import Path

import pytest

from swjax.evaluation import EvaluationError
from swjax.evaluation.sweep import (
    PARQUET,
    RESULT,
    RUNS,
    SWEEP,
    Sweep,
    evaluation_folder,
    expand,
    group_seeds,
    read_rows,
    read_table,
    result_rows,
    write_tables,
)

SCORES = {"videos": 5, "cider": 12.5, "intervals": {"cider": [10.0, 15.0]}}


def test_a_grid_stands_for_every_combination_and_equal_runs_are_made_once():
    runs = expand([{"variant": ("gdpe", "gipe"), "seed": (0, 1)}, {"variant": ("gipe",), "seed": (1, 2)}])
    assert [run.name for run in runs] == [
        "variant-gdpe_seed-0",
        "variant-gdpe_seed-1",
        "variant-gipe_seed-0",
        "variant-gipe_seed-1",
        "variant-gipe_seed-2",
    ]
    assert runs[2].values == {"variant": "gipe", "seed": 0}
    (odd, other) = expand([{"data.train": ("a/../b c", "d e")}])
    assert odd.name.startswith("run-")
    assert odd.name != other.name
    with pytest.raises(EvaluationError, match="grids are empty"):
        expand([])


@pytest.mark.parametrize("wrong", [{"schedules": ("often",)}, {"schedules": ("random",)}, {"grids": ({"seed": ()},)}])
def test_a_sweep_that_cannot_be_made_is_refused(wrong):
    usual = {"config": "c", "grids": ({"seed": (0,)},), "data": "d", "output": "o"}
    with pytest.raises(EvaluationError, match="schedule"):
        Sweep(**{**usual, **wrong})


def test_the_seeds_of_a_kind_are_evaluated_together():
    kinds = group_seeds(("random:2", "fixed", "random:0", "random:2"))
    assert kinds == {"random": [2, 0], "fixed": []}
    assert evaluation_folder(Path("run"), "fixed", None) == Path("run/evaluation")
    assert evaluation_folder(Path("run"), "random", 2) == Path("run/evaluation_random_2")


def test_the_table_is_in_the_order_of_the_sweep_and_says_config_and_commit(tmp_path):
    runs = expand([{"gap": (16, 0)}])
    for number, run in enumerate(reversed(runs)):
        scores = {"fixed": SCORES, "random:3": {**SCORES, "cider": 10.0 + number / 3}}
        rows = result_rows(run, scores, config={"gap": run.values["gap"]}, commit="abc")
        folder = tmp_path / RUNS / run.name
        folder.mkdir(parents=True)
        (folder / RESULT).write_text(json.dumps({"definition": {}, "rows": rows}))
    with pytest.raises(EvaluationError, match="not the folder of a sweep"):
        read_rows(tmp_path)
    (tmp_path / SWEEP).write_text(json.dumps({"runs": [*(run.name for run in runs), "unfinished"]}))

    rows = read_rows(tmp_path)
    assert [(row["gap"], row["schedule"], row["schedule_seed"]) for row in rows] == [
        (16, "fixed", None),
        (16, "random", 3),
        (0, "fixed", None),
        (0, "random", 3),
    ]
    table, *parquet = write_tables(tmp_path, rows)
    back = read_table(table)
    assert [{**row, "schedule_seed": row.get("schedule_seed")} for row in back] == rows
    assert json.loads(back[0]["config"]) == {"gap": 16}
    assert table.read_text().splitlines()[0] == (
        "run,gap,schedule,schedule_seed,videos,cider,cider_low,cider_high,commit,config"
    )
    parquet_of = pytest.importorskip("pyarrow.parquet")
    assert parquet == [tmp_path / PARQUET]
    assert parquet_of.read_table(parquet[0]).to_pylist() == rows


def test_tables_that_are_none_are_refused(tmp_path):
    with pytest.raises(EvaluationError, match="there is no table"):
        read_table(tmp_path / "x.csv")
    (tmp_path / "x.csv").write_text("a,b\n1,2\n")
    with pytest.raises(EvaluationError, match="not a table of a sweep"):
        read_table(tmp_path / "x.csv")
