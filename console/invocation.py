"""One call of ``nearstone``: what the options that every command shares said."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path

import typer

from console.access import DataPlane, open_data_plane, open_service
from console.config import Config, load_config
from console.output import Output
from storage.errors import PoolNotNamed
from storage.service import PoolService


class Invocation:
    """Handed from the root command to all others as the context's object."""

    def __init__(self, pool_option: Path | None, is_json: bool) -> None:
        self.output = Output(is_json)
        self._pool_option = pool_option

    @staticmethod
    def of(ctx: typer.Context) -> "Invocation":
        """The invocation that the context belongs to."""
        found = ctx.find_object(Invocation)
        if found is None:
            raise TypeError("the command was not called through the root command")
        return found

    @cached_property
    def config(self) -> Config:
        """The settings; read when a command first asks. Raises: BadConfig."""
        return load_config()

    @property
    def pool_or_none(self) -> Path | None:
        """The pool's folder, absolute; None when none was named."""
        named = self._pool_option or self.config.pool
        return None if named is None else named.expanduser().absolute()

    @property
    def pool(self) -> Path:
        """The pool's folder, absolute. Raises: PoolNotNamed."""
        pool = self.pool_or_none
        if pool is None:
            raise PoolNotNamed
        return pool

    @contextmanager
    def service(self) -> Iterator[PoolService]:
        """The pool's operations for the block."""
        with open_service(self.pool, self.config.memory) as service:
            yield service

    @contextmanager
    def data_plane(self) -> Iterator[DataPlane]:
        """The pool served for the block."""
        with open_data_plane(self.pool, self.config.memory) as data_plane:
            yield data_plane
