"""Names are file names: ``shared_bottom.py`` is ``shared-bottom``, and nothing else needs an entry.

Three places are searched: the package folder of the kind, installed entry points (groups
``mtlkit.models``, ``mtlkit.balancers``, ``mtlkit.datasets``), and, for a name that ends in ``.py``,
that file. Listing reads docstrings from source, so it imports nothing heavy.
"""

from __future__ import annotations

import ast
import difflib
import fnmatch
import hashlib
import importlib
import importlib.metadata
import importlib.util
import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from mtlkit.errors import UsageError

PACKAGE = Path(__file__).parent


@dataclass(frozen=True)
class Registry:
    """The methods of one kind.

    Args:
        kind: What one entry is called in messages, e.g. ``"model"``.
        folder: The dotted sub-package that holds one file per entry, e.g. ``"models"``.
        base: Where the base class is that an entry subclasses, e.g.
            ``"models._architecture:Architecture"``.
    """

    kind: str
    folder: str
    base: str

    @property
    def path(self) -> Path:
        return PACKAGE.joinpath(*self.folder.split("."))

    def names(self, pattern: str = "*") -> list[str]:
        """All names that match a shell wildcard, sorted."""
        own = {_name(file) for file in self.path.glob("*.py") if not file.stem.startswith("_")}
        return sorted(
            name for name in own | set(self._entry_points()) if fnmatch.fnmatch(name, pattern)
        )

    def _entry_points(self) -> dict[str, importlib.metadata.EntryPoint]:
        group = f"mtlkit.{self.folder.split('.')[-1]}"
        return {point.name: point for point in importlib.metadata.entry_points(group=group)}

    def docstring(self, name: str) -> str:
        """The module docstring of an entry, read from source without importing it."""
        file = self._file(name)
        if file is None:
            return importlib.import_module(self._entry_points()[name].module).__doc__ or ""
        return ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or ""

    def summary(self, name: str) -> str:
        """The first line of the docstring."""
        return self.docstring(name).partition("\n")[0]

    def check(self, name: str) -> str:
        """Return the name, or raise a :class:`UsageError` that suggests the nearest ones."""
        if name in self.names() or self._plugin(name) is not None:
            return name
        close = difflib.get_close_matches(name, self.names(), n=3, cutoff=0.5)
        guess = f" Did you mean {' or '.join(close)}?" if close else ""
        if name.endswith(".py"):
            raise UsageError(
                f"There is no {self.kind} file {name!r}.", "give the path of an existing .py file"
            )
        raise UsageError(
            f"There is no {self.kind} called {name!r}.{guess}", f"mtlkit list {self.kind}s"
        )

    def load(self, name: str) -> Any:
        """Import the entry and return its class."""
        self.check(name)
        module = self._module(name)
        base_module, _, base_name = self.base.partition(":")
        base = getattr(importlib.import_module(f"mtlkit.{base_module}"), base_name)
        classes = [
            value
            for value in vars(module).values()
            if isinstance(value, type)
            and issubclass(value, base)
            and value.__module__ == module.__name__
        ]
        if len(classes) != 1:
            raise UsageError(
                f"{module.__file__} must define exactly one {base_name} subclass, found {len(classes)}.",
                f"mtlkit list {self.kind}s",
            )
        return classes[0]

    def source_digest(self, name: str) -> str | None:
        """The sha256 of a plugin file, which belongs to its identity; None for entries of the
        package.
        """
        plugin = self._plugin(name)
        return hashlib.sha256(plugin.read_bytes()).hexdigest() if plugin else None

    def holds(self, name: str) -> bool:
        """Whether a plugin file defines an entry of this kind."""
        try:
            self.load(name)
        except UsageError:
            return False
        return True

    def _module(self, name: str) -> ModuleType:
        plugin = self._plugin(name)
        if plugin is not None:
            place = hashlib.sha256(str(plugin.resolve()).encode()).hexdigest()[:8]
            module_name = f"mtlkit_plugin_{plugin.stem}_{place}"
            if module_name not in sys.modules:
                spec = importlib.util.spec_from_file_location(module_name, plugin)
                assert spec is not None
                assert spec.loader is not None
                module = importlib.util.module_from_spec(spec)
                sys.modules[module_name] = module
                spec.loader.exec_module(module)
            return sys.modules[module_name]
        if self._file(name) is not None:
            return importlib.import_module(f"mtlkit.{self.folder}.{name.replace('-', '_')}")
        return importlib.import_module(self._entry_points()[name].module)

    def _file(self, name: str) -> Path | None:
        plugin = self._plugin(name)
        if plugin is not None:
            return plugin
        file = self.path / f"{name.replace('-', '_')}.py"
        return file if _name(file) == name and file.exists() else None

    @staticmethod
    def _plugin(name: str) -> Path | None:
        return Path(name) if name.endswith(".py") and Path(name).is_file() else None


def _name(file: Path) -> str:
    return file.stem.replace("_", "-")


MODELS = Registry("model", "models", "models._architecture:Architecture")
BALANCERS = Registry("balancer", "balancers", "balancers._base:Balancer")
DATASETS = Registry("dataset", "data.datasets", "data.datasets._source:DatasetSource")
REGISTRIES = {"models": MODELS, "balancers": BALANCERS, "datasets": DATASETS}
