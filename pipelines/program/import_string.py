"""Functions and classes by import string, `module:name`: how a config refers to code outside this project."""

import ast
import importlib
import inspect
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

from pipelines.program.errors import UserError


def names_of(module: ModuleSpec) -> set[str] | None:
    """Names that a module's source defines at top level, without importing it; None if that is unclear, as with a star import."""
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
    """What `module:function` returns for these keywords. Raises as `find` does; exceptions of the function pass through."""
    return find(name, arguments, key, arguments_key, example)(**arguments)


def find(name: str, arguments: dict[str, Any] | None, key: str, arguments_key: str, example: str) -> Callable:
    """The object that `module:function` names, if it accepts these keywords; None: they are not checked.

    Raises `UserError` about `key` if there is no such object, or it does not accept the keywords, those of `arguments_key`.
    """
    module_name, colon, attribute = name.partition(":")
    if not colon:
        raise UserError(key, f"'{name}' is not of the form module:name", f"write it like {example}")
    try:
        module = importlib.import_module(module_name)
    except (ImportError, SyntaxError, ValueError) as error:
        remedy = f"install {module_name.partition('.')[0]}, or run this in the folder that holds it"
        raise UserError(key, f"{module_name} cannot be imported: {error}", remedy) from None
    function: Callable | None = getattr(module, attribute, None)
    if not callable(function):
        raise UserError(key, f"{module_name} has no '{attribute}'", f"write it like {example}")
    if arguments is None:
        return function
    try:
        inspect.signature(function).bind(**arguments)
    except TypeError as error:
        raise UserError(key, f"{name} does not accept these arguments: {error}", f"change {arguments_key}") from None
    return function
