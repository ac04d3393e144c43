"""PE-Video (facebook/PE-Video): WebDataset shards in the folders train/ and test/, an MP4 and a JSON file a sample."""

from collections.abc import Iterator

from swjax.data.archives import TarSample, read_tar_samples
from swjax.data.builders.builder import ReleaseBuilder, SourceError
from swjax.data.example import Rejected, VideoExample, VideoFile
from swjax.storage import AnyPath, as_path


class PeVideo(ReleaseBuilder):
    """PE-Video with its human captions. The folder extended/ has none and is not read."""

    HUB_ID = "facebook/PE-Video"
    HUB_PATTERNS = ("train/*.tar", "test/*.tar")

    @classmethod
    def find_parts(cls, source: AnyPath) -> dict[str, list[str]]:
        """The shards of each split."""
        splits = {split: sorted(map(str, (source / split).glob("*.tar"))) for split in ("train", "test")}
        if not any(splits.values()):
            raise SourceError(f"{source} has no shards train/*.tar or test/*.tar; give the folder of the release")
        return {split: shards for split, shards in splits.items() if shards}

    def read_part(self, part: str) -> Iterator[VideoExample | Rejected]:
        """The samples of a shard."""
        for sample in read_tar_samples(as_path(part)):
            yield sample if isinstance(sample, Rejected) else _example(as_path(part), sample)


def _example(path: AnyPath, sample: TarSample) -> VideoExample | Rejected:
    key = f"{path.stem}/{sample.key}"
    caption = sample.fields.get("human_caption")
    if not isinstance(caption, str) or not caption.strip():
        return Rejected(key, f"{path}: {sample.key}.json has no human_caption")
    return VideoExample(key, VideoFile(path, member=sample.video), duration_s=None, caption=caption.strip())
