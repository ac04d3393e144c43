"""Runs that are killed, or asked to stop, at random moments, and started again; beside one that is left in peace.

    python tests/training/restarts.py DATA_FOLDER WORK_FOLDER --restarts 20

trains on Moving Shapes in DATA_FOLDER (`swjax prepare moving_shapes`), and fails unless both end with the same bits.
"""

import argparse
import json
import random
import signal
import time
from collections.abc import Sequence
from pathlib import Path

import launched
import numpy as np
from ml_collections import ConfigDict

from swjax.models.parameters import split_parameters
from swjax.python_file import call_python_file
from swjax.runs.folder import load_run
from swjax.training.preemption import EXIT_PREEMPTED

STEPS_BETWEEN = 15


def check(config: ConfigDict, folder: Path, signals: Sequence[signal.Signals], *, seed: int) -> None:
    """Stops a run with each of the signals, once each, and compares its end with that of an undisturbed run.

    Args:
        config: of the run.
        folder: for the run folders.
        signals: SIGKILL or SIGTERM.
        seed: of the moments, printed so that they can be had again.
    """
    print(f"seed {seed}")
    rng = random.Random(seed)
    runs = []
    for name in ("undisturbed", "disturbed"):
        run = config.copy_and_resolve_references()
        run.run_dir = str(folder / name)
        run.update({"steps": STEPS_BETWEEN * (len(signals) + 1), "checkpoint_every": 5, "eval_every": 25})
        runs.append(run)
    undisturbed, disturbed = runs
    launched.finish([launched.launch(undisturbed)])
    for number, sent in enumerate(signals):
        process = launched.launch(disturbed)
        launched.wait_for_step(disturbed.run_dir, STEPS_BETWEEN * number + 6 + rng.randrange(8), [process])
        launched.wait_for_checkpoint(disturbed.run_dir, _starts(disturbed)[-1], [process])
        time.sleep(rng.random() * 0.05)
        process.send_signal(sent)
        launched.finish([process], code=EXIT_PREEMPTED if sent == signal.SIGTERM else -sent)
        print(f"{sent.name}: stopped behind step {launched.metric_lines(disturbed.run_dir)[-1]['step']}")
    launched.finish([launched.launch(disturbed)])

    starts = _starts(disturbed)
    assert len(starts) == len(signals) + 1
    assert starts == sorted(set(starts)), starts
    assert launched.metric_lines(disturbed.run_dir) == launched.metric_lines(undisturbed.run_dir)
    left, right = (split_parameters(load_run(run.run_dir).model)[1] for run in runs)
    assert left.keys() == right.keys()
    for path, leaf in left.items():
        bits = [np.asarray(found).view(np.uint32) for found in (leaf, right[path])]
        np.testing.assert_array_equal(*bits, err_msg=path)


def _starts(config: ConfigDict) -> list[int]:
    """The steps that a run was started behind."""
    lines = (Path(config.run_dir) / "environment.jsonl").read_text().splitlines()
    return [json.loads(line)["step"] for line in lines]


def main() -> None:
    """The same for the quickstart's model, as often as is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("work", type=Path)
    parser.add_argument("--restarts", type=int, default=20)
    parser.add_argument("--seed", type=int, default=random.randrange(1000))
    args = parser.parse_args()
    file = Path(__file__).parents[2] / "configs" / "moving_shapes.py"
    config = call_python_file(file, "get_config", kind="configuration file")
    for split in ("train", "validation"):
        config.data[split] = str(args.data.absolute() / split / "manifest.jsonl")
    config.batch_size = 4
    config.model.overrides = ConfigDict({"text": {"num_layers": 1}, "vision": {"depth": 2}})
    args.work.mkdir(parents=True)
    rng = random.Random(args.seed)
    signals = [rng.choice([signal.SIGKILL, signal.SIGTERM]) for _ in range(args.restarts)]
    check(config, args.work.absolute(), signals, seed=args.seed)
    print(f"{args.restarts} restarts, and the same bits")


if __name__ == "__main__":
    main()
