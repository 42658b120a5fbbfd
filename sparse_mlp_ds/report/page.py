"""A whole page: head, list of contents, sections."""

from collections.abc import Callable, Sequence

from sparse_mlp_ds import __version__
from sparse_mlp_ds.errors import one_line
from sparse_mlp_ds.report.markup import Markup, element, joined
from sparse_mlp_ds.report.style import STYLE

_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
"""What a browser lets the page do: nothing is loaded from anywhere, and no script runs, wherever a text came from."""

Section = tuple[str, Callable[[], Markup]]
"""Title of a section, and what makes it; without content, the section is left out."""


def page(title: str, head: Sequence[Markup], sections: Sequence[Section]) -> str:
    """Return a page as HTML.

    Args:
        title: Title of the page.
        head: What stands in front of the sections.
        sections: The sections; one that fails on a damaged file says so, and the others are shown.
    """
    made = [(name, content) for name, make in sections if (content := _content(make))]
    contents = [element("li", element("a", name, href=f"#section-{place}")) for place, (name, _) in enumerate(made)]
    body = [element("h1", title), *head, element("nav", element("ul", *contents))]
    for place, (name, content) in enumerate(made):
        body.append(element("section", element("h2", name), content, id=f"section-{place}"))
    body.append(element("p", f"Written by sparse_mlp_ds {__version__}.", class_="note"))
    # The policy stands first: what is in front of it would not be bound by it.
    meta = [
        Markup(f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'),
        Markup('<meta name="viewport" content="width=device-width, initial-scale=1">'),
        Markup('<link rel="icon" href="data:,">'),
    ]
    top = Markup('<meta charset="utf-8">') + joined(meta) + element("title", title) + f"<style>{STYLE}</style>"
    return f'<!DOCTYPE html>\n<html lang="en"><head>{top}</head><body>{joined(body)}</body></html>\n'


def _content(make: Callable[[], Markup]) -> Markup:
    try:
        return make()
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, OSError, OverflowError) as error:
        text = f"This section cannot be shown: a file that it is made from is damaged ({one_line(error, 100)})."
        return element("p", text, class_="warning")
