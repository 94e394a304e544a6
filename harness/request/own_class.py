"""A method class that is named by its path: found, and its options with the values in force."""

from __future__ import annotations

import dataclasses
import enum
import importlib
from collections.abc import Mapping
from typing import Any

from vtprune import places
from vtprune.harness.request import fingerprint
from vtprune.harness.request.errors import ConfigError, unknown
from vtprune.harness.request.fingerprint import Place


def locate(target: str) -> Any:
    """The class at ``package.module:Class`` or ``package.module.Class``.

    Raises:
        ConfigError: it cannot be imported, with the innermost reason, or is no method.
    """
    from vtprune import methods

    where = Place.of(target)
    if not where.module or not where.name:
        raise ConfigError(f"method: {target!r} names no class; write package.module:Class")
    _refuse_second_name(where.module)
    try:
        module = importlib.import_module(where.module)
    except Exception as error:  # whatever the user's module raises while it is imported
        raise ConfigError(f"method: cannot import {where.module}: {_reason(error)}") from error
    found = getattr(module, where.name, None)
    if found is None:
        classes = [n for n, value in vars(module).items() if isinstance(value, type)]
        raise ConfigError("method: " + unknown(f"class of {where.module}", where.name, classes))
    if not isinstance(found, type) or not issubclass(found, methods.PruningMethod):
        raise ConfigError(f"method: {target} is not a vtprune.methods.PruningMethod")
    return found


def _refuse_second_name(module: str) -> None:
    """A file of ours is imported as vtprune and as nothing else, or it exists twice."""
    file = fingerprint.source(module)
    ours = [places.ROOT.resolve() / room for room in ("methods", "models", "harness")]
    if file is None or module.startswith("vtprune."):
        return
    if any(file.resolve().is_relative_to(folder) for folder in ours):
        raise ConfigError(f"method: {module} is imported as vtprune.{module}")


def _reason(error: BaseException) -> str:
    """The innermost cause in one line, with its place in the user's file if it has one."""
    while error.__cause__ is not None:
        error = error.__cause__
    text = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, SyntaxError):
        return f"{error.filename}:{error.lineno}: {error.msg}"
    frame = error.__traceback__
    place = ""
    while frame is not None:
        file = frame.tb_frame.f_code.co_filename
        if "importlib" not in file:
            place = f"{file}:{frame.tb_lineno}: "
        frame = frame.tb_next
    missing = isinstance(error, ModuleNotFoundError)
    return text if missing else f"{place}{type(error).__name__}: {text}"


def identity(method: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any] | None:
    """What identifies a method that is not in the files of ``conf/method`` by its own name.

    Args:
        method: the config's group.
        given: the options as asked for, ratio and seed included.

    Returns:
        Name, every option with the value in force, and for a class that does not ship with the
        project the fingerprint of its code; None for a method that ships and is named.

    Raises:
        ConfigError: there is no such class.
    """
    where = fingerprint.place(method)
    by_name = not method.get("_target_")
    if where is None or (by_name and where.shipped):
        return None
    cls = locate(f"{where.module}:{where.name}")
    for name in given:
        if name not in (there := options(f"{where.module}:{where.name}")):
            raise ConfigError("method: " + unknown(f"option of {where.name}", name, there))
    values = {**_defaults(cls), **given}
    if where.shipped and cls.name:
        return {"name": cls.name, **values}
    name = method["name"] if by_name else f"{where.module}.{where.name}"
    return {"name": name, **values, "code": _code(where)}


def options(target: str) -> list[str]:
    """Names of the options of a class."""
    return [field.name for field in dataclasses.fields(locate(target)) if field.init]


def _code(where: Place) -> str:
    try:
        return fingerprint.of_class(where)
    except LookupError as error:
        raise ConfigError(
            f"method: {error}, so it cannot be told whether the class changed; put it into a file"
        ) from error


def _defaults(cls: type) -> dict[str, Any]:
    """Options of the class that have a default, as plain data."""
    found = {}
    for field in dataclasses.fields(cls):
        if field.default_factory is not dataclasses.MISSING:
            found[field.name] = plain(field.default_factory())
        elif field.init and field.default is not dataclasses.MISSING:
            found[field.name] = plain(field.default)
    return found


def plain(value: Any) -> Any:
    """An option's value as plain data; what is no data stands there as it prints itself."""
    if isinstance(value, enum.Enum):
        return plain(value.value)
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(v) for v in value]
    if isinstance(value, (set, frozenset)):
        return sorted((plain(v) for v in value), key=repr)
    return value if value is None or isinstance(value, (bool, int, float, str)) else repr(value)
