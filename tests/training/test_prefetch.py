"""Reading ahead changes only when batches are read: the same ones, in any order of asking, one thread at a time, no thread left."""

import gc
import threading
import time

import numpy as np
import pytest
import torch

from bliss_ops.training.prefetch import Prefetched, prefetched


class Source:
    """Batches by step; remembers which steps were read, and that no two threads read at once."""

    def __init__(self, seconds: float = 0.0, fails_at: int | None = None) -> None:
        self.seconds, self.fails_at = seconds, fails_at
        self.read: list[int] = []
        self._one_at_a_time = threading.Lock()

    def __call__(self, step: int) -> np.ndarray:
        assert self._one_at_a_time.acquire(blocking=False), "two threads read at once"
        try:
            time.sleep(self.seconds)
            self.read.append(step)
            if step == self.fails_at:
                raise OSError(f"no block for step {step}")
            return self.batch(step)
        finally:
            self._one_at_a_time.release()

    @staticmethod
    def batch(step: int) -> np.ndarray:
        return np.full((2, 3), step, np.int64)


def wait_until(condition, seconds: float = 5.0) -> bool:
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.002)
    return bool(condition())


def threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "prefetch"]


def check(batches: Prefetched, steps: list[int]) -> None:
    for step in steps:
        assert torch.equal(batches(step), torch.from_numpy(Source.batch(step)))


@pytest.mark.parametrize("num_ahead", [0, 1, 3, 100])
def test_the_batches_of_the_steps_asked_for(num_ahead: int) -> None:
    source = Source()
    with prefetched(source, 5, 12, num_ahead=num_ahead, pin=False) as batches:
        check(batches, list(range(5, 12)))
    assert source.read == list(range(5, 12))  # each once, none after the last
    assert not threads()


@pytest.mark.parametrize("num_ahead", [0, 1, 3])
def test_another_step_than_the_next_one_begins_again_there(num_ahead: int) -> None:
    with prefetched(Source(0.001), 0, 10, num_ahead=num_ahead, pin=False) as batches:
        check(batches, [0, 1, 7, 8, 2, 3, 3, 9, 14, 15, 0])  # behind, again, after the end


def test_no_more_is_read_than_asked_for_and_it_is_read_before() -> None:
    source = Source()
    with prefetched(source, 0, 100, num_ahead=4, pin=False) as batches:
        assert wait_until(lambda: len(source.read) == 5)  # four are ready, the fifth is in the thread's hands
        time.sleep(0.02)
        assert len(source.read) == 5
        check(batches, [0])
        assert wait_until(lambda: len(source.read) == 6)
    assert len(source.read) == 6


def test_reading_and_computing_overlap() -> None:
    seconds, num_steps = 0.02, 12
    begun = time.monotonic()
    with prefetched(Source(seconds), 0, num_steps, num_ahead=2, pin=False) as batches:
        for step in range(num_steps):
            batches(step)
            time.sleep(seconds)  # a device that computes
    assert time.monotonic() - begun < 0.8 * 2 * seconds * num_steps


def test_an_error_of_the_thread_comes_out_where_its_batch_is_taken_and_not_before() -> None:
    source = Source(fails_at=3)
    with prefetched(source, 0, 10, num_ahead=8, pin=False) as batches:
        check(batches, [0, 1, 2])
        with pytest.raises(OSError, match="no block for step 3"):
            batches(3)
        assert not threads()
        with pytest.raises(OSError, match="no block for step 3"):
            batches(3)  # asked again it is tried again, and does not hang
        source.fails_at = None
        check(batches, [3, 4])


def test_closing_ends_the_thread_with_a_full_queue_and_an_empty_one() -> None:
    full, slow = Source(), Source(0.03)
    for source in (full, slow):
        batches = prefetched(source, 0, 1000, num_ahead=2, pin=False)
        wait_until(lambda: len(full.read) >= 3)
        batches.close()
        batches.close()
        assert not threads()
        read = len(source.read)
        time.sleep(0.05)
        assert len(source.read) == read


def test_one_that_is_dropped_without_being_closed_ends_its_thread() -> None:
    batches = prefetched(Source(), 0, 1000, num_ahead=2, pin=False)
    check(batches, [0])
    del batches
    gc.collect()
    assert wait_until(lambda: not threads())


def test_the_caller_leaving_by_an_error_ends_the_thread() -> None:
    with pytest.raises(ZeroDivisionError), prefetched(Source(), 0, 1000, num_ahead=2, pin=False) as batches:
        batches(1 // 0)
    assert not threads()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="page-locked memory takes a GPU")
def test_batches_for_a_gpu_are_pinned() -> None:
    with prefetched(Source(), 0, 3, num_ahead=2, pin=True) as batches:
        assert all(batches(step).is_pinned() for step in range(3))
