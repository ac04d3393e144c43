"""What one core reads of 30 s clips of 720p: records beside the naive way, and what a chip would ask for.

    python benchmarks/data.py
    python benchmarks/data.py --videos 2 --seconds 10

The videos are made here: a texture with the spectrum of natural pictures that the camera moves over, H.264, 30 fps.

  - naive: decode the original with PyAV, every frame of it, take two a second, resize, scale, normalise and cut each
    pair into patches in float32 numpy with transformers' own image processor, tokenise, lay out.
  - original: the same through swjax's pipeline: only the frames that are taken become RGB, patches stay uint8.
  - records: clips that `swjax prepare` has made of the same videos.

Times are of the process's work (CPU time of all of its threads, which decode in one). Codecs are compared on the frames
that records hold. What a chip asks for is calculated, not measured: 6 x parameters x tokens of the decoder at the share
of its peak that is named.
"""

import argparse
import io
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import av
import numpy as np
from PIL import Image
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from swjax.data.builders.prepare import prepare_records
from swjax.data.builders.recipe import Recipe
from swjax.data.chat import EVALUATION_QUESTION, encode_chat
from swjax.data.clips import QUALITY, decode_clip
from swjax.data.encoding import encode_example
from swjax.data.example import EncodedClip
from swjax.data.patches import resize, resized_size
from swjax.data.pipeline_config import PipelineConfig
from swjax.data.records import open_records
from swjax.data.sources import open_source
from swjax.data.tokenizer import load_tokenizer
from swjax.data.video import decode_video
from swjax.streaming import SpecialTokens, build_layout

HEIGHT, WIDTH, RATE, FPS = 720, 1280, 30, 2.0
BUDGET = {"min_pixels": 56 * 56, "max_pixels": 448 * 448}
PEAK_TFLOPS = {"H200": 989, "v5p": 459}  # bf16, as the makers state
PARAMETERS_7B, SHARE_OF_PEAK = 7.07e9, 0.45


def texture(height: int, width: int, seed: int) -> np.ndarray:
    """A picture whose spectrum falls with the frequency, as those of nature do; colours vary together."""
    rng = np.random.default_rng(seed)
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None])
    layers = []
    for _ in range(3):
        noise = rng.normal(size=frequency.shape) + 1j * rng.normal(size=frequency.shape)
        layer = np.fft.irfft2(noise / np.maximum(frequency, 1e-4) ** 1.2, (height, width))
        layers.append(layer / layer.std())
    light, warm, green = layers
    colours = np.stack([light + 0.3 * warm, light + 0.2 * green, light - 0.3 * warm], axis=-1)
    return np.clip(128 + 45 * colours, 0, 255).astype(np.uint8)


def write_video(path: Path, seconds: int, seed: int) -> None:
    """The camera moves over a texture, three pixels a frame."""
    picture = texture(HEIGHT + 200, WIDTH + 3 * RATE * seconds, seed)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=RATE, options={"preset": "veryfast", "crf": "23"})
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        for i in range(RATE * seconds):
            top = round(100 + 90 * np.sin(i / 40))
            view = np.ascontiguousarray(picture[top : top + HEIGHT, 3 * i : 3 * i + WIDTH])
            container.mux(stream.encode(av.VideoFrame.from_ndarray(view, "rgb24")))
        container.mux(stream.encode())


def naive_example(path: Path, caption: str, tokenizer: Any, special: SpecialTokens) -> Any:
    """Decode all, float32 patches by transformers' processor, a pair of frames at a time."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        stream.codec_context.thread_count = 1
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(stream)]
    taken = frames[:: round(RATE / FPS)]
    processor = Qwen2VLImageProcessorPil(
        size={"shortest_edge": BUDGET["min_pixels"], "longest_edge": BUDGET["max_pixels"]}
    )
    pixels = [processor(images=[frame], return_tensors="np") for frame in taken]
    single = [np.asarray(one["pixel_values"], np.float32).reshape(-1, 3, 2, 14 * 14) for one in pixels]
    pairs = [np.concatenate([a[:, :, :1], b[:, :, 1:]], axis=2) for a, b in zip(single[::2], single[1::2], strict=True)]
    patches = np.concatenate(pairs).reshape(-1, 1176)
    grid = (len(pairs), *(int(size) for size in np.asarray(pixels[0]["image_grid_thw"])[0, 1:]))
    ids = encode_chat(tokenizer, question=EVALUATION_QUESTION, answer=caption, video_grid_thw=grid)
    return patches, build_layout(ids, np.array([grid]), variant="gdpe", schedule=3, special_tokens=special)


def cpu_seconds(work: Callable[[], Any], repeats: int) -> float:
    """Median CPU time of a call."""
    work()
    times = []
    for _ in range(repeats):
        began = time.process_time()
        work()
        times.append(time.process_time() - began)
    return statistics.median(times)


def h264(frames: np.ndarray) -> bytes:
    """The frames as H.264, near in quality to the records' JPEG."""
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        options = {"preset": "medium", "crf": "16", "tune": "fastdecode", "bf": "0"}
        stream = container.add_stream("libx264", rate=2, options=options)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, "rgb24")))
        container.mux(stream.encode())
    return file.getvalue()


def decode_h264(data: bytes) -> np.ndarray:
    """All frames, in one thread."""
    with av.open(io.BytesIO(data)) as container:
        stream = container.streams.video[0]
        stream.codec_context.thread_count = 1
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(stream)])


