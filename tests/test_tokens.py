"""Beyond loopback: who may ask for what, until when."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from served import NoRunner, OneDevice, Served, body, key_of, served, until, winner_of

from api.app import create_app
from api.authority import needed
from api.cli import main
from api.lanes import LocalLanes
from api.settings import Settings, SettingsError
from autotune.bundle import dump
from autotune.client import Client, ServiceError
from autotune.sources import HttpSource, SourceError
from db import DatabaseError, Scope, open_store

NAME = "autotune.test"
NEEDED = {
    "GET /healthz": None, "GET /readyz": None, "POST /lookup": "read", "POST /tune": "tune",
    "DELETE /jobs/{job_id}": "tune",
    "POST /jobs/{job_id}/retry": "tune", "PATCH /winners/{winner_id}": "admin", "POST /import": "admin",
    "POST /winners/{winner_id}/kernels": "tune",
}  # fmt: skip
"""Every other route only reads. A route that is new and writes must be added here, after some thought."""


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tokens") / "autotune.db"
    with open_store(path) as store:
        store.decide(winner_of(key_of()))
    return path


@pytest.fixture(scope="module")
def service(database: Path) -> Iterator[Served]:
    with served(database, hosts=[NAME], trial_s=0.05) as running:
        yield running


@pytest.fixture(scope="module")
def secrets(database: Path) -> dict[str, str]:
    with open_store(database) as store:
        return {str(scope): store.create_token(f"for {scope}", scope)[1] for scope in Scope}


def bearer(secret: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {secret}"}


REQUESTS = [
    ("GET", "/winners", "read"), ("GET", "/", "read"), ("GET", "/jobs", "read"), ("GET", "/export", "read"),
    ("GET", "/lookup?input=1x64x56x56&weight=64x64x3x3&padding=1", "read"), ("POST", "/lookup", "read"),
    ("GET", "/openapi.json", "read"), ("GET", "/nothing", "read"), ("POST", "/tune", "tune"),
    ("DELETE", "/jobs/unknown", "tune"), ("PATCH", "/winners/1", "admin"), ("POST", "/import", "admin"),
    ("GET", "/healthz", None), ("GET", "/readyz", None),
]  # fmt: skip


@pytest.mark.parametrize(("method", "path", "need"), REQUESTS)
def test_each_scope_may_what_it_may(service: Served, secrets: dict[str, str], method: str, path: str, need: str | None):
    content = {"/tune": body(40), "/import": json.loads(dump([])), "/winners/1": {"state": "pinned"}}.get(path, {})
    sent = None if method == "GET" else content
    refused = service.http.request(method, path, json=sent)
    assert (refused.status_code == 401) == (need is not None)
    if need is not None:
        assert "Basic" in refused.headers["www-authenticate"]
        assert refused.json()["status"] == 401
    for scope in Scope:
        answer = service.http.request(method, path, json=sent, headers=bearer(secrets[scope]))
        allowed = need is None or scope.covers(Scope(need))
        assert (answer.status_code == 403) != allowed, answer.text
        assert answer.status_code != 401


def test_what_no_route_takes_needs_no_token_to_be_told_so(service: Served) -> None:
    for method, path, status in (("PUT", "/winners", 405), ("DELETE", "/devices", 405), ("POST", "/nothing", 404)):
        assert service.http.request(method, path).status_code == status
    for method, path in (
        ("DELETE", "/jobs/x"),
        ("POST", "/jobs/x/retry"),
        ("PATCH", "/winners/x"),
        ("POST", "/import"),
    ):
        assert service.http.request(method, path).status_code == 401


def test_every_route_is_thought_of(tmp_path: Path) -> None:
    with open_store(tmp_path / "a.db") as store:
        lanes = LocalLanes(OneDevice(), lambda _: NoRunner())
        paths = create_app(store, lanes, Settings(db="a"), devices=OneDevice()).openapi()["paths"]
    found = {f"{method.upper()} {path}": needed(method.upper(), path, public_reads=False)
             for path, item in paths.items() for method in item}  # fmt: skip
    assert found == {route: NEEDED.get(route, "read") for route in found}
    assert NEEDED.keys() <= found.keys()


def test_whether_it_lives_and_is_ready_is_said_whatever_token_comes(service: Served, database: Path) -> None:
    with open_store(database) as store:
        token, revoked = store.create_token("gone", Scope.READ)
        store.revoke_token(token.id)
    for path in ("/healthz", "/readyz"):
        for secret in ("autotune_nonsense", revoked):
            assert service.http.get(path, headers=bearer(secret)).status_code == 200


def test_whether_it_lives_is_said_without_the_database(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(_: str) -> None:
        raise DatabaseError("gone")

    with open_store(tmp_path / "a.db") as store:
        lanes, settings = LocalLanes(OneDevice(), lambda _: NoRunner()), Settings(db="a", hosts=(NAME,))
        app = create_app(store, lanes, settings, devices=OneDevice())
        monkeypatch.setattr(app.state.service.authority, "find", gone)

        async def ask() -> list[int]:
            async with app.router.lifespan_context(app):
                transport = httpx.ASGITransport(app=app)
                async with httpx.AsyncClient(transport=transport, base_url=f"http://{NAME}") as client:
                    return [
                        (await client.get(path, headers=bearer("x"))).status_code for path in ("/healthz", "/winners")
                    ]

        assert asyncio.run(ask()) == [200, 503]


def test_metrics_say_that_the_database_is_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """To whoever watched before: else an alert on it would see a service that answers with an error, no more."""

    def gone(*_: object) -> int:
        raise DatabaseError("gone")

    with open_store(tmp_path / "a.db") as store:
        secret = store.create_token("prometheus", Scope.READ)[1]
        token, revoked = store.create_token("before", Scope.READ)
        lanes, settings = LocalLanes(OneDevice(), lambda _: NoRunner()), Settings(db="a", hosts=(NAME,))
        app = create_app(store, lanes, settings, devices=OneDevice())

        async def ask() -> list[httpx.Response]:
            transport = httpx.ASGITransport(app=app)
            async with httpx.AsyncClient(transport=transport, base_url=f"http://{NAME}") as client:
                await client.get("/metrics", headers=bearer(revoked))
                store.revoke_token(token.id)
                before = await client.get("/metrics", headers=bearer(secret))
                for name in ("changes", "figures"):
                    monkeypatch.setattr(store, name, gone)
                asked = [("/metrics", secret), ("/winners", secret), ("/metrics", revoked), ("/metrics", "x")]
                return [before, *[await client.get(path, headers=bearer(token)) for path, token in asked]]

        before, after, *refused = asyncio.run(ask())
    assert "autotune_database_up 1.0" in before.text
    assert "autotune_database_up 0.0" in after.text
    assert [answer.status_code for answer in refused] == [503, 503, 503]


def test_a_token_that_is_none_is_refused(service: Served, secrets: dict[str, str]) -> None:
    for headers in (
        bearer("autotune_nonsense"),
        {"Authorization": b"Bearer \xe9"},
        {"Authorization": "Basic nonsense"},
    ):
        assert service.http.get("/winners", headers=headers).status_code == 401
    assert service.http.get("/winners", headers={"Authorization": "Digest x"}).status_code == 401
    assert service.http.get("/winners", auth=("anyone", secrets["read"])).status_code == 200


def test_a_revoked_token_is_refused_at_once(service: Served, database: Path) -> None:
    with open_store(database) as store:
        for _ in range(3):
            token, secret = store.create_token("short", Scope.READ)
            assert service.http.get("/winners", headers=bearer(secret)).status_code == 200
            store.revoke_token(token.id)
            assert service.http.get("/winners", headers=bearer(secret)).status_code == 401


def test_a_token_expires(service: Served, database: Path) -> None:
    with open_store(database) as store:
        secret = store.create_token("soon", Scope.READ, expires_at=time.time() + 5.0)[1]
    assert service.http.get("/winners", headers=bearer(secret)).status_code == 200
    until(lambda: service.http.get("/winners", headers=bearer(secret)).status_code == 401)


def test_a_token_revoked_in_mid_stream_ends_the_stream(service: Served, secrets: dict[str, str], database: Path):
    job = service.http.post("/tune", json={**body(41), "trials": 200}, headers=bearer(secrets["tune"])).json()
    with open_store(database) as store:
        token, secret = store.create_token("watcher", Scope.READ)
        with service.http.stream("GET", f"/jobs/{job['id']}/events", headers=bearer(secret)) as stream:
            lines = stream.iter_lines()
            until(lambda: next(lines).startswith("event: job"))
            store.revoke_token(token.id)
            rest = list(lines)
    assert "event: refused" in rest
    assert service.http.get(f"/jobs/{job['id']}/events", headers=bearer(secret)).status_code == 401
    cancelled = service.http.delete(f"/jobs/{job['id']}", headers=bearer(secrets["tune"]))
    assert cancelled.json()["state"] == "cancelled"


def test_only_a_digest_is_kept(database: Path, secrets: dict[str, str], service: Served) -> None:
    content = b"".join(path.read_bytes() for path in database.parent.iterdir())
    for secret in secrets.values():
        assert secret.encode() not in content
        assert secret not in "".join(service.log)


def test_hosts_and_origins(service: Served, secrets: dict[str, str]) -> None:
    admin = bearer(secrets["admin"])
    for host, status in ((NAME, 200), (f"{NAME}:443", 200), ("localhost", 200), ("evil.example", 421)):
        assert service.http.get("/winners", headers={**admin, "Host": host}).status_code == status
    for origin, status in ((f"https://{NAME}", 404), ("https://evil.example", 403)):
        answer = service.http.delete("/jobs/unknown", headers={**admin, "Origin": origin, "Host": NAME})
        assert answer.status_code == status


def test_the_client_and_the_hook_say_who_they_are(service: Served, secrets: dict[str, str]) -> None:
    assert len(list(Client(service.url, token=secrets["read"]).winners())) >= 1
    with pytest.raises(ServiceError, match="AUTOTUNE_TOKEN"):
        list(Client(service.url).winners())
    found = HttpSource(service.url, token=secrets["read"], timeout_s=5.0).lookup([key_of()])
    assert found[key_of().digest].candidate == winner_of(key_of()).candidate
    with pytest.raises(SourceError, match="AUTOTUNE_TOKEN"):
        HttpSource(service.url, timeout_s=5.0).lookup([key_of()])


def test_reads_may_be_public(database: Path, secrets: dict[str, str]) -> None:
    with served(database, hosts=[NAME], public_reads=True) as public:
        assert public.http.get("/winners").status_code == 200
        assert public.http.get("/winners", headers=bearer("autotune_revoked")).status_code == 401
        assert public.http.post("/tune", json=body()).status_code == 401
        for costly in ("/winners/1/kernels", "/dashboard/kernels/1"):
            assert public.http.post(costly).status_code == 401


def test_the_command_makes_lists_and_revokes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AUTOTUNE_DB", str(tmp_path / "autotune.db"))
    assert main(["token", "create", "a laptop", "--scope", "tune", "--expires", "90d"]) == 0
    out, err = capsys.readouterr()
    assert out.startswith("autotune_")
    assert "shown this once" in err
    assert main(["token", "list", "--json"]) == 0
    [listed] = json.loads(capsys.readouterr().out)["tokens"]
    assert (listed["name"], listed["scope"], listed["state"]) == ("a laptop", "tune", "valid")
    assert listed["expires_at"] - time.time() == pytest.approx(90 * 86400, abs=60)
    assert main(["token", "revoke", str(listed["id"])]) == 0
    assert main(["token", "list"]) == 0
    assert "revoked" in capsys.readouterr().out
    assert main(["token", "revoke", "99"]) == 1
    assert "found none with 99" in capsys.readouterr().err
    for wrong in (["--expires", "soon"], ["--expires", "-3d"], ["--scope", "root"]):
        assert main(["token", "create", "x", *wrong]) == 2
    assert main(["token", "create", "two\nlines"]) == 2


def test_names_of_hosts() -> None:
    environ = {"HOME": "/h", "AUTOTUNE_HOSTS": "a.example, B.example", "AUTOTUNE_PUBLIC_READS": "0"}
    settings = Settings.from_environment(environ)
    assert (settings.hosts, settings.guarded, settings.public_reads) == (("a.example", "b.example"), True, False)
    assert not Settings(db="a").guarded
    assert Settings(db="a", host="0.0.0.0").guarded
    with pytest.raises(SettingsError, match="no scheme"):
        Settings(db="a", hosts=("https://a.example",))


def test_an_unreachable_database_lets_nobody_in(database: Path, secrets: dict[str, str], tmp_path: Path) -> None:
    other = tmp_path / "gone.db"
    with open_store(other) as store:
        secret = store.create_token("x", Scope.ADMIN)[1]
    with served(other, hosts=[NAME]) as running:
        other.write_bytes(b"x" * 8192)
        answer: httpx.Response = running.http.get("/winners", headers=bearer(secret))
        assert answer.status_code in (401, 503)
