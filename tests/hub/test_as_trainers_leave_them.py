"""Checkpoints as trainers and versions of transformers leave them: read bit for bit, or refused with the reason."""

import json
import warnings
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from swjax.commands.main import main
from swjax.hub import CheckpointError, files, load_hf, open_hf, save_hf
from swjax.models.qwen2_5_vl import Qwen2_5_VLConfig
from swjax.notice import Notice
from swjax.runs.streaming_model import open_streaming_model

GOLDEN = Path(__file__).parents[1] / "golden" / "tiny_qwen2_5_vl"
TENSORS = load_file(GOLDEN / "model.safetensors")
GATE = "model.layers.0.mlp.gate_proj.weight"


@pytest.fixture
def folder(tmp_path):
    made = tmp_path / "checkpoint"
    made.mkdir()
    flat = Qwen2_5_VLConfig.from_hf(json.loads((GOLDEN / "config.json").read_text())).to_hf("float32")
    (made / "config.json").write_text(json.dumps(flat))
    return made


def configure(folder, **changes):
    content = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(content | changes))


def save(folder, tensors, name="model.safetensors"):
    save_file(dict(tensors), folder / name, metadata={"format": "pt"})


def shards(folder, count=2, named=None):
    """Write the tensors as `count` shards, and an index that names `named` of them, unless that is 0."""
    names = sorted(TENSORS)
    parts = [names[start::count] for start in range(count)]
    for number, part in enumerate(parts, start=1):
        save(folder, {name: TENSORS[name] for name in part}, f"model-{number:05d}-of-{count:05d}.safetensors")
    named = count if named is None else named
    weight_map = {
        name: f"model-{number:05d}-of-{named:05d}.safetensors"
        for number, part in enumerate(parts, start=1)
        for name in part
    }
    if named:
        (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def assert_reads_golden(folder):
    """Every parameter is the golden checkpoint's, bit for bit."""
    expected = open_hf(GOLDEN)[1]
    found = open_hf(folder)[1]
    assert found.keys() == expected.keys()
    for path, array in expected.items():
        one, other = (stored.read_rows(0, array.shape[0]) for stored in (array, found[path]))
        assert one.tobytes() == other.tobytes(), path


def of_4_52(name):
    if name.startswith("model."):
        return name.replace("model.", "model.language_model.", 1)
    return f"model.{name}" if name.startswith("visual.") else name


NAMES = {
    "of the modules of transformers 4.52": of_4_52,
    "DistributedDataParallel": lambda name: f"module.{name}",
    "torch.compile": lambda name: f"_orig_mod.{name}",
    "PEFT": lambda name: f"base_model.model.{name}",
    "DistributedDataParallel of torch.compile of PEFT": lambda name: (
        f"module._orig_mod.base_model.model.{of_4_52(name)}"
    ),
}


@pytest.mark.parametrize("rename", NAMES.values(), ids=NAMES.keys())
def test_names_of_wrappers_and_modules_are_read(folder, rename):
    save(folder, {rename(name): array for name, array in TENSORS.items()})
    assert_reads_golden(folder)


def test_buffers_that_follow_from_the_configuration_are_skipped(folder):
    buffers = {"visual.rotary_pos_emb.inv_freq": np.zeros(8), "model.rotary_emb.inv_freq": np.zeros(16)}
    save(folder, TENSORS | buffers)
    assert_reads_golden(folder)


def test_one_tensor_under_two_names_is_refused(folder):
    save(folder, TENSORS | {"module." + GATE: TENSORS[GATE]})
    with pytest.raises(CheckpointError, match=r"are the same weights; take one of them away"):
        open_hf(folder)


@pytest.mark.parametrize(
    ("extra", "reason"),
    [
        (f"base_model.model.{GATE.replace('.weight', '.lora_A.weight')}", "of an adapter that is not merged"),
        (GATE.replace(".weight", ".base_layer.weight"), "of an adapter that is not merged"),
        ("lm_head.modules_to_save.default.weight", "of an adapter that is not merged"),
        (f"{GATE}.absmax", "of quantized weights"),
        (f"{GATE}.quant_state.bitsandbytes__nf4", "of quantized weights"),
        (GATE.replace("weight", "qweight"), "of quantized weights"),
        (GATE.replace("weight", "weight_scale_inv"), "of quantized weights"),
        ("model.layers.0.mlp.experts.weight", r"is config\.json the one of these weights"),
    ],
)
def test_tensors_too_many_are_explained(folder, extra, reason):
    save(folder, TENSORS | {extra: np.zeros(3, np.float32)})
    with pytest.raises(CheckpointError, match=rf"has unexpected .*; .*{reason}"):
        open_hf(folder)


def test_a_scale_without_dimensions_is_no_damage(folder):
    save(folder, TENSORS | {GATE.replace("weight", "input_scale"): np.array(1.0, np.float32)})
    with pytest.raises(CheckpointError, match=r"input_scale; these are of quantized weights; take the"):
        open_hf(folder)


@pytest.mark.parametrize("scale", [False, True])
@pytest.mark.parametrize("dtype", ["float8_e4m3fn", "float8_e5m2", "int8", "uint8", "float64"])
def test_weights_of_other_dtypes_are_refused_by_name(folder, dtype, scale):
    scales = {f"{GATE}_scale": np.array(1.0, np.float32)} if scale else {}
    if dtype.startswith("float8"):
        _save_float8(folder, TENSORS | scales, getattr(ml_dtypes, dtype))
    else:
        save(folder, TENSORS | scales | {GATE: TENSORS[GATE].astype(dtype)})
    with pytest.raises(CheckpointError, match=rf"holds weights in {dtype} \(.*gate_proj.*\); take the checkp"):
        open_hf(folder)


def _save_float8(folder, tensors, dtype):
    """As safetensors writes it; its numpy part knows no float8, so the dtype is put into the header afterwards."""
    save(folder, tensors | {GATE: tensors[GATE].astype(dtype).view(np.uint8)})
    file = folder / "model.safetensors"
    raw = file.read_bytes()
    size = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + size])
    header[GATE]["dtype"] = "F8_E4M3" if dtype is ml_dtypes.float8_e4m3fn else "F8_E5M2"
    text = json.dumps(header).encode()
    file.write_bytes(len(text).to_bytes(8, "little") + text + raw[8 + size :])


