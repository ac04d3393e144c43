"""Records of your own videos, in any format of `swjax.data.formats`, and of Moving Shapes, which has manifests."""

from collections.abc import Iterator

from swjax.data.builders.builder import ReleaseBuilder, SourceError
from swjax.data.example import Rejected, VideoExample, VideoFile
from swjax.data.formats import read_examples
from swjax.data.manifest import Manifest as ManifestLines
from swjax.data.manifest import ManifestError
from swjax.storage import AnyPath, as_path, file_size

SPLITS = ("train", "validation", "test")


class Manifest(ReleaseBuilder):
    """A source (split `train`), or a folder with train/manifest.jsonl and, if wanted, validation and test."""

    @classmethod
    def find_parts(cls, source: AnyPath) -> dict[str, list[str]]:
        """The source of each split."""
        if source.is_file():
            return {"train": [str(source)]}
        manifests = {split: source / split / "manifest.jsonl" for split in SPLITS}
        found = {split: [str(path)] for split, path in manifests.items() if path.is_file()}
        return found or {"train": [str(source)]}

    @classmethod
    def content(cls, part: AnyPath, format: str) -> Iterator[bytes]:
        """The file, if it is one, what was read of it, and the sizes of its videos."""
        is_list = part.is_file() and part.suffix != ".tar"
        if is_list:
            yield part.read_bytes()
        for example in _read(part, format).examples:
            if not is_list:
                yield f"{example.key} {example.caption} {example.sentences}\n".encode()
            for item in example.media if example.video is None else (example.video,):
                path = item.path if isinstance(item, VideoFile) else as_path(str(item))
                yield f"{file_size(path)}\n".encode()

    def read_part(self, part: str) -> Iterator[VideoExample | Rejected]:
        """The examples of a source."""
        manifest = _read(part, self.builder_config.format)
        yield from manifest.rejected
        yield from manifest.examples


def _read(part: str | AnyPath, format: str) -> ManifestLines:
    try:
        return read_examples(as_path(part), format=format)
    except ManifestError as error:
        raise SourceError(str(error)) from error


class MovingShapes(Manifest):
    """Moving Shapes, out of the folder that `swjax prepare moving_shapes` has made."""
