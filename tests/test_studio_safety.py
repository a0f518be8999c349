"""The studio is safe by default: one test for each promise of SECURITY.md about it."""

from __future__ import annotations

import os
import pickle
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("starlette", reason="needs the extra studio: pip install 'burnish[studio]'")

from starlette.testclient import TestClient

from burnish.cli import main
from burnish.files import dumps
from burnish.studio import folder as folders
from burnish.studio import processes, server
from burnish.studio.app import application
from burnish.studio.folder import RunsFolder
from burnish.studio.safety import COOKIE, Access

CONFIG = """
iterations = 4
[model]
id = "zoo:emoji-sd"
[prompts]
use = "list"
texts = ["a cat"]
[[rewards]]
use = "compressibility"
"""
RECORD = {"iteration": 1, "images": 4, "rewards": {"compressibility": {"mean": -1.0, "std": 0.1}}}
PNG = b"\x89PNG\r\n\x1a\n"
EVIL = "<script>alert(1)</script>"
KEY = "k" * 20
ORIGIN = {"origin": "http://localhost"}


def write_run(root: Path, name: str, config: str = CONFIG) -> Path:
    folder = root / name
    (folder / "samples").mkdir(parents=True)
    (folder / "config.toml").write_text(config)
    (folder / "log.jsonl").write_text(dumps(RECORD) + "\n")
    (folder / "samples" / "000000.png").write_bytes(PNG)
    (folder / "samples" / "prompts.json").write_text(dumps({"texts": ["a cat"], "columns": 1}))
    return folder


def browser(root: Path, access: Access | None = None, **options: bool) -> TestClient:
    app = application(RunsFolder.open(root), access or Access(), **options)
    return TestClient(app, base_url="http://localhost", follow_redirects=False)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write_run(tmp_path / "runs", "one")
    (tmp_path / "secret.png").write_bytes(PNG + b"secret")
    return tmp_path / "runs"


