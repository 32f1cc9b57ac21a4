"""The frame of the report's page and the HTML pieces its sections are made of. Plain text is escaped here."""

import base64
import html
import math
import string
from collections.abc import Iterable, Sequence

# Light, also where the browser is dark: pictures, charts and colours of classes are made for white.
_PAGE = string.Template("""\
<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="only light">
<title>$title</title>
<style>
:root { color-scheme: only light; }
* { box-sizing: border-box; }
body { margin: 0; background: #fff; color: #1c2430;
  font: 15px/1.5 system-ui, "Segoe UI", Roboto, sans-serif; }
main, header, nav { max-width: 1400px; margin: 0 auto; padding: 0 20px; }
header { padding-top: 28px; }
h1 { font-size: 1.7rem; line-height: 1.2; margin: 0 0 .6rem; overflow-wrap: anywhere; }
h2 { font-size: 1.2rem; margin: 2.4rem 0 .6rem; padding-bottom: .25rem; border-bottom: 2px solid #d9e0e8; }
h3 { font-size: 1rem; margin: 1.3rem 0 .4rem; overflow-wrap: anywhere; }
p { margin: .4rem 0; max-width: 78ch; overflow-wrap: anywhere; }
.note, figcaption { color: #55606e; font-size: .88rem; }
.missing { color: #55606e; font-style: italic; }
nav { padding-top: .7rem; font-size: .9rem; }
nav a { color: #1f5fa8; margin-right: 1rem; display: inline-block; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .1rem 1rem; margin: .8rem 0; }
dt { color: #55606e; }
dd { margin: 0; overflow-wrap: anywhere; }
.scroll { overflow-x: auto; margin: .5rem 0; }
table { border-collapse: collapse; font-size: .88rem; }
th, td { padding: .25rem .6rem; text-align: left; vertical-align: top; border-bottom: 1px solid #e4e9ef; }
thead th { background: #f3f6f9; vertical-align: bottom; }
tbody th { font-weight: 500; }
tr.total th, tr.total td { font-weight: 700; border-top: 2px solid #b9c4d0; }
td.n, th.n { text-align: right; }
td.n { font-variant-numeric: tabular-nums; white-space: nowrap; }
thead th.n { min-width: 5rem; max-width: 12rem; }
td.bar { min-width: 7.5rem; }
td.short { white-space: nowrap; }
td.key { white-space: nowrap; color: #55606e; }
.beside { display: flex; flex-wrap: wrap; gap: 0 1rem; align-items: flex-start; }
td.value { overflow-wrap: anywhere; }
table.heat td { text-align: center; padding: .3rem .4rem; border: 1px solid #fff; }
table.heat th { text-align: center; border: 0; background: none; font-weight: 500; white-space: nowrap; }
.charts { display: flex; flex-wrap: wrap; gap: 1rem; }
.charts figure { flex: 1 1 330px; max-width: 470px; margin: 0; }
.charts img { width: 100%; height: auto; display: block; }
.strip { display: grid; gap: 6px; margin: .2rem 0 1rem; }
.strip figure { margin: 0; min-width: 0; }
.strip img { width: 100%; height: auto; display: block; border-radius: 3px; }
.strip figcaption { font-size: .78rem; line-height: 1.25; overflow-wrap: anywhere; }
.absent { border: 1px dashed #b9c4d0; border-radius: 3px;
  min-height: 5rem; text-align: center; padding-top: 1.8rem; }
.id { font-size: .85rem; margin: .6rem 0 .1rem; font-weight: 600; overflow-wrap: anywhere; }
.legend { display: flex; flex-wrap: wrap; gap: .2rem 1rem; margin: .5rem 0; font-size: .88rem; }
.legend i { display: inline-block; width: .95em; height: .95em; border-radius: 2px; vertical-align: -.1em;
  margin-right: .35em; border: 1px solid #0003; }
details { border: 1px solid #d9e0e8; border-radius: 6px; padding: .35rem .8rem; margin: .45rem 0; }
summary { cursor: pointer; overflow-wrap: anywhere; }
code { font: .86em ui-monospace, Consolas, Menlo, monospace; overflow-wrap: anywhere; }
@media (max-width: 720px) {
  body { font-size: 14px; }
  main, header, nav { padding-left: 12px; padding-right: 12px; }
  .strip { grid-template-columns: repeat(auto-fill, minmax(100px, 1fr)) !important; }
  dl { grid-template-columns: 1fr; } dd { margin-bottom: .35rem; }
}
@media print { .strip, .charts figure, tr { break-inside: avoid; } }
</style>
</head>
<body>
<header>
<h1>$title</h1>
$head
</header>
<nav>
$links
</nav>
<main>
$sections
</main>
</body>
</html>
""")


