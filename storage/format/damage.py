"""What the second reader says when stored bytes are not what the format promises."""


class Damage(Exception):  # noqa: N818  # the word of the format; it says that, not how
    """Bytes at one place of one file break the format; nothing read from there may be used.

    The only exception that damaged input causes in this package (the operating system's own errors
    pass through as OSError). `offset` is in bytes from the start of `file`.
    """

    def __init__(self, file: str, offset: int, reason: str) -> None:
        super().__init__(file, offset, reason)
        self.file = file
        self.offset = offset
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.file}, offset {self.offset}: {self.reason}"

    def to_dict(self) -> dict[str, str | int]:
        """The fields by name, fit for JSON."""
        return {"file": self.file, "offset": self.offset, "reason": self.reason}
