"""Hooks of MkDocs for ``make docs``: pages that are not in ``docs``, and links to files outside it.

The pages are README.md as ``index.md``, the changelog, a page of API documentation for each module, and each config file.
Links work on the site as they do in the repository; ``mkdocs build --strict`` fails if one does not.
"""

import logging
import re
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parent.parent
COPIED = {  # from the repository, as pages
    "README.md": "index.md",
    "CHANGELOG.md": "changelog.md",
    "notebooks": "notebooks.md",
    "notebooks/README.md": "notebooks.md",
}
LINK = re.compile(r"\]\((?!https?:|#|mailto:)([^)\s#]+)(#[^)\s]*)?\)")


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Add the modules and config files to the navigation, one section for each package and group."""
    for plugin in ("griffe", "mkdocs_autorefs"):  # docstrings that name two parameters at once, and examples with brackets
        logging.getLogger(f"mkdocs.plugins.{plugin}").setLevel(logging.ERROR)
    config.nav = [*(config.nav or []), {"API": _sections(_modules(), ".")}, {"Configs": _sections(_configs(), "/")}]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the generated pages."""
    pages = {page: (ROOT / name).read_text(encoding="utf-8") for name, page in COPIED.items() if (ROOT / name).is_file()}
    pages |= {page: f"# `{name}`\n\n::: {name}\n" for name, page in _modules().items()}
    for name, page in _configs().items():
        pages[page] = f"# {name}\n\n```yaml\n{(ROOT / name).read_text(encoding='utf-8').rstrip()}\n```\n"
    for page, text in pages.items():
        files.append(File.generated(config, page, content=text))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Rewrite links to files outside ``docs``."""
    source = next(
        (name for name, copied in COPIED.items() if copied == page.file.src_uri and name.endswith(".md")),
        f"docs/{page.file.src_uri}",
    )
    return LINK.sub(lambda link: f"]({_target((ROOT / source).parent / link[1], link[1])}{link[2] or ''})", markdown)


def _target(path: Path, link: str) -> str:
    """Return the address on the site of what a link leads to; one that has no page stays, and MkDocs reports it."""
    path = path.resolve()
    if not path.exists() or not path.is_relative_to(ROOT):
        return link
    name = path.relative_to(ROOT).as_posix()
    if name.startswith("docs/"):
        return name.removeprefix("docs/")
    if name.endswith(".ipynb"):
        return "notebooks.md"
    return (COPIED | _configs()).get(name) or _modules().get(_module(Path(name)), link)


def _module(path: Path) -> str:
    """Return the dotted name of a module or package."""
    return ".".join(path.with_suffix("").parts).removesuffix(".__init__")


def _modules() -> dict[str, str]:
    """Return the page of each module."""
    names = [_module(path.relative_to(ROOT)) for path in sorted((ROOT / "flowergen").rglob("*.py"))]
    return {name: f"api/{name}.md" for name in names}


def _configs() -> dict[str, str]:
    """Return the page of each config file, whose name is its path."""
    paths = [path.relative_to(ROOT) for path in sorted((ROOT / "conf").rglob("*.yaml"))]
    return {path.as_posix(): path.with_suffix(".md").as_posix() for path in paths}


def _sections(pages: dict[str, str], separator: str) -> list[dict[str, Any]]:
    """Group pages into sections by the part of their names before the last separator."""
    sections: dict[str, list[dict[str, str]]] = {}
    for name, page in pages.items():
        section, _, last = name.rpartition(separator)
        sections.setdefault(section or name, []).append({last: page})
    return [{section: pages} for section, pages in sections.items()]
