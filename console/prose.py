"""Texts that several commands' help shares."""

from typing import Final

EVERYWHERE: Final = (
    "--pool, --json and --debug may stand anywhere on the line."
    " Exit status: 0 done, 1 a check found something wrong (or a fault of Nearstone),"
    " 2 refused and nothing changed, 3 failed while it was carried out."
    " Settings: the variables NEARSTONE_POOL and NEARSTONE_MEMORY, else pool and memory in"
    " ~/.config/nearstone/config.toml, else in /etc/nearstone/config.toml."
)
