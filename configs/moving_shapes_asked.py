"""When to speak: Moving Shapes, asked about one kind of event at a time. Silence is most of what is to be learned.

Make the data first: `swjax prepare moving_shapes`. Half of the examples tell each event as soon as it is seen, as what
happens is learned sooner from them; the others are asked. `--config.objective` takes the loss of the paper
(`next_token`), or one of those that count silence less.
"""

import quickstart
from ml_collections import ConfigDict

from swjax.data.decisions import add_decisions, find_decisions
from swjax.data.tokenizer import load_tokenizer
from swjax.training.objectives import balanced_weights, register_objective, weighted_tokens

LABELS = {"skip": 114_529, "end": 14_443}
"""How often each decision is a label in the asked examples of 4,000 training videos."""


def get_config() -> ConfigDict:
    """Returns the configuration of the quickstart, for longer, and for questions of asked.jsonl."""
    tokenizer = load_tokenizer()
    add_decisions(tokenizer)
    skip, end = find_decisions(tokenizer).skip, find_decisions(tokenizer).end
    register_objective("half_skip", weighted_tokens({skip: 0.5}))
    weights = balanced_weights({skip: LABELS["skip"], end: LABELS["end"]})
    register_objective("focal", weighted_tokens(weights, focus=2.0))

    config = quickstart.get_config()
    config.run_dir = "runs/asked"
    config.speaking = "decide"

    config.data.train = "data/moving_shapes/train/timed.jsonl, data/moving_shapes/train/asked.jsonl"
    config.data.validation = "data/moving_shapes/validation/asked.jsonl"
    config.steps = 2000
    config.optimizer.weight_decay = 0.0  # as docs/results was made
    return config