def jpeg(frames: np.ndarray, quality: int) -> EncodedClip:
    """The frames as a record holds them."""
    files = []
    for frame in frames:
        file = io.BytesIO()
        Image.fromarray(frame).save(file, "JPEG", quality=quality)
        files.append(file.getvalue())
    return EncodedClip("frames", tuple(files), FPS)


def compare_codecs(video: Path, repeats: int) -> list[str]:
    """Lines of a table: size, time to decode, and how near the frames come back."""
    frames = decode_video(video, fps=FPS)
    frames = resize(frames, *resized_size(*frames.shape[1:3], **BUDGET, factor=28))
    raw, film = frames.tobytes(), h264(frames)
    cases: list[tuple[str, int, Callable[[], np.ndarray]]] = [
        ("raw", len(raw), lambda: np.frombuffer(raw, np.uint8).reshape(frames.shape).copy()),
        ("H.264, crf 16, fast to decode", len(film), lambda: decode_h264(film)),
    ]
    for quality in (90, QUALITY):
        clip = jpeg(frames, quality)
        size = sum(map(len, clip.frames))
        cases.append((f"JPEG, quality {quality}", size, lambda clip=clip: decode_clip(clip, fps=FPS)))
    lines = []
    for name, size, decode in cases:
        error = np.abs(decode().astype(np.int16) - frames)
        milliseconds = 1e3 * cpu_seconds(decode, repeats)
        lines.append(f"| {name} | {size / 1e6:.2f} MB | {milliseconds:.0f} ms | {error.mean():.2f} |")
    return lines


def compare_pipelines(folder: Path, repeats: int) -> tuple[list[str], float, int]:
    """Lines of a table, the CPU seconds that a record takes, and the tokens of an example."""
    tokenizer = load_tokenizer()
    special = SpecialTokens.from_tokenizer(tokenizer)
    config = PipelineConfig(batch_size=1, max_tokens=16384, max_patches=65536, fps=FPS, **BUDGET)
    originals = open_source(folder / "manifest.jsonl").examples
    prepared = prepare_records("manifest", folder / "manifest.jsonl", folder / "out", Recipe(fps=FPS, **BUDGET))
    records = open_records(prepared.folder, "train")
    seconds = records[0].duration_s

    def encode(examples: Sequence[Any]) -> Any:
        return [encode_example(one, config, tokenizer, special, question=EVALUATION_QUESTION) for one in examples]

    ways: dict[str, Callable[[], Any]] = {
        "naive": lambda: [naive_example(one.video, one.caption, tokenizer, special) for one in originals],
        "original": lambda: encode(originals),
        "records": lambda: encode([records[i] for i in range(len(records))]),
    }
    times = {name: cpu_seconds(work, repeats) / len(originals) for name, work in ways.items()}
    lines = [
        f"| {name} | {1e3 * spent:,.0f} ms | {1 / spent:.2f} | {seconds / spent:,.0f} | {times['naive'] / spent:.1f} |"
        for name, spent in times.items()
    ]
    return lines, times["records"], len(encode(originals[:1])[0]["token_ids"])


def main() -> None:
    """Measure, and print tables in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--videos", type=int, default=3, help="how many videos are made (3)")
    parser.add_argument("--seconds", type=int, default=30, help="how long they are (30)")
    parser.add_argument("--repeats", type=int, default=3, help="calls to take the median of (3)")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        caption = "The video shows a green circle that moves to the left and becomes red. " * (
            args.seconds * 3 // 13 + 1
        )
        lines = []
        for i in range(args.videos):
            write_video(folder / f"{i}.mp4", args.seconds, seed=i)
            claimed = {"video_path": f"{i}.mp4", "video_duration_in_s": args.seconds}
            lines.append(json.dumps(claimed | {"human_caption": caption.strip()}))
        (folder / "manifest.jsonl").write_text("\n".join(lines) + "\n")
        codecs = compare_codecs(folder / "0.mp4", args.repeats)
        pipelines, spent, tokens = compare_pipelines(folder, args.repeats)
        size = sum(path.stat().st_size for path in folder.glob("*.mp4")) / args.videos
    print(f"{args.videos} videos of {args.seconds} s, {WIDTH} x {HEIGHT}, {RATE} fps, {size / 1e6:.1f} MB each\n")
    print(
        "| way | CPU time of an example | examples/s of a core | video seconds/s of a core | times as fast as naive |"
    )
    print("| --- | ---: | ---: | ---: | ---: |")
    print("\n".join(pipelines))
    print("\n| frames as | size of a clip | CPU time to decode it | mean error, steps of 255 |")
    print("| --- | ---: | ---: | ---: |")
    print("\n".join(codecs))
    print(f"\nan example has {tokens:,} tokens; one core makes {tokens / spent:,.0f} tokens a second")
    for chip, peak in PEAK_TFLOPS.items():
        asked = SHARE_OF_PEAK * peak * 1e12 / (6 * PARAMETERS_7B)
        print(
            f"{chip}, 7B at {SHARE_OF_PEAK:.0%} of {peak} TFLOP/s (calculated): {asked:,.0f} tokens a second, "
            f"{asked * spent / tokens:.2f} cores"
        )


if __name__ == "__main__":
    main()
