from pathlib import Path

import pytest

from swjax.commands.main import main

CONFIG = str(Path(__file__).parents[2] / "configs" / "moving_shapes.py")


def test_help_says_what_each_exit_status_means(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        call("--help")
    shown = " ".join(capsys.readouterr().out.split())
    told = (
        "0 the run is at its end",
        "75 it was asked to stop",
        "1 too many",
        "2 the configuration",
        "130 interrupted",
    )
    assert all(words in shown for words in (*told, "by abort (134)"))


def call(*arguments: str) -> int:
    return main(["train", *arguments])


def test_help_teaches_the_keys(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        call("--help")
    shown = capsys.readouterr().out
    assert "swjax train --config configs/moving_shapes.py --config.variant=gipe" in shown
    assert "--config.optimizer.learning_rate=2e-05\n      peak learning rate" in shown


def test_the_parameters_are_shown_with_what_trains(capsys: pytest.CaptureFixture[str]) -> None:
    assert call("--config", CONFIG, "--config.frozen=('visual/(?!merger)',)", "--show-parameters") == 0
    lines = capsys.readouterr().out.splitlines()
    shown = {line.split()[0]: line for line in lines}
    assert shown["decoder/embedding_vd"].endswith("trains")
    assert shown["visual/patch_weight_cd"].endswith("frozen")
    assert any(line.endswith("of them train") for line in lines)


def test_the_configuration_is_shown_with_its_overrides(capsys: pytest.CaptureFixture[str]) -> None:
    assert call("--config", CONFIG, "--config.variant=gipe", "--run-dir", "runs/x y", "--show-config") == 0
    shown = capsys.readouterr().out
    assert "--config.variant='gipe'\n" in shown
    assert "--config.run_dir='runs/x y'\n" in shown
    assert "--config.model.preset='tiny'\n" in shown


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config.optimizer.lr=1"], "unknown key config.optimizer.lr; the nearest known key is config.optimizer.lea"),
        (["--config.steps=many"], "config.steps=many"),
        (["--config.variant=nope"], "unknown variant 'nope'; choose one of: offline"),
        (["--config.data.train=nowhere.jsonl"], "there is no manifest nowhere.jsonl"),
        (["--config.model.preset=9b"], "unknown model preset '9b'; choose one of: tiny, 3b, 7b, 32b, 72b"),
        (["--config.init_from=./nowhere"], "./nowhere: no such checkpoint folder"),
        (["--config.tokenizer=./nowhere"], "nowhere is not a folder"),
        (["--config.data.train=tests:train"], "there is no data set in tests"),
        (
            ["--config.data.max_patches=1999"],
            "config.data.max_patches is 1999; it must be a multiple of 4, the patches",
        ),
        (["--config.data.batching=bucket", "--config.data.buckets=((64, 30),)"], "of buckets must be multiples of 4"),
        (["--config.wait_k=3", "--verbose"], "unknown argument '--verbose'"),
    ],
)
def test_what_cannot_be_run_is_named_and_ends_with_2(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert call("--config", CONFIG, "--run-dir", str(tmp_path), *arguments) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
