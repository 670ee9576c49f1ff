"""A digest of the code that computes results: without comments, docstrings and messages."""

import ast
import functools
import hashlib
from pathlib import Path

COMPUTING = (
    "compilation",
    "data",
    "evaluation",
    "guide.py",
    "likelihoods",
    "log_marginal",
    "model.py",
    "networks.py",
    "objectives.py",
    "randomness.py",
    "runs/evaluator.py",
    "runs/preparation.py",
    "runs/trainer.py",
    "saving.py",
    "training",
    "vae.py",
)
"""The part of this package that a result depends on."""


@functools.cache
def code_digest() -> str:
    """SHA-256 of the code that computes results, in hexadecimal.

    It does not depend on comments, docstrings, and the words of errors and of the log; nor on the
    modules that report, record or run the command line. So better words do not make a stopped run
    another one.
    """
    package = Path(__file__).parents[1]
    digest = hashlib.sha256()
    for name in COMPUTING:
        path = package / name
        for file in sorted(path.rglob("*.py")) if path.is_dir() else [path]:
            digest.update(f"{file.relative_to(package).as_posix()} ".encode())
            digest.update(without_words(file.read_text(encoding="utf-8")).encode())
    return digest.hexdigest()


def without_words(source: str) -> str:
    """The syntax tree of a module, as text, without comments and without words for people.

    Docstrings, arguments of ``logger``'s methods and of errors that are raised are left out.
    """
    return ast.dump(_WordRemover().visit(ast.parse(source)))


class _WordRemover(ast.NodeTransformer):
    def visit_Expr(self, node: ast.Expr) -> ast.AST | None:  # the name that ast requires
        """Drop docstrings, and calls of a logger."""
        value = node.value
        if isinstance(value, ast.Constant) and isinstance(value.value, str):
            return None
        if isinstance(value, ast.Call) and isinstance(value.func, ast.Attribute):
            owner = value.func.value
            if isinstance(owner, ast.Name) and owner.id == "logger":
                return None
        return self.generic_visit(node)

    def visit_Raise(self, node: ast.Raise) -> ast.AST:
        """Keep which error is raised, and drop its words."""
        if isinstance(node.exc, ast.Call):
            return ast.Raise(exc=node.exc.func, cause=node.cause)
        return node
