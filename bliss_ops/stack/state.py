"""What is up, written down: `stack.json` in the stack's directory, which `bliss down` and the supervisor go by.

`bliss up` writes it until the supervisor runs, the supervisor alone from then on, `bliss down` removes it.
"""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

from bliss_ops.stack import processes, services
from bliss_ops.stack.airflow_api import AirflowApi
from bliss_ops.stack.processes import Service
from bliss_ops.stack.services import Layout


@dataclass
class State:
    """Content of `stack.json`."""

    layout: Layout
    services: list[Service] = field(default_factory=list)

    def save(self) -> None:
        layout = asdict(self.layout) | {"state_dir": str(self.layout.state_dir), "ray_temp": str(self.layout.ray_temp)}
        text = json.dumps({"layout": layout, "services": [asdict(service) for service in self.services]}, indent=2)
        path = state_file(self.layout.state_dir)
        temporary = path.with_suffix(".tmp")
        temporary.write_text(text)
        temporary.replace(path)

    def find(self, name: str) -> Service | None:
        """The server of that name, as it was last started."""
        return next((service for service in self.services if service.name == name), None)

    def put(self, service: Service) -> None:
        """Write down a server that has just been started, in the place of the one it replaces."""
        names = [other.name for other in self.services]
        if service.name in names:
            self.services[names.index(service.name)] = service
        else:
            self.services.append(service)
        self.save()

    @property
    def api(self) -> AirflowApi:
        """Airflow, logged in as the user it generated a password for."""
        return AirflowApi(self.layout.airflow_url, services.USER, password(self.layout))


def read_state(state_dir: Path) -> State | None:
    """The recorded state, or None.

    Raises:
        ValueError: the state file is damaged.
    """
    path = state_file(state_dir)
    try:
        values = json.loads(path.read_text())
        layout = values["layout"]
        layout |= {"state_dir": Path(layout["state_dir"]), "ray_temp": Path(layout["ray_temp"])}
        return State(Layout(**layout), [Service(**service) for service in values["services"]])
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path} is damaged ({error}): end the processes with {processes.MARKER} in their environment, then delete it"
        ) from error


def password(layout: Layout) -> str:
    """The password Airflow generated, whose file only its owner may read."""
    layout.passwords.chmod(0o600)
    return str(json.loads(layout.passwords.read_text())[services.USER])


def state_file(state_dir: Path) -> Path:
    return state_dir / "stack.json"