def page(title: str, head: str, sections: Sequence[tuple[str, str]]) -> str:
    """The whole file.

    Args:
        title: Plain text.
        head: HTML below it.
        sections: (heading as plain text, HTML) each.
    """
    named = [(f"s{k}", escape(heading), body) for k, (heading, body) in enumerate(sections)]
    text = _PAGE.substitute(
        title=escape(title),
        head=head,
        links="\n".join(f'<a href="#{name}">{heading}</a>' for name, heading, _ in named),
        sections="\n".join(
            f'<section id="{name}">\n<h2>{heading}</h2>\n{body}\n</section>' for name, heading, body in named
        ),
    )
    # names of files may hold bytes, and JSON escapes, that are no characters
    return text.encode("utf8", "replace").decode("utf8")


def escape(text: object) -> str:
    return html.escape(str(text))


def paragraph(text: str, kind: str = "") -> str:
    return f'<p class="{kind}">{escape(text)}</p>' if kind else f"<p>{escape(text)}</p>"


def missing(text: str) -> str:
    """The sentence that stands where a part of the report would."""
    return paragraph(text, "missing")


def percent(value: float, digits: int = 2) -> str:
    """A fraction in percent, without the sign; a dash where there is none."""
    return f"{100 * value:.{digits}f}" if math.isfinite(value) else "–"


def duration(seconds: float) -> str:
    """Such as ``8.3 s``, ``12 min 05 s``, ``3 h 02 min``."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes = round(seconds) // 60
    if minutes < 60:
        return f"{minutes} min {round(seconds) % 60:02d} s"
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60:02d} min"


def cell(text: object, kind: str = "", style: str = "") -> str:
    """A ``<td>``; ``kind`` is its class: ``n`` for numbers."""
    attributes = (f' class="{kind}"' if kind else "") + (f' style="{style}"' if style else "")
    return f"<td{attributes}>{escape(text)}</td>"


def bar_cell(count: int, largest: int) -> str:
    """A number over a bar, as wide as the number's part of the largest one."""
    share = 100 * count / largest if largest else 0
    fill = f"linear-gradient(to right, #cfe1f5 {share:.1f}%, transparent {share:.1f}%)"
    return cell(count, "n bar", f"background: {fill}")


def shaded_cell(value: float) -> str:
    """A fraction in percent, the greener the higher."""
    if not math.isfinite(value):
        return cell("–", "n")
    return cell(percent(value), "n", f"background: rgba(45, 138, 78, {0.45 * min(max(value, 0), 1):.3f})")


def row(heading: object, cells: Iterable[str], kind: str = "") -> str:
    opening = f'<tr class="{kind}">' if kind else "<tr>"
    return f'{opening}<th scope="row">{escape(heading)}</th>{"".join(cells)}</tr>'


def table(
    headings: Sequence[str], rows: Iterable[str], *, numbers: Iterable[int] = (), kind: str = ""
) -> str:
    """A table that scrolls sideways where it is wider than the page.

    Args:
        headings: Plain text per column.
        rows: What ``row`` made.
        numbers: Columns whose heading stands to the right.
        kind: CSS class.
    """
    kinds = dict.fromkeys(numbers, ' class="n"')
    heads = "".join(
        f'<th scope="col"{kinds.get(k, "")}>{escape(heading)}</th>' for k, heading in enumerate(headings)
    )
    opening = f'<table class="{kind}">' if kind else "<table>"
    body = "<tbody>\n" + "\n".join(rows) + "\n</tbody>"
    return f'<div class="scroll">{opening}<thead><tr>{heads}</tr></thead>\n{body}</table></div>'


def details(summary: str, body: str, *, open: bool = False) -> str:
    return f"<details{' open' if open else ''}><summary>{escape(summary)}</summary>\n{body}\n</details>"


def beside(parts: Iterable[str]) -> str:
    """Pieces of HTML beside each other where there is room."""
    return '<div class="beside">' + "\n".join(parts) + "</div>"


def image(content: bytes, kind: str, alt: str) -> str:
    """A picture inside the page; ``kind`` is its media type, such as ``image/png``."""
    data = base64.b64encode(content).decode("ascii")
    return f'<img src="data:{kind};base64,{data}" alt="{escape(alt)}">'


def charts(drawn: Iterable[tuple[bytes, str]]) -> str:
    """Charts beside each other: (SVG, what it shows in words) each."""
    figures = "\n".join(
        f"<figure>{image(svg, 'image/svg+xml', words)}<figcaption>{escape(words)}</figcaption></figure>"
        for svg, words in drawn
    )
    return f'<div class="charts">\n{figures}\n</div>'
