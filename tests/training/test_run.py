import hashlib
import io
import json
import os
import random
import shutil
import signal
from pathlib import Path

import jax
import numpy as np
import pytest
import restarts
from ml_collections import ConfigDict
from rich.console import Console

from swjax.data.rejected import TooManyRejectedError
from swjax.hub import CheckpointError, save_hf
from swjax.models.parameters import split_parameters
from swjax.runs.folder import find_step, load_run
from swjax.training.config import ConfigError
from swjax.training.loop import TooManyBadStepsError
from swjax.training.origin import best_step
from swjax.training.run import train
from swjax.training.speed import SPEED

SILENT = Console(quiet=True)


def metric_lines(run_dir: Path) -> list[dict]:
    """Its metrics, all but those of its speed, which are never twice the same."""
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name not in SPEED} for line in lines]


def parameters_of(run_dir: Path, step: int | None = None) -> dict[str, np.ndarray]:
    return {path: np.asarray(leaf) for path, leaf in split_parameters(load_run(run_dir, step).model)[1].items()}


def assert_same_bits(left: dict[str, np.ndarray], right: dict[str, np.ndarray]) -> None:
    assert left.keys() == right.keys()
    for path, array in left.items():
        np.testing.assert_array_equal(array.view(np.uint32), right[path].view(np.uint32), err_msg=path)


@pytest.fixture(scope="module")
def finished(make_config, tmp_path_factory) -> tuple[ConfigDict, dict[str, np.ndarray]]:
    """A run of six steps on eight devices, to its end."""
    config = make_config(tmp_path_factory.mktemp("finished") / "run")
    config.keep_best = 1
    train(config, console=SILENT)
    return config, parameters_of(Path(config.run_dir))


def copied(config: ConfigDict, tmp_path: Path) -> ConfigDict:
    copy = config.copy_and_resolve_references()
    copy.run_dir = str(tmp_path / "copy")
    shutil.copytree(config.run_dir, copy.run_dir)
    return copy


def test_a_run_leaves_what_is_needed_to_use_its_model(finished) -> None:
    config, _ = finished
    run_dir = Path(config.run_dir)
    lines = metric_lines(run_dir)
    steps = [line for line in lines if "loss" in line]
    assert [line["step"] for line in steps] == [1, 2, 3, 4, 5, 6]
    assert all(line["tokens"] > line["labels"] > 0 and line["grad_norm"] > 0 for line in steps)
    assert steps[-1]["loss"] < steps[0]["loss"]
    assert {line["compilations"] for line in steps} == {1}  # a run compiles each shape once
    assert [line["step"] for line in lines if "validation_loss" in line] == [2, 3, 4, 6], "and at checkpoints"
    assert list((run_dir / "tensorboard").glob("events.*"))
    environment = json.loads((run_dir / "environment.jsonl").read_text())
    assert environment["packages"]["jax"] == jax.__version__
    assert environment["step"] == 0

    run = load_run(run_dir)
    assert run.step == 6
    assert run.config["variant"] == "gdpe"
    assert (run.tokenizer / "tokenizer.json").is_file()
    assert run.model.config.text.num_layers == 1


def test_a_finished_run_started_again_changes_nothing(finished) -> None:
    config, parameters = finished
    before = metric_lines(Path(config.run_dir))
    train(config, console=SILENT)
    assert_same_bits(parameters_of(Path(config.run_dir)), parameters)
    assert metric_lines(Path(config.run_dir)) == before


def test_going_on_from_an_earlier_checkpoint_gives_the_same_bits(finished, tmp_path: Path) -> None:
    config, parameters = finished
    again = copied(config, tmp_path)
    shutil.rmtree(Path(again.run_dir) / "checkpoints" / "6")
    with (Path(again.run_dir) / "metrics.jsonl").open("a") as file:
        file.write('{"step": 7, "lo')  # a line that the kill cut off
    train(again, console=SILENT)
    assert_same_bits(parameters_of(Path(again.run_dir)), parameters)
    assert metric_lines(Path(again.run_dir)) == metric_lines(Path(config.run_dir))


def test_another_configuration_is_refused_by_key(finished, tmp_path: Path) -> None:
    config, _ = finished
    other = copied(config, tmp_path)
    other.variant, other.optimizer.learning_rate, other.keep = "gipe", 0.5, 7
    with pytest.raises(ConfigError) as caught:
        train(other, console=SILENT)
    assert "config.variant was 'gdpe', is 'gipe'" in str(caught.value)
    assert "config.optimizer.learning_rate was 0.01, is 0.5" in str(caught.value)
    assert "keep" not in str(caught.value)


def test_a_damaged_checkpoint_is_named(finished, tmp_path: Path) -> None:
    config, _ = finished
    damaged = copied(config, tmp_path)
    folder = Path(damaged.run_dir) / "checkpoints" / "6" / "optimizer"
    for file in folder.rglob("d/*"):
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with pytest.raises(CheckpointError, match=rf"{folder}: tensor .* cannot be read"):
        train(damaged, console=SILENT)


