"""Names are file names: ``shared_bottom.py`` is ``shared-bottom``, and nothing else needs an entry.

Three places are searched: the package folder of the kind, installed entry points (groups
``mtlkit.models``, ``mtlkit.balancers``, ``mtlkit.datasets``, ``mtlkit.losses`` and
``mtlkit.baselines``), and, for a name that ends in ``.py``, that file, which is a plugin. What code
from outside the package raises becomes a sentence with file and line. Docstrings and facts are read
from source, so that a list or a report imports nothing heavy.
"""

from __future__ import annotations

import ast
import fnmatch
import functools
import hashlib
import importlib
import importlib.metadata
import importlib.util
import inspect
import os
import shlex
import sys
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from pydantic import ValidationError

from mtlkit.errors import (
    MtlkitError,
    UsageError,
    did_you_mean,
    first_problem,
    nearest_names,
    one_line,
)

PACKAGE = Path(__file__).parent
PLUGIN_MODULE = "mtlkit_plugin_"  # beginning of the names of the modules that plugins are


@dataclass(frozen=True)
class Facts:
    """What a file says of its method, read without importing it."""

    docstring: str  # of the module
    # Attributes of its classes whose values are literals, e.g. ``scale``. Nothing is inherited.
    attributes: Mapping[str, Any]
    defaults: Mapping[str, Any]  # defaults of its options, as far as they are literals
    bases: frozenset[str] = frozenset()  # names of the classes that its classes inherit from


NO_FACTS = Facts("", {}, {})


