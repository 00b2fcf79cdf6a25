"""Lines and CSV records of text files, each with its place, so that a message can name the broken one."""

from __future__ import annotations

import contextlib
import csv
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from index_store.errors import InputError

_SHOWN = 60  # characters of a broken line that a message repeats


@dataclass(frozen=True, slots=True)
class Line:
    """One line, or one CSV record, of an input file."""

    path: Path
    number: int
    """From 1; of a record that spans lines, the first."""
    text: str

    def broken(self, found: str, expected: str) -> InputError:
        """The error that says what is wrong with this line."""
        return InputError(f"{self.path} line {self.number}: found {found}, expected {expected}; correct that line")

    def shown(self) -> str:
        """The line's beginning, safe to print."""
        return shown(self.text)

    def check_whole(self, text: str) -> None:
        """Raise InputError where ``text`` holds half of a surrogate pair, which no file can be written with."""
        if any("\ud800" <= character <= "\udfff" for character in text):
            raise self.broken(f"half a character in {shown(text)}", "whole Unicode characters")


def shown(text: str) -> str:
    """The beginning of ``text``, safe to print."""
    return ascii(text if len(text) <= _SHOWN else text[:_SHOWN] + "...")


def read_lines(path: Path) -> Iterator[Line]:
    """The lines of a UTF-8 file that are not blank, ``-`` for standard input.

    Raises InputError naming file and line for what cannot be read or is not UTF-8.
    """
    return (line for line in _all_lines(path) if line.text.strip())


def read_csv_records(path: Path) -> Iterator[tuple[Line, list[str]]]:
    """The records of a CSV file that are not blank, and where each begins; errors as ``read_lines``."""
    reader = csv.reader((line.text + "\n" for line in _all_lines(path)), strict=True)
    while True:
        start = Line(path, reader.line_num + 1, "")
        try:
            cells = next(reader, None)
        except csv.Error as error:
            raise start.broken(
                f"a broken CSV record ({error})", "commas between cells and closed double quotes"
            ) from error
        if cells is None:
            return
        if any(cell.strip() for cell in cells):
            yield start, cells


def _all_lines(path: Path) -> Iterator[Line]:
    try:
        with contextlib.nullcontext(sys.stdin.buffer) if str(path) == "-" else path.open("rb") as handle:
            for number, raw in enumerate(handle, start=1):
                yield Line(path, number, _decoded(path, number, raw))
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}; name a file that can be read") from error


def _decoded(path: Path, number: int, raw: bytes) -> str:
    try:
        text = raw.decode("utf-8-sig" if number == 1 else "utf-8")
    except UnicodeDecodeError as error:
        found = f"the byte 0x{raw[error.start]:02x} at position {error.start + 1}"
        raise Line(path, number, "").broken(found, "text in UTF-8") from error
    return text.rstrip("\r\n")
