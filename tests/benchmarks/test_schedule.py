from itertools import groupby

from benchmarks.schedule import rotated, steps
from benchmarks.workload import RANDOM_READ, RANDOM_WRITE


def test_rotation() -> None:
    assert rotated(["a", "b", "c"], 0) == ["a", "b", "c"]
    assert rotated(["a", "b", "c"], 1) == ["b", "c", "a"]
    assert rotated(["a", "b", "c"], 5) == ["c", "a", "b"]
    assert rotated([], 3) == []


def test_runs_that_are_compared_lie_next_to_each_other() -> None:
    order = [
        (step.round_number, step.workload.name, step.contender)
        for step in steps(["a", "b"], [RANDOM_READ, RANDOM_WRITE], 2)
    ]
    assert order == [
        (0, "random-read", "a"),
        (0, "random-read", "b"),
        (0, "random-write", "a"),
        (0, "random-write", "b"),
        (1, "random-read", "b"),
        (1, "random-read", "a"),
        (1, "random-write", "b"),
        (1, "random-write", "a"),
    ]


def test_contenders_of_one_round_share_a_seed_that_nothing_else_has() -> None:
    done = list(steps(["a", "b", "c"], [RANDOM_READ, RANDOM_WRITE], 4))
    seeds = [
        {step.seed for step in group}
        for _, group in groupby(done, lambda step: (step.round_number, step.workload.name))
    ]
    assert all(len(seed) == 1 for seed in seeds)
    assert len(set.union(*seeds)) == len(seeds) == 8
