"""What a deployment must be told before it starts: secrets that nobody can guess. `docker-compose.yml` runs `check` before everything else.

    python bliss_ops/stack/deployment.py fill .env      # writes the secrets that .env.example leaves empty
    python -m bliss_ops.stack.deployment check          # in a container: refuses, and says what to do

Two more of its one-time jobs are here, `make-bucket` and `users`. Only the standard library is imported before they are asked for, so
that `fill` runs from a fresh clone.
"""

import base64
import binascii
import ipaddress
import json
import logging
import os
import re
import secrets
import sys
import time
from collections.abc import Mapping
from pathlib import Path

log = logging.getLogger(__name__)

STORE_SECONDS = 120.0  # how long an object store may take to come up
MIN_CHARACTERS = 16
MIN_PUBLIC_CHARACTERS = 32  # where anyone on the network may guess
MIN_DISTINCT_CHARACTERS = 6
FERNET_BYTES = 32

SECRETS = {
    "POSTGRES_PASSWORD": "Airflow's database",
    "AIRFLOW_ADMIN_PASSWORD": "Airflow's user admin",
    "AIRFLOW_SECRET_KEY": "signs browser sessions",
    "AIRFLOW_JWT_SECRET": "signs the tokens that Airflow's parts talk with",
    "AIRFLOW_FERNET_KEY": "encrypts connections in the database",
    "RAY_AUTH_TOKEN": "Ray runs whatever is sent with it",
    "S3_SECRET_KEY": "the object store that holds the lake",
}
WHERE_USED = {"GRAFANA_PASSWORD": "Grafana's user admin"}  # only docker/monitoring.yml hands it over to be checked
TYPED = frozenset({"AIRFLOW_ADMIN_PASSWORD", "GRAFANA_PASSWORD"})  # by people: need not be longer on a public address
IN_ADDRESSES = frozenset({"POSTGRES_PASSWORD"})  # stand in a URL, where other characters would mean something
EXAMPLES = ("admin", "airflow", "bliss", "change", "default", "example", "fixme", "minio", "password", "postgres", "secret", "test", "todo")
REMEDY = "Empty those lines, then run `python3 bliss_ops/stack/deployment.py fill .env`: it writes a secret where there is none."


def problems(environment: Mapping[str, str]) -> list[str]:
    """Every reason not to start, each with what to do; empty when there is none. No value is ever shown.

    Args:
        environment: the variables of `.env`; a secret of `WHERE_USED` is asked for where its name is among them.
    """
    wanted = SECRETS | {name: purpose for name, purpose in WHERE_USED.items() if name in environment}
    is_public = not _is_loopback(environment.get("BIND_ADDRESS", ""))
    found = []
    for name, purpose in wanted.items():
        if reason := _weakness(name, environment.get(name, ""), is_public=is_public):
            found.append(f"{name} ({purpose}) {reason}")
    values = [environment[name] for name in wanted if environment.get(name)]
    shared = sorted(name for name in wanted if environment.get(name) and values.count(environment[name]) > 1)
    if shared:
        found.append(f"{', '.join(shared)} have the same value: each needs its own")
    if not environment.get("S3_ACCESS_KEY"):
        found.append("S3_ACCESS_KEY (the object store's user) is empty")
    return found


def fill(text: str) -> str:
    """The lines of an `.env` file with a new secret wherever one is empty."""
    lines = []
    for line in text.splitlines():
        name, separator, value = line.partition("=")
        is_empty = separator and not value.strip()
        lines.append(f"{name}={_new(name)}" if is_empty and name in {*SECRETS, *WHERE_USED, "S3_ACCESS_KEY"} else line)
    return "\n".join(lines) + "\n"


def _weakness(name: str, value: str, *, is_public: bool) -> str:
    """Why this secret will not do; empty when it will."""
    least = MIN_PUBLIC_CHARACTERS if is_public and name not in TYPED else MIN_CHARACTERS
    if not value:
        return "is empty"
    if len(value) < least:
        where = " where BIND_ADDRESS is not the loopback address" if is_public else ""
        return f"has {len(value)} characters: at least {least}{where}"
    if any(word in value.lower() for word in EXAMPLES if len(value) < len(word) + MIN_CHARACTERS) or _is_repetitive(value):
        return "is an example, or easily guessed: take a random one"
    if name in IN_ADDRESSES and not re.fullmatch(r"[A-Za-z0-9_.~-]+", value):
        return "stands in an address: only letters, digits and _ . ~ -"
    if name == "AIRFLOW_FERNET_KEY" and not _is_fernet_key(value):
        return f"must be {FERNET_BYTES} random bytes in URL-safe base64"
    return ""


def _is_repetitive(value: str) -> bool:
    return len(set(value)) < MIN_DISTINCT_CHARACTERS


def _is_fernet_key(value: str) -> bool:
    try:
        return len(base64.urlsafe_b64decode(value)) == FERNET_BYTES
    except (binascii.Error, ValueError):
        return False


def _is_loopback(address: str) -> bool:
    """Whether nobody else can reach what is published there; the default, an empty address, is 127.0.0.1."""
    try:
        return not address or ipaddress.ip_address(address.strip("[]")).is_loopback
    except ValueError:
        return address == "localhost"


def _new(name: str) -> str:
    if name == "S3_ACCESS_KEY":
        return f"lake-{secrets.token_hex(4)}"
    if name == "AIRFLOW_FERNET_KEY":
        return base64.urlsafe_b64encode(secrets.token_bytes(FERNET_BYTES)).decode()
    return secrets.token_hex(32)


def make_bucket(name: str) -> None:
    """Create the lake's bucket where it is not there; a store that does not answer yet is waited for.

    Raises:
        ValueError: it did not answer in time, or refuses; the message says which.
    """
    import s3fs
    from botocore.exceptions import BotoCoreError  # type: ignore[import-untyped]

    files = s3fs.S3FileSystem()
    deadline = time.monotonic() + STORE_SECONDS
    while True:
        try:
            if not files.exists(name):
                files.mkdir(name)
            return
        except PermissionError as error:
            raise ValueError(
                f"the object store refuses to make the bucket {name!r}: are S3_ACCESS_KEY and S3_SECRET_KEY its own?"
            ) from error
        except (BotoCoreError, OSError) as error:  # OSError: what s3fs makes of an answer that is an error
            if time.monotonic() > deadline:
                raise ValueError(f"no object store answers at {os.environ.get('AWS_ENDPOINT_URL')} after {STORE_SECONDS:.0f} s") from error
            log.warning("%s: trying again", error)
            time.sleep(2.0)


def main(arguments: list[str]) -> int:
    """The command line; 0 when all is well."""
    match arguments:
        case ["check"]:
            if found := problems(os.environ):
                listing = "\n".join(f"  {problem}" for problem in found)
                sys.stderr.write(f"nothing is started: .env is not ready.\n{listing}\n{REMEDY}\n")
                return 1
        case ["fill", name]:
            path = Path(name)
            example = Path(__file__).resolve().parents[2] / ".env.example"
            text = fill((path if path.exists() else example).read_text())
            path.touch()
            path.chmod(0o600)
            path.write_text(text)
        case ["make-bucket", name]:
            make_bucket(name)
        case ["users"]:  # the file that Airflow's simple auth manager reads
            sys.stdout.write(json.dumps({"admin": os.environ["AIRFLOW_ADMIN_PASSWORD"]}) + "\n")
        case _:
            sys.stderr.write("usage: deployment.py check | fill FILE | make-bucket NAME | users\n")
            return 2
    return 0


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO)
    sys.exit(main(sys.argv[1:]))
