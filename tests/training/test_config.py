import json
from pathlib import Path

import pytest
from ml_collections import ConfigDict

from swjax.training.config import (
    DEFAULTS,
    ConfigError,
    base_config,
    changed_keys,
    check_config,
    describe_keys,
    flatten,
    unknown_key,
)
from swjax.training.config_file import load_config

MOVING_SHAPES = Path(__file__).parents[2] / "configs" / "moving_shapes.py"


def runnable() -> ConfigDict:
    config = base_config()
    config.data.train, config.model.preset = "manifest.jsonl", "tiny"
    return config


def test_the_base_has_every_key_and_the_paper_s_recipe() -> None:
    config = base_config()
    assert flatten(config) == dict(DEFAULTS)
    assert config.optimizer.to_dict() == {
        "name": "adamw",
        "learning_rate": 2e-5,
        "schedule": "cosine",
        "final_fraction": 0.0,
        "decay_fraction": 0.1,
        "warmup_fraction": 0.03,
        "weight_decay": 0.0,
        "clip_norm": 1.0,
        "b1": 0.9,
        "b2": 0.999,
        "moments_dtype": "float32",
        "no_decay": (),
        "groups": (),
        "ema": 0.0,
    }
    assert config.frozen == ("visual/(?!merger)",)
    assert all(f"--config.{path}=" in describe_keys(config) for path in DEFAULTS)


def test_adapters_learn_faster_unless_the_rate_is_given() -> None:
    config = base_config()
    config.lora.rank = 16
    assert config.optimizer.learning_rate == 1e-4
    assert json.loads(config.to_json())["optimizer"]["learning_rate"] == 1e-4
    assert flatten(config)["optimizer.learning_rate"] == 1e-4
    config.optimizer.learning_rate = 2e-5
    assert config.optimizer.learning_rate == 2e-5
    rates = ([], ["--config.lora.rank=8"], ["--config.lora.rank=8", "--config.optimizer.learning_rate=3e-5"])
    found = [load_config(MOVING_SHAPES.with_stem("pe_video_7b"), given).optimizer.learning_rate for given in rates]
    assert found == [2e-5, 2e-5, 3e-5]  # that recipe gives its rate
    finetune, full = (load_config(MOVING_SHAPES.with_stem(name)) for name in ("finetune", "finetune_full"))
    assert (finetune.optimizer.learning_rate, full.optimizer.learning_rate) == (1e-4, 1e-5)


def test_every_configuration_file_can_be_run() -> None:
    for path in sorted(MOVING_SHAPES.parent.glob("*.py")):
        load_config(path)


def test_the_paper_s_recipe_is_a_file() -> None:
    config = load_config(MOVING_SHAPES.parent / "pe_video_7b.py")
    rows = config.batch_size * config.accumulation
    assert (config.batch_size, config.accumulation, config.steps) == (4, 16, 313)
    assert 20_000 <= config.steps * rows < 20_000 + rows
    optimizer = config.optimizer
    assert (optimizer.learning_rate, optimizer.warmup_fraction) == (2e-5, 0.03)
    assert (optimizer.weight_decay, optimizer.clip_norm) == (0.0, 1.0)
    assert (config.dtype, config.frozen, config.lora.rank) == ("bfloat16", ("visual/(?!merger)",), 0)
    assert (config.data.fps, config.wait_k) == (2.0, 3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"variant": "gdp"}, r"config\.variant: unknown variant 'gdp'; choose one of: offline"),
        ({"dtype": "float64"}, r"config\.dtype is 'float64'; choose one of: float32, bfloat16"),
        ({"steps": 0}, r"config\.steps is 0; it must be at least 1"),
        ({"optimizer.learning_rate": 0.0}, r"config\.optimizer\.learning_rate is 0\.0; it must be above 0"),
        ({"optimizer.b2": 1.0}, r"config\.optimizer\.b2 is 1\.0"),
        ({"optimizer.ema": 1.0}, r"config\.optimizer\.ema is 1\.0"),
        ({"optimizer.groups": (("visual", 0.0),)}, r"config\.optimizer\.groups has \('visual', 0\.0\); give pairs"),
        ({"keep_best": 2}, r"config\.keep_best chooses by validation loss; give config\.data\.validation"),
        ({"profile.steps": "13:10"}, r"config\.profile\.steps: '13:10' is no range of steps"),
        ({"max_bad_steps": -1}, r"config\.max_bad_steps is -1; it must be at least 0"),
        ({"lora.rank": -1}, r"config\.lora\.rank is -1; it must be at least 0"),
        ({"optimizer.name": "adam"}, r"config\.optimizer\.name is 'adam'; choose one of: adamw, adafactor, lion, muon"),
        ({"optimizer.schedule": "step"}, r"config\.optimizer\.schedule is 'step'; choose one of: cosine, linear"),
        ({"optimizer.name": "lion", "optimizer.moments_dtype": "bfloat16"}, r"is of AdamW's moments"),
        ({"optimizer.final_fraction": 1.5}, r"config\.optimizer\.final_fraction is 1\.5; it must be at most 1"),
        ({"lora.init_from": "adapter"}, r"give its rank as config\.lora\.rank"),
        ({"init_checkpoint": "last"}, r"config\.init_checkpoint is 'last'; give latest, best or the step"),
        ({"data.train": ""}, r"config\.data\.train is empty"),
        ({"run_dir": "gcs://bucket/run"}, r"config\.run_dir: gcs://bucket/run is a URL .*; write gs://"),
        ({"data.train": "a.jsonl, rtsp://b/c"}, r"config\.data\.train: rtsp://b/c is a URL that swjax does not open"),
        ({"init_from": "hf://Qwen/Qwen2.5-VL-3B-Instruct"}, r"give the Hub id itself, Qwen/Qwen2\.5-VL-3B-Instruct"),
        ({"model.preset": ""}, r"config\.init_from and config\.model\.preset are both empty"),
    ],
)
def test_values_that_cannot_be_run_are_named(change: dict, message: str) -> None:
    config = runnable()
    check_config(config)
    config.update_from_flattened_dict(change)
    with pytest.raises(ConfigError, match=message):
        check_config(config)


