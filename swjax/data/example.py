"""What an example is, and the error of one that cannot be used."""

from dataclasses import dataclass
from pathlib import Path


class ExampleError(ValueError):
    """One example cannot be used. The pipeline sets it aside and lists it; anything else that is raised is a fault."""


@dataclass(frozen=True)
class VideoExample:
    """One line of a manifest: a video and what is said about it.

    Attributes:
        key: names the example in messages; unique in its manifest.
        video_path: the video file.
        duration_s: length in seconds that the manifest claims. The decoder trusts the file, not this.
        caption: the answer to learn.
        question: what to ask about the video; None leaves it to the pipeline.
    """

    key: str
    video_path: Path
    duration_s: float
    caption: str
    question: str | None = None


@dataclass(frozen=True)
class Rejected:
    """Something that was set aside: where it stood (a line of a manifest, the key of an example) and why."""

    where: str
    reason: str
