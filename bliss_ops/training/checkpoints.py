"""Checkpoints of a training job: restore what is there, save now and then, so that a killed job ends as an undisturbed one.

A checkpoint and the metrics up to it are written together, the metrics first. Position in the data is a function of the step, so the step
is all that has to be remembered of it. `Checkpoint` is one file, written while the job waits; `CheckpointSeries` copies the state and
lets a thread write it, keeps several files, and goes back to an older one when the newest cannot be read.

The first of several workers looks what there is; the others open the file that it has chosen, or begin with it. A store that lists what
is new a little later would have some of them go on from an older checkpoint, and add up gradients of different steps.
"""

import logging
import re
from collections.abc import Collection, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextvars import copy_context
from dataclasses import dataclass
from typing import Protocol

import torch
from upath import UPath

from bliss_ops.lake import names_in, remove, write_bytes
from bliss_ops.models.language import read_tensors, write_tensors
from bliss_ops.training.metrics import StepMetrics
from bliss_ops.training.workers import ALONE, Workers

log = logging.getLogger(__name__)

FOLDER = "checkpoints"
NUM_STEPS = "num_steps"  # the tensor that says how far a state is


class State(Protocol):
    """What can be checkpointed: `TrainState`, `BilevelState`."""

    @property
    def step(self) -> int: ...

    def tensors(self) -> dict[str, torch.Tensor]: ...

    def restore(self, tensors: dict[str, torch.Tensor]) -> None: ...


class StreamedState(Protocol):
    """What can be checkpointed piece by piece: `TrainState`."""

    step: int

    def each_tensor(self) -> Iterator[tuple[str, torch.Tensor]]: ...

    def restore(self, tensors: dict[str, torch.Tensor], *, where: str) -> None: ...


@dataclass(frozen=True)
class Checkpoint:
    """The file a job's state is kept in; only one of several workers writes it, all of them read it."""

    path: UPath
    state: State
    metrics: StepMetrics
    every_steps: int
    last_step: int
    workers: Workers = ALONE

    def resume(self) -> bool:
        """Restore the state when there is a checkpoint; says whether there was.

        Raises:
            ValueError: the workers have read different ones.
        """
        is_there = self.workers.agreed(self.workers.writes and self.path.is_file())
        if is_there:
            self.state.restore(read_tensors(self.path))
            _check_step(self.state.step, self.path, self.metrics.title, self.workers)
            self.metrics.resume(self.state.step)
        return is_there

    def after_step(self, step: int) -> None:
        """Save when it is time to, and at the end."""
        if step % self.every_steps == 0 or step == self.last_step:
            self.save()

    def save(self) -> None:
        """Write metrics and state; the workers go on together."""
        if self.workers.writes:
            self.metrics.write()
            write_tensors(self.path, self.state.tensors())
        self.workers.barrier()


@dataclass(frozen=True)
class Policy:
    """When a checkpoint is written, and which stay."""

    every_steps: int
    keep: int = 2  # the last ones, while the job runs
    keep_every_steps: int | None = None  # multiples of it, for good
    keep_steps: Collection[int] = ()  # until they are discarded

    def is_due(self, step: int) -> bool:
        return step % self.every_steps == 0 or self.stays(step)

    def stays(self, step: int) -> bool:
        """Whether the checkpoint of that step outlives the last ones."""
        return step in self.keep_steps or (self.keep_every_steps is not None and step % self.keep_every_steps == 0)


def checkpoint_path(final: UPath, step: int) -> UPath:
    """Where a series keeps the checkpoint of that step."""
    return final.parent / FOLDER / f"{final.stem}-step-{step:06d}.safetensors"


