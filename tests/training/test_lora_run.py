"""A LoRA run with averages, from its first step to what PyTorch users load."""

import json
import shutil
from pathlib import Path

import jax
import numpy as np
import optax
import pytest
from ml_collections import ConfigDict
from rich.console import Console
from safetensors.numpy import load_file, save_file

from swjax.commands.main import main
from swjax.hub import CheckpointError, load_hf, save_hf, verify
from swjax.hub.peft import ADAPTER, open_adapter
from swjax.models.adapters import attach_adapters, choose_targets, new_magnitudes
from swjax.models.parameters import merge_parameters, split_parameters
from swjax.models.qwen2_5_vl.weights import WEIGHTS
from swjax.runs.export import export_adapter
from swjax.runs.folder import load_run, open_checkpoint
from swjax.runs.streaming_model import load_with_adapter
from swjax.storage import as_path
from swjax.streaming import KeySpans
from swjax.training.config import ConfigError, freeze
from swjax.training.run import train
from swjax.training.start import scratch_state

SILENT = Console(quiet=True)


@pytest.fixture(scope="module")
def trained(make_config, tmp_path_factory):
    """Four steps of adapters of rank 3 with dropout, averaged over about two steps."""
    config = make_config(tmp_path_factory.mktemp("lora") / "run")
    config.update({"steps": 4, "eval_every": 4})
    config.lora.rank, config.lora.alpha = 3, 6.0
    config.lora.targets = ("decoder/layers/(q|k|v|o|gate|up|down)_weight", "visual/merger/(up|down)_weight")
    config.lora.dropout = 0.25
    config.optimizer.ema = 0.5
    return config, train(config, console=SILENT)


def logits_of(model) -> np.ndarray:
    ids = np.arange(1, 20, dtype=np.int32)[None]
    span = np.arange(19, dtype=np.int32)[None]
    return np.asarray(model(ids, np.tile(span, (3, 1, 1)), KeySpans(np.zeros_like(span), span + 1)))


def test_adapters_alone_train(trained) -> None:
    config, state = trained
    assert len(state.trainable) == 2 * 9
    assert all("_lora_" in path for path in state.trainable)
    assert all(np.abs(leaf).max() > 0 for path, leaf in state.trainable.items() if "_lora_b_" in path)
    model_config = load_run(config.run_dir).model.config
    before = jax.jit(lambda: scratch_state(model_config, freeze(config), optax.identity()))().frozen
    assert before.keys() == state.frozen.keys()
    for path, leaf in state.frozen.items():
        np.testing.assert_allclose(leaf, before[path], rtol=1e-5, atol=1e-7, err_msg=path)


def test_what_is_read_back_and_exported_is_the_averaged_model_with_its_adapters_merged(trained, tmp_path: Path) -> None:
    config, state = trained
    loaded = load_run(config.run_dir)
    structure, _ = split_parameters(loaded.model)
    alpha = config.lora.alpha

    def model_of(adapters):
        attached = attach_adapters(jax.device_get(adapters | state.frozen), alpha=alpha, dtype=np.float32)
        return merge_parameters(structure, attached)

    adapted, last = model_of(state.ema), model_of(state.trainable)
    expected = logits_of(adapted)
    assert np.abs(logits_of(last) - expected).max() > 1e-4
    np.testing.assert_allclose(logits_of(loaded.model), expected, atol=1e-5)
    assert main(["export", "--checkpoint", config.run_dir, "--output", str(tmp_path / "merged")]) == 0
    np.testing.assert_allclose(logits_of(load_hf(tmp_path / "merged")), expected, atol=1e-5)


def test_a_lora_run_goes_on_with_the_same_bits(trained, tmp_path: Path) -> None:
    config, state = trained
    again = config.copy_and_resolve_references()
    again.run_dir = str(tmp_path / "run")
    shutil.copytree(config.run_dir, again.run_dir)
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "4")
    found = train(again, console=SILENT)
    for left, right in ((found.trainable, state.trainable), (found.ema, state.ema)):
        for path, leaf in left.items():
            np.testing.assert_array_equal(leaf, right[path], err_msg=path)


