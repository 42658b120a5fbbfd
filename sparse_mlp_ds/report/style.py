"""The style sheet of the page: light and dark, a phone, a wide screen, and paper."""

_LIGHT = """--page:#fff;--card:#f6f7f9;--text:#1b1f24;--soft:#57606a;--line:#d5dae0;--accent:37,99,201;
--s0:#2563c9;--s1:#c2410c;--s2:#15803d;--s3:#9333ea;--s4:#a16207;--s5:#0e7490;--s6:#be185d;--s7:#57606a;"""
_DARK = """--page:#12161c;--card:#1b212a;--text:#e6e9ee;--soft:#a0a9b4;--line:#38424e;--accent:110,168,254;
--s0:#6ea8fe;--s1:#ff9a5c;--s2:#5ccf83;--s3:#c79bff;--s4:#e3b341;--s5:#4fc3d9;--s6:#ff8ac0;--s7:#a0a9b4;"""

_AS_LIST = """thead{display:none}
TABLE,TABLE tbody,TABLE tr{display:block;min-width:0}
TABLE tr{border-bottom:1px solid var(--line);padding:.4rem 0}
TABLE td{display:flex;gap:1rem;justify-content:space-between;border:0;padding:.05rem .2rem}
TABLE.numbers td{text-align:right}
TABLE td:first-child{font-weight:600}
TABLE td:not(:first-child)::before{content:attr(data-label);color:var(--soft);text-align:left;flex:none;max-width:55%}
TABLE td:empty{display:none}"""
"""How a table without room for its columns is shown: each row as a list, with the title of its column at each cell."""

STYLE = (
    f":root{{color-scheme:light dark;{_LIGHT}}}"
    f"@media (prefers-color-scheme:dark){{:root{{{_DARK}}}}}"
    f"@media print{{:root{{color-scheme:light;{_LIGHT}}}details{{display:none}}"
    "body{max-width:none}figure,tr{break-inside:avoid}h2{break-after:avoid}nav{display:none}}"
    + "".join(f".s{n}{{--c:var(--s{n})}}" for n in range(8))
    + """
*{box-sizing:border-box}
body{margin:0 auto;max-width:1320px;padding:1rem;background:var(--page);color:var(--text);
font:15px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,sans-serif;overflow-wrap:anywhere}
h1{font-size:1.5rem;margin:.2rem 0}
h2{font-size:1.2rem;margin:2rem 0 .6rem;padding-top:.6rem;border-top:1px solid var(--line)}
h3{font-size:1rem;margin:1.2rem 0 .4rem}
a{color:rgb(var(--accent))}
nav ul,.legend{list-style:none;margin:.3rem 0;padding:0;display:flex;flex-wrap:wrap;gap:.2rem 1rem}
.note{color:var(--soft);font-size:.85rem;margin:.3rem 0}
.warning{border-left:4px solid var(--s1);padding:.2rem .6rem;margin:.5rem 0;background:var(--card)}
.state{display:inline-block;padding:.1rem .6rem;border:1px solid var(--line);border-radius:1rem;font-size:.85rem}
.charts{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,330px),1fr));gap:.8rem}
.pictures{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,480px),1fr));gap:.8rem}
figure{margin:0;padding:.6rem;background:var(--card);border:1px solid var(--line);border-radius:6px;min-width:0}
figcaption{font-weight:600;font-size:.9rem;margin-bottom:.2rem}
figure>svg,figure>img{display:block;width:100%;height:auto;margin:0 auto}
.pictures>figure>svg{max-width:520px}
figure>img.drawn{background:#fff;border-radius:4px}
svg text{fill:var(--soft);font-size:10.5px}
svg text.cell{fill:var(--text);font-size:9px}
svg .grid{stroke:var(--line);stroke-width:.6}
svg .axis{stroke:var(--soft);stroke-width:.8}
svg .curve{fill:none;stroke:var(--c);stroke-width:1.6;stroke-linejoin:round}
svg .dashed{stroke-dasharray:5 3}
svg .dot,svg .area{fill:var(--c)}
svg .share{fill:rgb(var(--accent))}
svg .diagonal{stroke:var(--soft);stroke-dasharray:4 3}
.legend{font-size:.82rem;color:var(--soft)}
.legend b{color:var(--text);font-weight:600;font-variant-numeric:tabular-nums}
.swatch{width:18px;height:10px;margin-right:.3rem}
.square{width:10px;height:10px;margin-right:.3rem}
.bar{display:block;width:100%;height:28px;border-radius:4px}
.heat{display:block;width:100%;image-rendering:pixelated;border:1px solid var(--line)}
.thumb{height:48px;width:48px;object-fit:contain;margin:1px;image-rendering:auto;vertical-align:middle}
.thumb.small{image-rendering:pixelated}
.wide{overflow-x:auto;max-width:100%}
table{border-collapse:collapse;font-size:.88rem;min-width:min(100%,420px)}
th,td{text-align:left;padding:.25rem .6rem;border-bottom:1px solid var(--line);vertical-align:top}
.numbers td:not(:first-child),.numbers th:not(:first-child){text-align:right;font-variant-numeric:tabular-nums}
dl{display:grid;grid-template-columns:minmax(7rem,max-content) 1fr;gap:.1rem 1rem;font-size:.9rem;margin:.4rem 0}
dt{color:var(--soft)}
dd{margin:0;min-width:0}
pre{overflow-x:auto;background:var(--card);border:1px solid var(--line);border-radius:6px;padding:.6rem;
font-size:.8rem;line-height:1.4;white-space:pre-wrap}
summary{cursor:pointer;padding:.3rem 0}
@media (max-width:500px){dl{grid-template-columns:1fr;gap:0}dd{margin-bottom:.4rem}}
"""
    + "".join(
        f"@media (max-width:{width}px){{{_AS_LIST.replace('TABLE', f'.{name}').replace('thead', f'.{name} thead', 1)}}}"
        for name, width in (("some", 600), ("many", 760))
    )
)
"""The content of the page's style element."""
