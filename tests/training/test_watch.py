"""What a run says about itself: where its time went, where it stands still, and what looks wrong."""

import json
import time

import pytest

from swjax.training.goodput import CAUSES, GOODPUT, Goodput, last_step
from swjax.training.watch import InputWatch, LossWatch, watchdog


def test_the_time_of_a_run_is_divided_by_cause_over_its_starts(tmp_path):
    now = time.time()
    earlier = dict.fromkeys(CAUSES, 0.0) | {"start": 10.0, "began": now - 300, "ended": now - 200}
    lines = [earlier | {"steps": 9, "productive": 90.0}, earlier | {"steps": 5, "productive": 40.0}]
    (tmp_path / GOODPUT).write_text("".join(json.dumps(line) + "\n" for line in reversed(lines)))
    clock = Goodput(tmp_path, start=7, lost_steps=2, began=now - 100)
    clock.spend("input", 30.0)
    with clock.spending("checkpoint"):
        time.sleep(0.05)
    line = clock.line(17, bad_steps=5)
    assert line["restart"] == pytest.approx(100)
    assert line["repeated"] == pytest.approx(20)
    assert line["start"] == pytest.approx(100, abs=2)
    assert 0.05 <= line["checkpoint"] < 2
    assert "over 2 starts: start" in clock.describe(17)
    clock.record(17)
    again = Goodput(tmp_path, start=17, began=time.time() + 50)
    assert "over 3 starts" in again.describe(17)


def test_time_that_is_not_of_a_cause_is_productive_but_for_steps_without_effect(tmp_path):
    clock = Goodput(tmp_path, start=0, began=time.time())
    clock._began -= 100  # what follows the start
    clock.spend("compile", 20.0)
    line = clock.line(10, bad_steps=5)
    assert line["productive"] == pytest.approx(40, abs=1)
    assert line["bad_steps"] == pytest.approx(40, abs=1)
    assert clock.describe(10, 5).startswith("goodput 40.0% of 1 min 40 s: ")


def test_the_last_step_of_metrics(tmp_path):
    assert last_step(tmp_path / "metrics.jsonl") == 0
    (tmp_path / "metrics.jsonl").write_text('{"step": 3}\n{"step": 4}\n{"st')
    assert last_step(tmp_path / "metrics.jsonl") == 4


def test_a_standstill_writes_stacks_once_and_a_step_ends_it(tmp_path):
    with (tmp_path / "stacks").open("w+") as file, watchdog(0.1 / 60, file=file) as step_ended:
        time.sleep(0.35)
        step_ended()
        time.sleep(0.3)
    said = (tmp_path / "stacks").read_text()
    assert said.count("no step has ended for 0.00166667 min; the stacks of all threads:") == 2
    assert "test_a_standstill_writes_stacks_once" in said


def test_steps_that_end_in_time_write_nothing(tmp_path):
    with (tmp_path / "stacks").open("w+") as file, watchdog(1, file=file) as step_ended:
        step_ended()
    assert not (tmp_path / "stacks").read_text()


def test_a_loss_that_jumps_is_said_once():
    watch = LossWatch()
    noise = [2.0 + 0.1 * ((7 * step) % 5 - 2) for step in range(60)]
    assert not any(map(watch.see, noise))
    assert watch.see(float("nan")) == ""
    assert watch.see(9.0).startswith("the loss jumped to 9.0000, from 2.0")
    assert watch.see(9.0) == ""
    falling = LossWatch()
    assert not any(falling.see(5.0 / (1 + step)) for step in range(100))


def test_waiting_for_data_is_said():
    watch = InputWatch(steps=5)
    assert not any(watch.see(0.1, 1.0) for _ in range(20))
    said = [watch.see(0.8, 1.0) for _ in range(50)]
    assert sum(map(bool, said)) == 1
    assert "the last 5 steps waited for their data for" in "".join(said)
