import runpy
from pathlib import Path

import numpy as np
import pytest

from swjax.data.decisions import add_decisions, find_decisions
from swjax.data.tokenizer import load_tokenizer
from swjax.streaming import SpecialTokens, Variant, build_layout

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "when_to_speak.py"


@pytest.mark.parametrize("variant", [Variant.OSPE, Variant.GDPE, Variant.GIPE, Variant.INTERLEAVE])
def test_what_follows_each_frame_is_found_in_all_designs(variant: Variant) -> None:
    tokenizer = load_tokenizer(None)
    add_decisions(tokenizer)
    special, decisions = SpecialTokens.from_tokenizer(tokenizer), find_decisions(tokenizer)
    it, moves = 100, 101
    answer = [decisions.skip, it, moves, decisions.end, decisions.skip, it, decisions.end]
    after = [decisions.skip, it, decisions.skip, it]  # what is predicted first after each of four frames
    question = tokenizer.encode("<|im_start|>user\n<|vision_start|>", add_special_tokens=False)
    between = tokenizer.encode("<|vision_end|>What?<|im_end|>\n<|im_start|>assistant\n", add_special_tokens=False)
    chat = [*question, *[special.video_pad] * 4, *between, *answer, special.im_end, between[-3]]
    layout = build_layout(chat, np.array([[4, 2, 2]]), variant=variant, schedule=(1, 3, 1, 3), special_tokens=special)
    row = {"labels": layout.labels, "chat_index": layout.chat_index, "step": layout.step}
    slots = runpy.run_path(str(SCRIPT))["_decision_slots"](row, decisions)
    assert layout.labels[slots].tolist() == after
