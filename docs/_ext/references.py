"""Find what a docstring names by a public name, or by one short in its module, at the place of its definition."""

from __future__ import annotations

import importlib
from contextlib import suppress
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from docutils import nodes
    from sphinx.addnodes import pending_xref
    from sphinx.application import Sphinx
    from sphinx.environment import BuildEnvironment


def resolve(app: Sphinx, env: BuildEnvironment, node: pending_xref, content: nodes.Element) -> nodes.Node | None:
    """A reference to the definition, the bare name of a constant, or None for a broken link."""
    if node.get("refdomain") != "py":
        return None
    target = node["reftarget"]
    found = find(target, node.get("py:module") or "")
    if found is None:
        return None
    if not hasattr(found, "__qualname__"):
        return content  # constants have no entry of their own
    home = f"{found.__module__}.{found.__qualname__}"
    python = env.get_domain("py")
    return python.resolve_xref(env, node["refdoc"], app.builder, node["reftype"], home, node, content)


def find(target: str, module: str) -> Any:
    """The object of this name, in full or short in ``module`` or a package around it; None if there is none."""
    around = module.split(".")
    for name in (target, *(".".join([*around[:end], target]) for end in range(len(around), 0, -1))):
        parts = name.split(".")
        for split in range(len(parts), 0, -1):
            with suppress(ImportError, AttributeError, KeyError, ValueError):
                found: Any = importlib.import_module(".".join(parts[:split]))
                for part in parts[split:]:
                    # a field without a default is no attribute of its class
                    found = getattr(found, part) if hasattr(found, part) else found.__annotations__[part]
                return found
    return None


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the step for references that Sphinx does not find itself."""
    app.connect("missing-reference", resolve)
    return {"parallel_read_safe": True}
