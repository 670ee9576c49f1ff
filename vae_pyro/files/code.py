"""A digest of the code that computes results: without comments, docstrings and messages."""

import ast
import functools
import hashlib
import re
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from vae_pyro.errors import StorageError
from vae_pyro.files.disk import read_regular, write_atomically
from vae_pyro.files.private import private_folder

COMPUTING = (
    "compilation",
    "data",
    "evaluation",
    "guide.py",
    "likelihoods",
    "log_marginal",
    "model.py",
    "networks.py",
    "objectives",
    "randomness.py",
    "runs/evaluator.py",
    "runs/preparation.py",
    "runs/trainer.py",
    "saving.py",
    "training",
    "vae.py",
)
"""The part of this package that a result depends on."""


# Their texts name random numbers: with other words there come other numbers.
_NAMING_RANDOM_NUMBERS = ("RandomStream", "drawing")


@functools.cache
def code_digest() -> str:
    """SHA-256 of the code that computes results, in hexadecimal.

    It does not depend on comments, docstrings and messages, nor on the modules that report, record
    or run the command line. So better words do not turn a stopped run into another one.

    Reading the code takes half a second, so the digest of files with these bytes is kept.
    """
    package = Path(__file__).parents[1]
    files: dict[str, bytes] = {}
    for name in COMPUTING:
        path = package / name
        for file in sorted(path.rglob("*.py")) if path.is_dir() else [path]:
            files[file.relative_to(package).as_posix()] = file.read_bytes()
    home = private_folder()
    known = None if home is None else home / f"code-{_of_bytes(files)}"
    if known is not None:
        with suppress(OSError):
            kept = read_regular(known, 64).decode("ascii", "replace")
            if re.fullmatch("[0-9a-f]{64}", kept):
                return kept
    digest = hashlib.sha256()
    for name, content in files.items():
        digest.update(f"{name} {without_words(content.decode())}".encode())
    if known is not None:
        with suppress(StorageError):
            write_atomically(known, digest.hexdigest().encode())
    return digest.hexdigest()


def _of_bytes(files: Mapping[str, bytes]) -> str:
    """SHA-256 of what the digest of the code is made from, and by."""
    own = Path(without_words.__code__.co_filename).read_bytes()
    return hashlib.sha256(repr((sys.version, own, files)).encode()).hexdigest()


def without_words(source: str) -> str:
    """The code of a module without comments and without words for people.

    Words are docstrings, the arguments of errors that are raised and of ``logger``'s methods, and
    every other text with a space in it: names of metrics, options and keys have none. The names of
    random streams stay.
    """
    return ast.unparse(ast.fix_missing_locations(_WordRemover().visit(ast.parse(source))))


class _WordRemover(ast.NodeTransformer):
    def visit_Expr(self, node: ast.Expr) -> ast.AST:  # the names that ast wants
        """Drop docstrings, and calls of a logger."""
        value = node.value
        is_docstring = isinstance(value, ast.Constant) and isinstance(value.value, str)
        called = value.func if isinstance(value, ast.Call) else None
        owner = called.value if isinstance(called, ast.Attribute) else None
        if is_docstring or (isinstance(owner, ast.Name) and owner.id == "logger"):
            return ast.Pass()
        return self.generic_visit(node)

    def visit_Raise(self, node: ast.Raise) -> ast.AST:
        """Keep which error is raised."""
        if isinstance(node.exc, ast.Call):
            return ast.Raise(exc=node.exc.func, cause=node.cause)
        return node

    def visit_Call(self, node: ast.Call) -> ast.AST:
        """Keep the names of random streams."""
        is_name = isinstance(node.func, ast.Name) and node.func.id in _NAMING_RANDOM_NUMBERS
        return node if is_name else self.generic_visit(node)

    def visit_keyword(self, node: ast.keyword) -> ast.AST:
        """Keep the names of random streams that are passed on."""
        return node if node.arg == "stream" else self.generic_visit(node)

    def visit_Constant(self, node: ast.Constant) -> ast.AST:
        """Drop a text with a space in it."""
        is_words = isinstance(node.value, str) and " " in node.value
        return ast.Constant("") if is_words else node

    def visit_JoinedStr(self, node: ast.JoinedStr) -> ast.AST:
        """Drop a formatted text with a space in it, whole."""
        parts = (part.value for part in node.values if isinstance(part, ast.Constant))
        is_words = any(" " in str(part) for part in parts)
        return ast.Constant("") if is_words else self.generic_visit(node)
