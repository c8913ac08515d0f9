"""The site: `sphinx-build -n -W --keep-going docs build/docs` from the checkout."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import cast

sys.path.insert(0, str(Path(__file__).parents[1] / "src"))

import iterable_queue
import iterable_queue.testing

project = "iterable-queue"
author = "the authors of iterable-queue"
project_copyright = author
release = version = iterable_queue.__version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
]
templates_path: list[str] = []
exclude_patterns: list[str] = []

html_theme = "furo"
html_title = f"iterable-queue {release}"
html_static_path = ["static"]
html_css_files = ["site.css"]
toc_object_entries_show_parents = "hide"
html_show_copyright = False
html_show_sphinx = False
highlight_language = "text"  # where a fence names none, it is output
pygments_style = "friendly"
pygments_dark_style = "github-dark"
copybutton_exclude = ".linenos, .gp, .go"

# The anchors that code hosts give to headings, so that links to them work in both places.
myst_heading_anchors = 4
myst_enable_extensions = ["colon_fence"]

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_default_options = {"members": True, "inherited-members": "BaseException,Exception,tuple"}
napoleon_numpy_docstring = False
napoleon_use_ivar = True

# Annotations name what is not ours to document: the standard library's, type variables, and the
# classes behind the protocols.
nitpick_ignore_regex = [
    (
        r"py:.*",
        r"(collections|concurrent|contextlib|io|multiprocessing|os|queue|threading|types|typing|_?queue)\..*",
    ),
    (r"py:.*", r"(.*\.)?(T|U|R|P|Ts)(_co|_contra)?"),
    (r"py:.*", r"iterable_queue\.(testing\.)?_.*"),
    (r"py:.*", r"Operation|Side|Stage|Where"),  # aliases of types, in modules that are not public
    (r"py:.*", r"[a-z]+|[A-Z][A-Za-z]+(Error|Interrupt|Exit)|Base(Exception|Process)|Exception"),
]

# Exceptions name the package as their module, which is not where their source is. From Python 3.13
# on `inspect` goes by the number of the line alone, and would take whatever stands there for it.
for _thing in map(vars(iterable_queue).get, iterable_queue.__all__):
    if isinstance(_thing, type) and "__firstlineno__" in vars(_thing):
        del _thing.__firstlineno__

_PUBLIC = {
    name: module.__name__
    for module in (iterable_queue.testing, iterable_queue)
    for name in module.__all__
}


def _as_rst(*arguments: object) -> None:
    """Docstrings mark code by single backticks: make that links to public names, and literals."""
    lines = cast("list[str]", arguments[-1])

    def marked(match: re.Match[str]) -> str:
        text = match[1]
        if text in _PUBLIC:
            return f":py:obj:`{text} <{_PUBLIC[text]}.{text}>`"
        return f"``{text}``"

    lines[:] = [
        line
        if line.startswith("    ") and "``" in line
        else re.sub(r"(?<![`:\w])`([^`]+)`(?![`_])", marked, line)
        for line in lines
    ]


_ATTRIBUTES: dict[str, list[str]] = {}


def _keep(*arguments: object) -> None:
    """Napoleon takes what is before a colon in an attribute's docstring for its type: undo that."""
    what, name, lines = str(arguments[1]), str(arguments[2]), cast("list[str]", arguments[-1])
    if what in {"attribute", "property", "data"}:
        lines[:] = _ATTRIBUTES.setdefault(name, lines[:])


def setup(app: object) -> None:
    """Hook into autodoc, before napoleon looks at the sections and after it."""
    connect = getattr(app, "connect")  # noqa: B009 - Sphinx is not installed where this is typed
    connect("autodoc-process-docstring", _as_rst, priority=400)
    connect("autodoc-process-docstring", _keep, priority=401)
    connect("autodoc-process-docstring", _keep, priority=600)
