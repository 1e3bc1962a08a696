"""Where a training or scoring process computes, and with how many threads: set in one place so that results repeat."""

import contextlib
import ctypes

import torch

from bliss_ops.config import ComputeConfig

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of malloc.h; 32 MB is the largest threshold that is taken


def choose_device(config: ComputeConfig, *, num_threads: int | None = None) -> torch.device:
    """The device of this process; also pins the CPU threads, which float sums depend on.

    Raises:
        ValueError: a GPU is asked for and there is none.
    """
    torch.set_num_threads(num_threads or config.num_threads)
    if config.device == "cuda" and not torch.cuda.is_available():
        raise ValueError("compute.device is 'cuda' but no GPU is visible here: set compute.device to 'auto' or 'cpu'")
    if config.device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(config.device)


def keep_freed_memory() -> None:
    """Let the C library keep up to 1 GB of freed memory instead of giving it back to the system, where it can be told so (glibc).

    On a CPU, torch asks for every activation anew. Without this, each token of a forward pass of tiny-neox-64 touches a page that the
    system has to clear first: 140k instead of 194k tokens/s.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        for option, value in ((_M_MMAP_THRESHOLD, 32 << 20), (_M_TRIM_THRESHOLD, 1 << 30)):
            mallopt(option, value)


def autocast(device: torch.device) -> contextlib.AbstractContextManager[object]:
    """bfloat16 matrix products over float32 weights on a GPU; plain float32 on a CPU."""
    if device.type == "cuda":
        return torch.autocast("cuda", dtype=torch.bfloat16)
    return contextlib.nullcontext()


def compiled(model: torch.nn.Module, config: ComputeConfig) -> None:
    """torch.compile in place where it is asked for; names of parameters and so of checkpoints stay as they are."""
    if config.compile:
        getattr(model, "base_model", model).compile(dynamic=False)
