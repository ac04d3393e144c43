"""The README.md of an exported folder: what the model was trained to do, and how PyTorch users get its answers."""

import inspect
from collections.abc import Mapping
from typing import Any

from swjax.hub.position_ids import chat_position_ids
from swjax.models.config import ModelConfig
from swjax.models.family import family_of

_CARD = """\
---
library_name: transformers
pipeline_tag: video-text-to-text
---

# A {family} that was trained to speak while it watches

Written by `swjax export`. It was trained with position design `{variant}`, {wait_k} tokens after each frame, {fps:g}
pictures a second (two are a frame), and pictures of {min_pixels} to {max_pixels} pixels; config.json records it under
`streaming`. `swjax stream --checkpoint FOLDER --video FILE` lets it speak while it watches.

## As an ordinary model, in PyTorch

    model = transformers.{architecture}.from_pretrained(FOLDER)

Give it `position_ids`: some versions of transformers number the tokens behind a video otherwise than {family} was
trained with, and the answers change. This needs NumPy alone:

```python
{source}```

Position ids go in as `int64[3, 1, L]`. `generate` makes its own, so add a word at a time:

```python
import torch


def answer(model, token_ids, grids, most=256, **videos):
    \"\"\"Token ids of an answer; `videos`: `pixel_values_videos` and `video_grid_thw`, as a processor makes them.\"\"\"
    token_ids, start = list(token_ids), len(token_ids)
    while len(token_ids) < start + most and token_ids[-1] != {eos}:
        positions = chat_position_ids(token_ids, grids, pads={pads}, seconds={seconds:g})
        with torch.no_grad():
            logits = model(
                input_ids=torch.tensor([token_ids]), position_ids=torch.from_numpy(positions)[:, None], **videos
            ).logits
        token_ids.append(int(logits[0, -1].argmax()))
    return token_ids[start:]
```
"""


def model_card(config: ModelConfig, record: Mapping[str, Any]) -> str:
    """The text of the README.md.

    Args:
        config: the model's.
        record: fields of `swjax.runs.streaming_model.StreamSpec`.
    """
    source = inspect.getsource(chat_position_ids)
    types = "from collections.abc import Iterable, Sequence\n\nimport numpy as np\n\n\n"
    return _CARD.format(
        **record,
        family=family_of(config).name,
        architecture=family_of(config).architecture,
        source=types + source,
        eos=config.eos_token_id,
        pads=(config.image_token_id, config.video_token_id),
        seconds=config.vision.temporal_patch_size / record["fps"],
    )
