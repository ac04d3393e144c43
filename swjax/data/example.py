"""What an example is, and the error of one that cannot be used."""

from dataclasses import dataclass, field

from swjax.storage import AnyPath


class ExampleError(ValueError):
    """One example cannot be used. The pipeline skips and lists it; anything else that is raised is a fault."""


@dataclass(frozen=True)
class ArchiveMember:
    """A file in an archive.

    Attributes:
        name: its name there.
        size: in bytes.
        offset: where its bytes begin, if they lie in the archive as they are (tar); None to look its name up (zip).
    """

    name: str
    size: int
    offset: int | None = None


@dataclass(frozen=True)
class VideoFile:
    """A video file, or a part of one.

    Attributes:
        path: where it lies, or the archive that it is packed in.
        start_s: where the part begins, in seconds after the first video frame.
        end_s: where it ends; None for the end of the file.
        member: where in the archive, if it is packed.
    """

    path: AnyPath
    start_s: float = 0.0
    end_s: float | None = None
    member: ArchiveMember | None = None

    def __str__(self) -> str:
        name = str(self.path) if self.member is None else f"{self.path}:{self.member.name}"
        if not self.start_s and self.end_s is None:
            return name
        return f"{name} [{self.start_s:g} s to {'the end' if self.end_s is None else f'{self.end_s:g} s'}]"


@dataclass(frozen=True)
class EncodedClip:
    """Frames that were sampled, resized and encoded before (`swjax.data.clips`).

    Attributes:
        name: in messages.
        frames: one JPEG file a frame.
        fps: frames a second.
        original_size: height and width of the video's own frames; None if those of `frames` are.
    """

    name: str
    frames: tuple[bytes, ...] = field(repr=False)
    fps: float
    original_size: tuple[int, int] | None = None

    def __str__(self) -> str:
        return self.name


Video = AnyPath | VideoFile | EncodedClip
"""Where frames come from: a whole file, a part of one, or a record."""


@dataclass(frozen=True)
class Picture:
    """A still picture: a JPEG, PNG or WebP file, or a clip of one picture from a record."""

    file: AnyPath | EncodedClip

    def __str__(self) -> str:
        return str(self.file)


IMAGE_TAG, VIDEO_TAG = "<image>", "<video>"
"""Where the questions of a mixed chat show its images and videos."""


@dataclass(frozen=True)
class Sentence:
    """A part of an answer that may not be spoken before its time, in seconds after the beginning of the video."""

    text: str
    time_s: float


@dataclass(frozen=True)
class Question:
    """A question that is asked while the video runs.

    Attributes:
        text: what is asked.
        time_s: when, in seconds after the beginning of the video; it comes behind a frame that arrives then.
        sentences: the answer, and when each part of it is due: at `time_s` at once. None where there is nothing to say.
        kind: what sort of question it is, by which scores are kept apart.
    """

    text: str
    time_s: float
    sentences: tuple[Sentence, ...] = ()
    kind: str = ""


@dataclass(frozen=True)
class VideoExample:
    """A video and what is said about it, or a chat about images, several videos or nothing to look at.

    Attributes:
        key: names the example in messages; unique in its data set.
        video: where its frames come from; they follow the first question. None for a mixed chat, whose `question` and
            `later` have the tags `IMAGE_TAG` and `VIDEO_TAG` where `media` are shown.
        duration_s: length in seconds that the data set claims, None where it claims none: a hint, as the file is
            measured.
        caption: the answer to learn; empty where it is to keep silent.
        question: what to ask about the video; None leaves it to the pipeline.
        sentences: the caption cut into sentences with times, if these are known; `swjax.data.text.join_texts` makes the
            caption of them.
        questions: those that are asked in mid-video, in the order of time; each takes the place of the one before.
        later: questions and answers of the turns that follow.
        others: further questions about the same video and their answers. Training draws one of all each epoch,
            evaluation asks the first.
        media: images and videos of a mixed chat in the order of their tags; none for text alone.
        system: the system prompt; None for that of the model's family.
    """

    key: str
    video: Video | None
    duration_s: float | None
    caption: str
    question: str | None = None
    sentences: tuple[Sentence, ...] = ()
    questions: tuple[Question, ...] = ()
    later: tuple[tuple[str, str], ...] = ()
    others: tuple[tuple[str, str], ...] = ()
    media: tuple[Picture | Video, ...] = ()
    system: str | None = None


@dataclass(frozen=True)
class Rejected:
    """Something that was skipped: where it stood (a line of a manifest, the key of an example) and why."""

    where: str
    reason: str
