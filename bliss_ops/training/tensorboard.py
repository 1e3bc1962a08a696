"""Curves for TensorBoard: the points of `metrics.jsonl`, and the rates that are not in it because they differ from run to run.

Event files are only ever added to. A job that goes on from a checkpoint says so in its new file (`purge_step`), and TensorBoard leaves
out the lost points after it, so no step is drawn twice. They are no part of an artifact's content. Event files are written on local
disks; for a lake in an object store they are copied there whenever metrics are written.
"""

import logging
import tempfile
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from upath import UPath

from bliss_ops.lake import is_local

log = logging.getLogger(__name__)


class Curves:
    """Event files of one job in one directory; the file is opened by the first point."""

    def __init__(self, directory: UPath) -> None:
        self.directory = directory
        self._writer: Any = None
        self._first_step: int | None = None
        self._scratch: tempfile.TemporaryDirectory[str] | None = None

    def resume(self, step: int) -> None:
        """Points after `step` in earlier files are void."""
        self.close()
        self._first_step = step + 1

    def add(self, step: int, values: Mapping[str, float]) -> None:
        if self._writer is None:
            self._writer = self._open()
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def flush(self) -> None:
        if self._writer is not None:
            self._writer.flush()
        if self._scratch is not None:
            for file in Path(self._scratch.name).iterdir():
                self.directory.fs.put_file(str(file), (self.directory / file.name).path)

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self.flush()
            self._writer = None
        if self._scratch is not None:
            self._scratch.cleanup()
            self._scratch = None

    def _open(self) -> Any:
        from torch.utils.tensorboard import SummaryWriter

        if is_local(self.directory):
            where = self.directory.path
        else:
            self._scratch = tempfile.TemporaryDirectory(prefix="bliss-tensorboard-")
            where = self._scratch.name
        return SummaryWriter(where, purge_step=self._first_step)


def curves(directory: UPath, *, wanted: bool) -> Curves | None:
    """Curves in `directory`; None where they are not wanted or TensorBoard is not installed."""
    if not wanted:
        return None
    if find_spec("tensorboard") is None:
        log.info("no curves for TensorBoard, which is not installed (pip install tensorboard)")
        return None
    return Curves(directory)
