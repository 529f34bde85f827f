"""Write the pages that are made from code: the config reference, and one page per normaliser."""

from __future__ import annotations

import ast
import inspect
import re
import tokenize
from dataclasses import fields
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING

from affnorm_zoo import get_normalizer, list_normalizers
from affnorm_zoo.config import RunConfig
from affnorm_zoo.models import zoo_models
from affnorm_zoo.registry import NormalizerSpec

if TYPE_CHECKING:
    from sphinx.application import Sphinx

TABLES = {"README.md": "Summary", "docs/normalisers.md": "As a map and a scale", "docs/recipes.md": "Measured"}
ROOT = Path(__file__).parents[2]


def config_page() -> str:
    """Sections, fields, defaults and the comments beside the fields of :class:`affnorm_zoo.config.RunConfig`."""
    parts = ["# Configs", "A config states what differs from these defaults. `section.field=value` overrides both."]
    for section in fields(RunConfig):
        schema = section.default_factory

        parts += [f"## {section.name}", inspect.getdoc(schema) or ""]
        rows = [_row(f"`{name}`", f"`{type_}`", f"`{default}`", text) for name, type_, default, text in _fields(schema)]
        parts.append("\n".join([_row("field", "type", "default", ""), "|---|---|---|---|", *rows]))
    return "\n\n".join(parts)


def _fields(schema: type) -> list[tuple[str, str, str, str]]:
    """Name, type, default and comment of each field, from the source."""
    source = inspect.getsource(schema)
    tokens = tokenize.generate_tokens(StringIO(source).readline)
    comments = {token.start[0]: token.string.lstrip("# ") for token in tokens if token.type == tokenize.COMMENT}
    statements = ast.parse(source).body[0].body  # type: ignore[attr-defined]
    return [
        (ast.unparse(s.target), ast.unparse(s.annotation), _default(s.value), comments.get(s.end_lineno or 0, ""))
        for s in statements
        if isinstance(s, ast.AnnAssign)
    ]


def _default(value: ast.expr | None) -> str:
    text = ast.unparse(value) if value else ""
    return {"field(default_factory=dict)": "{}"}.get(text, text)


def _row(*cells: str) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def normaliser_page(spec: NormalizerSpec) -> str:
    """What the registry and the tables of the other pages say of one normaliser."""
    parts = [f"# {spec.name}", f"{spec.summary[0].upper()}{spec.summary[1:]}.", f"```text\n{spec.formula}\n```"]
    layer = spec.conv or spec.linear
    if layer is not None:
        options = ", ".join(f"`{name}={value!r}`" for name, value in spec.options.items())
        parts.append(
            f"- Layer: {{py:class}}`{layer.__module__}.{layer.__qualname__}`" + (f" with {options}" if options else "")
        )
        section = "patchnorm-the-gradient" if spec.conv else "affine-like-the-gradient"
        parts.append(f"- Derivations: [the factor](../../derivations.md#the-factor-of-a-gradient-step), [the gradient]"
                     f"(../../derivations.md#{section})")  # fmt: skip
    if spec.paper:
        parts.append(f"- Paper: [arXiv:{spec.paper}](https://arxiv.org/abs/{spec.paper})")
    models = [name for name in zoo_models() if name.endswith(f"_{spec.name}")]
    if models:
        parts.append(f"- Models: {', '.join(f'`{name}`' for name in models)}")
    for page, title in TABLES.items():
        found = rows_about(spec.name, (ROOT / page).read_text(encoding="utf-8"))
        if found:
            link = "../../index.md" if page == "README.md" else f"../../{page.removeprefix('docs/')}"
            parts += [f"## {title}", *found, f"From [this page]({link})."]
    return "\n\n".join(parts)


def rows_about(name: str, page: str) -> list[str]:
    """The tables of a page, each under its section's title, reduced to the rows whose cells name the normaliser.

    Links to other pages start from the folder of the normalisers' pages.
    """
    page = re.sub(r"\]\((?:docs/)?(?=[\w/-]+\.md)", "](../../", page)
    found, title = [], ""
    for block in page.split("\n\n"):
        title = block.lstrip("# ").splitlines()[0] if re.match("##? ", block) else title
        lines = [line for line in block.splitlines() if line.startswith("|")]
        wanted = [line for line in lines[2:] if re.search(rf"[|,] `?{name}`? ?[|,]", line)]
        if wanted:
            found.append("\n".join([f"*{title}*", "", *lines[:2], *wanted]))
    return found


def write(app: Sphinx) -> None:
    """Write all pages below ``_generated``; those that have not changed keep their time, so that builds are short."""
    pages = {"config": config_page()}
    for name in list_normalizers():
        pages[f"normalisers/{name}"] = normaliser_page(get_normalizer(name))
    for page, text in pages.items():
        target = Path(app.srcdir) / "_generated" / f"{page}.md"
        target.parent.mkdir(parents=True, exist_ok=True)
        if not target.is_file() or target.read_text(encoding="utf-8") != text:
            target.write_text(text, encoding="utf-8")


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the step before Sphinx looks for pages."""
    app.connect("builder-inited", write)
    return {"parallel_read_safe": True}
