import dataclasses

from benchmarks.goal import (
    AddedLatencyGoal,
    GroupCommitGoal,
    IdleGoal,
    RatioGoal,
    SustainedGoal,
    Verdict,
    judge_all,
)
from benchmarks.workload import LATENCY_READ, RANDOM_WRITE, WRITE_FLUSH, WRITE_FLUSH_8
from tests.benchmarks.builder import empty_result, full_result, measurement


def test_a_ratio_is_judged_by_the_median_of_its_rounds() -> None:
    result = empty_result()
    for number, (own, rival) in enumerate([(20.0, 10.0), (30.0, 10.0), (1.0, 10.0)]):
        result.measurements.append(measurement(RANDOM_WRITE, "nearstone", number, own))
        result.measurements.append(measurement(RANDOM_WRITE, "qcow2", number, rival))
    finding = RatioGoal(RANDOM_WRITE, "qcow2", 2.0).judge(result)
    assert finding.verdict is Verdict.REACHED
    assert finding.measured == "2.00 × (0.100–3.00)"
    assert RatioGoal(RANDOM_WRITE, "qcow2", 2.1).judge(result).verdict is Verdict.MISSED


def test_without_the_rival_nothing_is_known() -> None:
    result = empty_result()
    result.measurements.append(measurement(RANDOM_WRITE, "nearstone", 0, 10.0))
    finding = RatioGoal(RANDOM_WRITE, "file", 0.8).judge(result)
    assert finding.verdict is Verdict.UNKNOWN
    assert "0.8 × file" in finding.goal


def test_group_commit_compares_eight_clients_with_one() -> None:
    result = empty_result()
    result.measurements.append(measurement(WRITE_FLUSH, "nearstone", 0, 1000.0))
    result.measurements.append(measurement(WRITE_FLUSH_8, "nearstone", 0, 2400.0))
    finding = GroupCommitGoal(WRITE_FLUSH, WRITE_FLUSH_8, 2.5).judge(result)
    assert (finding.verdict, finding.measured) == (Verdict.MISSED, "2.40 ×")


def test_added_latency_is_a_difference_of_medians() -> None:
    result = empty_result()
    result.measurements.append(measurement(LATENCY_READ, "nearstone", 0, 1000.0, median_us=41.0))
    result.measurements.append(measurement(LATENCY_READ, "memory", 0, 1000.0, median_us=25.0))
    finding = AddedLatencyGoal(LATENCY_READ, "memory", 15).judge(result)
    assert (finding.verdict, finding.measured) == (Verdict.MISSED, "16.0 µs")
    assert AddedLatencyGoal(LATENCY_READ, "memory", 16).judge(result).verdict is Verdict.REACHED


def test_sustained_share() -> None:
    result = full_result()
    finding = SustainedGoal(0.8).judge(result)
    assert (finding.verdict, finding.measured) == (Verdict.MISSED, "0.700 ×")
    assert finding.goal.startswith("60 s against 5 s")
    assert SustainedGoal(0.8).judge(empty_result()).verdict is Verdict.UNKNOWN


def test_idle_cpu() -> None:
    result = full_result()
    assert IdleGoal(0.002).judge(result).verdict is Verdict.REACHED
    busy = dataclasses.replace(result.endings["nearstone"], idle_cpu_share=0.01)
    result.endings["nearstone"] = busy
    assert IdleGoal(0.002).judge(result).verdict is Verdict.MISSED


def test_every_goal_is_measured_by_a_full_result() -> None:
    assert all(item.verdict is not Verdict.UNKNOWN for item in judge_all(full_result()))
    assert all(item.verdict is Verdict.UNKNOWN for item in judge_all(empty_result()))
