"""The README.md of an exported folder: what the model was trained to do, of what, and how it speaks in PyTorch."""

from pathlib import Path

from swjax.models.config import ModelConfig
from swjax.models.family import family_of
from swjax.plain import JsonView
from swjax.storage import AnyPath

_CARD = """\
---
{header}---

# {title} that speaks while it watches

Written by `swjax export`.

| | |
| --- | --- |
{table}
"""
_IN_PYTORCH = """
In PyTorch, with transformers 4.57 or 5, in this folder:

    pip install torch transformers av pillow
    python streaming.py VIDEO --question "What happens?"

or in a program:

```python
from streaming import Spec, load, read_pictures, stream

model, processor = load({base_argument})
for word in stream(model, processor, read_pictures("VIDEO", Spec.of(model).fps), "What happens?"):
    print(word.text, end="", flush=True)
```

`streaming.py` has the position ids, the visible spans and the cache of this design; it needs neither swjax nor JAX.
`generate` of transformers knows none of them: it would answer as an ordinary model does, after the video, at positions
that this model was not trained with. `finetuning.py` makes batches for more training in PyTorch.
"""


def model_card(
    config: ModelConfig,
    record: JsonView,
    *,
    base: str | None = None,
    licence: str | None = None,
    data: str | None = None,
    scores: JsonView | None = None,
    adapter: bool = False,
) -> str:
    """The text of the README.md.

    Args:
        config: the model's.
        record: fields of `swjax.streaming.StreamSpec`.
        base: folder or Hub id of the model that training began with; None if it began with nothing.
        licence: of the base, by the Hub's name for it, where its folder says.
        data: what it was trained on.
        scores: of the run's evaluation, by name.
        adapter: whether the folder holds an adapter to its base.
    """
    header = {"library_name": "peft" if adapter else "transformers", "pipeline_tag": "video-text-to-text"}
    header |= {"license": licence} if licence else {}
    header |= {"base_model": base} if base and _is_hub_id(base) else {}
    text = config.text
    rows = {
        "base model": f"`{base}`" if base else "none; trained from scratch",
        "licence of the base": (licence or "not stated in its folder; look it up before you share this")
        if base
        else None,
        "decoder": f"{text.num_layers} layers of {text.hidden_size}, {text.vocab_size:,} tokens",
        "position design": "`{variant}`".format(**record),
        "words (tokens) after each frame": record["wait_k"],
        "first id of the answer": record["gap"] if record["variant"] == "gipe" else None,
        "pictures a second": "{fps:g}, {per} make a frame".format(**record, per=config.vision.temporal_patch_size),
        "pixels of a picture": "{min_pixels} to {max_pixels}".format(**record),
        "trained on": f"`{data}`" if data else None,
    }
    numbers = {name: value for name, value in (scores or {}).items() if isinstance(value, int | float)}
    rows |= {f"score: {name}": f"{value:.4g}" for name, value in numbers.items()}
    family = family_of(config)
    card = _CARD + (_IN_PYTORCH if family.pytorch_files else "")
    return card.format(
        header="".join(f"{key}: {value}\n" for key, value in header.items()),
        title=f"An adapter for a {family.name}" if adapter else f"A {family.name}",
        table="\n".join(f"| {name} | {value} |" for name, value in rows.items() if value is not None),
        base_argument='base="BASE"' if adapter and not base else "",
    )


def read_licence(folder: AnyPath) -> str | None:
    """The licence that the README.md of a model's folder states in its header, by the Hub's name; None without one."""
    file = folder / "README.md"
    lines = file.read_text(encoding="utf-8", errors="replace").splitlines() if file.is_file() else []
    if not lines or lines[0].strip() != "---":
        return None
    for line in lines[1:]:
        key, _, value = line.partition(":")
        if line.strip() == "---":
            break
        if key == "license" and value.strip():
            return value.strip().strip("\"'")
    return None


def _is_hub_id(base: str) -> bool:
    return base.count("/") == 1 and not base.startswith((".", "/")) and not Path(base).exists()
