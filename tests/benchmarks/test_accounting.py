import os
import subprocess
import sys
import time

import pytest

from benchmarks.accounting import (
    available_memory_bytes,
    birth_of,
    parse_machine_stat,
    parse_memory_status,
    parse_process_stat,
    tree_cpu_s,
    tree_memory_bytes,
    tree_pids,
)


def test_process_stat_with_blanks_and_parentheses_in_the_name() -> None:
    line = "42 (a (b) c) S 7 42 42 0 -1 4194560 1 2 3 4 150 50 30 20 20 0 5 0 12345 1 2"
    ppid, cpu_s = parse_process_stat(line)
    assert ppid == 7
    assert cpu_s == pytest.approx(250 / os.sysconf("SC_CLK_TCK"))


def test_machine_stat_counts_neither_idle_nor_waiting() -> None:
    ticks = os.sysconf("SC_CLK_TCK")
    found = parse_machine_stat("cpu  100 20 30 9999 8888 4 6 50 0 0\ncpu0 1 2 3\n")
    assert found.busy_s == pytest.approx(160 / ticks)
    assert found.stolen_s == pytest.approx(50 / ticks)


def test_memory_without_file_pages() -> None:
    status = "VmRSS:\t 900 kB\nRssAnon:\t 100 kB\nRssFile:\t 700 kB\nRssShmem:\t 100 kB\n"
    assert parse_memory_status(status) == 200 * 1024
    assert parse_memory_status("Name:\tkthreadd\n") == 0


def test_a_tree_includes_children_living_and_ended() -> None:
    burn = "import time\nwhile time.process_time() < 0.2: pass"
    script = (
        "import subprocess, sys\n"
        f"subprocess.run([sys.executable, '-S', '-c', {burn!r}])\n"
        "child = subprocess.Popen(['sleep', '60'])\n"
        "print(child.pid, flush=True)\n"
        "sys.stdin.read()\n"
        "child.kill()\n"
        "child.wait()\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-S", "-c", script],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with process:
        assert process.stdout is not None
        child = int(process.stdout.readline())
        assert tree_pids(process.pid) == {process.pid, child}
        assert tree_cpu_s([process.pid]) >= 0.19
        assert tree_memory_bytes(process.pid) > 0
    assert tree_pids(process.pid) == set()
    assert tree_cpu_s([process.pid]) == 0
    assert birth_of(child) is None


def test_birth_names_one_process() -> None:
    own = birth_of(os.getpid())
    assert own is not None
    assert own == birth_of(os.getpid())
    time.sleep(0.05)
    with subprocess.Popen(["sleep", "60"]) as child:
        born = birth_of(child.pid)
        assert born is not None
        assert born > own
        child.kill()


def test_available_memory_is_plausible() -> None:
    assert 0 < available_memory_bytes() < 1 << 50