@dataclass(frozen=True)
class Registry:
    """The methods of one kind."""

    kind: str  # what one entry is called in messages, e.g. ``"model"``
    folder: str  # the dotted sub-package that holds one file per entry, e.g. ``"models"``
    # Where the base class is that an entry subclasses, e.g.
    # ``"models._architecture:Architecture"``.
    base: str

    @property
    def plural(self) -> str:
        """As in ``mtlkit list models``: the name of the folder."""
        return self.folder.split(".")[-1]

    @property
    def path(self) -> Path:
        return PACKAGE.joinpath(*self.folder.split("."))

    def names(self, pattern: str = "*") -> list[str]:
        """All names that match a shell wildcard, sorted."""
        files = [file for file in self.path.glob("*.py") if not file.stem.startswith("_")]
        names = {_name(file) for file in files} | self._entry_points().keys()
        return sorted(name for name in names if fnmatch.fnmatch(name, pattern))

    def docstring(self, name: str) -> str:
        """The module docstring of an entry, read from source without importing it."""
        return self.facts(name).docstring

    def summary(self, name: str) -> str:
        """The first line of the docstring."""
        return self.docstring(name).partition("\n")[0]

    def facts(self, name: str) -> Facts:
        """What an entry says of itself; nothing where it no longer exists or cannot be read."""
        try:
            file = self._source_file(name)
            return _read_facts(file, file.stat().st_mtime_ns) if file else NO_FACTS
        except (ImportError, OSError, SyntaxError, ValueError):
            return NO_FACTS

    def check(self, name: str) -> str:
        """Return the name, or raise a :class:`UsageError` that suggests the nearest ones."""
        # the installed packages are searched last: that takes milliseconds in every process
        if self._package_file(name) or _plugin(name) or name in self._entry_points():
            return name
        if name.endswith(".py"):
            raise UsageError(
                f"There is no {self.kind} file {name!r}.", "give the path of an existing .py file"
            )
        guess = did_you_mean(nearest_names(name, self.names(), 3))
        raise UsageError(
            f"There is no {self.kind} called {name!r}.{guess}", f"mtlkit list {self.plural}"
        )

    def load(self, name: str) -> Any:
        """Import the entry and return its class.

        Raises:
            UsageError: There is none of this name, or its file cannot be imported, or does not
                define exactly one class of the kind that is complete.
        """
        self.check(name)
        classes = self._classes(name)
        if len(classes) != 1:
            names = f": {', '.join(entry.__name__ for entry in classes)}" if classes else ""
            raise UsageError(
                f"{name} must define exactly one {self.base.partition(':')[2]} subclass, "
                f"found {len(classes)}{names}.",
                f"mtlkit list {self.plural}",
            )
        self._check_complete(name, classes[0])
        return classes[0]

    def load_planned(self, resolved: Mapping[str, Any]) -> Any:
        """The class of a method that a cell holds.

        Raises:
            UsageError: As :meth:`load`; or the file changed after the cell was planned.
        """
        name = resolved["name"]
        self.check(name)
        if self.source_digest(name) != resolved.get("source_sha256"):
            raise UsageError(f"{name} has changed since the plan.", "run the command again")
        return self.load(name)

    def holds(self, name: str) -> bool:
        """Whether a plugin file defines an entry of this kind.

        Raises:
            UsageError: The file cannot be imported.
        """
        return _plugin(name) is not None and bool(self._classes(name))

    def is_plugin(self, name: str) -> bool:
        """Whether an entry is code from outside the package: a file, or one of another package."""
        if _plugin(name) is not None:
            return True
        return self._package_file(name) is None and name in self._entry_points()

    def source_digest(self, name: str) -> str | None:
        """The sha256 of a plugin file, part of its identity; None for entries of the package."""
        plugin = _plugin(name)
        return hashlib.sha256(plugin.read_bytes()).hexdigest() if plugin else None

    @contextmanager
    def told_as_error_of(self, name: str, hint: str | None = None) -> Iterator[None]:
        """Run code of an entry: what it raises becomes a sentence with the file and the line.

        Errors of the package's own entries pass as they are, for they are bugs.

        Raises:
            UsageError: A plugin or an installed entry raised, or tried to end the program.
        """
        try:
            yield
        except (MtlkitError, KeyboardInterrupt):
            raise
        except BaseException as error:
            if self._package_file(name) is not None:
                raise
            line = _line_of(error, str(self._source_file(name)))
            raise UsageError(
                f"{_what_it_raises(name, error, line)}.",
                hint or f"correct it, or take another one: mtlkit list {self.plural}",
            ) from error

    def _classes(self, name: str) -> list[Any]:
        """The classes of this kind that the file of an entry defines itself, not just imports."""
        hint = f"python {shlex.quote(name)} shows the whole of it" if _plugin(name) else None
        with self.told_as_error_of(name, hint):
            module = self._module(name)
        # a class can only have a base that is imported by now; importing it here may take seconds
        base_module, _, base_name = self.base.partition(":")
        base = getattr(sys.modules.get(f"mtlkit.{base_module}"), base_name, None)
        if base is None:
            return []
        return [
            value
            for value in vars(module).values()
            if isinstance(value, type)
            and issubclass(value, base)
            and value.__module__ == module.__name__
        ]

    def _check_complete(self, name: str, entry: Any) -> None:
        """Raise a :class:`UsageError` for a class that cannot be used as it stands."""
        problem = None
        settings = importlib.import_module("mtlkit.settings").Settings
        if inspect.isabstract(entry):
            problem = f"lacks the method {' and '.join(sorted(entry.__abstractmethods__))}"
        elif not (isinstance(entry.Options, type) and issubclass(entry.Options, settings)):
            problem = "has Options that are no subclass of Settings"
        if problem is not None:
            _, line = inspect.getsourcelines(entry)
            raise UsageError(
                f"The {self.kind} {entry.__name__} in line {line} of {name} {problem}.",
                f"mtlkit info {self.names()[0]} shows one that works",
            )

    def _entry_points(self) -> dict[str, importlib.metadata.EntryPoint]:
        return _entry_points(f"mtlkit.{self.plural}", tuple(sys.path))

    def _package_file(self, name: str) -> Path | None:
        """The file of an entry of the package itself."""
        file = self.path / f"{name.replace('-', '_')}.py"
        is_entry = not file.stem.startswith("_") and _name(file) == name
        # unlike Path.exists, this is False for a name that is too long for a file
        return file if is_entry and os.path.exists(file) else None  # noqa: PTH110

    def _source_file(self, name: str) -> Path | None:
        """The file of any entry; None where there is none."""
        file = _plugin(name) or self._package_file(name)
        if file is not None:
            return file
        point = self._entry_points().get(name)
        spec = importlib.util.find_spec(point.module) if point else None
        return Path(spec.origin) if spec and spec.origin else None

    def _module(self, name: str) -> ModuleType:
        plugin = _plugin(name)
        if plugin is not None:
            return _import_file(plugin)
        if self._package_file(name) is not None:
            return importlib.import_module(f"mtlkit.{self.folder}.{name.replace('-', '_')}")
        return importlib.import_module(self._entry_points()[name].module)


@functools.cache
def _entry_points(
    group: str, search_path: tuple[str, ...]
) -> dict[str, importlib.metadata.EntryPoint]:
    """The entry points of a group on ``sys.path``, which takes milliseconds to search."""
    return {point.name: point for point in importlib.metadata.entry_points(group=group)}


def _name(file: Path) -> str:
    return file.stem.replace("_", "-")


