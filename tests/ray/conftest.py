"""One real Ray head for all tests of this folder, started the way `bliss up` starts it, with a stub `bliss` command."""

import os
import secrets
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]

STUB = """#!/bin/sh
case "$1" in
  greet) echo "hello from $2"; echo "lake $BLISS_LAKE";;
  slow) echo "slow began" >> "$2"; echo started; sleep 3; echo "slow ended" >> "$2"; echo ended;;
  hang) echo hanging; exec sleep 600;;
  fail) echo first line; echo "bliss fail: no such corpus" >&2; exit 1;;
esac
"""


@pytest.fixture(scope="session")
def ray_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Address of the Jobs API; the token is in the environment, as in Airflow's."""
    if find_spec("ray") is None:
        pytest.skip("Ray is not installed")
    from bliss_ops.ray.jobs import RayJobs, patiently
    from bliss_ops.stack import processes, services

    state_dir = tmp_path_factory.mktemp("ray")
    scripts = state_dir / "bin"
    scripts.mkdir()
    (scripts / "bliss").write_text(STUB)
    (scripts / "bliss").chmod(0o755)
    temporary = Path(tempfile.mkdtemp(prefix="bliss-ray-"))
    layout = services.Layout(
        state_dir, "/lake", secrets.token_hex(8), temporary, {name: services.free_port() for name in services.DEFAULT_PORTS}
    )
    layout.ray_token.write_text(secrets.token_hex(32))
    head = services.ray_environment(layout)
    importable = os.pathsep.join([str(REPOSITORY), *filter(None, [os.environ.get("PYTHONPATH")])])
    head |= {"PATH": f"{scripts}{os.pathsep}{head['PATH']}", "PYTHONPATH": importable}
    here = {name: value for name, value in head.items() if name.startswith("RAY_")}
    here |= {"TEST_RAY_ADDRESS": f"{services.HOST}:{layout.ports['ray']}"}
    assert "ray" not in sys.modules, "Ray keeps the settings it finds when it is first imported: another test has imported it too early"
    before = dict(os.environ)
    os.environ.update(here)
    service = processes.start(
        "ray", [*services.ray_command(layout), "--num-cpus=2"], env=head, log_file=state_dir / "ray.log", cwd=state_dir
    )
    try:
        deadline = time.monotonic() + 60
        while True:
            try:
                RayJobs(layout.ray_url).status("nothing")
                break
            except ConnectionError:
                assert time.monotonic() < deadline, (state_dir / "ray.log").read_text()
                assert processes.is_running(service), (state_dir / "ray.log").read_text()
                time.sleep(0.5)
        patiently(lambda: RayJobs(layout.ray_url).submit("first", ["true"]), 60)  # its job agent comes later than the head itself
        yield layout.ray_url
    finally:
        import ray

        ray.shutdown()
        processes.end([service], layout.marker)
        assert processes.living([service], layout.marker) == []
        shutil.rmtree(temporary)
        os.environ.clear()
        os.environ.update(before)


@pytest.fixture
def inside_ray(ray_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """RAY_ADDRESS, as a Ray job finds it (not for Jobs API clients: they would prefer it to the address they are given)."""
    monkeypatch.setenv("RAY_ADDRESS", os.environ["TEST_RAY_ADDRESS"])
