"""The commands that the documents show exist, with the options that they show."""

import re
import shlex
from pathlib import Path

import pytest

from tests.console.conftest import Cli

ROOT = Path(__file__).parents[2]
DOCUMENTS = ("README.md", "docs/operating.md", "docs/cli.md")


def shown_commands() -> list[str]:
    found: set[str] = set()
    for document in DOCUMENTS:
        for block in re.findall(r"```[a-z]*\n(.*?)```", (ROOT / document).read_text(), re.DOTALL):
            for line in block.splitlines():
                command = line.removeprefix("$ ").split("#")[0].split(" | ")[0].split(" > ")[0]
                if command.startswith("nearstone ") and not re.search(r"[\[{]", command):
                    found.add(command.strip())
    return sorted(found)


def test_there_are_some() -> None:
    assert len(shown_commands()) > 20


@pytest.mark.parametrize("command", shown_commands())
def test_it_is_a_command(bare: Cli, command: str) -> None:
    outcome = bare(*shlex.split(command)[1:], "--help")
    assert outcome.status == 0, outcome.err
    assert "Usage: nearstone" in outcome.out
