"""Tables and figures from rows whose means are known."""

import numpy as np
import pytest
import scipy.stats

from swjax.evaluation import EvaluationError
from swjax.evaluation.plots import draw_all
from swjax.evaluation.report import (
    differences,
    latex_table,
    markdown_differences,
    markdown_table,
    metrics_of,
    perturbation_drop,
    settings_of,
    summarise,
)


def make_row(variant, seed, schedule, accuracy, **more):
    scores = {"event_accuracy": accuracy, "event_accuracy_low": accuracy - 0.1, "event_accuracy_high": accuracy + 0.1}
    times = {"word_s": 3.0, "word_s_low": 2.0, "word_s_high": 4.0}
    name = f"variant-{variant}_seed-{seed}"
    return {"run": name, "variant": variant, "seed": seed, "schedule": schedule, **scores, **times, **more}


ROWS = [
    make_row("gdpe", 0, "fixed", 0.5),
    make_row("gdpe", 0, "random", 0.4),
    make_row("gdpe", 1, "fixed", 0.7),
    make_row("gdpe", 1, "random", 0.5),
    make_row("offline", 0, "fixed", 0.9),
    make_row("offline", 0, "random", 0.9),
]


def test_intervals_are_students_over_seeds_and_the_bootstraps_for_one():
    fixed = [row for row in ROWS if row["schedule"] == "fixed"]
    over_seeds = summarise(fixed[:2], "event_accuracy")
    low, high = scipy.stats.t.interval(0.95, 1, loc=0.6, scale=scipy.stats.sem([0.5, 0.7]))
    assert (over_seeds.mean, over_seeds.low, over_seeds.high, over_seeds.runs) == pytest.approx((0.6, low, high, 2))
    alone = summarise(fixed[2:], "event_accuracy")
    assert (alone.low, alone.mean, alone.high, alone.runs) == pytest.approx((0.8, 0.9, 1.0, 1))
    assert summarise(fixed, "cider") is None


def test_the_drop_is_taken_run_by_run():
    drops = perturbation_drop(ROWS, "event_accuracy", "variant")
    assert drops["gdpe"].mean == pytest.approx(-0.15)
    differences = scipy.stats.t.interval(0.95, 1, loc=-0.15, scale=scipy.stats.sem([-0.1, -0.2]))
    assert (drops["gdpe"].low, drops["gdpe"].high) == pytest.approx(differences)
    assert drops["offline"].mean == 0


def test_tables_have_a_line_a_setting():
    assert settings_of(ROWS) == ["variant", "schedule"]
    assert metrics_of(ROWS) == ["event_accuracy", "word_s"]
    lines = markdown_table(ROWS, ["event_accuracy"]).splitlines()
    assert lines[0] == "| variant | schedule | runs | schedules | event accuracy (%) |"
    assert lines[2:] == [
        "| gdpe | fixed | 2 | 1 | 60.00 ± 127.06 |",
        "| gdpe | random | 2 | 1 | 45.00 ± 63.53 |",
        "| offline | fixed | 1 | 1 | 90.00 |",
        "| offline | random | 1 | 1 | 90.00 |",
    ]
    latex = latex_table([{**row, "variant": "offline_gdpe"} for row in ROWS[4:]], ["event_accuracy"])
    assert r"event accuracy (\%) \\" in latex
    assert r"\begin{tabular}{lrrr}" in latex
    with pytest.raises(EvaluationError, match="no metric 'bleurt'; it has event_accuracy, word_s"):
        markdown_table(ROWS, ["bleurt"])


def test_random_schedules_of_a_run_are_averaged_before_seeds_and_counted():
    rows = [
        make_row("gdpe", seed, "random", accuracy, schedule_seed=schedule_seed)
        for seed, accuracies in enumerate([(0.4, 0.5, 0.6), (0.6, 0.7, 0.8)])
        for schedule_seed, accuracy in enumerate(accuracies)
    ]
    half = scipy.stats.t.ppf(0.975, 1) * scipy.stats.sem([0.5, 0.7])
    *_, line = markdown_table(rows, ["event_accuracy"]).splitlines()
    assert line == f"| random | 2 | 3 | 60.00 ± {100 * half:.2f} |"


def test_what_is_read_as_in_training_is_not_told_of_random_schedules():
    rows = [{**row, "perplexity": 2.0, "perplexity_low": 1.0, "perplexity_high": 3.0} for row in ROWS[4:]]
    _, _, fixed, perturbed = markdown_table(rows, ["perplexity"]).splitlines()
    assert (fixed, perturbed) == ("| fixed | 1 | 1 | 2.00 |", "| random | 1 | 1 |  |")
    assert perturbation_drop(rows, "perplexity", "variant") == {}


def test_differences_are_taken_seed_by_seed():
    found = differences(ROWS, "event_accuracy", "variant", "offline")
    assert {key: (score.mean, score.runs) for key, score in found.items()} == {
        ("gdpe", "fixed"): (pytest.approx(-0.4), 1),
        ("gdpe", "random"): (pytest.approx(-0.5), 1),
    }
    more = [*ROWS, make_row("offline", 1, "fixed", 0.8)]
    over_seeds = differences(more, "event_accuracy", "variant", "offline")["gdpe", "fixed"]
    half = scipy.stats.t.ppf(0.975, 1) * scipy.stats.sem([-0.4, -0.1])
    assert (over_seeds.mean, over_seeds.high - over_seeds.mean) == pytest.approx((-0.25, half))
    lines = markdown_differences(more, "variant", "offline", ["event_accuracy"]).splitlines()
    assert lines[0] == "| variant | schedule | seeds | event accuracy (%) |"
    assert lines[2:] == [f"| gdpe | fixed | 2 | -25.00 ± {100 * half:.2f} |", "| gdpe | random | 1 | -50.00 |"]
    with pytest.raises(EvaluationError, match="no row of the table has variant 'ospe'"):
        markdown_differences(ROWS, "variant", "ospe")
    with pytest.raises(EvaluationError, match="no row of the table has seed '0'"):
        markdown_differences(ROWS, "seed", "0")  # the rows have numbers


def test_figures_are_drawn_of_what_varies(tmp_path):
    assert sorted(draw_all(ROWS)) == ["latency", "perturbation", "variants"]
    by_gap = [
        {**row, "variant": "gipe", "gap": gap, "run": f"{gap}-{row['seed']}", "event_accuracy": gap / 100}
        for gap in (0, 16)
        for row in ROWS[:4]
    ]
    figures = draw_all(by_gap)
    assert sorted(figures) == ["gap", "latency", "perturbation"]
    (axis,) = figures["gap"].axes
    assert axis.get_ylabel() == "event accuracy (%)"
    np.testing.assert_allclose(axis.lines[0].get_xydata(), [[0, 0], [16, 16]])
    for name, figure in figures.items():
        figure.savefig(tmp_path / f"{name}.png")
        assert (tmp_path / f"{name}.png").stat().st_size > 1000
    (bars,) = draw_all(ROWS)["variants"].axes
    assert sorted(round(patch.get_height()) for patch in bars.patches) == [45, 60, 90, 90]