def test_the_adapter_in_peft_s_form_makes_transformers_model_the_merged_one(trained, tmp_path: Path) -> None:
    """PEFT's arithmetic by hand, W + alpha / r * B A, on the modules that its names and its expression choose."""
    torch = pytest.importorskip("torch")
    import re

    from transformers import Qwen2_5_VLForConditionalGeneration

    config, state = trained
    structure, _ = split_parameters(load_run(config.run_dir).model)
    save_hf(merge_parameters(structure, jax.device_get(state.frozen)), tmp_path / "base")
    words = ["export", "--checkpoint", config.run_dir, "--output", str(tmp_path / "lora"), "--format", "lora"]
    assert main(words) == 0
    tensors = load_file(tmp_path / "lora" / "adapter_model.safetensors")
    settings = json.loads((tmp_path / "lora" / "adapter_config.json").read_text())

    theirs = Qwen2_5_VLForConditionalGeneration.from_pretrained(
        tmp_path / "base", dtype=torch.float32, attn_implementation="eager"
    )
    chosen = {name for name, _ in theirs.named_modules() if re.fullmatch(settings["target_modules"], name)}
    expected = {f"base_model.model.{name}.lora_{side}.weight" for name in chosen for side in "AB"}
    assert set(tensors) == expected
    assert "base_model.model.model.language_model.layers.0.self_attn.q_proj.lora_A.weight" in tensors
    assert (settings["r"], settings["lora_dropout"]) == (3, 0.25)
    for name in chosen:
        linear = theirs.get_submodule(name)
        assert isinstance(linear, torch.nn.Linear)
        down, up = (torch.from_numpy(tensors[f"base_model.model.{name}.lora_{side}.weight"]) for side in "AB")
        linear.weight.data += settings["lora_alpha"] / settings["r"] * up @ down

    probes = verify.make_probes(load_run(config.run_dir).model.config, np.random.default_rng(0))
    assert main(["export", "--checkpoint", config.run_dir, "--output", str(tmp_path / "ours")]) == 0
    pairs = zip(
        verify._our_logits(load_hf(tmp_path / "ours"), probes), verify._their_logits(theirs, probes), strict=True
    )
    for ours, other in pairs:
        np.testing.assert_allclose(ours, other, atol=1e-4)


def test_an_adapter_in_peft_s_form_is_read_back_and_rslora_scales_by_the_root_of_the_rank(
    trained, tmp_path: Path, gcs
) -> None:
    config, state = trained
    structure, _ = split_parameters(load_run(config.run_dir).model)
    save_hf(merge_parameters(structure, jax.device_get(state.frozen)), tmp_path / "base")
    shutil.copytree(load_run(config.run_dir).tokenizer, tmp_path / "base", dirs_exist_ok=True)
    shutil.copytree(config.run_dir, tmp_path / "run")
    recorded = json.loads((tmp_path / "run" / "config.json").read_text())
    for rslora in (False, True):
        recorded["lora"]["rslora"] = rslora
        (tmp_path / "run" / "config.json").write_text(json.dumps(recorded))
        export_adapter(tmp_path / "run", tmp_path / "adapter")
        assert json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())["use_rslora"] is rslora
        alpha = config.lora.alpha * (3**0.5 if rslora else 1)
        attached = attach_adapters(jax.device_get(state.ema | state.frozen), alpha=alpha, dtype=np.float32)
        expected = logits_of(merge_parameters(structure, attached))
        np.testing.assert_allclose(logits_of(load_run(tmp_path / "run").model), expected, atol=1e-5)
        merged = load_with_adapter(tmp_path / "base", tmp_path / "adapter")
        np.testing.assert_allclose(logits_of(merged.model), expected, atol=1e-5)
    export_adapter(tmp_path / "run", as_path("gs://bucket/adapter"), dtype="bfloat16")
    rounded = logits_of(load_with_adapter(tmp_path / "base", "gs://bucket/adapter").model)
    np.testing.assert_allclose(rounded, expected, atol=0.05)

    settings = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    for change, words in (({"use_dora": True}, "has not all of the 3 tensors"), ({"r": 4}, "does not fit")):
        (tmp_path / "adapter" / "adapter_config.json").write_text(json.dumps(settings | change))
        with pytest.raises(CheckpointError, match=words):
            load_with_adapter(tmp_path / "base", tmp_path / "adapter")


