"""Finding and reading annotation files: whatever is wrong with one is said with its name and what was expected."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from index_store.errors import InputError
from index_store.lines import Line, read_csv_records, read_lines, shown


@dataclass(frozen=True, slots=True)
class Annotations:
    """The folders in which the files of one dataset may be."""

    dataset: str
    folders: tuple[Path, ...]

    @classmethod
    def open(cls, folder: Path, dataset: str, subfolders: tuple[str, ...]) -> Annotations:
        """``folder``, and those of its subfolders that have such a name. Raises InputError where there is no folder."""
        try:
            inside = [path for path in sorted(folder.iterdir()) if path.name.lower() in subfolders and path.is_dir()]
        except OSError as error:
            reason = f"{error.strerror}; name the folder with the files of {dataset}"
            raise InputError(f"cannot read the folder {folder}: {reason}") from error
        return cls(dataset, (folder, *inside))

    def find(self, *names: str) -> Path | None:
        """The file with the first of these names that is there; letters' case does not matter.

        A name may have more between its stem and its suffix (``val_2.first1000.json`` for ``val_2.json``), if no file
        has it as it is. Raises InputError where several do.
        """
        files = [path for folder in self.folders for path in sorted(folder.iterdir()) if path.is_file()]
        for name in map(str.lower, names):
            stem, suffix = Path(name).stem, Path(name).suffix
            exact = [path for path in files if path.name.lower() == name]
            longer = [
                path
                for path in files
                if path.name.lower().startswith(stem + ".") and path.name.lower().endswith(suffix)
            ]
            found = exact or longer
            if len(found) > 1:
                raise InputError(
                    f"{found[0]} and {found[1]} may both be the {name} of {self.dataset}; keep one of them"
                )
            if found:
                return found[0]
        return None

    def need(self, what: str, *names: str) -> Path:
        """As ``find``. Raises InputError where there is none, saying ``what`` was looked for."""
        found = self.find(*names)
        if found is None:
            places = " and ".join(map(str, self.folders))
            raise InputError(f"{what} of {self.dataset} not found: no {' or '.join(names)} in {places}; put it there")
        return found


def read_json(path: Path) -> Any:
    """What a JSON file holds. Raises InputError naming the file."""
    whole = "\n".join(line.text for line in read_lines(path))
    try:
        return json.loads(whole)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is not JSON ({error}); give the file as its authors published it") from error


def read_json_lines(path: Path) -> Iterator[tuple[Line, Any]]:
    """What each line of a JSON Lines file holds. Raises InputError naming file and line."""
    for line in read_lines(path):
        try:
            yield line, json.loads(line.text)
        except (ValueError, RecursionError) as error:
            raise line.broken(line.shown(), "JSON") from error


def read_names(path: Path) -> list[str]:
    """The names in a list file, one a line; blanks around them are dropped. Raises InputError for an empty file."""
    names = [line.text.strip() for line in read_lines(path)]
    if not names:
        raise InputError(f"{path} is empty, expected the name of a video in each line")
    return names


def read_columns(path: Path, *columns: str) -> list[list[str]]:
    """The values of these columns of a CSV file with a header, a list for each record. Raises InputError."""
    rows = read_csv_records(path)
    first = next(rows, None)
    header = [] if first is None else [name.strip().lower() for name in first[1]]
    if first is None or not set(columns) <= set(header):
        found = ", ".join(shown(name) for name in header) or "nothing"
        raise Line(path, 1, "").broken(f"the columns {found}", f"a header with {' and '.join(columns)}")
    places = [header.index(name) for name in columns]
    found_rows = []
    for line, cells in rows:
        if len(cells) != len(header):
            raise line.broken(f"{len(cells)} columns", f"{len(header)}, as in the header")
        found_rows.append([cells[place].strip() for place in places])
    return found_rows


def text_list(path: Path, where: str, value: Any) -> list[str]:
    """``value``, checked to be a list of whole texts. Raises InputError saying where it was found."""
    if not isinstance(value, list) or not all(isinstance(text, str) for text in value):
        raise InputError(f"{path}: {where} is {shown(str(value))}, expected a list of texts")
    for text in value:
        Line(path, 1, "").check_whole(text)
    return value


def record(path: Path, where: str, value: Any, *fields: str) -> dict[str, Any]:
    """``value``, checked to be an object with these fields. Raises InputError saying where it was found."""
    if not isinstance(value, dict) or not set(fields) <= set(value):
        expected = f"an object with {', '.join(fields)}" if fields else "an object"
        raise InputError(f"{path}: {where} is {shown(str(value))}, expected {expected}")
    return value
