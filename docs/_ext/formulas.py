"""Show indented blocks of docstrings, which are formulas, as they are written."""

from sphinx.application import Sphinx


def mark_formulas(app: Sphinx, what: str, name: str, obj: object, options: object, lines: list[str]) -> None:  # noqa: ARG001
    """Put ``::`` before each block that is indented more than the line before it, after a blank line."""
    marked: list[str] = []
    above = ""  # the last line with text
    inside = 0  # indent of the formula that is open
    for line in lines:
        indent = len(line) - len(line.lstrip())
        if line.strip():
            inside = inside if indent >= inside else 0
            starts = marked and not marked[-1].strip() and indent > len(above) - len(above.lstrip())
            if starts and not inside and not above.rstrip().endswith("::") and not above.lstrip().startswith(":"):
                marked += [" " * (len(above) - len(above.lstrip())) + "::", ""]
                inside = indent
            above = line
        marked.append(line)
    lines[:] = marked


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the step before napoleon's."""
    app.connect("autodoc-process-docstring", mark_formulas, priority=100)
    return {"parallel_read_safe": True}
