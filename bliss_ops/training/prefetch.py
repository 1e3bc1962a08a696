"""Batches that are ready before they are asked for: a thread reads, decodes and pins the next ones while the device computes.

A batch is a function of its step, so nothing is lost by reading ahead: a job that is asked for another step than the next one (a
resumed one, a decay branch) begins again there. On a GPU the memory is pinned, so that the copy to the device can overlap with
computation. Decoding releases Python's lock; on one CPU core the thread costs what reading in between would.

Legend of shapes: B sequences of a batch, T tokens.
"""

import queue
import threading
import weakref
from collections.abc import Callable
from types import TracebackType
from typing import Self

import numpy as np
import torch

_Ready = tuple[int, torch.Tensor | BaseException]  # a step and its batch, or what reading it raised
_SECONDS_BETWEEN_LOOKS = 0.05  # how long a full queue keeps the thread from seeing that it is to stop


def prefetched(batch_of: Callable[[int], np.ndarray], first_step: int, last_step: int, *, num_ahead: int, pin: bool) -> "Prefetched":
    """`batch_of` as tensors, read ahead of use.

    Args:
        batch_of: step -> input_ids_BT; called from one thread at a time, in the order of the steps.
        first_step: where reading begins, before it is asked for.
        last_step: reading ends before this step; a later one can still be asked for, and is read then and there.
        num_ahead: batches that are kept ready; 0 reads in the caller's thread.
        pin: into page-locked memory, for asynchronous copies to a GPU.

    Returns:
        A function of the step; close it, or use it as a context manager, to end its thread. It raises what `batch_of` raised.
    """
    return Prefetched(batch_of, first_step, last_step, num_ahead=num_ahead, pin=pin)


class Prefetched:
    """The function that `prefetched` returns."""

    def __init__(self, batch_of: Callable[[int], np.ndarray], first_step: int, last_step: int, *, num_ahead: int, pin: bool) -> None:
        assert num_ahead >= 0
        self._batch_of, self._last_step, self._num_ahead, self._pin = batch_of, last_step, num_ahead, pin
        self._ahead: _Ahead | None = None
        self._begin(first_step)

    def __call__(self, step: int) -> torch.Tensor:
        if self._ahead is None or step != self._ahead.next_step:
            self._begin(step)
        if self._ahead is None:
            return _tensor(self._batch_of(step), pin=self._pin)
        try:
            return self._ahead.take()
        except BaseException:
            self.close()  # the thread ended with its error: whoever tries again begins again
            raise

    def close(self) -> None:
        """End the thread and let go of what it has read; a later call begins again."""
        if self._ahead is not None:
            self._ahead.close()
            self._ahead = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, _kind: type[BaseException] | None, _error: BaseException | None, _traceback: TracebackType | None) -> None:
        self.close()

    def _begin(self, step: int) -> None:
        self.close()  # first of all: `batch_of` is never called by two threads
        if self._num_ahead and step < self._last_step:
            self._ahead = _Ahead(self._batch_of, step, self._last_step, self._num_ahead, pin=self._pin)


class _Ahead:
    """One thread that reads the steps from `first_step` on, in order, at most `num_ahead` before they are taken."""

    def __init__(self, batch_of: Callable[[int], np.ndarray], first_step: int, last_step: int, num_ahead: int, *, pin: bool) -> None:
        self.next_step = first_step
        self._ready: queue.Queue[_Ready] = queue.Queue(num_ahead)
        self._stop = threading.Event()
        device = torch.cuda.current_device() if pin else None
        self._thread = threading.Thread(
            target=_read, args=(batch_of, range(first_step, last_step), self._ready, self._stop, device), name="prefetch", daemon=True
        )
        # the thread knows nothing of this object, so that one that is dropped without being closed ends its thread too
        weakref.finalize(self, self._stop.set)
        self._thread.start()

    def take(self) -> torch.Tensor:
        step, batch = self._ready.get()
        assert step == self.next_step
        if isinstance(batch, BaseException):
            raise batch
        self.next_step += 1
        return batch

    def close(self) -> None:
        self._stop.set()
        self._thread.join()


def _read(
    batch_of: Callable[[int], np.ndarray], steps: range, ready: "queue.Queue[_Ready]", stop: threading.Event, device: int | None
) -> None:
    if device is not None:
        torch.cuda.set_device(device)  # a new thread would pin for, and open a context on, the first GPU
    for step in steps:
        try:
            batch: torch.Tensor | BaseException = _tensor(batch_of(step), pin=device is not None)
        except BaseException as error:  # noqa: BLE001 - raised again where the batch is taken
            batch = error
        while not stop.is_set():
            try:
                ready.put((step, batch), timeout=_SECONDS_BETWEEN_LOOKS)
                break
            except queue.Full:
                continue
        if stop.is_set() or isinstance(batch, BaseException):
            return


def _tensor(batch: np.ndarray, *, pin: bool) -> torch.Tensor:
    input_ids_BT = torch.from_numpy(batch)
    return input_ids_BT.pin_memory() if pin else input_ids_BT
