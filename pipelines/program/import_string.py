"""Functions by import string: how a config names what is not ours."""

import ast
import importlib
import inspect
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

from pipelines.program.errors import UserError


def names_of(module: ModuleSpec) -> set[str] | None:
    """What a module's source names at its top, without importing it; None where that does not tell, as of a star import."""
    if module.origin is None or not module.origin.endswith(".py"):
        return None
    tree = ast.parse(Path(module.origin).read_text(encoding="utf-8"))
    names: set[str] = set()
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            names |= {alias.asname or alias.name for alias in node.names}
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            names |= {part.id for part in ast.walk(node) if isinstance(part, ast.Name) and isinstance(part.ctx, ast.Store)}
        elif not isinstance(node, ast.Expr):
            return None  # such as names that depend on what is installed
    return None if "*" in names or "__getattr__" in names else names


def call(name: str, arguments: dict[str, Any], key: str, arguments_key: str, example: str) -> Any:
    """What `module:function` returns for these keywords. Raises as `find` does; what goes wrong inside of it is its own."""
    return find(name, arguments, key, arguments_key, example)(**arguments)


def find(name: str, arguments: dict[str, Any] | None, key: str, arguments_key: str, example: str) -> Callable:
    """`module:function`, which takes these keywords; None: whatever it takes.

    Raises `UserError` naming `key` or `arguments_key` where there is no such function, or it does not take them.
    """
    module_name, colon, attribute = name.partition(":")
    if not colon:
        raise UserError(f"{key}: '{name}' is not of the form module:function, such as {example}")
    try:
        module = importlib.import_module(module_name)
    except (ImportError, SyntaxError, ValueError) as error:
        raise UserError(f"{key}: {module_name} cannot be imported: {error}; is it installed, or in this folder?") from None
    function: Callable | None = getattr(module, attribute, None)
    if not callable(function):
        raise UserError(f"{key}: {module_name} has no '{attribute}'")
    if arguments is None:
        return function
    try:
        inspect.signature(function).bind(**arguments)
    except TypeError as error:
        raise UserError(f"{key}: {name} does not take these arguments: {error}; see {arguments_key}") from None
    return function
