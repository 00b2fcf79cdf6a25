"""The store: one directory of videos' features, written by one process (writer.py) and read by any (snapshot.py)."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from index_store.atomic import remove, sync
from index_store.catalog import Catalog
from index_store.errors import StoreError, from_os_error
from index_store.layout import Layout, is_temporary
from index_store.lock import writer_lock
from index_store.readers import reader_lock
from index_store.seal import seal_again, unsealed_while_changing
from index_store.settings import StoreSettings, has_store_section, read_settings, write_settings
from index_store.snapshot import Snapshot
from index_store.writer import StoreWriter


class Store:
    """A store directory with its pinned settings. Holds nothing open: cheap, and safe to send to another process."""

    def __init__(self, directory: Path, settings: StoreSettings) -> None:
        self.directory = directory
        self.settings = settings
        self.fingerprint = settings.fingerprint
        self._layout = Layout(directory)

    def __repr__(self) -> str:
        """The directory and the start of the fingerprint."""
        return f"Store({str(self.directory)!r}, {self.fingerprint[:12]})"

    @classmethod
    def create(cls, directory: Path, settings: StoreSettings) -> Store:
        """Make an empty store in a directory that is absent or empty.

        Only a ``tbpipe.toml`` without ``[store]`` may be there; what it says is kept.
        The store exists once its settings are pinned: killed before that, ``create`` simply works again.
        Raises StoreError when something else is in the directory.
        """
        layout = Layout(directory.absolute())
        try:
            layout.directory.mkdir(parents=True, exist_ok=True)
            _require_vacant(layout)
            with writer_lock(layout.lock_path):
                _require_vacant(layout)
                _fill(layout, settings)
        except OSError as error:
            raise from_os_error(error, layout.directory) from error
        return cls(layout.directory, settings)

    @classmethod
    def open(cls, directory: Path) -> Store:
        """Open the store in ``directory``.

        Raises StoreMissingError where there is none, StoreError for another format version, FingerprintError when its
        pinned settings were edited.
        """
        layout = Layout(directory.absolute())
        return cls(layout.directory, read_settings(layout.settings_path))

    @contextlib.contextmanager
    def writer(self, lock_timeout_seconds: float = 0.0) -> Iterator[StoreWriter]:
        """Write to the store, alone; waits up to ``lock_timeout_seconds`` for another writer to end.

        Removes first what a killed writer never committed, and at last what no reader can need any more. Raises
        StoreLockedError, NotWritableError; DamageError before the first change, when the catalog is not what the last
        writer left.
        """
        with (
            writer_lock(self._layout.lock_path, lock_timeout_seconds),
            unsealed_while_changing(self._layout, self.settings.section_json) as before_change,
        ):
            catalog = Catalog.open_for_writing(self._layout, self.fingerprint, before_change)
            try:
                writer = StoreWriter(self._layout, self.settings, catalog)
                writer.remove_uncommitted()
                yield writer
                writer.remove_retired()
            finally:
                catalog.close()

    @contextlib.contextmanager
    def snapshot(self) -> Iterator[Snapshot]:
        """The store as it is now, whatever is committed, removed or rewritten meanwhile."""
        with reader_lock(self._layout.readers_lock_path) as hold:
            catalog = Catalog.open_snapshot(self._layout, self.fingerprint)
            snapshot = Snapshot(self._layout, self.settings, catalog)
            try:
                hold(snapshot.commit_number)
                yield snapshot
            finally:
                snapshot.close()


def _require_vacant(layout: Layout) -> None:
    """Raise StoreError unless a store may be made here: nothing is lost if everything of ours is replaced."""
    if has_store_section(layout.settings_path):
        raise StoreError(f"{layout.directory} is a store already; open it, or name another directory")
    parts = (layout.shards_directory, layout.index_directory, layout.runs_directory)
    files = (layout.settings_path, layout.lock_path, layout.readers_lock_path, layout.catalog_path, layout.seal_path)
    ours = {*files, *layout.catalog_journal_paths, *parts}
    for path in sorted(layout.directory.iterdir()):
        if path not in ours and not is_temporary(path):
            raise StoreError(f"{layout.directory} is not empty ({path.name} is there); name an empty or new directory")
    for part in parts:
        if part.is_dir() and any(part.iterdir()):
            raise StoreError(
                f"{layout.directory} has {part.name}/ but no [store] in {layout.settings_path.name}; "
                "restore that file from a copy, or name another directory"
            )


def _fill(layout: Layout, settings: StoreSettings) -> None:
    """Make the parts of an empty store, durably; the settings come last because they make it exist."""
    for path in (layout.seal_path, layout.catalog_path, *layout.catalog_journal_paths):
        remove(path)
    layout.readers_lock_path.touch()
    for part in (layout.shards_directory, layout.index_directory, layout.runs_directory):
        part.mkdir(exist_ok=True)
    Catalog.create(layout, settings.fingerprint)
    seal_again(layout, settings.section_json)
    sync(layout.directory)
    sync(layout.directory.parent)
    write_settings(layout.settings_path, settings)
