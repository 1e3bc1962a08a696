"""What no file of the product may do, for good: looked for in its syntax trees, not in its text."""
# ruff: noqa: E501, SIM102 - tables

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import bliss_ops

PACKAGE = Path(bliss_ops.__file__).parent
FILES = sorted([*PACKAGE.rglob("*.py"), *(PACKAGE.parent / "dags").glob("*.py")])

NEVER_CALLED = {
    "eval": "runs text", "exec": "runs text", "compile": "runs text", "__import__": "runs text", "os.system": "runs a shell", "os.popen": "runs a shell",
    "subprocess.getoutput": "runs a shell", "subprocess.getstatusoutput": "runs a shell", "asyncio.create_subprocess_shell": "runs a shell",
    "torch.load": "unpickles", "torch.save": "pickles", "np.fromstring": "guesses", "yaml.load": "makes objects", "yaml.unsafe_load": "makes objects",
    "marshal.load": "runs code", "marshal.loads": "runs code", "tempfile.mktemp": "races", "tarfile.open": "unpacks without a bound",
    "zipfile.ZipFile": "unpacks without a bound", "shutil.unpack_archive": "unpacks without a bound", "lzma.open": "unpacks without a bound",
    "bz2.open": "unpacks without a bound",
}  # fmt: skip
NEVER_IMPORTED = {"pickle", "cPickle", "cloudpickle", "dill", "joblib", "shelve", "marshal", "yaml"}
NEVER_PASSED = {"shell": True, "trust_remote_code": True, "allow_pickle": True, "weights_only": False, "verify": False}
# SQL is one statement per constant; these insert names from a line of their own, or a text through names.quoted_text.
SQL_BY_FORMAT = {"store/summaries.py", "store/working.py", "sql.py"}
EXECUTES = {"execute", "executemany", "sql", "query"}


def name_of(node: ast.expr) -> str:
    """`np.load` of the expression that is called."""
    if isinstance(node, ast.Attribute):
        return f"{name_of(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def is_made_of_pieces(node: ast.expr) -> bool:
    """Whether a text has a part that is no constant of its module."""
    if isinstance(node, ast.BinOp):
        return is_made_of_pieces(node.left) or is_made_of_pieces(node.right)
    return isinstance(node, ast.JoinedStr) or (isinstance(node, ast.Name) and not node.id.isupper())


def findings(tree: ast.AST, path: str) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
            yield from (f"{path}:{node.lineno} imports {name}" for name in names if name.split(".")[0] in NEVER_IMPORTED)
        elif isinstance(node, ast.Call):
            called = name_of(node.func)
            if called in NEVER_CALLED:
                yield f"{path}:{node.lineno} calls {called}, which {NEVER_CALLED[called]}"
            for keyword in node.keywords:
                if (
                    keyword.arg in NEVER_PASSED
                    and isinstance(keyword.value, ast.Constant)
                    and keyword.value.value is NEVER_PASSED[keyword.arg]
                ):
                    yield f"{path}:{node.lineno} passes {keyword.arg}={keyword.value.value}"
            is_sql = called.rpartition(".")[2] in EXECUTES and path not in SQL_BY_FORMAT
            if is_sql and node.args and not isinstance(node.args[0], ast.Name) and is_made_of_pieces(node.args[0]):
                yield f"{path}:{node.lineno} makes SQL from pieces: bind it as $name, or use names.quoted_text"
            if called in ("subprocess.run", "subprocess.Popen", "subprocess.check_output", "subprocess.call") and node.args:
                if isinstance(node.args[0], ast.JoinedStr | ast.Constant):
                    yield f"{path}:{node.lineno} starts a process from a string: give a list"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE.parent)))
def test_no_file_does_it(path: Path) -> None:
    inside = str(path.relative_to(PACKAGE)) if path.is_relative_to(PACKAGE) else path.name
    assert not list(findings(ast.parse(path.read_text(encoding="utf-8")), inside))


@pytest.mark.parametrize(
    "code",
    ["eval('1')", "import pickle", "from pickle import loads", "torch.load('x')", "subprocess.run(f'rm {x}')", "subprocess.run('id')", "f(shell=True)",
     "np.load('x', allow_pickle=True)", "con.execute(f'select {x}')", "con.sql('select ' + x)", "import yaml", "f(trust_remote_code=True)", "os.system(x)"],
)  # fmt: skip
def test_the_search_finds_it(code: str) -> None:
    assert list(findings(ast.parse(code), "x.py"))


@pytest.mark.parametrize("path", [path for path in FILES if path.name != "names.py"], ids=lambda path: path.name)
def test_names_are_checked_in_one_place(path: Path) -> None:
    """No pattern of a name or of an address's scheme is written outside of names.py."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    patterns = [node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)]
    assert not [text for text in patterns if "[a-z0-9][a-z0-9" in text or "://[^/]" in text or text.endswith("+.-]*):")]
