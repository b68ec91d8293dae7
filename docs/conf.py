"""The documentation site: `sphinx-build -W --keep-going -n -c docs . build/docs`.

The source folder is the repository, so that a link between two Markdown files means the same here
and on a page that shows the file itself.  Nothing is downloaded, by the build or by the pages.
"""

from importlib.metadata import version as version_of
from typing import Any

import pyrerank

project = "pyrerank"
copyright = "the pyrerank authors, Apache-2.0"
release = version = version_of("pyrerank")

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_argparse_cli"]
root_doc = "docs/index"
include_patterns = ["README*.md", "docs/*.md", "*/README.md", "pyrerank/demo/README.md"]
include_patterns += ["tests/**/README.md"]
exclude_patterns = [".*", "build", "dist", "demo-*", "**/__pycache__"]

myst_heading_anchors = 3
highlight_language = "none"
smartquotes_action = "D"  # dashes alone: quotes in messages are to be searched for
default_role = "py:obj"
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
napoleon_use_ivar = True
napoleon_use_rtype = False
# These are documented elsewhere, where nobody asks over the network, or they belong to a module of
# pyrerank and are not public; and a name in single quotes in a docstring need not be public either.
OTHERS = r"(torch|np|numpy|os|collections|Path|Any|optional|pyrerank\.\w+\.\w+)\b.*"
nitpick_ignore_regex = [("py:.*", OTHERS), ("py:obj", ".*")]

html_theme = "furo"
html_title = f"pyrerank {version}"
html_show_sphinx = False
html_copy_source = False
html_static_path = ["_static"]
html_css_files = ["site.css"]
templates_path = ["_templates"]
html_additional_pages = {"index": "redirect.html"}  # the site's address opens root_doc


def public_name(app: Any, env: Any, node: Any, words: Any) -> Any:
    """Links ``Reranker.score``, and ``pyrerank.reranker.Score``, where that is defined, to what
    `pyrerank` exports."""
    target = node.get("reftarget", "")
    for name in (target, target.rpartition(".")[2]):
        if node.get("refdomain") == "py" and name.partition(".")[0] in pyrerank.__all__:
            python, public = env.get_domain("py"), f"pyrerank.{name}"
            return python.resolve_xref(env, node["refdoc"], app.builder, "obj", public, node, words)
    return None


def setup(app: Any) -> None:
    app.connect("missing-reference", public_name)