def test_a_warm_start_begins_with_the_weights_of_the_checkpoint(finished, make_config, tmp_path: Path) -> None:
    """After one step at a learning rate of nearly nothing, the weights and the tokenizer are the checkpoint's."""
    config, parameters = finished
    run = load_run(config.run_dir)
    save_hf(run.model, tmp_path / "hf")
    shutil.copytree(run.tokenizer, tmp_path / "hf", dirs_exist_ok=True)
    warm = make_config(tmp_path / "run")
    warm.init_from, warm.model.preset, warm.model.overrides = str(tmp_path / "hf"), "", ConfigDict()
    warm.steps, warm.optimizer.learning_rate, warm.frozen = 1, 1e-30, ("visual/(?!merger)",)
    train(warm, console=SILENT)
    assert_same_bits(parameters_of(tmp_path / "run"), parameters)
    assert metric_lines(tmp_path / "run")[0]["loss"] < metric_lines(Path(config.run_dir))[0]["loss"]


def test_a_run_starts_from_the_best_checkpoint_of_another_for_as_many_steps_as_its_epochs(
    finished, make_config, tmp_path: Path
) -> None:
    """After one step at a learning rate of nearly nothing, the weights are those of that checkpoint."""
    config, _ = finished
    losses = {line["step"]: line["validation_loss"] for line in metric_lines(Path(config.run_dir)) if len(line) == 2}
    kept = [int(folder.name) for folder in Path(config.run_dir, "checkpoints").iterdir()]
    best = min(kept, key=losses.__getitem__)
    warm = make_config(tmp_path / "run")
    warm.init_from, warm.init_checkpoint = config.run_dir, "best"
    warm.model.preset, warm.model.overrides = "", ConfigDict()
    warm.epochs, warm.optimizer.learning_rate, warm.data.validation = 0.5, 1e-30, ""
    said = io.StringIO()
    train(warm, console=Console(file=said, width=200))
    assert "12 examples, 0.667 epochs, 1 steps of 8 rows (8 x 1 accumulated)" in said.getvalue()
    assert json.loads((tmp_path / "run" / "config.json").read_text())["steps"] == 1
    assert_same_bits(parameters_of(tmp_path / "run"), parameters_of(Path(config.run_dir), best))


def test_a_finished_run_is_resumed_with_more_steps(finished, tmp_path: Path) -> None:
    longer = copied(finished[0], tmp_path)
    longer.steps = 7
    said = io.StringIO()
    train(longer, console=Console(file=said, width=200))
    assert "resuming from step 6 of 7" in said.getvalue()
    assert "config.steps was 6, is 7: from here on the learning rate is that of a run of 7 steps" in said.getvalue()
    assert find_step(longer.run_dir) == 7
    assert json.loads((Path(longer.run_dir) / "config.json").read_text())["steps"] == 7
    before, lines = metric_lines(Path(finished[0].run_dir)), metric_lines(Path(longer.run_dir))
    assert lines[: len(before)] == before
    # Of seven steps, the first warms up, and the cosine of the other six has come five sixths of its way.
    rate = longer.optimizer.learning_rate * (1 + np.cos(np.pi * 5 / 6)) / 2
    assert lines[len(before)]["learning_rate"] == pytest.approx(rate)


def test_the_best_checkpoint_of_a_run_that_was_never_validated_is_refused(finished, tmp_path: Path) -> None:
    unvalidated = copied(finished[0], tmp_path)
    (Path(unvalidated.run_dir) / "metrics.jsonl").unlink()
    with pytest.raises(
        ConfigError, match=r"config\.init_checkpoint='best' needs a checkpoint of .* that was validated"
    ):
        best_step(unvalidated.run_dir)


def test_a_preset_that_is_not_the_checkpoint_s_is_refused(finished, make_config, tmp_path: Path) -> None:
    config, _ = finished
    run = load_run(config.run_dir)
    save_hf(run.model, tmp_path / "hf")
    shutil.copytree(run.tokenizer, tmp_path / "hf", dirs_exist_ok=True)
    warm = make_config(tmp_path / "run")
    warm.init_from, warm.model.overrides = str(tmp_path / "hf"), ConfigDict()
    with pytest.raises(ConfigError, match=r"config\.model\.preset='tiny' is not the size of config\.init_from='.*hf'"):
        train(warm, console=SILENT)


def test_answers_longer_than_a_row_has_labels_are_set_aside(make_config, tmp_path: Path) -> None:
    config = make_config(tmp_path / "run")
    config.data.max_labels = 5
    with pytest.raises(TooManyRejectedError, match="labelled tokens, and a row has room for 5; raise max_labels"):
        train(config, console=SILENT)


