"""Codes in the studio: a form that becomes `burnish qr`, and the tries that it shows."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("starlette", reason="needs the extra studio: pip install 'burnish[studio]'")

from starlette.testclient import TestClient
from test_studio import echoed, post, printed  # noqa: F401
from test_studio_safety import CONFIG, EVIL, ORIGIN, PNG, browser, write_run

from burnish.files import dumps
from burnish.studio import events
from burnish.studio.codes import MOST
from burnish.studio.folder import RunsFolder
from burnish.studio.safety import Access

WANTED = {
    "payload": "https://example.org",
    "prompt": "a cat",
    "model": "zoo:emoji-lcm-128",
    "code": "2-Q",
    "size": 128,
    "count": 2,
    "tries": 32,
}


def row(attempt: int, **more: object) -> dict[str, object]:
    return {
        "attempt": attempt,
        "scale": 0.7,
        "strict": False,
        "accepted": False,
        "conditions": 15,
        "read": {"zxing": 12},
        "plain": {"opencv": True, "pyzbar": None},
        "module_errors": 0.0625,
        **more,
    }


def write_search(root: Path, name: str, *rows: dict[str, object], **wanted: object) -> Path:
    folder = root / name
    (folder / "tries").mkdir(parents=True)
    (folder / "search.json").write_text(dumps({**WANTED, **wanted}))
    (folder / "tries.jsonl").write_text("".join(f"{dumps(one)}\n" for one in rows))
    for number in range(1, len(rows) + 1):
        (folder / "tries" / f"{number:04d}.png").write_bytes(PNG)
    return folder


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write_run(tmp_path / "runs", "one")
    write_search(tmp_path / "runs", "found", row(1), row(2, strict=True, accepted=True))
    return tmp_path / "runs"


@pytest.fixture
def client(root: Path) -> Iterator[TestClient]:
    with browser(root, Access(token="right")) as opened:
        yield opened


@pytest.mark.usefixtures("echoed")
def test_the_form_becomes_the_command_that_one_would_type(root: Path, client: TestClient) -> None:
    form = {"payload": "--help", "prompt": "a cat", "name": "new", "n": "2", "opencv": "yes"}
    assert post(client, "/codes", **form) == (303, "/codes/new")
    assert printed(client, "new") == (
        "qr",
        "--keep-tries",
        f"--out={root / 'new'}",
        "--prompt=a cat",
        "--n=2",
        "--decoder=zxing",
        "--decoder=opencv",
        "--",
        "--help",
    )

    for model, named in (
        ("one", str(root / "one")),
        ("zoo:emoji-lcm", "zoo:emoji-lcm"),
        ("owner/model-1.5", "owner/model-1.5"),
    ):
        post(client, "/codes", payload="X", prompt="a cat", name=f"by-{model[:3]}", model=model)
        assert f"--model={named}" in printed(client, f"by-{model[:3]}")


@pytest.mark.usefixtures("echoed")
@pytest.mark.parametrize("model", ["/etc", "../one", "runs/..", "a/b/c", "nothing", "--help"])
def test_no_model_outside_the_folder_of_runs_is_opened(
    client: TestClient, model: str, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(root.parent)
    form = {"payload": "<X>", "prompt": "a cat", "name": "new", "model": model}
    for key in ("model", "controlnet"):
        code, message = post(client, "/codes", **{**form, "model": "", key: model})
        assert code == 400
        assert "no model that the studio opens" in message
    assert client.get("/codes/new").status_code == 404

    (root.parent / "owner" / "model").mkdir(parents=True)
    assert post(client, "/codes", **{**form, "model": "owner/model"})[0] == 400
    page = client.post("/codes", data={**form, "token": "right"}, headers=ORIGIN).text
    assert 'value="&lt;X&gt;"' in page, "what was filled in stays"


@pytest.mark.usefixtures("echoed")
def test_a_run_that_names_code_is_no_model_unless_that_is_allowed(
    root: Path, tmp_path: Path, client: TestClient
) -> None:
    code = tmp_path / "evil.py"
    code.write_text(f"open({str(tmp_path / 'imported')!r}, 'w')\n")
    write_run(root, "evil", f'{CONFIG}[sampler.kernel]\nuse = "{code}:f"\n')
    form = {"payload": "X", "prompt": "a cat", "name": "new", "model": "evil"}
    status, message = post(client, "/codes", **form)
    assert status == 400 and "--allow-code" in message
    assert not (tmp_path / "imported").exists()


@pytest.mark.usefixtures("echoed")
@pytest.mark.parametrize("name", ["", "../up", "found", "one", "check", ".hidden"])
def test_a_search_gets_a_folder_of_its_own(client: TestClient, name: str) -> None:
    code, message = post(client, "/codes", payload="X", prompt="a cat", name=name)
    assert code == 400
    assert any(words in message for words in ("choose another", "is no name", "a name is missing"))


@pytest.mark.usefixtures("echoed")
def test_the_sentence_of_a_command_that_fails_is_shown(client: TestClient) -> None:
    post(client, "/codes", payload="FAIL", prompt="a cat", name="new")
    printed(client, "new")
    page = client.get("/codes/new").text
    assert 'role="alert"' in page and "FAIL" in page.split('role="alert"')[1]
    assert "did not start" not in client.get("/").text, "it is no run"
    assert "goes on" in post(client, "/codes/new/stop")[1]


def test_tries_are_shown_with_who_reads_them(client: TestClient) -> None:
    page = " ".join(client.get("/codes/found").text.split())
    assert "2 of at most 32 tries, <b>1 of 2 kept</b>" in page
    second, first = page.split('<li class="card')[1:]
    assert "kept" in second and "kept" not in first
    assert "ZXing 12 of 15" in first and "OpenCV yes" in first and "ZBar" not in first
    assert "modules right 93.8 %, scale 0.7" in first
    assert client.get("/codes/found/0001.png").headers["content-type"] == "image/png"
    assert "/codes/found" in client.get("/codes").text
    assert "found" not in client.get("/").text.split("<ul")[1], "a search is no run"


def test_the_latest_of_many_tries_are_shown(root: Path, client: TestClient) -> None:
    write_search(root, "long", *(row(number) for number in range(1, MOST + 11)), tries=999)
    page = client.get("/codes/long").text
    assert page.count("<li class=") == MOST
    assert f"/codes/long/{MOST + 10:04d}.png" in page and "/codes/long/0010.png" not in page


def test_a_try_is_a_change(root: Path) -> None:
    folder = RunsFolder.open(root)
    before = events.signatures(folder, "found")
    with (root / "found" / "tries.jsonl").open("a") as file:
        file.write(dumps(row(3)) + "\n")
    assert before != events.signatures(folder, "found")


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("search.json", b"{"),
        ("search.json", b'{"payload": 3}'),
        ("search.json", b"\x80\x04K\x01."),
        ("tries.jsonl", b"[]\n"),
        ("tries.jsonl", b'{"attempt": "x"}\n'),
        ("tries.jsonl", b"\xff\xfe\n"),
    ],
)
def test_a_hostile_search_shows_an_error_card(
    root: Path, client: TestClient, file: str, content: bytes
) -> None:
    (root / "found" / file).write_bytes(content)
    page = client.get("/codes/found")
    assert page.status_code == 200 and "Error:" in page.text
    assert client.get("/codes").status_code == 200


def test_nothing_outside_a_search_is_read(root: Path, client: TestClient) -> None:
    (root.parent / "secret.png").write_bytes(PNG + b"secret")
    (root / "found" / "tries" / "link.png").symlink_to(root.parent / "secret.png")
    (root / "found" / "tries" / "fake.png").write_bytes(b"no image")
    write_search(root.parent, "elsewhere", row(1))
    (root / "away").symlink_to(root.parent / "elsewhere")

    assert client.get("/codes/found/0001.png").status_code == 200
    for path in ("found/link.png", "found/fake.png", "found/..%2fsearch.json", "away/0001.png"):
        assert client.get(f"/codes/{path}").status_code == 404
    for path in ("away", "nobody", "one"):
        assert client.get(f"/codes/{path}").status_code == 404

    (root / "found" / "tries.jsonl").unlink()
    os.mkfifo(root / "found" / "tries.jsonl")
    assert "no plain file" in client.get("/codes/found").text


def test_what_a_search_says_cannot_become_markup(root: Path, client: TestClient) -> None:
    evil = dict.fromkeys(("payload", "prompt", "model", "code"), EVIL)
    write_search(root, "evil", row(1, read={EVIL: 1}, plain={EVIL: True}), **evil)
    page = client.get("/codes/evil").text
    assert "<script>alert" not in page and page.count("&lt;script&gt;") >= 6
    assert "<script>alert" not in client.get("/codes", params={"payload": EVIL}).text


@pytest.mark.parametrize("path", ["/codes", "/codes/found/stop"])
def test_a_search_begins_and_ends_only_by_a_form_of_the_studio(
    client: TestClient, path: str
) -> None:
    form = {"payload": "X", "prompt": "a cat", "name": "new", "token": "right"}
    assert client.post(path, data=form).status_code == 403
    assert client.post(path, data=form, headers={"origin": "http://evil"}).status_code == 403
    assert client.post(path, data={**form, "token": "x"}, headers=ORIGIN).status_code == 403
