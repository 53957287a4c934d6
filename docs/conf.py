"""How `make docs` makes a site of README, docs/ and the docstrings (Sphinx); the source folder is the repository."""

from pathlib import Path

import s2vfast

ROOT = Path(__file__).resolve().parents[1]

project, author, release = "s2vfast", "s2vfast contributors", s2vfast.__version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
root_doc = "README"
include_patterns = ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", "docs/*.md", "docs/api.rst", "kernels/README.md"]
exclude_patterns = ["build/**", ".venv/**"]
html_theme, html_title = "furo", f"s2vfast {release}"
html_show_sphinx = False
# Nothing is fetched when a page is read: fonts are the system's, the search index lies beside the pages.
html_copy_source = False

myst_heading_anchors = 4
myst_enable_extensions = ["colon_fence"]
# Text in single backticks links to what is documented under that name, and is code where nothing is.
default_role = "py:obj"
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_use_type_comments = False
python_maximum_signature_line_length = 100
napoleon_google_docstring, napoleon_numpy_docstring = True, False

CONTENTS = """

```{toctree}
:hidden:
:caption: Start

docs/tutorials
docs/own-data
docs/python
docs/faq
docs/glossary
```

```{toctree}
:hidden:
:caption: How to

docs/nwucla
docs/msr_action3d
docs/training
docs/cluster
docs/evaluation
docs/pictures
docs/presets
docs/formats
docs/containers
docs/points
docs/layouts
docs/views
docs/checkpoints
docs/adding
```

```{toctree}
:hidden:
:caption: Reference

docs/api
docs/architecture
kernels/README
docs/emulator
docs/performance
docs/limits
docs/status
CONTRIBUTING
CHANGELOG
```
"""


def _edit(app, page, content):
    """The contents belong to the site alone, not to README as others show it; diagrams are shown as their text."""
    if page == root_doc:
        content[0] += CONTENTS
    content[0] = content[0].replace("```mermaid", "```text")


def _begin_at_readme(app, exception):
    """A folder of pages is opened at index.html."""
    if exception is None and app.builder.name == "html":
        page = f'<!doctype html><meta charset="utf-8"><meta http-equiv="refresh" content="0; url={root_doc}.html">'
        (Path(app.outdir) / "index.html").write_text(page)


def setup(app):
    """Called by Sphinx."""
    app.connect("source-read", _edit)
    app.connect("build-finished", _begin_at_readme)
