"""Records commands in a terminal and draws them as an SVG that plays: how docs/demo.svg was made.

    PATH="$PWD/.venv/bin:$PATH" .venv-docs/bin/python docs/recording.py --out docs/demo.svg --title "The demo" \\
        "sparse-mlp-ds shards make digits data/digits" \\
        "deepspeed --log_level warning --num_gpus 2 train.py --ds_config ds_configs/moe.json"

Each command runs in a terminal of 80 x 24. The picture shows that terminal at equal intervals, as a strip of screens of
which CSS shows one at a time; where animations are not wanted, the last.
"""

import argparse
import html
import os
import pty
import time
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path

import pyte
from pyte.screens import Char

COLUMNS, ROWS = 80, 24
SCREENS, SCREEN_SECONDS, END_SECONDS = 40, 0.4, 6.0
CHARACTER, LINE, MARGIN, TITLE = 7.8, 17, 14, 34
"""Pixels: width of a character, height of a line, margin, height of the title."""
COLOURS = {
    "default": "#d8dee9", "black": "#6b7789", "brightblack": "#6b7789", "red": "#f2777a", "brightred": "#f2777a",
    "green": "#99c794", "brightgreen": "#99c794", "brown": "#fac863", "blue": "#7aa6da", "brightblue": "#7aa6da",
    "magenta": "#c594c5", "brightmagenta": "#c594c5", "cyan": "#5fb3b3", "brightcyan": "#5fb3b3",
}  # fmt: skip
BACKGROUND, BORDER = "#1b2230", "#4a5568"
FONTS = 'ui-monospace,SFMono-Regular,Menlo,Consolas,"DejaVu Sans Mono",monospace'

Recording = list[tuple[float, bytes]]
"""Seconds since the start, and what was printed."""


def record(commands: list[str]) -> Recording:
    """Run the commands one after another in a terminal of their own, and return what they print."""
    start, printed = time.monotonic(), []
    for command in commands:
        printed.append((time.monotonic() - start, f"\x1b[1m$ {command}\x1b[0m\r\n".encode()))
        process, terminal = pty.fork()
        if not process:
            os.execvp("sh", ["sh", "-c", f"stty cols {COLUMNS} rows {ROWS}; exec {command}"])
        while part := _read(terminal):
            printed.append((time.monotonic() - start, part))
        if status := os.waitpid(process, 0)[1]:
            raise SystemExit(f"error: {command!r} ended with {os.waitstatus_to_exitcode(status)}")
    return printed


def screens(recording: Recording) -> list[list[list[Char]]]:
    """Return the terminal at equal intervals of the recording, as rows of characters; the last is its end."""
    screen = pyte.Screen(COLUMNS, ROWS)
    stream, found = pyte.ByteStream(screen), []
    interval = recording[-1][0] / (SCREENS - 1)
    for seconds, part in recording:
        while len(found) * interval < seconds:
            found.append(_rows(screen))
        stream.feed(part)
    return [*found[: SCREENS - 1], _rows(screen)]


def drawing(shown: list[list[list[Char]]], title: str) -> str:
    """Return the SVG: every different row once, and each screen as a list of them."""
    width, height = round(2 * MARGIN + COLUMNS * CHARACTER), TITLE + ROWS * LINE + MARGIN
    numbers: dict[str, int] = {}
    strip = []
    for number, rows in enumerate(shown):
        for row, text in enumerate(map(_text, rows)):
            if text:
                y = number * height + TITLE + (row + 1) * LINE - 4
                strip.append(f'<use href="#r{numbers.setdefault(text, len(numbers))}" y="{y}"/>')
    seconds = (len(shown) - 1) * SCREEN_SECONDS + END_SECONDS
    steps = "".join(
        f"{100 * number * SCREEN_SECONDS / seconds:.2f}%{{transform:translateY({-number * height}px)}}"
        for number in range(len(shown))
    )
    rows = "\n".join(f'<text id="r{number}">{text}</text>' for text, number in numbers.items())
    end = f"#strip{{transform:translateY({-(len(shown) - 1) * height}px)}}"
    size = f'viewBox="0 0 {width} {height}" width="{width}" height="{height}"'
    return f"""<svg xmlns="http://www.w3.org/2000/svg" {size} role="img">
<title>{html.escape(title)}</title>
<style>
text{{font:13px {FONTS};white-space:pre;fill:{COLOURS["default"]}}}
{end}
@media(prefers-reduced-motion:no-preference){{#strip{{animation:strip {seconds:.1f}s step-end infinite}}}}
@keyframes strip{{{steps}}}
</style>
<defs><clipPath id="window"><rect y="{TITLE}" width="{width}" height="{height - TITLE}"/></clipPath>
{rows}
</defs>
<rect x=".5" y=".5" width="{width - 1}" height="{height - 1}" rx="8" fill="{BACKGROUND}" stroke="{BORDER}"/>
<text x="{width / 2}" y="22" text-anchor="middle" style="fill:#8b98ab">{html.escape(title)}</text>
<g clip-path="url(#window)"><g id="strip">
{"".join(strip)}
</g></g>
</svg>
"""


def _read(terminal: int) -> bytes:
    try:
        return os.read(terminal, 65536)
    except OSError:  # how Linux says that the other end is closed
        return b""


def _rows(screen: pyte.Screen) -> list[list[Char]]:
    return [[screen.buffer[y][x] for x in range(COLUMNS)] for y in range(ROWS)]


def _text(row: list[Char]) -> str:
    """Return a row as pieces of one style, each at its column and as wide as its characters are in a terminal."""
    return "".join(_pieces(row))


def _pieces(row: list[Char]) -> Iterator[str]:
    column = 0
    for (colour, bold), group in groupby(row, key=lambda char: (char.fg, char.bold)):
        characters = "".join(char.data for char in group)
        start, text = column + len(characters) - len(characters.lstrip()), characters.strip()
        column += len(characters)
        if text:
            style = f' fill="{COLOURS[colour]}"' if colour != "default" else ""
            style += ' font-weight="bold"' if bold else ""
            x, length = MARGIN + start * CHARACTER, len(text) * CHARACTER
            yield f'<tspan x="{x:.1f}" textLength="{length:.1f}"{style}>{html.escape(text)}</tspan>'


def main() -> None:
    """Record, and draw."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("commands", nargs="+", metavar="COMMAND")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--title", required=True)
    args = parser.parse_args()
    recording = record(args.commands)
    faster = recording[-1][0] / ((SCREENS - 1) * SCREEN_SECONDS)
    args.out.write_text(drawing(screens(recording), f"{args.title}, {faster:.0f} times as fast"))


if __name__ == "__main__":
    main()
