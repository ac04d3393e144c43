"""What the documents show runs, and their links lead somewhere."""

import re
from pathlib import Path

import numpy as np
import pytest

from swjax.hub import load_hf
from swjax.streaming import SpecialTokens, build_layout

ROOT = Path(__file__).parents[2]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
TINY = ROOT / "tests" / "golden" / "tiny_qwen2_5_vl"


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda file: str(file.relative_to(ROOT)))
def test_links_lead_somewhere(document):
    for link in re.findall(r"\]\((?!https?:|#)([^)#]+)[^)]*\)", document.read_text()):
        assert (document.parent / link).exists(), link


def test_files_that_the_list_of_differences_names_are_there():
    text = (ROOT / "docs" / "differences.md").read_text()
    named = set(re.findall(r"`((?:swjax|tests)/[\w/.]+)`", text))
    assert len(named) >= 4
    assert [name for name in named if not (ROOT / name).exists()] == []


def test_the_example_of_one_dimensional_positions_runs_as_it_stands():
    """Up to the video it gives what Hugging Face gives: there the ids of both count alike, under a causal mask."""
    (example,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "differences.md").read_text(), re.S)
    golden = np.load(TINY / "golden.npz")
    model = load_hf(TINY, dtype="float32")
    given = {
        "model": model,
        "input_ids": golden["case0/input_ids"].astype(np.int32),
        "pixel_values": golden["case0/pixel_values"],
        "video_grid_thw": golden["case0/grid_thw"].astype(np.int32).reshape(1, 3),
    }
    exec(example, given)
    logits = np.asarray(given["logits"])[0]
    assert logits.shape == golden["case0/logits_offline"].shape
    # Before the video both count alike; behind it the video's own ids make the difference.
    before = int((golden["case0/official_ids"] == SpecialTokens.qwen2_5_vl().video_pad).argmax())
    np.testing.assert_allclose(logits[:before], golden["case0/logits_offline"][:before], atol=1e-4)
    assert np.abs(logits[-1] - golden["case0/logits_offline"][-1]).max() > 1e-3


def test_gipe_from_zero_is_gdpe_as_the_list_says():
    with np.load(ROOT / "tests" / "golden" / "streaming_layouts.npz") as cases:
        ids, grid = cases["case0/input_ids"], cases["case0/grid_thw"]
    special = SpecialTokens.qwen2_5_vl()
    layouts = [
        build_layout(ids, grid[None], variant=variant, gap=gap, schedule=1, special_tokens=special)
        for variant, gap in (("gipe", 0), ("gdpe", 10_000))
    ]
    for name in ("token_ids", "position_ids", "labels", "chat_index"):
        np.testing.assert_array_equal(*(getattr(layout, name) for layout in layouts))