class CheckpointSeries:
    """Checkpoints `checkpoints/<name>-step-000200.safetensors` beside the file that the job ends with.

    Args:
        final: where the state after the last step goes; its stem is the <name>.
        state: to save and restore; every worker takes part, the first one writes.
        metrics: written with it.
        policy: when, and what stays.
        last_step: where the job ends.
        workers: of the job.
    """

    def __init__(
        self, final: UPath, state: StreamedState, metrics: StepMetrics, policy: Policy, *, last_step: int, workers: Workers = ALONE
    ) -> None:
        self.final, self.state, self.metrics, self.policy, self.last_step, self.workers = final, state, metrics, policy, last_step, workers
        self._copies: dict[str, torch.Tensor] = {}  # kept from one checkpoint to the next: page-locked memory is slow to get
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._writing: Future[None] | None = None
        self._is_final = False  # whether the final state has been found in its place

    def steps(self) -> list[int]:
        """Steps of the checkpoints there are, ascending."""
        folder = self.final.parent / FOLDER
        named = re.compile(rf"{re.escape(self.final.stem)}-step-(\d+)\.safetensors")
        return sorted(int(match[1]) for name in names_in(folder) if (match := named.fullmatch(name)))

    def resume(self) -> bool:
        """Restore the newest state that can be read, and the metrics up to it; says whether there was any.

        Raises:
            ValueError: there are states, but none of them is whole, or they belong to a model of another shape; or the workers have read
                different ones.
        """
        broken: list[str] = []
        tensors, path = self._newest(broken) if self.workers.writes else (None, None)
        if tensors is None and broken:
            raise ValueError(f"{self.metrics.title}: no checkpoint can be read: " + "; ".join(broken))
        path = self.workers.agreed(path)
        if path is None:
            return False
        self.state.restore(read_tensors(path) if tensors is None else tensors, where=str(path))
        _check_step(self.state.step, path, self.metrics.title, self.workers)  # and nobody deletes what another one is reading
        self._is_final = path == self.final and self.state.step == self.last_step
        for reason in broken:
            log.warning("%s: %s. Going on from the one of step %d", self.metrics.title, reason, self.state.step)
        self.metrics.resume(self.state.step)
        log.info("%s: going on after step %d", self.metrics.title, self.state.step)
        return True

    def after_step(self, step: int) -> None:
        """Save when it is time to."""
        if self.policy.is_due(step) and step != self.last_step:
            self._save(checkpoint_path(self.final, step))

    def finish(self) -> None:
        """Write the final state when it is not there, wait for it, and delete checkpoints that only served the way to it."""
        if not self._is_final:
            self._save(self.final)
        self.wait()
        if self.workers.writes:
            self.discard([step for step in self.steps() if not self.policy.stays(step)])
        self.workers.barrier()

    def discard(self, steps: Collection[int]) -> None:
        """Delete the checkpoints of these steps."""
        for step in steps:
            remove(checkpoint_path(self.final, step))

    def wait(self) -> None:
        """Until the checkpoint that is being written is there; raises what its thread raised."""
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.result()

    def close(self) -> None:
        """End the thread, after the checkpoint in work."""
        self._thread.shutdown(wait=True)

    def _newest(self, broken: list[str]) -> tuple[dict[str, torch.Tensor] | None, UPath | None]:
        steps = self.steps()
        ended = _read(self.final, broken)
        at = -1 if ended is None else int(ended.get(NUM_STEPS, -1))
        for step in reversed(steps):
            if step <= at:
                break
            tensors = _read(checkpoint_path(self.final, step), broken)
            if tensors is not None:
                return tensors, checkpoint_path(self.final, step)
        return (None, None) if ended is None else (ended, self.final)

    def _save(self, path: UPath) -> None:
        """Copy state and metrics as of now and write them in the background; waits for the former checkpoint."""
        self.wait()
        self._copy_state()
        if self.workers.writes:
            rows = self.metrics.encoded()
            if self.metrics.curves is not None:
                self.metrics.curves.flush()
            self._writing = self._thread.submit(copy_context().run, self._write, path, rows)  # the fence goes along (lake.checked_by)

    def _copy_state(self) -> None:
        on_gpu = False
        for name, tensor in self.state.each_tensor():
            if not self.workers.writes:
                continue  # has given its part
            copy = self._copies.get(name)
            if copy is None:
                copy = self._copies[name] = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.is_cuda)
            copy.copy_(tensor, non_blocking=True)
            on_gpu |= tensor.is_cuda
        if on_gpu:
            torch.cuda.synchronize()

    def _write(self, path: UPath, rows: bytes) -> None:
        write_bytes(self.metrics.path, rows)
        write_tensors(path, self._copies)
        others = [step for step in self.steps() if not self.policy.stays(step)]
        self.discard(others[: -self.policy.keep])


def _read(path: UPath, broken: list[str]) -> dict[str, torch.Tensor] | None:
    try:
        return read_tensors(path)
    except FileNotFoundError:  # not there; or deleted, and still in a listing
        return None
    except ValueError as error:
        broken.append(str(error))
        return None


def _check_step(step: int, path: UPath, title: str, workers: Workers) -> None:
    """Return when all workers have restored the same step; waits for them.

    Raises:
        ValueError: this one has another step than the first one.
    """
    agreed = workers.agreed(step)
    workers.barrier()
    if step != agreed:
        raise ValueError(
            f"{title}: {path} was of step {agreed} when the first worker read it and of step {step} for worker {workers.rank}: another job "
            "writes there. Stop one of the two and run the same command again"
        )
