"""The file system that DuckDB reads through."""

from typing import Any

from fsspec.asyn import sync_wrapper

from bliss_ops.object_store.file_system import ObjectStore
from bliss_ops.object_store.reading import Tail

TAILS_REMEMBERED = 256  # of files that DuckDB queries; 64 MB


class QueriedStore(ObjectStore):
    """For DuckDB, which looks at a file five times and opens it twice in each query: what it was told once is remembered.

    Only for files that nobody replaces, for the time of a few queries; one that is replaced all the same is an error, not other content.
    """

    cachable = False

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._infos: dict[str, dict[str, Any]] = {}
        self._tails: dict[str, Tail] = {}

    async def _info(self, path: str, *arguments: Any, **options: Any) -> dict[str, Any]:
        name = str(self._strip_protocol(path))
        if name not in self._infos:
            self._infos[name] = await super()._info(path, *arguments, **options)
        return self._infos[name]

    async def _tail(self, path: str) -> Tail:
        name = str(self._strip_protocol(path))
        if name not in self._tails:
            while len(self._tails) >= TAILS_REMEMBERED:
                self._tails.pop(next(iter(self._tails)), None)
            self._tails[name] = await super()._tail(path)
        return self._tails[name]

    tail = sync_wrapper(_tail)
