"""Named questions to the score store: one `.sql` file each, which opens with the question and its parameters.

    -- Which domains are most helpful?
    -- parameter score_run (score run) = newest: whose scores
    -- parameter limit (integer) = 20: rows at most

Parameters are bound by DuckDB as `$name`, never pasted into the text. One of the kind `score run` is the id of a score run, or `newest`
(the newest by a method that reads the text), or `previous` (the next newest of the same sequences). Without `=` it must be given.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

KINDS = {"score run": str, "text": str, "integer": int, "number": float}
_PARAMETER = re.compile(r"-- parameter (?P<name>[a-z_]+) \((?P<kind>[a-z ]+)\)( = (?P<default>[^:]*))?: (?P<description>.+)")
_COMMENT = "-- "

NEWEST = """
select score_run_id from ordered_score_runs
order by kind = 'imported', method = 'random', known_at desc, round desc, score_run_id desc limit 1
"""
PREVIOUS = """
select o.score_run_id from ordered_score_runs o join score_runs r on r.sequence_set = o.sequence_set
where r.score_run_id = $newer and o.score_run_id <> $newer
order by o.kind = 'imported', o.method = 'random', o.known_at desc, o.round desc, o.score_run_id desc limit 1
"""
SCORE_RUN_IDS = "select score_run_id from score_runs order by score_run_id"


@dataclass(frozen=True)
class Parameter:
    """One parameter of a query."""

    name: str
    kind: str
    default: str | None  # None: must be given
    description: str

    def parse(self, text: str) -> Any:
        """The value of `text`.

        Raises:
            ValueError: it is no value of this kind.
        """
        try:
            return KINDS[self.kind](text)
        except ValueError:
            raise ValueError(f"--param {self.name}={text}: that is no {self.kind}") from None


@dataclass(frozen=True)
class Query:
    """One named question."""

    name: str
    question: str
    parameters: tuple[Parameter, ...]
    sql: str

    @property
    def usage(self) -> str:
        """Its parameters in words, a line each."""
        lines = []
        for one in self.parameters:
            default = "must be given" if one.default is None else f"default {one.default or 'empty'}"
            lines.append(f"  {one.name} ({one.kind}, {default}): {one.description}")
        return "\n".join(lines) or "  (no parameters)"

    def bind(self, con: "DuckDBPyConnection", given: Mapping[str, str]) -> dict[str, Any]:
        """The values of all parameters, those of `given` and the defaults.

        Raises:
            ValueError: a parameter does not exist, is missing or is no value of its kind, or a score run is not in the store.
        """
        names = [one.name for one in self.parameters]
        for name in given:
            if name not in names:
                raise ValueError(f"query {self.name!r} has no parameter {name!r}; it has:\n{self.usage}")
        values: dict[str, Any] = {}
        for one in self.parameters:
            text = given.get(one.name, one.default)
            if text is None:
                raise ValueError(f"query {self.name!r} needs --param {one.name}=...:\n{self.usage}")
            values[one.name] = _score_run(con, one, text, values) if one.kind == "score run" else one.parse(text)
        return values


@cache
def names() -> list[str]:
    """Names of all queries, sorted."""
    return sorted(file.name.removesuffix(".sql") for file in resources.files(__name__).iterdir() if file.name.endswith(".sql"))


@cache
def load(name: str) -> Query:
    """The query of that name.

    Raises:
        ValueError: there is none; the message names all.
    """
    if name not in names():
        raise ValueError(f"there is no query {name!r}: use one of {', '.join(names())} (`bliss sql --list` says what they answer)")
    return parse(name, (resources.files(__name__) / f"{name}.sql").read_text(encoding="utf-8"))


def parse(name: str, text: str) -> Query:
    """A query from the text of its file."""
    lines = text.splitlines()
    header = [line for line in lines if line.startswith(_COMMENT)]
    assert lines[: len(header)] == header, f"{name}.sql opens with its comments and has no others"
    question = " ".join(line.removeprefix(_COMMENT) for line in header if not line.startswith("-- parameter "))
    parameters = []
    for line in header:
        if line.startswith("-- parameter "):
            match = _PARAMETER.fullmatch(line)
            assert match is not None, f"{name}.sql: {line}"
            assert match["kind"] in KINDS, f"{name}.sql: {line}"
            parameters.append(Parameter(match["name"], match["kind"], match["default"], match["description"]))
    return Query(name, question, tuple(parameters), "\n".join(lines[len(header) :]).strip() + "\n")


def _score_run(con: "DuckDBPyConnection", parameter: Parameter, text: str, earlier: Mapping[str, Any]) -> str:
    """The id of a score run of the store."""
    ids = [row[0] for row in con.execute(SCORE_RUN_IDS).fetchall()]
    if text == "previous":
        newer = next((value for value in earlier.values() if value in ids), None)
        assert newer is not None, "`previous` comes after the score run it is relative to"
        found = con.execute(PREVIOUS, {"newer": newer}).fetchall()
        if not found:
            raise ValueError(f"there is no other score run of the sequences of {newer!r}: name one with --param {parameter.name}=...")
        return str(found[0][0])
    if text == "newest" and ids:
        return str(con.execute(NEWEST).fetchall()[0][0])
    if text not in ids:
        raise ValueError(f"--param {parameter.name}={text}: the store has no such score run; it has {_some(ids)}")
    return text


def _some(ids: list[str], most: int = 20) -> str:
    if len(ids) <= most:
        return ", ".join(ids) or "none yet: `bliss run` makes some"
    return f"{', '.join(ids[:most])} and {len(ids) - most} more (`bliss sql --query score-runs` lists them)"
