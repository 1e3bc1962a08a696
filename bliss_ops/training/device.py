"""Where a training or scoring process computes, and with how many threads: set in one place so that results repeat."""

import contextlib

import torch

from bliss_ops.config import ComputeConfig


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


def autocast(device: torch.device) -> contextlib.AbstractContextManager[object]:
    """bfloat16 matrix products over float32 weights on a GPU; plain float32 on a CPU."""
    if device.type == "cuda":
        return torch.autocast("cuda", dtype=torch.bfloat16)
    return contextlib.nullcontext()


def compiled(model: torch.nn.Module, config: ComputeConfig) -> None:
    """torch.compile in place where it is asked for; names of parameters and so of checkpoints stay as they are."""
    if config.compile:
        getattr(model, "base_model", model).compile(dynamic=False)
