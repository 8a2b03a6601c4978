# ruff: noqa: N818  (the names say what happened; "Error" would add nothing)
"""What can stop a benchmark, as classes that carry fields and say what to do next."""

from pathlib import Path

from benchmarks.units import format_size


class BenchmarkError(Exception):
    """Base of everything the benchmark reports in one line instead of a traceback."""


class RequirementMissing(BenchmarkError):
    """The benchmark cannot start on this machine as it is; nothing was changed."""


class ToolMissing(RequirementMissing):
    """A program or Python package is not installed."""

    def __init__(self, tool: str, needed_by: str, remedy: str) -> None:
        super().__init__(f"{tool} is missing (needed by {needed_by}): {remedy}")
        self.tool = tool


class DriveSpaceMissing(RequirementMissing):
    """The drive cannot hold what the contenders will write."""

    def __init__(self, folder: Path, needed_bytes: int, free_bytes: int) -> None:
        super().__init__(
            f"{folder} has {format_size(free_bytes)} free and the benchmark needs about "
            f"{format_size(needed_bytes)}: choose another folder with --dir, a smaller --size, "
            f"or fewer --contenders"
        )


class MemoryMissing(RequirementMissing):
    """The memory plugin's disk does not fit into memory."""

    def __init__(self, needed_bytes: int, available_bytes: int) -> None:
        super().__init__(
            f"{format_size(available_bytes)} of memory is available and the memory plugin needs "
            f"{format_size(needed_bytes)}: choose a smaller --size or leave 'memory' out of "
            f"--contenders"
        )


class PermissionMissing(RequirementMissing):
    """A chosen option needs a privilege that this process does not have."""

    def __init__(self, what: str, remedy: str) -> None:
        super().__init__(f"not permitted to {what}: {remedy}")


class UnusableOption(RequirementMissing):
    """An option of the command line makes no sense; the message names it."""


class ContenderFailed(BenchmarkError):
    """A contender's server did not start, or ended while it was needed."""

    def __init__(self, contender: str, cause: str, log_tail: str = "") -> None:
        detail = f"\n{log_tail}" if log_tail else ""
        super().__init__(f"{contender}: {cause}{detail}")
        self.contender = contender


class FioFailed(BenchmarkError):
    """fio ended with an error, or said something this benchmark does not understand."""
