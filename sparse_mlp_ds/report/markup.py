"""HTML by construction: text becomes markup only through `element`, which escapes it, so no name of a run is code."""

import html
from collections.abc import Iterable, Sequence


class Markup(str):
    """Text that is HTML or SVG already, and is not escaped again."""


def element(name: str, *children: object, **attributes: object) -> Markup:
    """Return an HTML or SVG element.

    Args:
        name: The tag.
        children: Its content: markup, or text that is escaped.
        attributes: Its attributes; a trailing `_` is dropped (`class_`), a `_` inside becomes `-`, None leaves one out.
    """
    given = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{html.escape(str(value))}"'
        for key, value in attributes.items()
        if value is not None
    )
    return Markup(f"<{name}{given}>{joined(children)}</{name}>")


def joined(children: Iterable[object]) -> Markup:
    """Return markup and texts one after the other; texts are escaped."""
    return Markup("".join(one if isinstance(one, Markup) else html.escape(str(one)) for one in children))


def table(head: Sequence[object], rows: Iterable[Sequence[object]], numbers: bool = True) -> Markup:
    """Return a table. Without room for its columns, one of more than three becomes a list: each row, cell below cell.

    Args:
        head: Titles of the columns.
        rows: The cells, row by row.
        numbers: Whether cells behind the first are figures, which stand at the right.
    """
    titles = element("tr", *(element("th", one, scope="col") for one in head))
    body = [
        element("tr", *(element("td", cell, data_label=title) for title, cell in zip(head, row, strict=True)))
        for row in rows
    ]
    room = "many" if len(head) > 6 else "some" if len(head) > 3 else ""
    names = [name for name in ("numbers" if numbers else "", room) if name]
    made = element("table", element("thead", titles), element("tbody", *body), class_=" ".join(names) or None)
    return element("div", made, class_="wide")


def facts(pairs: Iterable[tuple[str, object]]) -> Markup:
    """Return names and what they are, line by line."""
    return element("dl", *(joined([element("dt", name), element("dd", value)]) for name, value in pairs))


def folded(title: str, *children: object) -> Markup:
    """Return content that a reader unfolds; it is not printed."""
    return element("details", element("summary", title), *children)


def note(text: str) -> Markup:
    """Return a small line of explanation."""
    return element("p", text, class_="note")