def test_bad_examples_are_set_aside_and_listed(make_config, tmp_path: Path) -> None:
    config = make_config(tmp_path / "run")
    source = Path(config.data.train)
    lines = source.read_text().splitlines()
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(b"this is no video")
    records = [json.loads(line) for line in lines]
    for record in records:
        record["video_path"] = str(source.parent / record["video_path"])
    records[1]["video_path"] = str(broken)
    manifest = tmp_path / "manifest.jsonl"
    manifest.write_text("".join(json.dumps(record) + "\n" for record in records) + "{not json\n")
    config.data.train, config.data.max_rejected, config.steps = str(manifest), 0.5, 3
    config.data.root = str(tmp_path.parent)
    console = Console(record=True, quiet=False, width=200, file=open(os.devnull, "w"))  # noqa: SIM115
    train(config, console=console)
    listed = [json.loads(line) for line in (tmp_path / "run" / "rejected" / "train.jsonl").read_text().splitlines()]
    assert {entry["where"] for entry in listed} == {"manifest.jsonl:13", records[1]["video_id"]}
    assert "2 train examples could not be used" in console.export_text()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"batch_size": 6}, r"config\.batch_size is 6; config\.mesh\.data x config\.mesh\.fsdp = 8 must divide it"),
        ({"mesh.fsdp": 3}, r"config\.mesh\.fsdp=3 by .* does not fit 8 devices"),
        ({"frozen": ("vision",)}, r"'vision' matches no parameter; parameters begin with decoder/embedding_vd"),
        ({"model.preset": "9b"}, r"unknown model preset '9b'; choose one of: tiny, 3b"),
        ({"data.train": "nowhere.jsonl"}, "there is no manifest nowhere.jsonl"),
        ({"tokenizer": "nowhere"}, "nowhere is not a folder"),
    ],
)
def test_what_cannot_be_run_is_named(make_config, tmp_path: Path, change: dict, message: str) -> None:
    config = make_config(tmp_path / "run")
    config.update_from_flattened_dict(change)
    with pytest.raises(ValueError, match=message):
        train(config, console=SILENT)


@pytest.mark.slow
def test_stopped_at_any_moment_a_run_ends_with_the_same_bits(make_config, tmp_path: Path) -> None:
    """Killed, asked to stop, killed again. For twenty times, run tests/training/restarts.py."""
    config = make_config(tmp_path / "undisturbed")
    restarts.check(config, tmp_path, [signal.SIGKILL, signal.SIGTERM, signal.SIGKILL], seed=random.randrange(1000))


def test_steps_that_are_not_finite_stop_the_run_and_leave_a_checkpoint(make_config, tmp_path: Path) -> None:
    """The second step makes the parameters so large that no later one is finite."""
    config = make_config(tmp_path / "run")
    config.update({"steps": 20, "checkpoint_every": 20, "max_bad_steps": 2})
    config.optimizer.learning_rate, config.data.validation = 1e30, ""
    with pytest.raises(TooManyBadStepsError, match=r"more than config\.max_bad_steps = 2 steps .* by step \d"):
        train(config, console=SILENT)
    lines = metric_lines(tmp_path / "run")
    assert lines[-1]["bad_steps"] == 3
    assert lines[-1]["loss"] is None
    assert find_step(tmp_path / "run") == lines[-1]["step"] + 1


def test_other_data_than_at_the_last_start_is_told(finished, tmp_path: Path) -> None:
    config, _ = finished
    again = copied(config, tmp_path)
    first_start = (Path(again.run_dir) / "environment.jsonl").read_text().splitlines()[0]
    digest = json.loads(first_start)["data"][again.data.train]
    assert digest == hashlib.sha256(Path(again.data.train).read_bytes()).hexdigest()
    manifest = Path(again.data.train)
    content = manifest.read_text()
    console = Console(record=True, width=200, file=open(os.devnull, "w"))  # noqa: SIM115
    try:
        manifest.write_text(content + "\n")
        train(again, console=console)
    finally:
        manifest.write_text(content)
    assert f"{manifest} is not what it was at the last start" in console.export_text()


@pytest.mark.slow
def test_the_real_model_trains_the_same_with_sharded_parameters(finished, make_config, tmp_path: Path) -> None:
    """Keys' biases hardly change attention: their gradients are near zero, and Adam makes steps of the rounding."""
    config, parameters = finished
    sharded = make_config(tmp_path / "run")
    sharded.mesh.data, sharded.mesh.fsdp, sharded.data.validation = 2, 4, ""
    state = train(sharded, console=SILENT)
    assert "fsdp" in state.trainable["decoder/layers/q_weight_dnh"].sharding.spec
    expected = [line["loss"] for line in metric_lines(Path(config.run_dir)) if "loss" in line]
    assert [line["loss"] for line in metric_lines(tmp_path / "run")] == pytest.approx(expected, rel=1e-5)
    for path, array in parameters_of(tmp_path / "run").items():
        difference = np.linalg.norm(array - parameters[path]) / np.linalg.norm(parameters[path])
        least = {"k_bias_kh": 1e-2, "qkv_bias_xnh": 1e-4}.get(path.rsplit("/", 1)[-1], 1e-5)
        assert difference < least, path