@pytest.fixture
def client(root: Path) -> Iterator[TestClient]:
    with browser(root, Access(token="right")) as opened:
        yield opened


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The commands that the studio would have started."""
    commands: list[list[str]] = []

    def launch(self: object, name: str, arguments: list[str], trusts: bool = False) -> None:
        commands.append(arguments)

    monkeypatch.setattr(processes.Processes, "launch", launch)
    return commands


def test_it_listens_on_this_machine_only_and_elsewhere_needs_a_key(
    monkeypatch: pytest.MonkeyPatch, root: Path
) -> None:
    assert Access().host == "127.0.0.1"
    with pytest.raises(ValueError, match="needs a key"):
        Access("0.0.0.0")

    monkeypatch.delenv(server.KEY, raising=False)
    assert server.access_to("127.0.0.1").key == ""
    assert len(server.access_to("0.0.0.0").key) >= server.SHORTEST
    monkeypatch.setenv(server.KEY, "short")
    with pytest.raises(ValueError, match=server.KEY):
        server.access_to("0.0.0.0")

    client = browser(root, Access("0.0.0.0", KEY))
    assert client.get("/").status_code == 401
    assert client.get("/files/one/samples/000000.png").status_code == 401
    assert client.get("/?key=wrong").status_code == 401
    assert client.get("/", headers={"cookie": f"{COOKIE}=wrong"}).status_code == 401

    answer = client.get(f"/?key={KEY}")
    assert answer.status_code == 303
    assert "httponly" in answer.headers["set-cookie"].lower()
    assert "samesite=strict" in answer.headers["set-cookie"].lower()
    assert client.get("/").status_code == 200


@pytest.mark.parametrize("host", ["evil.example", "evil.example:80", "localhost.evil.example", ""])
def test_a_site_that_points_its_name_here_gets_nothing(client: TestClient, host: str) -> None:
    assert client.get("/", headers={"host": host}).status_code == 421


@pytest.mark.parametrize("host", ["127.0.0.1:8765", "localhost:9000", "[::1]:8765"])
def test_a_tunnel_from_another_port_is_let_in(client: TestClient, host: str) -> None:
    assert client.get("/", headers={"host": host}).status_code == 200


@pytest.mark.parametrize(
    "path",
    [
        "/files/one/samples/..%2f..%2f..%2fsecret.png",
        "/files/one/samples/%2e%2e",
        "/files/..%2f/samples/secret.png",
        "/files/%2e%2e/samples/secret.png",
        "/files/one/checkpoints/secret.png",
        "/files/one/samples/config.toml",
        "/runs/..%2f..%2fetc/curves",
        "/runs/%2e%2e/curves",
        "/process/..%2f..%2fsecret",
        "/static/..%2fapp.py",
    ],
)
def test_no_path_leads_out_of_the_folder(client: TestClient, path: str) -> None:
    answer = client.get(path)
    assert answer.status_code == 404
    assert b"secret" not in answer.content.replace(b"secret.png", b"")


def test_no_link_leads_out_of_the_folder(root: Path, client: TestClient) -> None:
    outside = write_run(root.parent / "elsewhere", "private")
    (root / "link").symlink_to(outside)
    (root / "one" / "samples" / "000001.png").symlink_to(root.parent / "secret.png")
    log = write_run(root, "two") / "log.jsonl"
    log.unlink()
    log.symlink_to(outside / "log.jsonl")
    (write_run(root, "three") / "groups").symlink_to(outside / "samples")

    assert client.get("/files/one/samples/000001.png").status_code == 404
    assert client.get("/files/link/samples/000000.png").status_code == 404
    assert client.get("/runs/link/curves").status_code == 404
    for name in ("one", "two", "three"):
        assert "is a link out of the folder" in client.get(f"/runs/{name}/curves").text
    assert client.get("/").text.count("is a link out of the folder") == 2


@pytest.mark.parametrize("folder", ["checkpoints", "adapter"])
def test_no_command_follows_a_link_out_of_a_run(
    root: Path, client: TestClient, started: list[list[str]], folder: str
) -> None:
    outside = write_run(root.parent / "elsewhere", "private")
    (root / "one" / folder).symlink_to(outside)
    (write_run(root, "two") / folder / "000001").mkdir(parents=True)
    (root / "two" / folder / "000001" / "state.json").symlink_to(outside / "config.toml")
    (write_run(root, "three") / folder).mkdir()
    os.mkfifo(root / "three" / folder / "state.json")

    assert "is a link out of the folder" in client.get("/runs/one/curves").text
    posts = {
        "resume": {},
        "branch": {"iteration": "1", "name": "new"},
        "rollback": {"iteration": "1", "sure": "yes"},
        "ask": {"what": "strength", "strength": "50"},
    }
    for action, form in posts.items():
        for run, sentence in (("two", "a link out of the run"), ("three", "neither a file")):
            data = {**form, "token": "right"}
            answer = client.post(f"/runs/{run}/{action}", data=data, headers=ORIGIN)
            assert answer.status_code == 400 and sentence in answer.text
    assert started == [] and sorted(path.name for path in outside.iterdir()) == [
        "config.toml",
        "log.jsonl",
        "samples",
    ]


def test_every_file_of_a_folder_is_looked_at(
    root: Path, client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(folders, "MOST", 3)
    samples = root / "one" / "samples"
    for number in range(40):
        (samples / f"{number:06d}.png").write_bytes(PNG)
    assert "Error:" not in client.get("/runs/one/images").text

    monkeypatch.setattr(folders, "MOST_FILES", 20)
    assert "has more than 20 files" in client.get("/runs/one/images").text
    monkeypatch.undo()
    monkeypatch.setattr(folders, "MOST", 3)
    for number in range(40):
        (samples / f"{number:06d}.png").unlink()
        os.mkfifo(samples / f"{number:06d}.json")
    assert "no plain file" in client.get("/runs/one/images").text


def test_a_link_within_the_folder_is_a_run(root: Path, client: TestClient) -> None:
    (root / "latest").symlink_to(root / "one")
    assert client.get("/runs/latest/curves").status_code == 200


@pytest.mark.parametrize("page", ["curves", "images", "groups", "health", "suspects", "votes"])
def test_texts_of_a_run_are_escaped_everywhere(root: Path, client: TestClient, page: str) -> None:
    folder = write_run(root, f"a&b {EVIL.replace('/', '|')}", CONFIG.replace("a cat", EVIL))
    name = folder.name
    layout = {"texts": [EVIL] * 2, "columns": 2}
    (folder / "samples" / "prompts.json").write_text(dumps(layout))
    (folder / "guard.json").write_text(
        dumps({"iteration": 1, "best": 0, "action": "stop", "reasons": [EVIL]})
    )
    record = {**RECORD, "problems": [EVIL], "missing": {EVIL: 1}, EVIL: 1.0}
    record["rewards"] = {EVIL: {"mean": 1.0, "std": 0.1, "within": 0.0}}
    (folder / "log.jsonl").write_text(dumps(record) + "\n")
    (folder / "groups").mkdir()
    groups = {
        "iteration": 1,
        "columns": 2,
        "texts": [EVIL] * 2,
        "group": [0, 0],
        "rewards": [EVIL],
        "parts": [[1.0], [2.0]],
    }
    (folder / "groups" / "000001.json").write_text(dumps(groups))
    (folder / "evaluations").mkdir()
    table = {
        "prompts": [EVIL],
        "images_per_prompt": 2,
        "rewards": [EVIL],
        "parts": [[1.0], [2.0]],
        "panel": {EVIL: [2.0, 1.0]},
    }
    (folder / "evaluations" / "000001.json").write_text(dumps({"train": table}))

    for address in (f"/runs/{name}/{page}", "/", f"/compare?run={name}&run=one"):
        text = client.get(address).text
        assert "<script>alert" not in text
        assert "&lt;script&gt;" in text
    assert "Error:" not in client.get(f"/runs/{name}/{page}").text


def test_pages_may_run_and_load_what_is_the_studios_own_only(client: TestClient) -> None:
    for path in ("/", "/nowhere", "/static/studio.js", "/files/one/samples/000000.png"):
        headers = client.get(path).headers
        policy = headers["content-security-policy"]
        assert "default-src 'none'; script-src 'self'" in policy
        assert "frame-ancestors 'none'" in policy
        assert headers["x-content-type-options"] == "nosniff"

    texts = client.get("/").text + client.get("/new").text + client.get("/runs/one/images").text
    assert "http://" not in texts
    assert "https://" not in texts
    assert " on" + "click" not in texts


@pytest.mark.parametrize("path", ["/new", "/runs/one/ask", "/runs/one/resume", "/runs/one/branch"])
def test_state_changes_only_by_a_post_with_origin_and_token(
    client: TestClient, started: list[list[str]], root: Path, path: str
) -> None:
    form = {"recipe": "demo", "name": "new", "do": "start", "what": "stop", "token": "right"}
    refused = [
        client.get(path, params=form),
        client.put(path, data=form, headers=ORIGIN),
        client.post(path, data=form),
        client.post(path, data=form, headers={"origin": "http://evil.example"}),
        client.post(path, data=form, headers={"origin": "null"}),
        client.post(path, data=form, headers={"origin": "http://localhost:9"}),
        client.post(path, data={**form, "token": "wrong"}, headers=ORIGIN),
        client.post(path, data={"name": "new"}, headers=ORIGIN),
        client.post(path, data={**form, "changes": "x" * 70_000}, headers=ORIGIN),
        client.post(path, content=b"\xff\xfe", headers=ORIGIN),
    ]
    codes = [answer.status_code for answer in refused]
    assert codes[1:] == [405, 403, 403, 403, 403, 403, 403, 413, 400]
    assert started == []
    assert not (root / "one" / "control.json").exists()


def test_a_form_of_the_studio_is_accepted(client: TestClient, started: list[list[str]]) -> None:
    form = {"recipe": "demo", "name": "new", "do": "start", "token": "right"}
    assert client.post("/new", data=form, headers=ORIGIN).status_code == 303
    (command,) = started
    assert command[:2] == ["train", "demo"]


@pytest.mark.untrusted
@pytest.mark.parametrize("how", ["recipe", "change", "resume", "module"])
def test_code_is_refused_and_not_imported_unless_it_is_allowed(
    root: Path, tmp_path: Path, started: list[list[str]], how: str
) -> None:
    mark = tmp_path / "imported"
    code = tmp_path / "evil.py"
    touch = f"import pathlib; pathlib.Path({str(mark)!r}).touch()"
    code.write_text(f"{touch}\ndef f(images, prompts):\n    return [0.0]\n")
    named = CONFIG.replace('"compressibility"', f'"{code}:f"')
    if how == "module":
        named = CONFIG.replace('"compressibility"', '"os:system"')
    write_run(root, "evil", named)

    change = f"rewards.0.use={code}:f" if how == "change" else ""
    recipe = "demo" if how == "change" else "run:evil"
    form = {"recipe": recipe, "name": "new", "changes": change, "do": "start", "token": "right"}
    path = "/runs/evil/resume" if how == "resume" else "/new"

    with browser(root, Access(token="right")) as client:
        answer = client.post(path, data=form, headers=ORIGIN)
    assert answer.status_code == 400
    assert "--allow-code" in answer.text
    assert started == []
    assert not mark.exists()

    if how != "module":
        with browser(root, Access(token="right"), allow_code=True) as client:
            assert client.post(path, data=form, headers=ORIGIN).status_code == 303
        assert len(started) == 1


def hostile(root: Path, kind: str) -> None:
    folder = write_run(root, kind)
    if kind == "broken":
        (folder / "log.jsonl").write_text('{"iteration": \n{"iteration": 2}\n')
    elif kind == "deep":
        (folder / "log.jsonl").write_text("[" * 100_000 + "\n\n")
    elif kind == "digits":
        (folder / "log.jsonl").write_text('{"iteration": ' + "9" * 5000 + "}\n\n")
    elif kind == "binary":
        (folder / "log.jsonl").write_bytes(bytes(range(256)) * 4)
    elif kind == "types":
        (folder / "log.jsonl").write_text('{"iteration": 1, "rewards": [3]}\n\n')
    elif kind == "config":
        (folder / "config.toml").write_text('rewards = "no list"\n')
    elif kind == "pickle":
        (folder / "log.jsonl").write_bytes(pickle.dumps(Exploit(root.parent / "exploited")))
        (folder / "config.toml").write_bytes(pickle.dumps(Exploit(root.parent / "exploited")))
        (folder / "samples" / "000001.png").write_bytes(pickle.dumps({}))
    elif kind == "huge":
        os.truncate(folder / "log.jsonl", folders.LARGEST[".jsonl"] + 1)
    elif kind == "pipe":
        (folder / "log.jsonl").unlink()
        os.mkfifo(folder / "log.jsonl")
    elif kind == "folder":
        (folder / "log.jsonl").unlink()
        (folder / "log.jsonl").mkdir()
    elif kind == "guard":
        (folder / "guard.json").write_text('{"iteration": 1}')


class Exploit:
    """An object that writes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str, str]]:
        return open, (str(self.path), "w")


