"""The ledger must notice what it is there for, and nothing else."""

import random

import pytest

from tests.system.stamps import SECTOR_BYTES, Ledger, Request

SECTORS = 64


class Drive:
    """Bytes that requests are applied to."""

    def __init__(self) -> None:
        self.content = bytearray(SECTORS * SECTOR_BYTES)

    def apply(self, request: Request) -> None:
        span = slice(request.first * SECTOR_BYTES, request.end * SECTOR_BYTES)
        length = span.stop - span.start
        self.content[span] = bytes(length) if request.is_zero else request.content()


@pytest.fixture
def ledger() -> Ledger:
    return Ledger(SECTORS)


@pytest.fixture
def drive() -> Drive:
    return Drive()


@pytest.mark.parametrize("seed", range(20))
def test_any_order_of_requests_in_flight_is_right(seed: int, ledger: Ledger, drive: Drive) -> None:
    choose = random.Random(seed)
    in_flight: list[Request] = []
    applied: list[Request] = []
    for _ in range(400):
        step = choose.randrange(4)
        if step <= 1:
            first = choose.randrange(SECTORS)
            end = choose.randint(first + 1, SECTORS)
            is_zero = choose.random() < 0.2 and not ledger.is_zeroing
            in_flight.append(ledger.issue(first, end, is_zero))
        elif step == 2 and in_flight:
            applied.append(in_flight.pop(choose.randrange(len(in_flight))))
            drive.apply(applied[-1])
        elif applied:
            ledger.acknowledge(applied.pop(choose.randrange(len(applied))))
        if choose.random() < 0.02:
            ledger.judge(drive.content)  # a crash: what was in flight is forgotten
            in_flight, applied = [], []
    ledger.judge(drive.content)


def test_a_lost_write(ledger: Ledger, drive: Drive) -> None:
    ledger.acknowledge(ledger.issue(0, 8))
    with pytest.raises(AssertionError, match="8 sectors hold something of a write that is gone"):
        ledger.judge(drive.content)


def test_an_older_write_in_place_of_a_newer_one(ledger: Ledger, drive: Drive) -> None:
    older = ledger.issue(0, 8)
    drive.apply(older)
    ledger.acknowledge(older)
    ledger.acknowledge(ledger.issue(4, 6))
    with pytest.raises(AssertionError, match=r"2 sectors .* the first is 4, found 1"):
        ledger.judge(drive.content)


def test_a_write_that_was_never_acknowledged_may_be_there_or_not(
    ledger: Ledger, drive: Drive
) -> None:
    ledger.issue(0, 8)
    ledger.judge(drive.content)
    drive.apply(ledger.issue(8, 16))
    ledger.judge(drive.content)


def test_a_write_that_comes_back_from_before_the_crash(ledger: Ledger, drive: Drive) -> None:
    cut_off = ledger.issue(0, 8)
    ledger.judge(drive.content)
    drive.apply(cut_off)
    with pytest.raises(AssertionError, match="of a write that is gone"):
        ledger.judge(drive.content)


def test_zeros_where_a_write_was_acknowledged_after_them(ledger: Ledger, drive: Drive) -> None:
    ledger.acknowledge(ledger.issue(0, 8, is_zero=True))
    ledger.judge(drive.content)
    ledger.acknowledge(ledger.issue(0, 8))
    with pytest.raises(AssertionError, match="of a write that is gone"):
        ledger.judge(drive.content)


def test_a_trim_that_did_not_happen(ledger: Ledger, drive: Drive) -> None:
    write = ledger.issue(0, 8)
    drive.apply(write)
    ledger.acknowledge(write)
    ledger.acknowledge(ledger.issue(0, 4, is_zero=True))
    with pytest.raises(AssertionError, match="4 sectors hold something of a write that is gone"):
        ledger.judge(drive.content)


@pytest.mark.parametrize("at", [0, 8, 16, 511])
def test_a_flipped_bit(at: int, ledger: Ledger, drive: Drive) -> None:
    write = ledger.issue(0, 1)
    drive.apply(write)
    ledger.acknowledge(write)
    drive.content[at] ^= 0x10
    with pytest.raises(AssertionError, match="not a stamp of ours"):
        ledger.judge(drive.content)


def test_a_write_in_another_ones_place(ledger: Ledger, drive: Drive) -> None:
    write = ledger.issue(0, 1)
    drive.content[SECTOR_BYTES : 2 * SECTOR_BYTES] = write.content()
    with pytest.raises(AssertionError, match="not a stamp of ours"):
        ledger.judge(drive.content)
