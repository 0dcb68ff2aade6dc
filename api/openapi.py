"""The interface's description, completed with what every route has in common."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from api.authority import needed
from api.problem import MEDIA_TYPE, Problem
from api.settings import Settings

EVERYWHERE = {
    "400": "Not JSON, or no HTTP that makes sense", "408": "The body did not arrive in time",
    "413": "The body is too large", "421": "The service does not have that name", "422": "Bad input",
    "429": "Too much of yours at once: queued, streamed or on its way",
    "503": "The database does not answer, or there is too much to do",
}  # fmt: skip
GUARDED = {"401": "No token that holds", "403": "The token is not good for this, or the page is from elsewhere"}
NAMED_BY: dict[str, dict[tuple[str, str, str], str]] = {
    "/jobs/{job_id}": {
        ("/tune", "post", "202"): "/id", ("/jobs/{job_id}/retry", "post", "202"): "/id",
        ("/jobs", "get", "200"): "/jobs/0/id",
    },
    "/winners/{winner_id}": {("/winners", "get", "200"): "/winners/0/id"},
}  # fmt: skip
"""Where an answer names what a path, and those below it, are about: path, method and status, then a JSON pointer."""
SCHEMES = {
    "bearer": {"type": "http", "scheme": "bearer", "description": "A token of `autotune token create`"},
    "basic": {"type": "http", "scheme": "basic", "description": "For browsers: any user, the token as password"},
}


def describe(app: FastAPI, settings: Settings) -> dict[str, Any]:
    """The OpenAPI document: problems as what they are, and which routes need a token where tokens are needed."""
    document = get_openapi(title=app.title, version=app.version, summary=app.summary, routes=app.routes)
    schemas = document["components"]["schemas"]
    schemas["Problem"] = Problem.model_json_schema()
    for name in ("HTTPValidationError", "ValidationError"):
        schemas.pop(name, None)
    if settings.guarded:
        document["components"]["securitySchemes"] = SCHEMES
    for path, item in document["paths"].items():
        for method, operation in item.items():
            needs = settings.guarded and needed(method.upper(), path, public_reads=settings.public_reads) is not None
            if needs:
                operation["security"] = [{name: []} for name in SCHEMES]
            _complete(operation["responses"])
    _link(document["paths"])
    return document


def _link(paths: dict[str, Any]) -> None:
    """Which operations follow an answer: a program can walk from a job to its events, its end and its retry."""
    for about, sources in NAMED_BY.items():
        name = about.partition("{")[2].rstrip("}")
        targets = [
            operation["operationId"] for path, item in paths.items() if path.startswith(about)
            for operation in item.values()
        ]  # fmt: skip
        for (path, method, status), pointer in sources.items():
            paths[path][method]["responses"][status]["links"] = {
                target: {"operationId": target, "parameters": {name: f"$response.body#{pointer}"}} for target in targets
            }


def _complete(responses: dict[str, Any]) -> None:
    for status, description in {**EVERYWHERE, **GUARDED}.items():
        responses.setdefault(status, {"description": description})
    for status, response in responses.items():
        if status >= "400":
            response["content"] = {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}}