def test_a_value_of_the_wrong_type_is_named() -> None:
    config = runnable().to_dict() | {"steps": "many"}
    with pytest.raises(ConfigError, match=r"config\.steps is 'many'; it must be of type int"):
        check_config(config)


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("step", "steps"),
        ("optimizer.lr", "optimizer.learning_rate"),
        ("optimizer.learning_rte", "optimizer.learning_rate"),
        ("learning_rate", "optimizer.learning_rate"),
        ("data.max_tokns", "data.max_tokens"),
    ],
)
def test_the_nearest_key_is_named(written: str, meant: str) -> None:
    assert unknown_key(written) == f"unknown key config.{written}; the nearest known key is config.{meant}"


def test_changes_that_matter_are_told_from_those_that_do_not() -> None:
    config = runnable()
    recorded = json.loads(json.dumps(config.to_dict()))
    assert changed_keys(recorded, config) == []
    config.run_dir, config.keep, config.mesh.fsdp = "elsewhere", 9, 4
    assert changed_keys(recorded, config) == []
    config.batch_size, config.accumulation = 2 * config.batch_size, config.accumulation // 2
    assert changed_keys(recorded, config) == [], "a step has the same rows"
    config.batch_size //= 2
    assert "config.accumulation was 16, is 8" in changed_keys(recorded, config)
    config.accumulation *= 2
    config.seed, config.frozen = 1, ()
    assert changed_keys(recorded, config) == [
        "config.seed was 0, is 1",
        "config.frozen was ['visual/(?!merger)'], is []",
    ]
    del recorded["wait_k"]
    assert "config.wait_k was None, is 3" in changed_keys(recorded, config)


def test_overrides_are_typed() -> None:
    config = load_config(
        MOVING_SHAPES,
        [
            "--config.steps=50",
            "--config.optimizer.learning_rate",
            "1",
            "--config.frozen=('visual/',)",
            "--config.model.overrides={'text': {'num_layers': 2}}",
            "--config.optimizer.groups=(('visual/.*norm', 0.5), ('decoder', 2.0))",
        ],
    )
    assert config.steps == 50
    assert config.optimizer.learning_rate == 1.0
    assert isinstance(config.optimizer.learning_rate, float)
    assert config.frozen == ("visual/",)
    assert config.optimizer.groups == (("visual/.*norm", 0.5), ("decoder", 2.0))
    assert config.model.overrides == {"text": {"num_layers": 2}}


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["--config.stesp=5"], r"unknown key config\.stesp; the nearest known key is config\.steps"),
        (["--config.steps=abc"], r"config\.steps=abc: .*\(its type is int\)"),
        (["--config.steps=1.5"], r"config\.steps=1\.5: .*\(its type is int\)"),
        (["--config.steps"], r"config\.steps"),
        (["--config.optimizer=5"], r"config\.optimizer is a group of keys"),
        (["--steps=5"], r"unknown argument '--steps=5'"),
        (["steps"], r"'steps' is not an override"),
        (["--config.variant=nope"], r"config\.variant: unknown variant 'nope'; choose one of"),
    ],
)
def test_overrides_that_cannot_be_meant_are_named(overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config(MOVING_SHAPES, overrides)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("def get_config(:\n", "SyntaxError"),
        ("get = 1\n", "has no attribute 'get_config'"),
        ("def get_config():\n    return 3\n", "must return a ConfigDict, returned int"),
        (
            "from swjax.training.config import base_config\n"
            "def get_config():\n    config = base_config()\n    config.optimizer.lr = 1\n    return config\n",
            r"unknown key config\.optimizer\.lr; the nearest known key is config\.optimizer\.learning_rate",
        ),
    ],
)
def test_a_faulty_file_is_named(tmp_path: Path, content: str, message: str) -> None:
    file = tmp_path / "experiment.py"
    file.write_text(content)
    with pytest.raises(ConfigError, match=message) as caught:
        load_config(file)
    assert str(file) in str(caught.value)


def test_a_missing_file_is_named() -> None:
    names = "finetune, finetune_full, moving_shapes, moving_shapes_asked, moving_shapes_base, pe_video_7b, quickstart"
    names += ", sweeps/gipe_gap, sweeps/longer, sweeps/variants"
    with pytest.raises(ConfigError, match=rf"there is no configuration file nowhere\.py; give a file, or .*: {names}$"):
        load_config("nowhere.py")


def test_a_configuration_that_is_shipped_has_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert load_config("moving_shapes_base") == load_config(MOVING_SHAPES.with_stem("moving_shapes_base"))
