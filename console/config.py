"""Where the command line's settings come from, the first one that has a value winning:

1. options on the command line
2. variables of the environment: ``NEARSTONE_POOL``, ``NEARSTONE_MEMORY``
3. ``$XDG_CONFIG_HOME/nearstone/config.toml`` (``~/.config/nearstone/config.toml``)
4. ``/etc/nearstone/config.toml``

A configuration file looks like this::

    pool = "/srv/nearstone"
    memory = "512MiB"
"""

import os
import tomllib
from pathlib import Path
from typing import ClassVar, Final

from pydantic import ValidationError, field_validator
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

from storage.errors import BadConfig, BadSize
from storage.units import MIB, ByteSize, format_size, parse_size

MEMORY_BYTES_MIN: Final = 16 * MIB
"""Enough for the buffers and some of the map; with less, every request would wait for it."""

SYSTEM_CONFIG: Final = Path("/etc/nearstone/config.toml")


def user_config() -> Path:
    """The user's own configuration file, whether or not it exists."""
    base = os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config"
    return Path(base, "nearstone", "config.toml")


def parse_memory(text: str) -> ByteSize:
    """The memory that `text` lets the store have. Raises: BadSize."""
    memory_bytes = parse_size(text)
    if memory_bytes < MEMORY_BYTES_MIN:
        raise BadSize(
            size=text, reason=f"the store needs {format_size(MEMORY_BYTES_MIN)} of memory"
        )
    return memory_bytes


class Config(BaseSettings):
    """The settings; None where nothing was set."""

    model_config = SettingsConfigDict(env_prefix="NEARSTONE_", extra="forbid", frozen=True)
    files: ClassVar[tuple[Path, ...]] = ()

    pool: Path | None = None
    memory: ByteSize | None = None

    @field_validator("pool")
    @classmethod
    def _expand_home(cls, pool: Path | None) -> Path | None:
        return None if pool is None else pool.expanduser()

    @field_validator("memory", mode="before")
    @classmethod
    def _read_memory(cls, memory: object) -> object:
        if memory is None:
            return memory
        try:
            return parse_memory(str(memory))
        except BadSize as exc:
            raise ValueError(exc.problem) from exc

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """The order of the sources, as pydantic-settings wants to be told."""
        files = [TomlConfigSettingsSource(settings_cls, file) for file in cls.files]
        return (init_settings, env_settings, *files)


def load_config() -> Config:
    """The settings from environment and files. Raises: BadConfig naming what is wrong where."""
    read = {file: _read_toml(file) for file in (user_config(), SYSTEM_CONFIG)}
    contents = {file: content for file, content in read.items() if content is not None}

    class FromFiles(Config):
        files: ClassVar[tuple[Path, ...]] = tuple(contents)

    try:
        return FromFiles()
    except ValidationError as exc:
        first = exc.errors()[0]
        name = str(first["loc"][0])
        variable = f"NEARSTONE_{name.upper()}"
        given_in = [str(file) for file, content in contents.items() if name in content]
        source = variable if variable in os.environ else given_in[0]
        detail = "there is no such setting" if first["type"] == "extra_forbidden" else first["msg"]
        detail = detail.removeprefix("Value error, ")
        raise BadConfig(source=source, detail=f"{name}: {detail}") from exc


def _read_toml(file: Path) -> dict[str, object] | None:
    """The file's content; None when there is no such file."""
    try:
        return tomllib.loads(file.read_text("utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as exc:
        raise BadConfig(source=str(file), detail=exc.strerror or str(exc)) from exc
    except ValueError as exc:
        raise BadConfig(source=str(file), detail=str(exc)) from exc
