"""`swjax serve` as a process of its own."""

import asyncio
import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading

import aiohttp
import pytest
from hub_folder import make_hub_folder
from serving_clients import FRAME_PIXELS, begin, encode_picture, hear, make_pictures, watch, words

from swjax.commands.main import main

SIZE = ["--rows", "2", "--max-seconds", "4", "--max-tail", "8", "--picture-size", "64x64"]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A folder with the files of the hub's, and the record that exports add."""
    folder = make_hub_folder(tmp_path_factory.mktemp("serve") / "small")
    record = {"variant": "gdpe", "wait_k": 2, "min_pixels": FRAME_PIXELS, "max_pixels": FRAME_PIXELS}
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "streaming": record}))
    return folder


@contextlib.contextmanager
def process(checkpoint, *arguments: str):
    """The server; yields the process and the line that says where it listens."""
    command = [sys.executable, "-m", "swjax.commands.main", "serve", "--checkpoint", str(checkpoint), "--port", "0"]
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""}
    with subprocess.Popen([*command, *SIZE, *arguments], stdout=subprocess.PIPE, text=True, env=environment) as running:
        too_long = threading.Timer(240, running.kill)
        too_long.start()
        try:
            assert running.stdout is not None
            yield running, next(line for line in running.stdout if line.startswith("listening"))
        finally:
            too_long.cancel()
            running.kill()


def test_it_serves_until_it_is_terminated(checkpoint):
    files = [encode_picture(picture) for picture in make_pictures(4, 0)]

    async def talk(url: str, token: str) -> None:
        headers = {"Authorization": f"Bearer {token}"}
        async with aiohttp.ClientSession(url, headers=headers) as session:
            heard = await watch(session, files, max_tail=4)
            assert len(words(heard)) == 2 + 4
            async with session.get("/") as page:
                assert "speak while watching" in await page.text()
            socket = await begin(session)
            await socket.send_bytes(files[0])
            running.send_signal(signal.SIGTERM)
            heard = await hear(socket)
            assert (heard[-1]["code"], socket.close_code) == ("shutdown", 1001)

    # An address that others could reach needs a token, which is made here.
    with process(checkpoint, "--host", "0.0.0.0") as (running, line):
        found = re.fullmatch(r"listening on http://0.0.0.0:(\d+)/#token=([\w-]{32})\n", line)
        assert found, line
        asyncio.run(talk(f"http://127.0.0.1:{found[1]}", found[2]))
        assert running.wait(60) == 0


def test_a_port_that_is_taken_ends_it_with_a_word(checkpoint):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        command = [sys.executable, "-m", "swjax.commands.main", "serve", "--checkpoint", str(checkpoint), *SIZE]
        environment = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""}
        done = subprocess.run([*command, "--port", port], capture_output=True, text=True, env=environment, timeout=240)
    assert done.returncode == 1
    assert "choose another --port" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        (["--slots", "3"], "too small for chunks"),
        (["--proxy", "proxy.example"], "given by its address"),
        (["--token", "two words"], "without spaces"),
        (["--allow-origin", "example.org"], "https://name"),
        (["--mode", "interleaved"], "variant gdpe has none of the modes interleaved"),
        (["--max-pixels", "100"], "room for one token"),
    ],
)
def test_what_makes_no_sense_is_refused(checkpoint, capsys, arguments, names):
    assert main(["serve", "--checkpoint", str(checkpoint), *arguments]) == 2
    assert names in capsys.readouterr().err


@pytest.mark.parametrize("text", ["", "x", "-1", "1e400", "nan", "inf", "0x10", "\u0661", "9" * 5000])
@pytest.mark.parametrize(
    "flag", ["--port", "--rows", "--slots", "--max-pixels", "--max-tail", "--max-clients", "--max-rows-each",
             "--max-clients-each", "--max-waiting", "--max-seconds", "--max-picture-mb", "--idle-seconds",
             "--picture-size"],
)  # fmt: skip
def test_numbers_that_are_none_are_refused_by_name(capsys, flag, text):
    with pytest.raises(SystemExit) as refused:
        main(["serve", "--checkpoint", "nowhere", f"{flag}={text}"])
    assert refused.value.code == 2
    shown = capsys.readouterr().err
    assert f"argument {flag}" in shown
    assert len(shown) < 4000


@pytest.mark.parametrize(
    ("flag", "text"), [("--port", "99999"), ("--rows", "0"), ("--max-seconds", "0"), ("--picture-size", "0x5")]
)
def test_numbers_out_of_range_are_refused_by_name(capsys, flag, text):
    with pytest.raises(SystemExit):
        main(["serve", "--checkpoint", "nowhere", flag, text])
    assert f"argument {flag}" in capsys.readouterr().err


def test_a_port_that_is_taken_is_told(source, engine, size, tokenizer):
    from serving_clients import serving

    from swjax.serving import Access, Offer, Server, ServingError

    async def run():
        async with serving(source, engine, size, tokenizer) as (_, session):
            other = Server(engine, size, tokenizer, Offer("tiny", source.record), Access("127.0.0.1"))
            with pytest.raises(ServingError, match="choose another --port"):
                await other.start(session._base_url.port)

    asyncio.run(run())


def test_a_missing_package_is_named(checkpoint, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "aiohttp", None)
    assert main(["serve", "--checkpoint", str(checkpoint)]) == 2
    assert "pip install 'swjax[serve]'" in capsys.readouterr().err


def test_help_teaches(capsys):
    with pytest.raises(SystemExit):
        main(["serve", "--help"])
    shown = capsys.readouterr().out
    for words_ in ("docs/serving.md", "--allow-origin", "SIGTERM", "--max-seconds"):
        assert words_ in shown
