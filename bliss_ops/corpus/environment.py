"""What is installed in this Python environment, by the records that installers leave: packages, their files, their descriptions.

The records list every file with its size, so nothing is searched for; files outside site-packages and this project's own
package are left out.
"""

import csv
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import Distribution, distributions

_OWN_PACKAGE = "bliss-ops"
_MAX_FILE_BYTES = 1_000_000  # larger files are generated


@dataclass(frozen=True, slots=True)
class PackageFile:
    """One installed file; `path` is relative to site-packages, `location` is where it is here."""

    package: str
    path: str
    location: str

    @property
    def is_metadata(self) -> bool:
        return ".dist-info/" in self.path or ".egg-info/" in self.path


@dataclass(frozen=True, slots=True)
class Package:
    """One installed distribution."""

    name: str
    description: str
    files: tuple[PackageFile, ...]

    @property
    def family(self) -> str:
        """The first word of the name: distributions of one family repeat each other's texts."""
        return self.name.split("-", 1)[0]


def installed_packages() -> list[Package]:
    """The packages of this environment, sorted by name."""
    roots = sorted({sysconfig.get_paths()[scheme] for scheme in ("purelib", "platlib")})
    found = {package.name: package for root in roots for package in _packages(root)}
    return [found[name] for name in sorted(found)]


def _packages(root: str) -> Iterator[Package]:
    for distribution in distributions(path=[root]):
        name = (distribution.metadata["Name"] or "").lower().replace("_", "-").replace(".", "-")
        if name and name != _OWN_PACKAGE:
            yield Package(name, _description(distribution), tuple(_files(distribution, name, root)))


def _description(distribution: Distribution) -> str:
    """The long description: what follows the header of METADATA."""
    text = distribution.read_text("METADATA") or ""
    return text.replace("\r\n", "\n").partition("\n\n")[2].strip()


def _files(distribution: Distribution, name: str, root: str) -> Iterator[PackageFile]:
    for row in csv.reader((distribution.read_text("RECORD") or "").splitlines()):
        path, size = row[0], row[2] if len(row) > 2 else ""
        if not path.startswith(("/", "..")) and size.isdigit() and 0 < int(size) <= _MAX_FILE_BYTES:
            yield PackageFile(name, path, f"{root}/{path}")