HOSTILE = "broken deep digits binary types config pickle huge pipe folder guard".split()


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_hostile_run_shows_an_error_card_and_nothing_worse(
    root: Path, client: TestClient, kind: str
) -> None:
    hostile(root, kind)
    listed = client.get("/")
    assert listed.status_code == 200
    assert ">one</a>" in listed.text

    for page in ("curves", "images", "groups", "health", "suspects", "votes"):
        answer = client.get(f"/runs/{kind}/{page}")
        assert answer.status_code == 200
        assert "Error:" in answer.text
    assert client.get(f"/files/{kind}/samples/000001.png").status_code == 404
    assert "Error:" in client.get(f"/compare?run={kind}&run=one").text
    assert not (root.parent / "exploited").exists()


def test_names_that_are_no_text_or_hidden_do_no_harm(root: Path, client: TestClient) -> None:
    folder = os.fsencode(root) + b"/\xff\xfe"
    os.mkdir(folder)
    with open(folder + b"/config.toml", "w") as file:
        file.write(CONFIG)
    write_run(root, ".hidden")
    write_run(root, "line\nbreak")
    write_run(root, "100% #?&'\"")

    text = client.get("/").text
    assert "cannot be shown" in text
    assert ".hidden" not in text
    assert r"line\nbreak" in text
    assert client.get("/runs/.hidden/curves").status_code == 404
    assert client.get("/runs/100%25%20%23%3F%26%27%22/curves").status_code == 200
    assert "/runs/100%25%20%23%3F%26%27%22/curves" in text
    assert client.get("/new").status_code == 200
    assert client.get("/compare").status_code == 200


def test_the_folder_must_not_be_a_run(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["studio", str(root / "one")])
    assert "is a run; give the folder around it" in capsys.readouterr().err
