"""Settings of Sphinx for these pages: `sphinx-build -W docs site`."""

from importlib.metadata import version as version_of

project = "flwr-ctma"
author = "The flwr-ctma developers"
copyright = f"2026, {author}"
release = version = version_of("flwr-ctma")

extensions = [
    "sphinx.ext.autodoc",
    "numpydoc",  # docstrings as NumPy, PyTorch and Flower write them
    "myst_nb",  # pages in Markdown, and the notebook as a page
    "sphinx_click",  # the command line, from its own help
    "sphinx_copybutton",
    "sphinx_design",
    "sphinx-mathjax-offline",  # formulas without a network
]
exclude_patterns = ["**.ipynb_checkpoints"]

myst_enable_extensions = ["colon_fence", "dollarmath"]
myst_heading_anchors = 4
nb_execution_mode = "off"  # a test runs the notebook

default_role = "py:obj"
autodoc_typehints = "signature"
autodoc_member_order = "bysource"
maximum_signature_line_length = 70
python_use_unqualified_type_names = True
numpydoc_show_class_members = False
numpydoc_class_members_toctree = False

copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True

html_theme = "furo"
html_title = f"flwr-ctma {release}"
html_static_path = ["static"]
html_favicon = "static/favicon.svg"
html_css_files = ["pages.css"]
html_show_sphinx = False


_EMPTY_DEFAULTS = (":default: ````", ":default: ``False``")


def drop_empty_defaults(app, context, lines):
    """Remove empty defaults, which docutils misreads, and the False of flags."""
    lines[:] = [line for line in lines if line.strip() not in _EMPTY_DEFAULTS]


def setup(app):
    """Connect the handler."""
    app.connect("sphinx-click-process-options", drop_empty_defaults)
