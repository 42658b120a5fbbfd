"""What the site has besides the pages of docs/; mkdocs calls these functions (`hooks` in mkdocs.yml).

Pages of other folders stay where they are, and their links lead to the same places as on a forge. A file that a page
links to, such as a test or a notebook, becomes a page that shows it. Entries of `nav` under api/ become the docstrings
of the module so named.
"""

import json
import posixpath
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.plugins import get_plugin_logger
from mkdocs.structure.files import File, Files, InclusionLevel
from mkdocs.structure.pages import Page

REPOSITORY = Path(__file__).parents[2]
PACKAGE = "sparse_mlp_ds"
ELSEWHERE = {
    "README.md": "index.md",
    **{path: path for path in ("CONTRIBUTING.md", "CHANGELOG.md")},
    **{f"{folder}/README.md": f"{folder}/README.md" for folder in ("launcher", "docker", "benchmarks", "notebooks")},
}
"""Pages outside docs/: their path in the repository -> their path in the site."""
IN_REPOSITORY = {uri: path for path, uri in ELSEWHERE.items()}
LINK = re.compile(r"(?<=\]\()(?!\w+:)([^)#\s]+)(?=[)#])")
LANGUAGES = {".py": "python", ".sh": "bash", ".sbatch": "bash", ".yaml": "yaml", ".yml": "yaml", ".json": "json"}
TAGS = re.compile(
    "a|abbr|autoref|b|br|code|dd|del|details|div|dl|dt|em|figcaption|figure|h[1-6]|hr|img|kbd|li|ol|p|path|pre|s|small"
    "|span|strong|sub|summary|sup|svg|table|tbody|td|th|thead|tr|ul"
)
"""What Markdown and the pages of docstrings are made of."""

log = get_plugin_logger(__name__)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that are not in docs/."""
    for path, uri in ELSEWHERE.items():
        files.append(File.generated(config, uri, abs_src_path=str(REPOSITORY / path)))
    for uri in _api_pages(config.nav):
        module = uri.removesuffix(".md").replace("/", ".").replace("api", PACKAGE, 1)
        files.append(File.generated(config, uri, content=f"::: {module}\n"))
    pages = {file.src_uri: file.content_string for file in files.documentation_pages()}
    linked = {_target(uri, link) for uri, text in pages.items() for link in LINK.findall(text)}
    for path in sorted(linked):
        if _uri(path).startswith("files/") and (REPOSITORY / path).is_file():
            content = _shown(path)
            files.append(File.generated(config, _uri(path), content=content, inclusion=InclusionLevel.NOT_IN_NAV))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Return a page with its links into the repository as links into the site."""
    here = page.file.src_uri

    def moved(link: re.Match[str]) -> str:
        return posixpath.relpath(_uri(_target(here, link[1])), posixpath.dirname(here) or ".")

    has_links = not here.startswith(("api/", "files/")) or here.endswith(".ipynb.md")
    return LINK.sub(moved, markdown) if has_links else markdown


def on_page_content(html: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Warn of what a forge or an editor shows and the site would not.

    Lists, tables and fences without an empty line before them would be text, and words such as <name> would be tags.
    """
    for paragraph in re.findall(r"<p>(.*?)</p>", html, re.DOTALL):
        if found := re.search(r"^([*-] |\||```).*", paragraph, re.MULTILINE):
            log.warning(f"{page.file.src_uri}: no empty line before {found[0][:60]!r}")
    for tag in sorted(set(re.findall(r"<([a-z]\w*)", html))):
        if not TAGS.fullmatch(tag):
            log.warning(f"{page.file.src_uri}: <{tag}> would not be seen; write it between backticks or in capitals")
    return html


def _api_pages(nav: Any) -> Iterator[str]:
    if isinstance(nav, str):
        if nav.startswith("api/"):
            yield nav
    elif nav:
        for entry in nav.values() if isinstance(nav, dict) else nav:
            yield from _api_pages(entry)


def _target(uri: str, link: str) -> str:
    """Return where in the repository a link of a page leads."""
    shown = uri.removeprefix("files/").removesuffix(".md")
    page = shown if uri.startswith("files/") else IN_REPOSITORY.get(uri, f"docs/{uri}")
    return posixpath.normpath(posixpath.join(posixpath.dirname(page), link))


def _uri(path: str) -> str:
    """Return where in the site a file of the repository is."""
    if path in ELSEWHERE:
        return ELSEWHERE[path]
    return path.removeprefix("docs/") if path.startswith("docs/") else f"files/{path}.md"


def _shown(path: str) -> str:
    file = REPOSITORY / path
    if file.suffix == ".ipynb":
        return "\n\n".join(map(_cell, json.loads(file.read_text())["cells"]))
    language = "docker" if file.name.startswith("Dockerfile") else LANGUAGES.get(file.suffix, "text")
    return f"---\nsearch: {{exclude: true}}\n---\n# {path}\n\n````{language}\n{file.read_text()}````\n"


def _cell(cell: dict[str, Any]) -> str:
    """Return a cell of a notebook without its output."""
    text = "".join(cell["source"])
    return text if cell["cell_type"] == "markdown" else f"```python\n{text}\n```"
