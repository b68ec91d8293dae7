"""The documentation site: `sphinx-build -W --keep-going -n -c docs . build/docs`.

The source folder is the repository, so that a link between two Markdown files means the same here
and on a page that shows the file itself.  Nothing is downloaded, by the build or by the pages.
"""

from importlib.metadata import version as version_of

project = "pyrerank"
copyright = "the pyrerank authors, Apache-2.0"
release = version = version_of("pyrerank")

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_argparse_cli"]
root_doc = "docs/index"
include_patterns = ["README*.md", "docs/*.md", "bench/*.md", "examples/*.md", "tests/**/README.md"]
exclude_patterns = [".*", "build", "dist", "demo-*", "**/__pycache__"]

myst_heading_anchors = 3
default_role = "code"
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
napoleon_use_ivar = True
napoleon_use_rtype = False
# Their documentation is elsewhere, and is not asked for over the network.
nitpick_ignore_regex = [("py:.*", r"(torch|np|numpy|os|collections|argparse|Path|Any)\b.*")]

html_theme = "furo"
html_title = f"pyrerank {version}"
html_show_sphinx = False
html_copy_source = False
html_static_path = ["static"]
html_css_files = ["site.css"]
templates_path = ["_templates"]
html_additional_pages = {"index": "redirect.html"}  # the site's address opens root_doc
