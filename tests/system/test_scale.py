"""What many disks, and large ones, cost: memory and space. How long things take is not tested
here, since that depends on the machine.
"""

import os
from pathlib import Path
from typing import Final

from storage.format.disk import read_anchor
from storage.units import GIB, KIB, MIB, TIB
from tests.space import taken_bytes
from tests.system.agreement import assert_sound
from tests.system.conftest import MakePool
from tests.system.data_plane import DataPlane, list_runs, wait_until
from tests.system.fio import Options, run_fio

IS_SOAK: Final = os.environ.get("NEARSTONE_SOAK") == "1"
DISKS: Final = 1000
WRITES: Final = 2_000_000 if IS_SOAK else 200_000
# So that the changes of that many writes fill it several times over.
MEMORY_BYTES: Final = 32 * MIB if IS_SOAK else 4 * MIB
# What the process takes beyond the memory setting: threads, buffers of requests, the allocator's.
OVERHEAD_BYTES_MAX: Final = 64 * MIB

SCATTERED: Final[Options] = {
    "rw": "randwrite",
    "bs": "4k",
    "iodepth": 32,
    "size": TIB,
    "number_ios": WRITES,
    # A map of what was written would take fio gigabytes.
    "norandommap": 1,
    "randseed": 11,
    "verify": "xxhash",
    "do_verify": 0,
}


def test_a_thousand_idle_disks(make_pool: MakePool) -> None:
    pool_dir = make_pool(one=TIB)
    with DataPlane(pool_dir) as server, server.control() as control:
        control.show_disk("one")
        before_bytes, before_taken_bytes = server.resident_bytes(), taken_bytes(pool_dir)
        for number in range(DISKS):
            control.create_disk(f"disk-{number}", TIB)
        # That opens them: each is ready to serve, as after its first client.
        for number in range(DISKS):
            control.show_disk(f"disk-{number}")
        assert server.resident_bytes() - before_bytes < 100 * MIB
        assert taken_bytes(pool_dir) - before_taken_bytes < 100 * MIB
        client = server.connect(f"disk-{DISKS - 1}")
        client.pwrite(b"here", 12345)
        server.kill()
    with DataPlane(pool_dir) as server, server.control() as control:
        assert len(control.list_disks()) == DISKS + 1
        assert server.connect(f"disk-{DISKS - 1}").pread(4, 12345) == b"here"
        assert server.resident_bytes() - before_bytes < 100 * MIB


def test_scattered_writes_over_a_large_disk(make_pool: MakePool, tmp_path: Path) -> None:
    pool_dir = make_pool(large=TIB)
    with DataPlane(pool_dir, MEMORY_BYTES) as server:
        resident_bytes = server.resident_bytes()
        result = run_fio(tmp_path, [server.uri("large")], SCATTERED)
        assert result.writes == WRITES
        assert server.peak_resident_bytes() < resident_bytes + MEMORY_BYTES + OVERHEAD_BYTES_MAX
        with server.control() as control:
            statistics = control.show_disk("large").statistics
            shared = control.status().statistics
        assert shared["delta_bytes"] + shared["node_cache_bytes"] <= MEMORY_BYTES
        assert read_anchor(next((pool_dir / "anchors").iterdir())).root.seq > 3
        assert statistics["written_bytes"] == WRITES * 4 * KIB
        assert statistics["metadata_bytes"] < statistics["written_bytes"] // 10
        server.kill()
    with DataPlane(pool_dir, MEMORY_BYTES) as server:
        result = run_fio(
            tmp_path, [server.uri("large")], {**SCATTERED, "verify_only": 1, "do_verify": 1}
        )
        assert result.reads > WRITES * 99 // 100  # some blocks were written twice
        _trim_everything(server)
        assert server.peak_resident_bytes() < resident_bytes + MEMORY_BYTES + OVERHEAD_BYTES_MAX
        server.kill()
        server.start()
        _assert_empty(server)
        server.stop()
    assert_sound(pool_dir)


def _trim_everything(server: DataPlane) -> None:
    client = server.connect("large")
    step = 2 * GIB  # an NBD request's length has 32 bits
    for at in range(0, TIB, step):
        client.trim(step, at)
    client.flush()
    _assert_empty(server)
    client.shutdown()
    wait_until(lambda: taken_bytes(server.pool / "segments") < 80 * MIB, "the space comes back")


def _assert_empty(server: DataPlane) -> None:
    client = server.connect("large")
    assert list_runs(client, 0, TIB) == [(TIB, True)]
    assert not any(client.pread(MIB, 512 * GIB))
    client.shutdown()
