"""The embedded corpus: real text that any machine has once the installation is done.

Documentation, docstrings, licences, source code and data tables of the installed Python environment, written as C4-format
shards labelled by kind. Nothing is shipped or downloaded, and nothing is imported: files are read, Python is parsed. The kind is
a ground truth for selection: documentation and docstrings are near the validation prose, code, licences and tables are far.

Files are taken in the order of a hash of their path until a kind has its share of bytes: an unbiased sample, the same every
time in the same environment. Validation prose comes from package families that then give no documentation and no docstrings.
"""

import ast
import gzip
import hashlib
import io
import json
import logging
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from upath import UPath

from bliss_ops.corpus import prose
from bliss_ops.corpus.environment import Package, PackageFile, installed_packages
from bliss_ops.lake import write_bytes

log = logging.getLogger(__name__)

VALIDATION_FILE = "validation.json.gz"

SHARES = {"documentation": 0.30, "docstrings": 0.20, "code": 0.20, "data": 0.20, "licences": 0.10}
SHARDS_PER_KIND = 2

_NEAR_KINDS = ("documentation", "docstrings")  # near the validation prose: kept free of its packages and paragraphs

_MIN_CHARACTERS, _MAX_CHARACTERS = 200, 20_000
_VALIDATION_BYTES = 300_000
_MAX_VALIDATION_FAMILIES = 0.3  # share of the package families held out at most, where packages are few
_PROSE_ENDINGS = (".md", ".rst", ".txt")
_CODE_ENDINGS = (".py", ".pyi", ".pyx", ".c", ".h", ".hpp", ".cpp", ".cu", ".cuh", ".js", ".ts", ".sql", ".sh")
_DATA_ENDINGS = (".csv", ".tsv", ".json", ".yaml", ".yml", ".toml", ".dat", ".tab", ".txt", ".xml")


@dataclass(frozen=True, slots=True)
class Text:
    """One harvested document; its url names kind, package and path, never a place on this machine."""

    url: str
    text: str

    @property
    def num_bytes(self) -> int:
        return len(self.text.encode())


class Seen:
    """What was harvested already: whole texts, and the long paragraphs of the validation set, so that neither comes twice."""

    def __init__(self) -> None:
        self.texts: set[bytes] = set()
        self.held_out_paragraphs: set[bytes] = set()

    def is_new(self, text: str) -> bool:
        key = _hash(text)
        if key in self.texts:
            return False
        self.texts.add(key)
        return True

    def is_held_out(self, text: str) -> bool:
        """Whether more than a tenth of `text` stands in the validation set too (packages of different names share boilerplate)."""
        shared = sum(len(paragraph) for paragraph in prose.long_paragraphs(text) if _hash(paragraph) in self.held_out_paragraphs)
        return 10 * shared > len(text)


def harvest(directory: UPath, megabytes: float, *, shards: bool, validation: bool) -> list[str]:
    """Write `data/<kind>-0000N.json.gz` (first shards of all kinds, then second ones) and `validation.json.gz` below `directory`.

    Returns:
        The files written, in that order.

    Raises:
        ValueError: the environment has no text to harvest.
    """
    packages = installed_packages()
    seen = Seen()
    files: list[str] = []
    held_out: frozenset[str] = frozenset()
    if validation:
        held_out, texts = _validation(packages, seen)
        _require(texts, "validation prose")
        _write(directory / VALIDATION_FILE, texts)
    if shards:
        kept = [package for package in packages if package.family not in held_out]
        candidates = {
            "documentation": _documentation(kept),
            "docstrings": _docstrings(kept),
            "code": _code(packages),
            "data": _data(packages),
            "licences": _licences(packages),
        }
        harvested = {kind: _capped(kind, texts, seen, int(SHARES[kind] * megabytes * 1e6)) for kind, texts in candidates.items()}
        for number in range(SHARDS_PER_KIND):
            for kind, texts in harvested.items():
                _require(texts, kind)
                files.append(f"data/{kind}-{number:05d}.json.gz")
                _write(directory / files[-1], texts[number::SHARDS_PER_KIND])
        log.info("harvested %s", ", ".join(f"{kind} {len(texts)} texts" for kind, texts in harvested.items()))
    return [*files, VALIDATION_FILE] if validation else files


def _validation(packages: list[Package], seen: Seen) -> tuple[frozenset[str], list[Text]]:
    """The held-out package families and their cleaned prose."""
    families = sorted({package.family for package in packages}, key=_order)
    held_out: set[str] = set()
    texts: list[Text] = []
    num_bytes = 0
    for family in families[: max(1, int(_MAX_VALIDATION_FAMILIES * len(families)))]:
        found = _documentation([package for package in packages if package.family == family])
        cleaned = [
            Text(text.url, prose.clean(text.text)) for text in found if "#" not in text.url
        ]  # beginnings: what follows is often a changelog
        good = [text for text in cleaned if len(text.text) >= 2 * _MIN_CHARACTERS and prose.is_prose(text.text) and seen.is_new(text.text)]
        if good:
            held_out.add(family)
            texts += good
            num_bytes += sum(text.num_bytes for text in good)
        if num_bytes >= _VALIDATION_BYTES:
            break
    seen.held_out_paragraphs = {_hash(paragraph) for text in texts for paragraph in prose.long_paragraphs(text.text)}
    # One family's documents come together; by hash, guide and holdout are alike.
    return frozenset(held_out), sorted(texts, key=lambda text: _order(text.url))


