"""Hugging Face checkpoints: bit-identical round trips, transformers' own reading of ours, and damage."""

import json
import shutil
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from swjax.hub import CheckpointError, load_hf, save_hf
from swjax.models.qwen2_5_vl import PRESETS, Qwen2_5_VL, Qwen2_5_VLConfig

GOLDEN = Path(__file__).parents[1] / "golden" / "tiny_qwen2_5_vl"


@pytest.fixture
def copy(tmp_path):
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    for name in ("config.json", "model.safetensors"):
        shutil.copy(GOLDEN / name, folder)
    return folder


def tensors_of(folder: Path) -> dict[str, np.ndarray]:
    return {name: array for file in folder.glob("*.safetensors") for name, array in load_file(file).items()}


def assert_same_tensors(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> None:
    assert one.keys() == other.keys()
    for name, array in one.items():
        assert array.dtype == other[name].dtype, name
        assert array.tobytes() == other[name].tobytes(), name


@pytest.mark.parametrize("max_shard_size", ["5GB", "200KB"])
def test_load_and_save_is_bit_identical(tmp_path, max_shard_size):
    save_hf(load_hf(GOLDEN), tmp_path, max_shard_size=max_shard_size)
    assert (len(list(tmp_path.glob("*.safetensors"))) > 1) == (max_shard_size == "200KB")
    assert_same_tensors(tensors_of(GOLDEN), tensors_of(tmp_path))
    save_hf(load_hf(tmp_path), tmp_path / "again")
    assert_same_tensors(tensors_of(GOLDEN), tensors_of(tmp_path / "again"))


def test_bfloat16_checkpoints_keep_their_bits(tmp_path):
    save_hf(load_hf(GOLDEN, dtype=jnp.bfloat16), tmp_path / "one")
    model = load_hf(tmp_path / "one")
    assert model.decoder.embedding_vd.dtype == jnp.bfloat16
    save_hf(model, tmp_path / "two")
    assert_same_tensors(tensors_of(tmp_path / "one"), tensors_of(tmp_path / "two"))
    assert json.loads((tmp_path / "two" / "config.json").read_text())["torch_dtype"] == "bfloat16"


def test_tied_embeddings_have_no_head(tmp_path):
    config = Qwen2_5_VLConfig.preset("tiny", text={"tie_word_embeddings": True})
    save_hf(Qwen2_5_VL(config, rngs=nnx.Rngs(0)), tmp_path)
    assert "lm_head.weight" not in tensors_of(tmp_path)
    assert load_hf(tmp_path).config.text.tie_word_embeddings


def test_transformers_reads_what_we_write(tmp_path):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    save_hf(load_hf(GOLDEN), tmp_path)
    theirs, report = transformers.Qwen2_5_VLForConditionalGeneration.from_pretrained(
        tmp_path, attn_implementation="eager", output_loading_info=True
    )
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    golden = np.load(GOLDEN / "golden.npz")
    with torch.no_grad():
        logits = theirs(
            input_ids=torch.from_numpy(golden["case0/input_ids"])[None],
            position_ids=torch.from_numpy(golden["case0/positions_offline"])[:, None],
            pixel_values_videos=torch.from_numpy(golden["case0/pixel_values"]),
            video_grid_thw=torch.from_numpy(golden["case0/grid_thw"])[None],
        ).logits
    np.testing.assert_allclose(logits[0].numpy(), golden["case0/logits_offline"], atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_config_survives_both_forms(name):
    transformers = pytest.importorskip("transformers")
    config = Qwen2_5_VLConfig.preset(name)
    flat = config.to_hf("bfloat16")
    assert Qwen2_5_VLConfig.from_hf(flat) == config
    nested = transformers.Qwen2_5_VLConfig(**flat).to_dict()
    assert "text_config" in nested
    assert Qwen2_5_VLConfig.from_hf(nested) == config


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "qwen2_vl"}, "'qwen2_vl', expected 'qwen2_5_vl'"),
        ({"hidden_size": None}, "config.json lacks 'hidden_size'"),
        ({"rope_scaling": None}, "lacks 'mrope_section'"),
        ({"rope_scaling": {"type": "yarn", "mrope_section": [4, 6, 6]}}, "rope type 'yarn' is not supported"),
        ({"use_sliding_window": True}, "use_sliding_window is not supported"),
        ({"hidden_act": "gelu"}, "text hidden_act 'gelu'"),
        ({"num_attention_heads": 3}, "num_heads 3 must divide"),
    ],
)
def test_configs_that_we_cannot_run(change, message):
    flat = Qwen2_5_VLConfig.preset("tiny").to_hf("float32") | change
    with pytest.raises(ValueError, match=message):
        Qwen2_5_VLConfig.from_hf(flat)


def test_presets_refuse_unknown_names_and_fields():
    with pytest.raises(ValueError, match="unknown model preset '8b'; choose one of: tiny, 3b, 7b, 32b, 72b"):
        Qwen2_5_VLConfig.preset("8b")
    with pytest.raises(ValueError, match="unknown model field 'hiden_size' in text"):
        Qwen2_5_VLConfig.preset("tiny", text={"hiden_size": 3})


def rewrite(folder: Path, change) -> None:
    file = folder / "model.safetensors"
    arrays = load_file(file)
    change(arrays)
    save_file(arrays, file)


def test_missing_tensor(copy):
    rewrite(copy, lambda arrays: arrays.pop("model.layers.1.mlp.up_proj.weight"))
    with pytest.raises(CheckpointError, match=r"lacks model\.layers\.1\.mlp\.up_proj\.weight"):
        load_hf(copy)


def test_unexpected_tensor(copy):
    rewrite(copy, lambda arrays: arrays.update({"model.layers.7.extra": np.zeros(3, np.float32)}))
    with pytest.raises(CheckpointError, match=r"has unexpected model\.layers\.7\.extra"):
        load_hf(copy)


def test_mis_shaped_tensor(copy):
    rewrite(copy, lambda arrays: arrays.update({"model.norm.weight": np.zeros(65, np.float32)}))
    with pytest.raises(
        CheckpointError, match=r"model\.norm\.weight has shape \(65,\), but config.json makes it \(64,\)"
    ):
        load_hf(copy)


def test_truncated_file(copy):
    file = copy / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])
    with pytest.raises(CheckpointError, match=r"model\.safetensors is damaged .*; fetch it again"):
        load_hf(copy)


def test_missing_files(copy, tmp_path):
    (copy / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"model\.safetensors is missing"):
        load_hf(copy)
    (copy / "config.json").unlink()
    with pytest.raises(CheckpointError, match=r"config\.json is missing"):
        load_hf(copy)
    with pytest.raises(CheckpointError, match="no such checkpoint folder"):
        load_hf(tmp_path / "nowhere")


def test_missing_shard(tmp_path):
    save_hf(load_hf(GOLDEN), tmp_path, max_shard_size="200KB")
    lost = sorted(tmp_path.glob("*.safetensors"))[1]
    lost.unlink()
    with pytest.raises(CheckpointError, match=f"{lost.name} is missing"):
        load_hf(tmp_path)


def test_every_hub_tensor_is_written_contiguously(tmp_path):
    save_hf(load_hf(GOLDEN), tmp_path)
    with (
        safe_open(tmp_path / "model.safetensors", framework="numpy") as ours,
        safe_open(GOLDEN / "model.safetensors", framework="numpy") as theirs,
    ):
        for name in ours.keys():  # noqa: SIM118 (not a dict)
            assert ours.get_slice(name).get_shape() == theirs.get_slice(name).get_shape()