def _plugin(name: str) -> Path | None:
    """The file that a name stands for, if it is the path of one."""
    try:
        return Path(name) if name.endswith(".py") and Path(name).is_file() else None
    except OSError:  # a name that no file system allows
        return None


def plugin_folder_name(name: str) -> str:
    """A name for a folder of an entry's own: of a plugin its stem, and a digest of its path."""
    plugin = _plugin(name)
    return f"{plugin.stem}-{_path_digest(plugin)}" if plugin else name


def _path_digest(file: Path) -> str:
    return hashlib.sha256(os.fsencode(file.resolve())).hexdigest()[:8]


def _import_file(file: Path) -> ModuleType:
    """Import a plugin, once as long as it stays as it is, under a name that no other file has."""
    source = file.read_bytes()
    content_digest = hashlib.sha256(source).hexdigest()[:8]
    module_name = f"{PLUGIN_MODULE}{file.stem}_{_path_digest(file)}_{content_digest}"
    if module_name not in sys.modules:
        spec = importlib.util.spec_from_file_location(module_name, file)
        assert spec is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[module_name] = module
        try:
            # Not by the loader: its cache takes a file of the same size and second for the same.
            exec(compile(source, file, "exec"), vars(module))
        except BaseException:
            del sys.modules[module_name]
            raise
    return sys.modules[module_name]


def error_of_plugin(error: BaseException) -> str | None:
    """What an error says, with the plugin and the line that it came from; None if from none."""
    for frame, _ in reversed(list(traceback.walk_tb(error.__traceback__))):
        if str(frame.f_globals.get("__name__")).startswith(PLUGIN_MODULE):
            file = frame.f_code.co_filename
            return _what_it_raises(Path(file).name, error, _line_of(error, file))
    return None


def _what_it_raises(name: str, error: BaseException, line: int | None) -> str:
    in_line = f" in line {line}" if line else ""
    if isinstance(error, ValidationError):
        return f"{name} makes a wrong {error.title}{in_line}: {one_line(first_problem(error))}"
    reason = one_line(error.msg if isinstance(error, SyntaxError) else error)
    return f"{name} raises {type(error).__name__}{in_line}: {reason}"


def _line_of(error: BaseException, file: str) -> int | None:
    """The line of a file in which an error was raised or from which it came; None if neither."""
    if isinstance(error, SyntaxError) and error.filename == file:
        return error.lineno
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame.lineno for frame in frames if frame.filename == file]
    return lines[-1] if lines else None


@functools.cache
def _read_facts(file: Path, modified: int) -> Facts:
    """The facts of a file, read again once it was modified."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    attributes: dict[str, Any] = {}
    defaults: dict[str, Any] = {}
    bases: set[str] = set()
    for method in _classes(tree):
        attributes |= _literals(method)
        bases |= {ast.unparse(base).split(".")[-1] for base in method.bases}
        for inner in _classes(method):
            if inner.name == "Options":
                defaults |= _literals(inner)
    return Facts(ast.get_docstring(tree) or "", attributes, defaults, frozenset(bases))


def _classes(node: ast.Module | ast.ClassDef) -> list[ast.ClassDef]:
    return [child for child in node.body if isinstance(child, ast.ClassDef)]


def _literals(node: ast.ClassDef) -> dict[str, Any]:
    """The attributes of a class whose values are literals, or pydantic fields with one."""
    literals = {}
    for statement in node.body:
        match statement:
            case ast.Assign(targets=[ast.Name(id=name)], value=value):
                pass
            case ast.AnnAssign(target=ast.Name(id=name), value=ast.expr() as value):
                pass
            case _:
                continue
        match value:
            case ast.Call(func=ast.Name(id="Field"), args=[default, *_]):
                value = default
        try:
            literals[name] = ast.literal_eval(value)
        except ValueError:
            continue
    return literals


MODELS = Registry("model", "models", "models._architecture:Architecture")
BALANCERS = Registry("balancer", "balancers", "balancers._balancer:Balancer")
DATASETS = Registry("dataset", "data.datasets", "data.datasets._source:DatasetSource")
LOSSES = Registry("loss", "losses", "losses._loss:Loss")
BASELINES = Registry("baseline", "baselines", "baselines._baseline:Baseline")
REGISTRIES = {
    registry.plural: registry for registry in (MODELS, BALANCERS, DATASETS, LOSSES, BASELINES)
}


def is_baseline(model: str) -> bool:
    """Whether what stands where a cell names its model is a baseline."""
    return model in BASELINES.names()
