"""Generated source with highlighting: classes from Pygments, colours from the style sheet."""

from __future__ import annotations

from pygments import highlight
from pygments.formatters.html import HtmlFormatter
from pygments.lexers import get_lexer_by_name

from api.dashboard.html import Html, tag

MAX_SOURCE = 400_000


def highlighted(source: str) -> Html:
    """C, METAL and CUDA are all near enough to C++. Very long source is shown plain: its cut end would be a lie."""
    if len(source) > MAX_SOURCE:
        return tag("pre", source)
    return Html(highlight(source, get_lexer_by_name("cpp"), HtmlFormatter(cssclass="code", wrapcode=True)))
