"""Every path inside a store and the version of the format; nobody else builds one."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from index_store.errors import DamageError

FORMAT_VERSION = 1
"""Grows when an older tbpipe could misread what a newer one wrote; part of the fingerprint."""

TEMPORARY_PREFIX = ".tmp-"
"""Names that begin so are unfinished work: whoever holds the writer lock may remove them."""

_SHARD_NAME = re.compile(r"[0-9]{8,}\.h5")
_GENERATION_NAME = re.compile(r"[0-9]{8,}")


@dataclass(frozen=True, slots=True)
class Layout:
    """Where the parts of the store in ``directory`` lie."""

    directory: Path

    @property
    def settings_path(self) -> Path:
        """The pinned settings; the store exists from the moment this file has its ``[store]`` section."""
        return self.directory / "tbpipe.toml"

    @property
    def catalog_path(self) -> Path:
        """The SQLite database that says what is real."""
        return self.directory / "catalog.sqlite"

    @property
    def lock_path(self) -> Path:
        """The file whose kernel lock the one writer holds."""
        return self.directory / "writer.lock"

    @property
    def seal_path(self) -> Path:
        """Checksums and parity of the catalog as its last writer left it; absent while one is at work."""
        return self.directory / "catalog.seal"

    @property
    def readers_lock_path(self) -> Path:
        """The file on which every reader holds a lock at the number of the commit that it reads."""
        return self.directory / "readers.lock"

    @property
    def shards_directory(self) -> Path:
        """Holds the feature files."""
        return self.directory / "shards"

    @property
    def index_directory(self) -> Path:
        """Holds one directory for each index generation."""
        return self.directory / "index"

    @property
    def runs_directory(self) -> Path:
        """Holds rankings; only rerank and refresh write here."""
        return self.directory / "runs"

    @property
    def prepared_directory(self) -> Path:
        """Holds one directory for each set of prepared videos; nothing else depends on them."""
        return self.directory / "prepared"

    @property
    def prepared_lock_path(self) -> Path:
        """The file whose kernel lock the one who prepares holds; others may write to the store meanwhile."""
        return self.prepared_directory / "writer.lock"

    @property
    def catalog_journal_paths(self) -> tuple[Path, Path]:
        """SQLite's write-ahead log and its shared index, present while the catalog is open."""
        name = self.catalog_path.name
        return self.directory / f"{name}-wal", self.directory / f"{name}-shm"

    def shard_path(self, name: str) -> Path:
        """The feature file with this catalog name. Raises DamageError for a name that no shard has."""
        return self.shards_directory / self._checked(name, _SHARD_NAME)

    def generation_path(self, name: str) -> Path:
        """The directory of the index generation with this catalog name. Raises DamageError for any other name."""
        return self.index_directory / self._checked(name, _GENERATION_NAME)

    def _checked(self, name: str, pattern: re.Pattern[str]) -> str:
        """A name such as ``../../home`` in a catalog of unknown origin must not lead out of the store."""
        if not pattern.fullmatch(name):
            raise DamageError(
                f"{self.catalog_path} names {name!r}, and no shard or index has such a name; restore it from a copy"
            )
        return name


def shard_name(shard_id: int) -> str:
    """File name of a shard: ``00000042.h5``."""
    return f"{shard_id:08d}.h5"


def generation_name(generation_id: int) -> str:
    """Directory name of an index generation: ``00000007``."""
    return f"{generation_id:08d}"


def temporary_path(path: Path) -> Path:
    """The unfinished form of ``path``, in the same directory so that one rename finishes it."""
    return path.with_name(TEMPORARY_PREFIX + path.name)


def is_temporary(path: Path) -> bool:
    """Whether ``path`` is unfinished work."""
    return path.name.startswith(TEMPORARY_PREFIX)


def is_shard(path: Path) -> bool:
    """Whether ``path`` has a name that only a shard has."""
    return _SHARD_NAME.fullmatch(path.name) is not None


def is_generation(path: Path) -> bool:
    """Whether ``path`` has a name that only an index generation has."""
    return _GENERATION_NAME.fullmatch(path.name) is not None
