"""What `bliss doctor` looks at on this machine: versions, ports, disk, memory, GPU."""

import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

from bliss_ops import __version__
from bliss_ops.lake import Lake, is_local
from bliss_ops.operations.findings import Finding, error, ok, warning

PACKAGE = "bliss-ops"
SHOWN = ("torch", "ray", "apache-airflow", "duckdb", "pyarrow", "transformers", "s3fs")
LEAST_PYTHON = (3, 11)
GB = 1e9
FEW_BYTES, VERY_FEW_BYTES = 10 * GB, 1 * GB  # of free disk
LITTLE_MEMORY, VERY_LITTLE_MEMORY = 3 * GB, 1 * GB  # the embedded stack alone takes about 3 GB
TORCH = (
    "import json, torch; ok = torch.cuda.is_available(); "
    "print(json.dumps([torch.__version__, torch.version.cuda, ok, torch.cuda.device_count() if ok else 0]))"
)
GPU_FIELDS = "name,driver_version,memory.total,memory.free"


def versions(constraints: Path | None) -> Iterator[Finding]:
    """Python, this package, and everything it requires, against its own bounds and the constraints it is tested with."""
    from packaging.requirements import Requirement

    name = "versions"
    if sys.version_info < LEAST_PYTHON:
        yield error(name, f"Python {platform.python_version()}", "Python 3.11 or newer is needed: make PYTHON=python3.11 install")
    found = {package: _version(package) for package in SHOWN}
    listed = ", ".join(f"{package} {known}" for package, known in found.items() if known)
    yield ok(name, f"Python {platform.python_version()}, {PACKAGE} {__version__}, {listed}")
    pins = _pins(constraints)
    for text in requires(PACKAGE) or ():
        requirement = Requirement(text)
        if requirement.marker and not any(
            requirement.marker.evaluate({"extra": extra}) for extra in ("", "train", "evaluate", "ray", "airflow", "explore")
        ):
            continue
        has = _version(requirement.name)
        extra = "" if requirement.marker is None else str(requirement.marker).rpartition("==")[2].strip().strip('"')
        if not has:
            fix = f"pip install -c constraints.txt '{PACKAGE}[{extra}]', where it is needed" if extra else f"pip install {PACKAGE} again"
            yield (warning if extra else error)(name, f"{requirement.name} is not installed", fix)
        elif not requirement.specifier.contains(has, prereleases=True):
            yield error(
                name,
                f"{requirement.name} {has}, but {requirement.specifier} is needed",
                "make install, or pip install -c constraints.txt -e .",
            )
        elif (
            requirement.name in SHOWN and requirement.name in pins and pins[requirement.name] != has.partition("+")[0]
        ):  # 2.13.0+cpu is 2.13.0
            pin = pins[requirement.name]
            yield warning(
                name, f"{requirement.name} {has}, tested with {pin}", f"pip install -c constraints.txt '{requirement.name}=={pin}'"
            )


def ports(state_dir: Path) -> Iterator[Finding]:
    """Those that `bliss up` wants: free, its own, or whose."""
    from bliss_ops.stack.services import DEFAULT_PORTS
    from bliss_ops.stack.state import read_state

    name, state = "ports", read_state(state_dir)
    wanted = state.layout.ports if state else DEFAULT_PORTS
    owners = _listening()
    if state:
        closed = [f"{what} {port}" for what, port in wanted.items() if what in ("airflow", "ray_jobs") and port not in owners]
        if closed:
            fix = f"look at {state.layout.logs}; `bliss down --state {state_dir}`, then `bliss up`"
            yield error(name, f"the stack is up by {state_dir / 'stack.json'}, but nobody listens on {', '.join(closed)}", fix)
        else:
            listed = ", ".join(f"{what} {port}" for what, port in sorted(wanted.items()) if port in owners)
            yield ok(name, f"the stack of {state_dir} listens on {listed}")
        return
    taken = [f"{port} ({what}) by {owners[port]}" for what, port in sorted(wanted.items()) if port in owners]
    if taken:
        yield warning(name, f"in use: {', '.join(taken)}", "nothing: `bliss up` takes other ports and says which; or end that process")
    else:
        yield ok(name, f"free: {', '.join(str(port) for port in sorted(wanted.values()))}")


def disk(lake: str | None, state_dir: Path, run: str | None) -> Iterator[Finding]:
    """Free space where the lake, temporary files and the stack are; against the plan of a run where one is named."""
    name, opened = "disk", Lake.open(lake)
    places = {"temporary files": Path(tempfile.gettempdir())}
    if is_local(opened.root):
        places["lake"] = Path(opened.root.path)
    if state_dir.exists():
        places["stack"] = state_dir
    for what, place in places.items():
        there = next(path for path in (place, *place.absolute().parents) if path.exists())
        usage, inodes = shutil.disk_usage(there), os.statvfs(there)
        text = f"{what} ({place}): {usage.free / GB:,.1f} GB of {usage.total / GB:,.0f} GB free"
        fix = "`bliss gc` lists what may go; or put it on a larger disk" + (" (TMPDIR)" if what == "temporary files" else "")
        if usage.free < VERY_FEW_BYTES:
            yield error(name, text, fix)
        elif usage.free < FEW_BYTES:
            yield warning(name, text, fix)
        else:
            yield ok(name, text)
        if inodes.f_files and inodes.f_favail < 10_000:
            yield warning(
                name, f"{what} ({place}): {inodes.f_favail:,} inodes left", "delete small files, or put it on another file system"
            )
        if not os.access(there, os.W_OK):
            yield error(name, f"{what} ({place}) is not writable for uid {os.getuid()}", f"chown or chmod {there}, or name another place")
    if run is not None:
        yield from _planned(opened, run)


