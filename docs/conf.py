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
include_patterns = ["README*.md", "docs/*.md", "bench/*.md", "examples/*.md", "tests/**/README.md"]
exclude_patterns = [".*", "build", "dist", "demo-*", "**/__pycache__"]

myst_heading_anchors = 3
highlight_language = "none"
smartquotes = False
default_role = "code"
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
napoleon_use_ivar = True
napoleon_use_rtype = False
# What is documented elsewhere, which is not asked for over the network, or not at all.
OTHERS = r"(torch|np|numpy|os|collections|Path|Any|optional|pyrerank\.checkpoint)\b.*"
nitpick_ignore_regex = [("py:.*", OTHERS)]

html_theme = "furo"
html_title = f"pyrerank {version}"
html_show_sphinx = False
html_copy_source = False
html_static_path = ["static"]
html_css_files = ["site.css"]
templates_path = ["_templates"]
html_additional_pages = {"index": "redirect.html"}  # the site's address opens root_doc


def public_name(app: Any, env: Any, node: Any, words: Any) -> Any:
    """Links ``pyrerank.reranker.Score``, where a class is defined, to ``pyrerank.Score``."""
    name = node.get("reftarget", "").rpartition(".")[2]
    if node.get("refdomain") != "py" or name not in pyrerank.__all__:
        return None
    python = env.get_domain("py")
    target = f"pyrerank.{name}"
    return python.resolve_xref(env, node["refdoc"], app.builder, "obj", target, node, words)


def setup(app: Any) -> None:
    app.connect("missing-reference", public_name)
