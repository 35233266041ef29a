"""Command-line arguments by tyro, with errors in one line."""

import contextlib
import io
import re
from typing import Any, TypeVar

import tyro

ArgumentsT = TypeVar("ArgumentsT")


class ArgumentError(Exception):
    """Report arguments that cannot be parsed, in one line."""


def parse(kind: type[ArgumentsT], arguments: list[str], *, command: str, description: str, default: Any = None) -> ArgumentsT:
    """Parse the arguments of a command into a dataclass; --help prints and exits.

    Raises:
        ArgumentError: an unknown option, a missing or malformed value, or one out of range.
    """
    errors = io.StringIO()
    try:
        with contextlib.redirect_stderr(errors):
            parsed: ArgumentsT = tyro.cli(
                kind, prog=f"trpo-jax {command}", description=description, args=arguments, default=default
            )
        return parsed
    except SystemExit as stop:
        if not stop.code:
            raise
        raise ArgumentError(one_line(errors.getvalue())) from None


def one_line(boxed: str) -> str:
    """Flatten an error that tyro has drawn as a box of sections into sections joined by semicolons."""
    text = re.sub(r"\x1b\[[0-9;]*m", "", boxed)
    rows = [row.strip(" │╰╯") for row in text.splitlines() if not row.startswith("╭")]
    sections = re.split(r"^[─-]*$", "\n".join(rows), flags=re.MULTILINE)
    words = [" ".join(section.split()) for section in sections]
    words = [re.sub(r"^Error parsing ([\w.-]+): (?=\w+: got)", _field_prefix, section) for section in words]
    return "; ".join(section for section in words if section and "full helptext" not in section)


def _field_prefix(match: re.Match[str]) -> str:
    """Name the table of a configuration's field as a file does: "run.trpo.trust-region" is "trust_region.", a class is ""."""
    tables = [part for part in match[1].split(".") if part not in ("run", "trpo") and not part[0].isupper()]
    return "".join(f"{part.replace('-', '_')}." for part in tables)
