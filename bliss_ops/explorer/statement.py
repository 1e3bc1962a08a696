"""One statement in a process of its own: `python -m bliss_ops.explorer.statement`, a JSON request on stdin, the answer as a file.

Everything a statement could do to the server is bounded here: DuckDB's own limits on memory, threads and spilled bytes, and the kernel's on
address space, file size and processor seconds, should DuckDB's not hold. Who started it ends it when its time is over.
"""

import csv
import json
import math
import resource
import sys
import time
from pathlib import Path
from typing import Any

ADDRESS_SPACE = 3 << 30
FILE_BYTES = 1 << 30  # of one file; DuckDB counts what is spilled to all of them together
MOST_CSV_BYTES = 64 << 20
NUMBERS = ("TINYINT", "SMALLINT", "INTEGER", "BIGINT", "HUGEINT", "UTINYINT", "USMALLINT", "UINTEGER", "UBIGINT", "UHUGEINT")


def main() -> None:
    """Answer the request on stdin with `answer.json`, and `answer.csv` where that was asked for, in its directory."""
    request: dict[str, Any] = json.load(sys.stdin)
    _limit(request)
    directory = Path(request["directory"])
    try:
        fields = answer(request, directory)
    except MemoryError:
        fields = {"error": f"The statement needs more than its {request['memory']} of memory."}
    (directory / "answer.json").write_text(json.dumps(fields, allow_nan=False), encoding="utf-8")


def answer(request: dict[str, Any], directory: Path) -> dict[str, Any]:
    """The rows of a statement, or its error, as `answer.json` has them."""
    import duckdb

    from bliss_ops.sql import check_reads, connect_read_only

    begun = time.perf_counter()
    try:
        con = connect_read_only(
            Path(request["file"]),
            str(directory / "spill"),
            memory_limit=request["memory"],
            threads=request["threads"],
            max_temp_directory_size=request["spill"],
        )
        check_reads(con, request["statement"])
        relation = con.sql(request["statement"])
        assert relation is not None  # a reading statement has a result
        most = request["rows"]
        names, types = relation.columns, [str(kind) for kind in relation.types]
        limited = relation.limit(most + 1)  # a result of millions of rows is never made
        if request["csv"]:
            return {"is_cut": _write_csv(limited, names, directory / "answer.csv", most)}
        found = limited.fetchall()
    except duckdb.OutOfMemoryException as error:
        return {
            "error": f"The statement needs more than its {request['memory']} of memory and {request['spill']} of disk.\n{_first(error)}"
        }
    except (duckdb.Error, ValueError) as error:
        return {"error": str(error)}
    return {
        "columns": [
            {"name": name, "type": kind, "is_number": kind.startswith((*NUMBERS, "DECIMAL", "FLOAT", "DOUBLE"))}
            for name, kind in zip(names, types, strict=True)
        ],
        "rows": [[_cell(value, request["characters"]) for value in line] for line in found[:most]],
        "is_cut": len(found) > most,
        "seconds": round(time.perf_counter() - begun, 3),
    }


def _write_csv(relation: Any, names: list[str], path: Path, most: int) -> bool:
    """Write at most `most` rows; returns whether there were more."""
    num_rows = 0
    with path.open("w", encoding="utf-8", errors="backslashreplace", newline="") as file:
        lines = csv.writer(file, lineterminator="\n")
        lines.writerow(names)
        for batch in relation.to_arrow_reader(1000):
            found = list(zip(*(column.to_pylist() for column in batch.columns), strict=True))
            lines.writerows(found[: most - num_rows])
            num_rows += len(found)
            if num_rows > most or file.tell() > MOST_CSV_BYTES:
                return True
    return False


def _cell(value: object, most_characters: int) -> str | None:
    """A value as text; a long one is cut."""
    if value is None:
        return None
    if isinstance(value, float):
        return f"{value:.9g}" if math.isfinite(value) else str(value)
    if isinstance(value, str):  # cut first: a cell may be hundreds of megabytes
        text = value[: most_characters + 1]
    else:
        text = str(value)
    text = text if len(text) <= most_characters else text[:most_characters] + "…"
    return text.encode("utf-8", "backslashreplace").decode()


def _limit(request: dict[str, Any]) -> None:
    seconds = math.ceil(request["seconds"]) * request["threads"] + 5
    limits = {
        resource.RLIMIT_AS: ADDRESS_SPACE,
        resource.RLIMIT_FSIZE: FILE_BYTES,
        resource.RLIMIT_CPU: seconds,
        resource.RLIMIT_CORE: 0,
    }
    for kind, most in limits.items():
        _, hard = resource.getrlimit(kind)
        resource.setrlimit(kind, (most if hard == resource.RLIM_INFINITY else min(most, hard), hard))


def _first(error: Exception) -> str:
    return str(error).splitlines()[0]


if __name__ == "__main__":
    main()