@pytest.mark.parametrize("piece", [64 * 2**20, 100 * 4 * 64])  # in one piece, and in six of which the last differs
def test_a_head_that_is_called_tied_and_differs_is_taken_and_written_back(folder, tmp_path, monkeypatch, piece):
    monkeypatch.setattr(files, "_PIECE_BYTES", piece)
    head = TENSORS["model.embed_tokens.weight"].copy()
    head[-1, -1] += 1
    save(folder, TENSORS | {"lm_head.weight": head})
    configure(folder, tie_word_embeddings=True)
    with pytest.warns(Notice, match="calls the head tied to the embedding, but the weights hold another; taking it"):
        model = load_hf(folder)
    assert not model.config.text.tie_word_embeddings
    np.testing.assert_array_equal(model.decoder.head_vd[...], head)
    save_hf(model, tmp_path / "again")
    np.testing.assert_array_equal(load_hf(tmp_path / "again").decoder.head_vd[...], head)
    assert json.loads((tmp_path / "again" / "config.json").read_text())["tie_word_embeddings"] is False


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_a_head_that_is_the_embedding_stays_tied_without_a_notice(folder, dtype):
    embedding = TENSORS["model.embed_tokens.weight"].astype("float16").astype("float32")
    save(folder, TENSORS | {"model.embed_tokens.weight": embedding, "lm_head.weight": embedding.astype(dtype)})
    configure(folder, tie_word_embeddings=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error", Notice)
        config, stored = open_hf(folder)
    assert config.text.tie_word_embeddings
    assert "decoder/head_vd" not in stored


@pytest.mark.parametrize(("top", "text"), [(False, True), (True, False), (True, True), (False, False)])
@pytest.mark.parametrize("head", ["differs", "is the embedding", "is not there"])
def test_flags_that_disagree_are_decided_by_the_weights(folder, top, text, head):
    transformers = pytest.importorskip("transformers")
    nested = transformers.Qwen2_5_VLConfig(**json.loads((GOLDEN / "config.json").read_text())).to_dict()
    nested["tie_word_embeddings"], nested["text_config"]["tie_word_embeddings"] = top, text
    (folder / "config.json").write_text(json.dumps(nested))
    tensors = dict(TENSORS)
    if head == "is the embedding":
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"]
    elif head == "is not there":
        del tensors["lm_head.weight"]
    save(folder, tensors)
    if head == "is not there" and not (top or text):
        with pytest.raises(CheckpointError, match=r"lacks lm_head\.weight; .* tie_word_embeddings"):
            open_hf(folder)
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Notice)
        config = open_hf(folder)[0]
    assert config.text.tie_word_embeddings == ((top or text) and head != "differs")


def test_a_whole_file_is_read_before_a_stale_index(folder):
    shards(folder)
    for file in folder.glob("model-*.safetensors"):
        file.unlink()
    save(folder, TENSORS)
    with pytest.warns(Notice, match=r"reading model\.safetensors, as transformers does, and not the files"):
        assert_reads_golden(folder)


