"""The documentation site; ``python -m sphinx -W docs build/site`` builds it."""

import sys
from pathlib import Path

from affnorm_zoo._version import __version__

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE / "_ext"))

project = "affnorm_zoo"
release = __version__
html_theme = "furo"
html_title = f"affnorm_zoo {release}"
extensions = [
    "myst_parser",
    "sphinx.ext.apidoc",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "formulas",
    "generated_pages",
    "references",
]
exclude_patterns = ["benchmarks", "recipes", "results", "_ext"]  # folders of results; pages link to what they need

nitpicky = True
# names of other projects, as this build needs no network; and type variables
nitpick_ignore_regex = [("py:.*", r"(?!affnorm_zoo\b).*"), ("py:class", r".*\.(T|Result)")]
# on the web a link to a folder of results shows the folder; here it is plain text
nitpick_ignore = [("myst", folder.relative_to(HERE).as_posix()) for folder in HERE.glob("*/*/")]

apidoc_modules = [{"path": "../affnorm_zoo", "destination": "_generated/api", "include_private": True}]
apidoc_module_first = True
apidoc_automodule_options = ["members", "show-inheritance"]
autodoc_member_order = "bysource"
autodoc_inherit_docstrings = False  # torch's point into torch's own pages
autodoc_typehints_format = "short"
autodoc_use_type_comments = False  # the package has no type comments
napoleon_google_docstring = True
napoleon_numpy_docstring = False

myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 3