def test_an_adapter_goes_on_training_with_the_merger_beside_it(trained, tmp_path: Path) -> None:
    """After a step at a learning rate of nearly nothing, it is what it was."""
    config, state = trained
    structure, _ = split_parameters(load_run(config.run_dir).model)
    save_hf(merge_parameters(structure, jax.device_get(state.frozen)), tmp_path / "base")
    shutil.copytree(load_run(config.run_dir).tokenizer, tmp_path / "base", dirs_exist_ok=True)
    export_adapter(config.run_dir, tmp_path / "adapter")
    again = config.copy_and_resolve_references()
    again.run_dir, again.init_from = str(tmp_path / "run"), str(tmp_path / "base")
    again.model.preset, again.model.overrides = "", ConfigDict()
    again.lora.init_from, again.lora.additional = str(tmp_path / "adapter"), ("visual/merger/norm",)
    again.optimizer.ema, again.optimizer.learning_rate = 0.0, 1e-30
    again.data.validation, again.steps = "", 1
    found = train(again, console=SILENT)
    assert found.trainable.keys() == {*state.trainable, "visual/merger/norm_d"}
    for path, leaf in state.ema.items():
        np.testing.assert_array_equal(found.trainable[path], leaf, err_msg=path)
    assert "visual/merger/norm_d" not in found.frozen

    # What was trained beside it is another now, and goes along in PEFT's form as its module.
    export_adapter(again.run_dir, tmp_path / "other")
    settings = json.loads((tmp_path / "other" / "adapter_config.json").read_text())
    assert settings["modules_to_save"] == ["model.visual.merger.ln_q"]
    tensors = load_file(tmp_path / "other" / "adapter_model.safetensors")
    norm = tensors["base_model.model.model.visual.merger.ln_q.weight"]
    np.testing.assert_array_equal(norm, found.trainable["visual/merger/norm_d"])
    save_file(tensors | {"base_model.model.model.visual.merger.ln_q.weight": 3 * norm}, tmp_path / "other" / ADAPTER)
    merged = split_parameters(load_with_adapter(tmp_path / "base", tmp_path / "other").model)[1]
    trained_on = split_parameters(load_run(again.run_dir).model)[1]
    for path, leaf in merged.items():
        factor = 3 if path == "visual/merger/norm_d" else 1
        np.testing.assert_allclose(leaf, factor * trained_on[path], atol=1e-6, err_msg=path)

    again.lora.init_from, again.lora.additional = str(tmp_path / "other"), ()
    again.run_dir = str(tmp_path / "second")
    with pytest.raises(ConfigError, match=r"trained with visual/merger/norm_d beside it; name it in config\.lora\.add"):
        train(again, console=SILENT)
    again.run_dir, again.lora.alpha = str(tmp_path / "third"), 5.0
    with pytest.raises(ConfigError, match=r"those of the adapter .* are \(3, 6\.0, False, False\); make them the same"):
        train(again, console=SILENT)


def on_its_base(trained, folder: Path):
    """The configuration of another run, on the weights that the adapters adapt; and the structure of the model."""
    config = trained[0].copy_and_resolve_references()
    structure, _ = split_parameters(load_run(config.run_dir).model)
    save_hf(merge_parameters(structure, jax.device_get(trained[1].frozen)), folder / "base")
    shutil.copytree(load_run(config.run_dir).tokenizer, folder / "base", dirs_exist_ok=True)
    config.run_dir, config.init_from = str(folder / "run"), str(folder / "base")
    config.model.preset, config.model.overrides = "", ConfigDict()
    return config, structure


def test_a_base_in_int8_trains_and_is_kept_and_read_back_as_it_is(trained, tmp_path: Path) -> None:
    config, structure = on_its_base(trained, tmp_path)
    config.lora.base_dtype, config.data.validation = "int8", ""
    config.steps = 1
    state = train(config, console=SILENT)
    eight = {path for path, leaf in state.frozen.items() if leaf.dtype == np.int8}
    assert len(eight) == 9
    attached = attach_adapters(jax.device_get(state.ema | state.frozen), alpha=config.lora.alpha, dtype=np.float32)
    expected = logits_of(merge_parameters(structure, attached))
    np.testing.assert_allclose(logits_of(load_run(config.run_dir).model), expected, atol=1e-5)

    stored = open_checkpoint(config.run_dir, 1)
    for path, leaf in state.frozen.items():
        np.testing.assert_array_equal(stored[path].read_rows(0, len(leaf)), leaf, err_msg=path)
        assert stored[path].dtype == leaf.dtype, path


