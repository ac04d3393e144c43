"""Which names of files and folders can be used: those of a file system that is mounted here."""

import re
from pathlib import Path

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):/(.*)", re.DOTALL)  # one slash: pathlib takes the other away

_BUCKETS = ("gs", "gcs", "s3", "s3a", "az", "abfs", "wasbs", "r2", "oss")


def refused_scheme(path: str | Path) -> str:
    """What to do instead of using a path with a scheme, such as `gs://bucket/run`; '' if the path has none.

    A URL is never a folder, but pathlib makes one of it without a word: `gs:/bucket/run` under the current folder.
    """
    found = _SCHEME.match(str(path))
    if not found:
        return ""
    scheme, rest = found[1].lower(), found[2].lstrip("/")
    if scheme == "file":
        instead = f"give the path itself, /{rest.removeprefix('localhost/')}"
    elif scheme == "hf":
        instead = f"give the Hub id itself, {rest}"
    elif scheme in _BUCKETS:
        instead = "mount the bucket (gcsfuse, mountpoint-s3 or the like) or copy it, and give that folder"
    else:
        instead = "download it, and give the file or folder"
    return f"{scheme}://{rest} is a URL, and swjax reads and writes local files and folders alone; {instead}"
