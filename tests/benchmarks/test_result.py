import json
from pathlib import Path

import pytest

from benchmarks.result import load, save
from tests.benchmarks.builder import full_result


def test_a_result_survives_its_file(tmp_path: Path) -> None:
    result = full_result(rounds=2)
    save(result, tmp_path / "results.json")
    assert load(tmp_path / "results.json") == result


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": 99}, "not a result of format"),
        ({"finished": None}, "is not of type str"),
        ({"extra": 1}, "differ in: extra"),
    ],
)
def test_a_file_of_another_shape_is_refused(
    tmp_path: Path, change: dict[str, object], message: str
) -> None:
    path = tmp_path / "results.json"
    save(full_result(rounds=1), path)
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ValueError, match=message):
        load(path)


def test_cpu_per_operation() -> None:
    (first, *_) = full_result(rounds=1).measurements
    assert first.cpu_us_per_operation == pytest.approx(10.0)
    assert first.cpu_us_per_operation_with_after == pytest.approx(12.0)


def test_values_by_round() -> None:
    rates = full_result(rounds=3).by_round(
        "random-read", "memory", lambda item: item.outcome.operations_per_s
    )
    assert rates == {0: 100_000.0, 1: 200_000.0, 2: 300_000.0}