def test_dora_trains_and_is_read_back_merged_and_in_peft_s_form(trained, tmp_path: Path) -> None:
    pytest.importorskip("torch")
    from swjax.hub.pytorch import streaming

    config, structure = on_its_base(trained, tmp_path)
    config.lora.dora, config.data.validation, config.optimizer.ema, config.steps = True, "", 0.0, 2
    state = train(config, console=SILENT)
    before = new_magnitudes(state.frozen, choose_targets(config.lora.targets, state.frozen))
    assert len(before) == 9
    for path, lengths in before.items():
        assert 0.001 < np.abs(state.trainable[path] - lengths).max() < 0.1, path
    attached = attach_adapters(
        jax.device_get(state.trainable | state.frozen), alpha=config.lora.alpha, dtype=np.float32
    )
    expected = logits_of(merge_parameters(structure, attached))
    np.testing.assert_allclose(logits_of(load_run(config.run_dir).model), expected, atol=1e-5)

    export_adapter(config.run_dir, tmp_path / "adapter")
    np.testing.assert_allclose(
        logits_of(load_with_adapter(tmp_path / "base", tmp_path / "adapter").model), expected, atol=1e-5
    )
    shapes = {path: leaf.shape for path, leaf in state.frozen.items()}
    found = open_adapter(tmp_path / "adapter", load_run(config.run_dir).model.config, shapes)
    assert found.dora
    assert found.parameters.keys() == state.trainable.keys()
    for path, leaf in state.trainable.items():
        np.testing.assert_array_equal(found.parameters[path].read_rows(0, len(leaf)), leaf, err_msg=path)

    # PEFT's arithmetic by hand; the file beside the adapter does it, too.
    tensors = load_file(tmp_path / "adapter" / ADAPTER)
    assert json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())["use_dora"] is True
    modules = [name.removesuffix(".lora_A.weight") for name in tensors if name.endswith(".lora_A.weight")]
    assert len(tensors) == 3 * len(modules) == 3 * 9
    base, _ = streaming.load(tmp_path / "base")
    theirs, _ = streaming.load(tmp_path / "adapter", base=tmp_path / "base")
    for name in modules:
        down, up, lengths = (tensors[f"{name}.lora_{end}"] for end in ("A.weight", "B.weight", "magnitude_vector"))
        weight, merged = (
            model.get_submodule(name.removeprefix("base_model.model.")).weight.detach().numpy()
            for model in (base, theirs)
        )
        v = weight + config.lora.alpha / 3 * up @ down
        expected = lengths[:, None] * v / np.linalg.norm(v, axis=1, keepdims=True)
        np.testing.assert_allclose(merged, expected, atol=1e-6, err_msg=name)
    tensors.popitem()
    save_file(tensors, tmp_path / "adapter" / ADAPTER)
    with pytest.raises(CheckpointError, match="has not all of the 3 tensors of the adapter"):
        load_with_adapter(tmp_path / "base", tmp_path / "adapter")


def test_an_adapter_without_a_base_is_not_verified(trained, tmp_path: Path, capsys) -> None:
    words = ["export", "--checkpoint", trained[0].run_dir, "--output", str(tmp_path / "lora"), "--format", "lora"]
    assert main([*words, "--verify"]) == 2
    assert "--verify has no model to put its adapter on" in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "lora").exists()


def test_every_linear_layer_is_named_as_transformers_names_it() -> None:
    torch = pytest.importorskip("torch")
    from transformers import AutoConfig, Qwen2_5_VLForConditionalGeneration

    from swjax.hub.peft import _module_name

    golden = Path(__file__).parents[1] / "golden" / "tiny_qwen2_5_vl"
    with torch.device("meta"):
        theirs = Qwen2_5_VLForConditionalGeneration(AutoConfig.from_pretrained(golden))
    linear = {name for name, module in theirs.named_modules() if isinstance(module, torch.nn.Linear)}
    layers = {"decoder": 3, "visual": 4}
    ours = {
        _module_name(WEIGHTS, where.module, layer)
        for path, where in WEIGHTS.projections().items()
        for layer in (range(layers[path.split("/")[0]]) if "*" in where.module else (None,))
    }
    assert ours == linear


def test_a_run_without_adapters_has_none_to_export(make_config, tmp_path: Path) -> None:
    config = make_config(tmp_path / "run")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").write_text(config.to_json())
    (tmp_path / "run" / "model.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"trained all weights \(config\.lora\.rank was 0\)"):
        export_adapter(tmp_path / "run", tmp_path / "adapter")