def memory() -> Iterator[Finding]:
    """Free memory, the limit of the container, and shared memory, which Ray's object store is in."""
    import psutil

    name, system = "memory", psutil.virtual_memory()
    limit = _container_limit()
    available = min(system.available, limit or system.available)
    text = f"{available / GB:,.1f} GB available of {min(system.total, limit or system.total) / GB:,.1f} GB" + (
        " (container)" if limit else ""
    )
    fix = "end other processes, or use a larger machine; the embedded stack needs about 3 GB beside the training"
    if available < VERY_LITTLE_MEMORY:
        yield error(name, text, fix)
    elif available < LITTLE_MEMORY:
        yield warning(name, text, fix)
    else:
        yield ok(name, text)
    shared = Path("/dev/shm")  # noqa: S108 - looked at, not written to
    if shared.exists() and (total := shutil.disk_usage(shared).total) < 500e6:
        yield warning(
            name,
            f"shared memory has {total / 1e6:,.0f} MB: Ray spills to disk, slowly",
            "run containers with --shm-size 2g (shm_size in compose)",
        )


def gpu() -> Iterator[Finding]:
    """Driver, whether torch's CUDA goes with it, and free memory."""
    name = "gpu"
    devices, torch = _devices(), _torch()
    if not devices:
        if torch and torch[1] and sys.platform == "linux":
            yield ok(name, f"none here; torch {torch[0]} could use one (CUDA {torch[1]}): training runs on the CPU")
        else:
            yield ok(name, "none here: training runs on the CPU")
        return
    try:
        command = ["nvidia-smi", f"--query-gpu={GPU_FIELDS}", "--format=csv,noheader,nounits"]
        answer = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    except FileNotFoundError:
        yield error(
            name, f"{len(devices)} devices, but no nvidia-smi", "install the NVIDIA driver, or the container toolkit (docker/gpu.yml)"
        )
        return
    if answer.returncode != 0:
        yield error(
            name,
            f"nvidia-smi: {(answer.stdout or answer.stderr).strip()[:200]}",
            "reload or reinstall the driver; a reboot after an update",
        )
        return
    driver = ""
    for line in answer.stdout.strip().splitlines():
        model, driver, total, free = (part.strip() for part in line.split(","))
        text = f"{model}, driver {driver}, {float(free) / 1024:.1f} of {float(total) / 1024:.1f} GiB free"
        if float(free) < 0.5 * float(total):
            yield warning(name, text, "something else uses it: `nvidia-smi` names the processes")
        else:
            yield ok(name, text)
    if torch is None:
        yield warning(name, "torch is not installed here", "pip install 'bliss-ops[train]' where stages run")
    elif not torch[2]:
        built = f"for CUDA {torch[1]}" if torch[1] else "without CUDA"
        fix = (
            "pip install torch from an index whose CUDA the driver supports (nvidia-smi shows the newest)"
            if torch[1]
            else "pip install the CUDA wheel of torch"
        )
        yield error(name, f"torch {torch[0]} is built {built} and sees no GPU (driver {driver})", fix)
    else:
        yield ok(name, f"torch {torch[0]}, CUDA {torch[1]}, sees {torch[3]}")


def _planned(lake: Lake, run: str) -> Iterator[Finding]:
    from bliss_ops import planning
    from bliss_ops.speeds import measured_speeds

    planned, took = planning.against_actual(lake.run(run), measured_speeds(lake, None, without=run))
    left = max((planned.total.num_bytes or 0) - (took.total.num_bytes or 0), 0)
    text = f"run {run}: {(planned.total.num_bytes or 0) / GB:.2f} GB planned, {(took.total.num_bytes or 0) / GB:.2f} GB there"
    if is_local(lake.root) and left > shutil.disk_usage(lake.root.path).free:
        yield error("disk", f"{text}; the rest does not fit", "`bliss gc` lists what may go; or fewer rounds, or a larger disk")
    else:
        yield ok("disk", text)


def _devices() -> list[Path]:
    return sorted(Path("/dev").glob("nvidia[0-9]*"))


def _torch() -> tuple[str, str | None, bool, int] | None:
    """Asked in a process of its own: importing torch takes seconds and may hang on a broken driver."""
    try:
        answer = subprocess.run([sys.executable, "-c", TORCH], capture_output=True, text=True, timeout=60, check=False)
        torch, cuda, is_available, count = json.loads(answer.stdout.strip().splitlines()[-1])
    except (subprocess.TimeoutExpired, IndexError, ValueError):
        return None
    return torch, cuda, is_available, count


def _listening() -> dict[int, str]:
    """Who listens on TCP ports of this machine, as far as this user may see it."""
    import psutil

    found: dict[int, str] = {}
    for connection in psutil.net_connections(kind="tcp"):
        if connection.status == psutil.CONN_LISTEN:
            found[connection.laddr.port] = "another user's process"
            if connection.pid:
                try:
                    found[connection.laddr.port] = f"{psutil.Process(connection.pid).name()} (pid {connection.pid})"
                except psutil.Error:
                    continue
    return found


def _container_limit() -> int | None:
    """The memory that the container may use, where it is told (cgroup v2)."""
    try:
        text = Path("/sys/fs/cgroup/memory.max").read_text().strip()
    except OSError:
        return None
    return int(text) if text.isdecimal() else None


def _pins(constraints: Path | None) -> dict[str, str]:
    if constraints is None or not constraints.exists():
        return {}
    lines = (line.split(";")[0].split("#")[0].strip() for line in constraints.read_text().splitlines())
    return {name.strip(): pin.strip() for name, _, pin in (line.partition("==") for line in lines) if pin}


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""
