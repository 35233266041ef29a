"""Parsing of command-line arguments with tyro, with errors in one line."""

import contextlib
import io
import re
from typing import Any, TypeVar

import tyro

from trpo_jax.config import as_integers

ArgumentsT = TypeVar("ArgumentsT")


_NUMBERS = tyro.constructors.ConstructorRegistry()


@_NUMBERS.primitive_rule
def _integer(type_info: tyro.constructors.PrimitiveTypeInfo) -> tyro.constructors.PrimitiveConstructorSpec[int] | None:
    """Read integers as people write them: 1e6 and 1_000_000."""
    if type_info.type is not int:
        return None
    return tyro.constructors.PrimitiveConstructorSpec(
        nargs=1,
        metavar="INT",
        instance_from_str=lambda texts: _read_integer(texts[0]),
        is_instance=lambda value: isinstance(value, int) and not isinstance(value, bool),
        str_from_instance=lambda value: [str(value)],
    )


def _read_integer(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        try:
            value = as_integers(float(text))
        except ValueError:
            value = None
        if not isinstance(value, int):
            raise ValueError(f"got {text!r}, allowed: an integer") from None
        return value


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
                kind,
                prog=f"trpo-jax {command}",
                description=description,
                args=arguments,
                default=default,
                registry=_NUMBERS,
            )
        return parsed
    except SystemExit as stop:
        if not stop.code:
            raise
        raise ArgumentError(one_line(errors.getvalue())) from None


def one_line(boxed: str) -> str:
    """Turn an error that tyro has drawn as a box of sections into one line of sections joined by semicolons.

    It parses the printed text because tyro has no public hook for its errors.
    """
    text = re.sub(r"\x1b\[[0-9;]*m", "", boxed)
    rows = [row.strip(" │╰╯") for row in text.splitlines() if not row.startswith("╭")]
    sections = re.split(r"^[─-]*$", "\n".join(rows), flags=re.MULTILINE)
    words = [" ".join(section.split()) for section in sections]
    words = [re.sub(r"^Error parsing ([\w.-]+): (?=\w+: got)", _field_prefix, section) for section in words]
    return "; ".join(section for section in words if section and "full helptext" not in section)


def _field_prefix(match: re.Match[str]) -> str:
    """Name a field's table as in a TOML file: "run.agent.trust-region" becomes "trust_region.", a class becomes ""."""
    tables = [part for part in match[1].split(".") if part not in ("run", "agent") and not part[0].isupper()]
    return "".join(f"{part.replace('-', '_')}." for part in tables)
