"""What every page has: the head, the way to the other pages, the line that says when the service is gone."""

from __future__ import annotations

from api.dashboard.html import Child, Html, join, tag

PAGES = (("/", "Winners"), ("/map", "Map"), ("/compare", "Compare"), ("/tuning", "Jobs"))
DOCUMENTS = (
    ("/winners", "winners as JSON"), ("/jobs", "jobs"), ("/devices", "devices"), ("/export", "export"),
    ("/openapi.json", "HTTP interface"),
)  # fmt: skip


def document(title: str, *content: Child, path: str = "") -> str:
    """A whole page. `path` is that of the entry in the navigation it belongs to."""
    body = tag(
        "body",
        tag("a", "Skip to content", class_="skip", href="#main"),
        _header(path),
        tag("div", role="status", id="connection", class_="banner", hidden=True),
        tag("main", *content, id="main", tabindex="-1"),
        _footer(),
        _token_dialog(),
    )
    return f'<!doctype html>\n<html lang="en">{_head(title)}{body}</html>\n'


def page_link(text: Child, href: str, **attributes: str | bool | None) -> Html:
    """A link to another view of the dashboard: scripts load it in place."""
    return tag("a", text, href=href, data_nav=True, **attributes)


def panel(title: str, *content: Child, id_: str | None = None, note: Child = None) -> Html:
    """A section with a heading."""
    heading = tag("h2", title)
    head = heading if note is None else tag("div", heading, tag("p", note, class_="note"), class_="panel-head")
    return tag("section", head, *content, class_="panel", id=id_)


def command(text: str) -> Html:
    """Something to type elsewhere, with a button that copies it."""
    button = tag("button", "Copy", type="button", class_="quiet copy", data_copy=text, aria_label=f"Copy: {text}")
    return tag("div", tag("pre", tag("code", text), tabindex="0"), button, class_="command")


def chart(kind: str, data: str, *, label: str, size: str = "medium") -> Html:
    """Where a script draws `data` (JSON). What it shows must also stand on the page as text or a table."""
    return tag("div", class_=f"chart {size}", data_chart=kind, data_values=data, role="img", aria_label=label)


def _head(title: str) -> Html:
    return tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("title", f"{title} · autotune"),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("link", rel="icon", href="/static/icon.svg", type="image/svg+xml"),
        tag("link", rel="stylesheet", href="/static/dashboard.css"),
        tag("script", src="/static/js/theme.js"),
        tag("script", src="/static/js/dashboard.js", type="module"),
    )


def _header(path: str) -> Html:
    links = [page_link(name, href, aria_current="page" if href == path else None) for href, name in PAGES]
    theme = tag("button", "Theme", type="button", id="theme", class_="quiet")
    return tag(
        "header",
        tag("div", page_link("autotune", "/", class_="brand"), tag("nav", links, aria_label="Views"), theme),
    )


def _footer() -> Html:
    links = [tag("a", name, href=href) for href, name in DOCUMENTS]
    return tag("footer", tag("div", join(links)))


def _token_dialog() -> Html:
    """Shown by a script when the service answers 401."""
    return tag(
        "dialog",
        tag(
            "form",
            tag("h2", "This needs a token"),
            tag("p", "It is kept in this tab until you close it. Whoever runs the service makes one with ",
                tag("code", "autotune token create"), "."),
            tag("label", "Token", tag("input", name="token", type="password", autocomplete="off", required=True)),
            tag("p", class_="problem", role="alert"),
            tag("div", tag("button", "Use it", value="use"),
                tag("button", "Not now", value="", formnovalidate=True, class_="quiet"), class_="actions"),
            method="dialog",
        ),
        id="token",
        aria_label="Token",
    )  # fmt: skip
