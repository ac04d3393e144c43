"""How accurate a stream stays that is far longer than what its model was trained on, and what budgets and drops cost.

    python benchmarks/endless_accuracy.py make --output data/states              # clips of 8 to 12 s, in a minute
    swjax train --config benchmarks/endless_accuracy.py --config.variant=gdpe --config.run_dir=runs/states/gdpe
    python benchmarks/endless_accuracy.py minutes --run runs/states/gdpe         # 600 s: fifty times as long
    python benchmarks/endless_accuracy.py budgets --run runs/states/gdpe         # 12 s: what a budget costs
    python benchmarks/endless_accuracy.py drops --run runs/states/gdpe           # 12 s: what dropped tokens cost

Each second of a video shows one shape in one of four places, which often moves or changes its color. After each frame
a model says three tokens: a mark, where the shape is *now*, and the color that it had `BACK` seconds before, which no
word has said: that it must *recall* from what is kept of frames. So there is a right answer after every frame, however
long a stream is, and both kinds of words are counted by minute. With colors.jsonl and --config.wait_k=2 a model says
the mark and the color alone: as many words a second as frames have temporal ids.
"""

import argparse
import dataclasses
import functools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

BACK = 4
SHORTEST, LONGEST = 8, 12
WAIT_K = 3
SIDE = 28  # of a place, in pixels; a token
PLACES = ("left", "right", "up", "down")
COLORS = {
    "red": (220, 40, 40),
    "green": (40, 190, 60),
    "blue": (50, 80, 230),
    "yellow": (230, 220, 50),
    "purple": (150, 50, 190),
    "white": (245, 245, 245),
}
MOVES, RECOLORS = 0.4, 0.5
QUESTION = "What happens?"
PIXELS = (2 * SIDE) ** 2


