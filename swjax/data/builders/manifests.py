"""Records of your own videos, by manifest, and of Moving Shapes, which has manifests as well."""

from collections.abc import Iterator
from pathlib import Path

from swjax.data.builders.builder import ReleaseBuilder, SourceError
from swjax.data.example import Rejected, VideoExample, VideoFile
from swjax.data.manifest import Manifest as ManifestLines
from swjax.data.manifest import ManifestError, read_manifest

SPLITS = ("train", "validation", "test")


class Manifest(ReleaseBuilder):
    """A manifest (split `train`), or a folder with train/manifest.jsonl and, if wanted, validation and test."""

    @classmethod
    def find_parts(cls, source: Path) -> dict[str, list[str]]:
        """The manifest of each split."""
        if source.is_file():
            return {"train": [str(source)]}
        manifests = {split: source / split / "manifest.jsonl" for split in SPLITS}
        found = {split: [str(path)] for split, path in manifests.items() if path.is_file()}
        if not found:
            raise SourceError(f"{source} is no manifest, and has none in {', '.join(SPLITS)}")
        return found

    @classmethod
    def content(cls, part: Path) -> Iterator[bytes]:
        """The manifest, and the sizes of its videos."""
        yield part.read_bytes()
        for example in _read(part).examples:
            path = example.video.path if isinstance(example.video, VideoFile) else Path(str(example.video))
            yield f"{path.stat().st_size}\n".encode()

    def read_part(self, part: str) -> Iterator[VideoExample | Rejected]:
        """The lines of a manifest."""
        manifest = _read(part)
        yield from manifest.rejected
        yield from manifest.examples


def _read(part: str | Path) -> ManifestLines:
    try:
        return read_manifest(part)
    except ManifestError as error:
        raise SourceError(str(error)) from error


class MovingShapes(Manifest):
    """Moving Shapes, out of the folder that `swjax prepare moving_shapes` has made."""