@pytest.mark.parametrize(("named", "said"), [(0, "has no model.safetensors.index.json"), (4, "which is not there")])
def test_a_complete_set_of_shards_is_read_whatever_the_index_says(folder, named, said):
    shards(folder, named=named)
    with pytest.warns(Notice, match=said):
        assert_reads_golden(folder)


@pytest.mark.parametrize("named", [0, 2, 3])
def test_a_set_of_shards_that_is_not_complete_is_refused(folder, named):
    shards(folder, named=named)
    (folder / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"\.safetensors is missing; fetch the checkpoint again"):
        open_hf(folder)


def test_two_sets_of_shards_are_read_by_the_index_alone(folder):
    shards(folder, count=3)
    shards(folder, count=2)
    assert_reads_golden(folder)
    (folder / "model.safetensors.index.json").unlink()
    with pytest.raises(CheckpointError, match=r"model\.safetensors is missing"):
        open_hf(folder)


@pytest.mark.parametrize(
    "content", ["{", "[]", '{"weight_map": 3}', '{"weight_map": {"a": 3}}', '{"weight_map": {"a": "../b"}}', "[" * 9999]
)
def test_a_damaged_index_is_named(folder, content):
    (folder / "model.safetensors.index.json").write_text(content)
    with pytest.raises(CheckpointError, match=r"index\.json is damaged"):
        open_hf(folder)


def test_other_formats_are_named(folder):
    (folder / "pytorch_model.bin").write_bytes(b"x")
    with pytest.raises(CheckpointError, match=r"pytorch_model\.bin cannot be read, save the model as safetensors"):
        open_hf(folder)


def test_folders_of_runs_and_adapters_are_named_as_what_they_are(tmp_path, capsys):
    run, adapter = tmp_path / "run", tmp_path / "adapter"
    (run / "checkpoints").mkdir(parents=True)
    adapter.mkdir()
    for file in (run / "model.json", run / "config.json", adapter / "adapter_config.json"):
        file.write_text("{}")
    (adapter / "adapter_model.safetensors").write_bytes(b"")
    data = "--config.data.train=none.jsonl"
    train = ["train", "--config", "configs/pe_video_7b.py", "--run-dir", str(tmp_path / "new"), data]
    # A run is a start for training, if it has a checkpoint.
    for folder, verb, said in (
        (run, "train", "holds no finished checkpoint"),
        (run, "import", "is the folder of a run, not a Hugging"),
        (adapter, "train", "holds a LoRA adapter and not the"),
        (adapter, "import", "holds a LoRA adapter and not the"),
    ):
        words = [*train, f"--config.init_from={folder}"] if verb == "train" else ["import", str(folder)]
        assert main(words) == 2
        assert said in capsys.readouterr().err
    assert main(["export", "--checkpoint", str(adapter), "--output", str(tmp_path / "out")]) == 2
    assert "holds a LoRA adapter" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_size": "64"}, r"config\.json: hidden_size is '64'; it must be a whole number from 1 on"),
        ({"num_hidden_layers": 0}, "num_hidden_layers is 0"),
        ({"num_hidden_layers": 10**9}, "more layers than there are tensors"),
        ({"num_attention_heads": True}, "num_attention_heads is True"),
        ({"vocab_size": 1e300}, r"vocab_size is 1e\+300"),
        ({"rms_norm_eps": float("nan")}, "rms_norm_eps is nan"),
        ({"vision_config": []}, r"vision_config is \[\]; it must be an object"),
        ({"rope_scaling": "mrope"}, "rope_scaling is 'mrope'; it must be an object"),
        ({"rope_scaling": {"mrope_section": [16, 16]}}, "mrope_section has 2 parts; it must have 3"),
        ({"tie_word_embeddings": "yes"}, "tie_word_embeddings is 'yes'; it must be true or false"),
        ({"video_token_id": -1}, "video_token_id is -1"),
        ({"eos_token_id": [None]}, "eos_token_id is None"),
        ({"streaming": 3}, "'streaming' must be an object"),
        ({"streaming": {"wait_k": 0}}, "streaming: wait_k is 0; it must be of type int above 0"),
        ({"streaming": {"variant": "gdp"}}, "streaming: unknown variant 'gdp'"),
    ],
)
def test_values_of_config_json_that_no_model_has_are_named(folder, changes, message):
    save(folder, TENSORS)
    configure(folder, **changes)
    with pytest.raises(CheckpointError, match=message):
        open_streaming_model(folder)


def test_a_byte_order_mark_and_whole_numbers_with_a_point_are_read(folder):
    save(folder, TENSORS)
    content = json.loads((folder / "config.json").read_text())
    content["video_token_id"] = float(content["video_token_id"])
    (folder / "config.json").write_text(json.dumps(content), encoding="utf-8-sig")
    assert open_hf(folder)[0] == open_hf(GOLDEN)[0]