def states(seconds: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Place and color, by their numbers, of each second."""
    drawn = []
    for size, chance in ((len(PLACES), MOVES), (len(COLORS), RECOLORS)):
        steps = np.where(rng.random(seconds) < chance, rng.integers(1, size, seconds), 0)
        drawn.append((rng.integers(size) + np.cumsum(steps)) % size)
    return drawn[0], drawn[1]


def pictures(places: np.ndarray, colors: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Two pictures a second: uint8[2 * seconds, 56, 56, 3]."""
    rows, columns = np.mgrid[:SIDE, :SIDE] - SIDE / 2 + 0.5
    shape = (rows**2 + columns**2 < 81, np.maximum(abs(rows), abs(columns)) < 8.5)[rng.integers(2)]
    ground = rng.integers(60, 120, 3) + rng.integers(-12, 13, (2 * SIDE, 2 * SIDE, 1))
    video = np.broadcast_to(ground, (len(places), 2 * SIDE, 2 * SIDE, 3)).astype(np.uint8)
    table = np.array(list(COLORS.values()), np.uint8)
    for picture, place, color in zip(video, places, colors, strict=True):
        row, column = divmod(int(place), 2)
        picture[row * SIDE : (row + 1) * SIDE, column * SIDE : (column + 1) * SIDE][shape] = table[color]
    return np.repeat(video, 2, axis=0)


def truth(places: np.ndarray, colors: np.ndarray) -> list[tuple[str, str]]:
    """What is to be said after each frame: the place now, and the color then; at first the first color."""
    then = colors[np.maximum(np.arange(len(colors)) - BACK, 0)]
    names = list(COLORS)
    return [(PLACES[place], names[color]) for place, color in zip(places, then, strict=True)]


def make(output: Path, count: int) -> None:
    """Write clips and their manifests."""
    from swjax.data.moving_shapes.render import encode

    for split, number, seed in (("train", count, 0), ("validation", 64, 1)):
        (output / split).mkdir(parents=True, exist_ok=True)
        lines: dict[str, list[str]] = {"manifest": [], "colors": []}
        for index in range(number):
            rng = np.random.default_rng([seed, index])
            places, colors = states(int(rng.integers(SHORTEST, LONGEST + 1)), rng)
            encode(pictures(places, colors, rng), output / split / f"{index}.mp4", fps=2)
            said = truth(places, colors)
            for name, words in (
                ("manifest", [" ".join(pair) for pair in said]),
                ("colors", [pair[1] for pair in said]),
            ):
                caption = {"human_caption": "The " + ". ".join(words), "question": QUESTION}
                lines[name].append(json.dumps({"video_path": f"{index}.mp4", **caption}) + "\n")
        for name, written in lines.items():
            (output / split / f"{name}.jsonl").write_text("".join(written))


def get_config() -> ConfigDict:
    """Returns the configuration of the study: the quickstart's, on these clips."""
    from swjax.training.config import base_config

    config = base_config()
    config.model.preset, config.frozen, config.dtype, config.remat = "tiny", (), "float32", "nothing"
    config.model.overrides = {"text": {"num_layers": 3, "intermediate_size": 256}}
    config.wait_k = WAIT_K
    config.data.train, config.data.validation = (
        f"data/states/{split}/manifest.jsonl" for split in ("train", "validation")
    )
    config.data.min_pixels = config.data.max_pixels = PIXELS
    config.data.max_tokens, config.data.max_patches, config.data.max_labels = 128, 16 * LONGEST, 40
    config.data.cache_mb = 512
    config.steps, config.batch_size, config.accumulation = 600, 16, 1
    config.optimizer.learning_rate, config.optimizer.b2 = 3e-3, 0.98
    config.checkpoint_every = config.eval_every = 200
    return config


# A window of 8 frames, as long as the shortest clips, and the words after them: dropped at once, so both stay in step.
WINDOW = "window:frames=8,words={words},first_words=0"
# The prompt's tokens, and 8 frames: half of them the newest, as many fetched.
REKV = "rekv:sources={sources},words={words},first_words=0,recent=50"
MINUTES = {
    "keep_all": "keep_all",
    "window, kept": WINDOW,
    "window, contiguous": f"{WINDOW},positions=contiguous",
    "window, together": f"{WINDOW},positions=together,reanchor_at=64",
    "window, apart": f"{WINDOW},positions=apart,reanchor_at=1",
    **{f"rekv, {one}": f"{REKV},positions={one}" for one in ("kept", "contiguous")},
    "rekv, apart": f"{REKV},positions=apart,reanchor_at=1",
}
POLICIES = ("window", "uniform", "random", "infinipot_v", "keydiff", "ma_lmm", "streammem", "vsb", "peak_end", "rekv")
SHARES = (1.0, 0.5, 0.25, 0.12)
DROPS = (
    "none",
    *(f"dtd:tau={tau}" for tau in (0.99, 0.95, 0.9, 0.8, 0.5)),
    *(f"dtd_pixels:tau={tau}" for tau in (0.01, 0.02, 0.05)),
    *(f"mssavt:temporal={tau},spatial=0.9" for tau in (0.95, 0.9, 0.8)),
    *(f"{name}:share={share}" for share in (0.75, 0.5, 0.25) for name in ("evs", "vidcom2", "random", "uniform")),
)


@functools.cache
def loaded(run: str) -> Any:
    """A model, its tokenizer and its record."""
    from swjax.data.tokenizer import load_tokenizer
    from swjax.inference import Weights
    from swjax.runs.streaming_model import load_streaming_model

    source = load_streaming_model(run)
    return Weights(source.model), load_tokenizer(source.tokenizer), source.record


def watch(run: str, *, streams: int, seconds: int, memory: str = "keep_all", drop: str = "none") -> dict[str, Any]:
    """Watch new videos; what was right of each frame's words, and what was stored and dropped.

    Returns:
        `now` and `recall`: [streams, seconds], whether the word after that second was right; `stored`: mean tokens of
        frames that were stored; `dropped`: share of their tokens that never were; `ended`: streams that ended early.
    """
    from swjax.inference import BatchEngine, Request, StreamSettings, TokenSpoken, make_frame, run_streams
    from swjax.inference.dropping import drop_of
    from swjax.inference.memory import KEEP_ALL, memory_of

    weights, tokenizer, record = loaded(run)
    settings = StreamSettings(
        variant=record.variant,
        wait_k=record.wait_k,
        gap=record.gap,
        max_tail=record.wait_k,
        memory=memory_of(memory),
        drop=drop_of(drop),
    )
    rows = min(streams, 8)
    long = (1 << (seconds * 8 + 128).bit_length()) if settings.memory == KEEP_ALL else 512
    engine = BatchEngine(
        weights, rows=rows, frame_units=4, slots=long, word_slots=long // 2, max_slots=long, chunk_sizes=(16,)
    )

    def video(number: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        rng = np.random.default_rng([2, number])
        places, colors = states(seconds, rng)
        return places, colors, pictures(places, colors, rng)

    def frames(number: int) -> Iterator[Any]:
        shown = video(number)[2]
        for second in range(seconds):
            two = shown[2 * second : 2 * second + 2]
            yield make_frame(list(two), video_s=second + 0.5, min_pixels=PIXELS, max_pixels=PIXELS)

    right = np.zeros((2, streams, seconds), bool)
    spoken = np.zeros((streams, seconds), int)
    truths = [[[" " + word for word in pair] for pair in truth(*video(number)[:2])] for number in range(streams)]
    requests = (Request(QUESTION, frames(number), settings) for number in range(streams))
    stored, dropped, ended = [], {}, {}
    for number, stream, event in run_streams(engine, tokenizer, requests):
        dropped[number] = stream.tally.tokens_dropped
        if isinstance(event, TokenSpoken):
            word = spoken[number, event.after_frame]
            spoken[number, event.after_frame] += 1
            if 0 < word < record.wait_k:
                kind = word - record.wait_k  # from behind: the last word recalls
                said = tokenizer.decode([event.token_id])
                right[kind, number, event.after_frame] = said == truths[number][event.after_frame][kind]
            if word == 0 and (book := stream._scheduler._track.book) is not None:
                one = book.frames.reshape(-1, book.frames.shape[-1])[0]
                stored.append(np.count_nonzero(one >= 0))
        if stream.fault is not None:
            raise stream.fault
        ended[number] = (spoken[number] > 0).sum() < seconds
    return {
        "now": right[0],
        "recall": right[1],
        "stored": float(np.mean(stored)) if stored else None,
        "dropped": float(sum(dropped.values()) / (4 * streams * seconds)),
        "ended": int(sum(ended.values())),
    }


def budget_of(share: float, prompt: int, seconds: int) -> int:
    """Sources of a memory whose low mark is the prompt and a share of the tokens of a video's frames."""
    low = prompt + round(share * 4 * seconds)
    return next(sources for sources in range(low, 2 * low) if sources - max(1, sources // 8) >= low)


def measure(what: str, run: str, streams: int, output: Path, only: str = "") -> None:
    """Measure, print and write rows of a table, one after another; of memories `only` those whose names begin so."""
    rows = []
    if what == "minutes":
        words = (SHORTEST - 1) * loaded(run)[2].wait_k
        sources = budget_of(SHORTEST / LONGEST, prompt_tokens(run), LONGEST)
        named = [(name, memory) for name, memory in MINUTES.items() if not only or name.startswith(only)]
        todo = [({"memory": memory.format(words=words, sources=sources)}, {"name": name}) for name, memory in named]
    elif what == "budgets":
        prompt = prompt_tokens(run)
        todo = [({"memory": "keep_all"}, {"name": "keep_all", "share": 1.0})] + [
            ({"memory": f"{name}:sources={budget_of(share, prompt, LONGEST)},words=64"}, {"name": name, "share": share})
            for share in SHARES
            for name in POLICIES
            if not only or name.startswith(only)
        ]
    else:
        todo = [({"drop": drop}, {"name": drop}) for drop in DROPS]
    seconds = 50 * LONGEST if what == "minutes" else LONGEST
    for settings, about in todo:
        found = watch(run, streams=streams, seconds=seconds, **settings)
        row = about | settings | {name: found[name] for name in ("stored", "dropped", "ended")}
        # What training has seen, the rest of the first minute, and the minutes after it.
        edges = [LONGEST, 60, *range(120, seconds, 60)] if what == "minutes" else []
        for kind in ("now", "recall"):
            parts = np.split(found[kind], edges, axis=1)
            row[kind] = [round(100 * float(part.mean()), 1) for part in parts]
        rows.append(dataclasses.asdict(loaded(run)[2]) | row)
        print(json.dumps(row), flush=True)
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_text("".join(json.dumps(row) + "\n" for row in rows))


def prompt_tokens(run: str) -> int:
    """Tokens before the first frame."""
    from swjax.inference.prompt import encode_prompt
    from swjax.streaming import SpecialTokens

    weights, tokenizer, _ = loaded(run)
    return len(encode_prompt(tokenizer, SpecialTokens.from_tokenizer(tokenizer), QUESTION, weights.config.chat))


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("make", "minutes", "budgets", "drops"))
    parser.add_argument("--run", help="the folder of a trained run")
    parser.add_argument("--count", type=int, default=2000, help="training clips (default: %(default)s)")
    parser.add_argument("--streams", type=int, help="videos (default: 8 of minutes, 64 of the others)")
    parser.add_argument("--only", default="", help="of memories those alone whose names begin so")
    parser.add_argument("--output", type=Path, help="where clips, or rows of the table as JSON lines, are written")
    args = parser.parse_args()
    if args.what == "make":
        make(args.output or Path("data/states"), args.count)
        return
    if args.run is None:
        parser.error("--run is missing")
    output = args.output or Path("results") / f"{args.what}_{Path(args.run).name}.jsonl"
    measure(args.what, args.run, args.streams or (8 if args.what == "minutes" else 64), output, args.only)


if __name__ == "__main__":
    main()
