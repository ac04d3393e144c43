"""The processes that decode pictures: what they make, and what becomes of those that do not answer."""

import asyncio
import time

import pytest
from serving_clients import encode_picture, make_pictures

from swjax.data.pictures import PictureError, measure, pictures_to_patches
from swjax.serving import decode_worker
from swjax.serving.decoders import QUICK_S, Decoders, DecodersError, DecodeShare
from swjax.streaming import DEFAULT_GEOMETRY, Geometry

BUDGET = {"min_pixels": 3136, "max_pixels": 3136}
FILES = [encode_picture(picture) for picture in make_pictures(2, 5)]
SIZES = [measure(data) for data in FILES]

# A worker that does what the number of the picture says.
PUPPET = """
import time
source, sink = sys.stdin.buffer, sys.stdout.buffer
sink.write(READY); sink.flush()
while len(sizes := source.read(HEAD.size)) == HEAD.size:
    text, body = (source.read(size) for size in HEAD.unpack(sizes))
    head = json.loads(text)
    if head["number"] == 1000: time.sleep(600)
    if head["number"] == 2000: sys.exit(3)
    if head["number"] > 3000: time.sleep((head["number"] - 3000) / 1000)
    sink.write(answer(head, body)); sink.flush()
"""
HANGS, DIES = 1000, 2000


def takes(seconds: float) -> int:
    return 3000 + int(1000 * seconds)


@pytest.fixture
def puppet(tmp_path, monkeypatch):
    with open(decode_worker.__file__) as file:
        real = file.read().split("if __name__")[0]
    script = tmp_path / "puppet.py"
    script.write_text(real + PUPPET)
    monkeypatch.setattr(decode_worker, "__file__", str(script))


def run(work, count=2, limit_s=20.0):
    async def inside():
        decoders = Decoders(count, limit_s)
        await decoders.start()
        try:
            return await work(decoders)
        finally:
            began_s = time.monotonic()
            await decoders.stop()
            assert time.monotonic() - began_s < 1.5, "stopping has waited"
            assert not decoders._processes

    return asyncio.run(inside())


def ask(decoders, share, number=0, files=FILES, sizes=SIZES):
    return decoders.patches(share, files, sizes, number, **BUDGET)


@pytest.mark.parametrize("geometry", [DEFAULT_GEOMETRY, Geometry(patch_size=8, merge_size=3, temporal_patch_size=1)])
def test_patches_are_those_that_are_made_here(geometry):
    count = geometry.temporal_patch_size

    async def work(decoders):
        return await decoders.patches(DecodeShare(0.0), FILES[:count], SIZES[:count], 0, **BUDGET, geometry=geometry)

    body, grid = run(work)
    patches, expected = pictures_to_patches(FILES[:count], SIZES[:count], 0, **BUDGET, geometry=geometry)
    assert patches.shape == (grid[0] * grid[1], geometry.patch_dim)
    assert (body, grid) == (patches.tobytes(), expected)


def test_what_cannot_be_decoded_is_refused_and_the_process_stays():
    async def work(decoders):
        before = set(decoders._processes)
        with pytest.raises(PictureError, match="picture 6 cannot be read"):
            await ask(decoders, DecodeShare(0.0), 6, [FILES[0][:60]] * 2)
        with pytest.raises(PictureError, match="its head says"):
            await ask(decoders, DecodeShare(0.0), 6, sizes=[(9, 9)] * 2)
        await ask(decoders, DecodeShare(0.0))
        assert set(decoders._processes) == before

    run(work)


def test_one_that_does_not_answer_is_killed_and_another_takes_its_place(puppet):
    async def work(decoders):
        (before,) = decoders._processes
        share = DecodeShare(0.0)
        with pytest.raises(PictureError, match=r"longer than 0.3 s to decode"):
            await ask(decoders, share, HANGS)
        assert share.frame_s > 0.1
        with pytest.raises(PictureError, match="broke the decoder"):
            await ask(decoders, DecodeShare(0.0), DIES)
        await ask(decoders, share)
        assert before.returncode is not None
        assert len(decoders._processes) == 1

    run(work, count=1, limit_s=0.3)


def test_a_client_that_leaves_is_not_decoded_for(puppet):
    async def work(decoders):
        busy = asyncio.create_task(ask(decoders, DecodeShare(0.0), takes(0.2)))
        await asyncio.sleep(0.05)
        waiting = [asyncio.create_task(ask(decoders, DecodeShare(0.0), takes(5))) for _ in range(4)]
        await asyncio.sleep(0.01)
        for task in waiting:
            task.cancel()
        await asyncio.wait_for(ask(decoders, DecodeShare(0.0)), 4)
        await busy

    run(work, count=1)


def test_a_quick_camera_does_not_wait_for_strangers_or_slow_ones(puppet):
    async def work(decoders):
        slow = [asyncio.create_task(ask(decoders, DecodeShare(), takes(5))) for _ in range(6)]
        slow += [asyncio.create_task(ask(decoders, DecodeShare(QUICK_S * 4), takes(5))) for _ in range(2)]
        await asyncio.sleep(0.05)
        camera = DecodeShare(0.05)
        for _ in range(3):
            await asyncio.wait_for(ask(decoders, camera), 2)
        assert camera.frame_s < QUICK_S
        assert not any(task.done() for task in slow)
        for task in slow:
            task.cancel()

    run(work)


def test_who_has_waited_long_has_its_turn_all_the_same(puppet):
    async def work(decoders):
        order = []

        async def one(name, share):
            await ask(decoders, share, takes(0.01))
            order.append(name)

        hold = asyncio.create_task(ask(decoders, DecodeShare(0.0), takes(0.1)))
        await asyncio.sleep(0.02)
        patient = asyncio.create_task(one("patient", DecodeShare(1.0)))
        await asyncio.sleep(0)
        decoders._waiting[-1].came_s -= 11  # seconds in line
        others = [asyncio.create_task(one("quick", DecodeShare(0.01))) for _ in range(3)]
        await asyncio.gather(hold, patient, *others)
        assert order == ["patient", "quick", "quick", "quick"]

    run(work, count=1)


def test_stopping_does_not_wait_for_those_that_hang(puppet):
    async def work(decoders):
        hanging = [asyncio.create_task(ask(decoders, DecodeShare(0.0), HANGS)) for _ in range(5)]
        await asyncio.sleep(0.1)
        return hanging

    run(work)


def test_a_process_that_does_not_start_is_named(tmp_path, monkeypatch):
    broken = tmp_path / "broken.py"
    broken.write_text("raise SystemExit(1)\n")
    monkeypatch.setattr(decode_worker, "__file__", str(broken))
    with pytest.raises(DecodersError, match=r"broken\.py"):
        asyncio.run(Decoders(1, 1.0).start())
