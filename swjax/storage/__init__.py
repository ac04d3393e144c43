"""Files and folders by name, on the disks of this machine or in buckets: the one home of paths.

Buckets are opened by etils' epath and fsspec; what needs a file on disk gets a copy from a bounded cache.
"""

from swjax.storage.cache import cache_bytes, local_file, local_folder, local_lock, touch
from swjax.storage.files import (
    check_writable,
    copy_file,
    file_size,
    is_remote,
    kvstore,
    list_files,
    make_folder,
    read_range,
    remove_folder,
    retried,
    upload,
    write_object,
    writing_file,
    writing_folder,
)
from swjax.storage.log import BucketLog, append_line, forget_log, open_log, sync_logs
from swjax.storage.paths import (
    AnyPath,
    StorageError,
    absolute,
    as_path,
    check_access,
    describe_failure,
    refused_scheme,
    resolved,
)

__all__ = [
    "AnyPath",
    "BucketLog",
    "StorageError",
    "absolute",
    "append_line",
    "as_path",
    "cache_bytes",
    "check_access",
    "check_writable",
    "copy_file",
    "describe_failure",
    "file_size",
    "forget_log",
    "is_remote",
    "kvstore",
    "list_files",
    "local_file",
    "local_folder",
    "local_lock",
    "make_folder",
    "open_log",
    "read_range",
    "refused_scheme",
    "remove_folder",
    "resolved",
    "retried",
    "sync_logs",
    "touch",
    "upload",
    "write_object",
    "writing_file",
    "writing_folder",
]