def _documentation(packages: list[Package]) -> Iterator[Text]:
    """READMEs, guides and package descriptions."""
    descriptions = {f"{package.name}/METADATA": package for package in packages}
    files = {f"{file.package}/{file.path}": file for package in packages for file in package.files if _is_documentation(file)}
    for address in sorted([*descriptions, *files], key=_order):
        text = descriptions[address].description if address in descriptions else _read(files[address])
        if text and (address in descriptions or prose.is_prose(text)):
            # Whole: prose is what an environment has least of. Other kinds give a file's beginning only, for variety.
            for number, piece in enumerate(_pieces(prose.without_comments(text))):
                yield Text(f"python://documentation/{address}" + (f"#{number + 1}" if number else ""), piece)


def _docstrings(packages: list[Package]) -> Iterator[Text]:
    for file in _ordered(packages, (".py",)):
        source = _read(file)
        for name, docstring in _docstrings_of(source) if source else ():
            yield Text(f"python://docstrings/{file.package}/{file.path}#{name}", docstring)


def _docstrings_of(source: str) -> Iterator[tuple[str, str]]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SyntaxWarning)
            tree = ast.parse(source)
    except (SyntaxError, ValueError, RecursionError):  # packages ship broken files to test themselves with
        return
    waiting: list[ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef] = [tree]
    while waiting:  # not ast.walk, which visits every expression and takes most of the harvest's time
        node = waiting.pop()
        waiting += [child for child in reversed(node.body) if isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)]
        docstring = ast.get_docstring(node)
        if docstring and len(docstring) >= _MIN_CHARACTERS:
            yield getattr(node, "name", ""), docstring


def _code(packages: list[Package]) -> Iterator[Text]:
    for file in _ordered(packages, _CODE_ENDINGS):
        text = _read(file)
        # Generated and minified code has lines without end; a file that is mostly docstring would blur the label.
        if text and text.count("\n") * 200 > len(text) and not prose.is_prose(text):
            yield Text(f"python://code/{file.package}/{file.path}", text)


def _data(packages: list[Package]) -> Iterator[Text]:
    for file in _ordered(packages, _DATA_ENDINGS):
        text = _read(file)
        if text and not file.is_metadata and not prose.is_prose(text):
            yield Text(f"python://data/{file.package}/{file.path}", text)


def _licences(packages: list[Package]) -> Iterator[Text]:
    for file in _ordered(packages, ()):
        if _is_licence(file) and (text := _read(file)):
            yield Text(f"python://licences/{file.package}/{file.path}", text)


def _ordered(packages: list[Package], endings: tuple[str, ...]) -> list[PackageFile]:
    """The packages' files of these endings (all when empty) in the order of the sample; licences are a kind of their own."""
    files = [
        file for package in packages for file in package.files if not endings or (file.path.endswith(endings) and not _is_licence(file))
    ]
    return sorted(files, key=lambda file: _order(f"{file.package}/{file.path}"))


def _is_licence(file: PackageFile) -> bool:
    name = file.path.rsplit("/", 1)[-1].lower()
    is_named = name.startswith(("license", "licence", "copying", "notice")) and not name.endswith((*_CODE_ENDINGS, ".pyc"))
    return is_named or (file.is_metadata and "/licenses/" in file.path)


def _is_documentation(file: PackageFile) -> bool:
    return file.path.endswith(_PROSE_ENDINGS) and not file.is_metadata and not _is_licence(file)


def _capped(kind: str, texts: Iterable[Text], seen: Seen, num_bytes: int) -> list[Text]:
    """The first new texts of usable length until they fill `num_bytes`."""
    chosen: list[Text] = []
    left = num_bytes
    for text in texts:
        cut = Text(text.url, _cut(text.text))
        leaks = kind in _NEAR_KINDS and seen.is_held_out(cut.text)
        if len(cut.text) >= _MIN_CHARACTERS and not leaks and seen.is_new(cut.text):
            chosen.append(cut)
            left -= cut.num_bytes
        if left <= 0:
            break
    return chosen


def _cut(text: str) -> str:
    """At most 20,000 characters, ending with a paragraph where there is one in the last half, else a line."""
    text = text.strip()
    if len(text) <= _MAX_CHARACTERS:
        return text
    text = text[:_MAX_CHARACTERS]
    for boundary in ("\n\n", "\n"):
        end = text.rfind(boundary)
        if end >= _MAX_CHARACTERS // 2:
            return text[:end].rstrip()
    return text


def _pieces(text: str) -> Iterator[str]:
    text = text.strip()
    while text:
        piece = _cut(text)
        yield piece
        text = text[len(piece) :].strip()


def _read(file: PackageFile) -> str | None:
    """Text of a file, or None when it is not text."""
    try:
        content = Path(file.location).read_bytes()
    except OSError:  # listed, but removed since or not readable: a sample does without
        return None
    if b"\0" in content:
        return None
    try:
        return content.decode()
    except UnicodeDecodeError:
        return None


def _write(path: UPath, texts: list[Text]) -> None:
    buffer = io.BytesIO()
    with gzip.GzipFile(filename="", fileobj=buffer, mode="wb", mtime=0) as file:
        for text in texts:
            file.write(json.dumps({"text": text.text, "url": text.url, "timestamp": None}, ensure_ascii=False).encode() + b"\n")
    write_bytes(path, buffer.getvalue())


def _require(texts: list[Text], kind: str) -> None:
    if not texts:
        raise ValueError(
            f"the installed Python environment has no {kind} to harvest: install the package with its dependencies, or set ingest.source"
        )


def _hash(text: str) -> bytes:
    return hashlib.sha256(text.encode(errors="replace")).digest()


def _order(address: str) -> bytes:
    return hashlib.sha256(address.encode()).digest()
