"""TensorBoard's files in a bucket: tensorboardX's own writers for buckets try once, and for two kinds of stores."""

from tensorboardX.record_writer import register_writer_factory

from swjax.storage import AnyPath, BucketLog, as_path, is_remote


class _Files:
    """What tensorboardX opens its files with, by the part of their names before the colon."""

    def open(self, path: str) -> BucketLog:
        return BucketLog(as_path(path), keep=False)

    def directory_check(self, path: str) -> None:
        """A bucket has no folders to be made."""


def board_folder(folder: AnyPath) -> str:
    """The folder as `SummaryWriter` takes it, which then writes to buckets behind the run and tries again."""
    if is_remote(folder):
        register_writer_factory(str(folder).partition("://")[0], _Files())
    return str(folder)
