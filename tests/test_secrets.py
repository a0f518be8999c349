"""A key that a server or a library repeats reaches no message, no file and no terminal."""

from __future__ import annotations

import base64
import html
import json
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, quote_plus

import pytest
import torch

from burnish import config as configuration
from burnish import redaction
from burnish.cli import main
from burnish.config import Config, RunConfig
from burnish.redaction import excerpt, hide, one_line, redact, secret_in, secret_in_url
from burnish.rewards.endpoint import Endpoint
from burnish.rewards.remote import remote
from burnish.rewards.wire import NoAnswer, Wire
from burnish.types import Prompt

if TYPE_CHECKING:
    from conftest import LocalServer

KEY = 'Zq7/kP+w4x"Lm&92=vT_u-8Yd'
HEADER_KEY = KEY.replace('"', "'").replace("&", "~")  # what a header can hold

FORMS: dict[str, Callable[[str], str]] = {
    "as it is": str,
    "a URL's": lambda key: quote(key, safe=""),
    "a URL's in small letters": lambda key: quote(key, safe="").lower(),
    "a form's": quote_plus,
    "JSON's": lambda key: json.dumps(key),
    "PHP's JSON": lambda key: json.dumps(key).replace("/", "\\/"),
    "JSON in JSON": lambda key: json.dumps(json.dumps(key)),
    "code points": lambda key: "".join(f"\\u{ord(letter):04x}" for letter in key),
    "HTML's": html.escape,
    "HTML's numbers": lambda key: "".join(f"&#{ord(letter)};" for letter in key),
    "Python's": lambda key: repr(key.encode()),
    "hexadecimal": lambda key: key.encode().hex(),
    "base64": lambda key: base64.b64encode(key.encode()).decode(),
    "a header in base64": lambda key: base64.b64encode(f"Bearer {key}".encode()).decode(),
    "user and key": lambda key: base64.b64encode(f"me:{key}".encode()).decode(),
    "base64 in a URL": lambda key: base64.urlsafe_b64encode(f"k={key}&".encode()).decode(),
    "base64 in lines": lambda key: base64.encodebytes(f"Basic: {key * 3}".encode()).decode(),
    "two lines": lambda key: key[:9] + "\n  " + key[9:],
    "cut off": lambda key: key[:16],
    "its end": lambda key: key[9:],
    "in capitals": str.upper,
}


@pytest.fixture(autouse=True)
def forget(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing that another test hid is hidden here."""
    monkeypatch.setattr(redaction, "_hidden", set())


def pieces(key: str) -> list[str]:
    """Return parts of a key that nothing else contains, plain and in base64."""
    encoded = [base64.b64encode(b"x" * n + key.encode()).decode()[8:-6] for n in range(3)]
    return [key[2:9], key[6:13], *(text[:10] for text in encoded)]


def assert_hidden(text: str, key: str) -> None:
    for piece in pieces(key):
        assert piece.lower() not in text.lower(), text


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_a_secret_is_hidden(form: str) -> None:
    hide(KEY)
    text = redact(f"before <{FORMS[form](KEY)}> after")
    assert text.startswith("before <") and text.endswith("> after") and "***" in text
    assert_hidden(text, KEY)


def test_other_texts_stay_as_they_are() -> None:
    hide(KEY, "pw", "")
    text = "a photo of a cat, 50 % wide; see http://host:1/v1?n=3 (pwd)\n\ttwo"
    assert redact(text) == text
    assert redact("the pw is") == "the *** is"


def test_what_looks_like_a_secret_is_hidden() -> None:
    for text in (
        "http://me:word7@host/x",
        "Authorization: Bearer abcdefgh12345",
        "https://host/?api_key=abc&n=1",
        "key sk-proj-" + "a1" * 20,
        "token hf_" + "aB3" * 12,
    ):
        assert "***" in redact(text), text


def test_keys_in_the_environment_are_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HF_TOKEN", "WANDB_API_KEY", "MY_SERVICE_PASSWORD"):
        monkeypatch.setenv(name, "quiet-value-1")
        assert redact("with quiet-value-1 it") == "with *** it"
        monkeypatch.delenv(name)


@pytest.mark.parametrize("shift", range(0, 60, 3))
def test_a_key_at_the_cut_is_hidden_before_the_cut(shift: int) -> None:
    hide(KEY)
    assert_hidden(excerpt("x" * (150 + shift) + KEY + "y" * 300), KEY)
    start = redaction.LONGEST_TEXT - 30 + shift
    assert_hidden(excerpt(" " * start + KEY), KEY)


def test_one_line_is_printable() -> None:
    assert one_line("a\x1b[2Jb\u2028c\td\x00 \x85e") == "a [2Jb c d e"


# On the wire ------------------------------------------------------------------------------------

IMAGES = torch.rand(2, 3, 8, 8)
PROMPTS = [Prompt("a cat"), Prompt("a dog")]
ANSWERS: dict[str, Callable[[str], tuple[Any, ...]]] = {
    "refusal": lambda text: (401, text.encode()),
    "refusal in JSON": lambda text: (400, {"error": {"message": text}}),
    "refusal, cut": lambda text: (403, ("x" * 190 + text).encode()),
    "no JSON": lambda text: (200, f"<html>{text}".encode()),
    "score": lambda text: (200, {"scores": [1, text]}),
    "score, cut": lambda text: (200, {"scores": [1, "x" * 38 + text]}),
    "version": lambda text: (200, {"scores": [1, 2], "version": text}),
    "reason to end": lambda text: (
        200,
        {"choices": [{"message": {"content": ""}, "finish_reason": text}]},
    ),
    "reason to end, long": lambda text: (
        200,
        {"choices": [{"message": {"content": None}, "finish_reason": ["x" * 30, text]}]},
    ),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("place", ANSWERS)
def test_wherever_an_answer_carries_the_key_it_is_hidden(
    server: LocalServer, monkeypatch: pytest.MonkeyPatch, place: str, form: str
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", HEADER_KEY)
    monkeypatch.setenv("MY_KEY", HEADER_KEY)
    server.answer = lambda body: ANSWERS[place](FORMS[form](HEADER_KEY))
    calls: list[Callable[[], Any]] = [
        lambda: remote(server.url, retries=0, key_variable="MY_KEY")(IMAGES, PROMPTS),
        lambda: Endpoint(server.url, "m", retries=0)(IMAGES, ["what?"] * 2),
    ]
    raised = 0

    for call in calls:
        try:
            call()
        except Exception as error:
            raised += 1
            assert_hidden(f"{error!r} {''.join(traceback.format_exception(error))}", HEADER_KEY)

    assert raised
    assert f"Bearer {HEADER_KEY}" == server.headers[0]["Authorization"]


def test_a_key_in_the_status_line_is_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    import socket
    from threading import Thread

    listening = socket.create_server(("127.0.0.1", 0))

    def answer() -> None:
        connection, _ = listening.accept()
        with connection:
            connection.recv(65536)
            connection.sendall(f"HTTP/1.1 401 Bearer {HEADER_KEY}\r\n\r\n".encode())
            connection.shutdown(socket.SHUT_WR)
            while connection.recv(65536):  # closed with bytes unread it would be reset
                pass

    Thread(target=answer, daemon=True).start()
    wire = Wire(f"http://127.0.0.1:{listening.getsockname()[1]}", token=HEADER_KEY, retries=0)
    with listening, pytest.raises(NoAnswer, match=r"answered 401") as caught:
        wire.post({})
    assert_hidden(str(caught.value), HEADER_KEY)


def test_no_error_of_a_library_with_the_request_in_it_goes_along(closed_port: str) -> None:
    with pytest.raises(NoAnswer) as caught:
        Wire(closed_port, token=HEADER_KEY, retries=0).post({})
    assert caught.value.__context__ is None and caught.value.__cause__ is None


def test_a_password_of_netrc_is_hidden(
    server: LocalServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login someone password Wx83kkQ2v9\n")
    netrc.chmod(0o600)
    monkeypatch.setenv("NETRC", str(netrc))
    server.answer = lambda body: (401, f"{server.headers[0]['Authorization']} Wx83kkQ2v9".encode())
    with pytest.raises(NoAnswer) as caught:
        Wire(server.url, retries=0).post({})
    assert str(caught.value).count("***") == 2 and "Wx83" not in str(caught.value)
    assert base64.b64encode(b"someone:Wx83kkQ2v9").decode() not in str(caught.value)


# In URLs and configurations ---------------------------------------------------------------------

BAD_URLS = (
    "http://me:Wx83kkQ2v9@127.0.0.1:1/x",
    "http://Wx83kkQ2v9@127.0.0.1:1/x",
    "http://127.0.0.1:1/x?key=Wx83kkQ2v9",
    "http://127.0.0.1:1/x?n=1&Access_Token=Wx83kkQ2v9",
    "http://127.0.0.1:1/x?sig=Wx83kkQ2v9",
    "http://127.0.0.1:1/x?q=Wx83kkQ2v9Wx83kkQ2v9Wx83",
)


def test_which_urls_hold_a_secret() -> None:
    assert all(secret_in_url(url) for url in BAD_URLS)
    for url in (
        "http://127.0.0.1:8000/v1",
        "https://me:${PASSWORD}@host/x?key=${KEY}",
        "https://host/openai?api-version=2024-12-01-preview&n=3",
    ):
        assert not secret_in_url(url), url


@pytest.mark.parametrize("url", BAD_URLS)
@pytest.mark.parametrize("key", ["rewards.0.url", "rewards.0.endpoint"])
def test_a_password_in_a_url_is_refused_before_anything_is_written(
    url: str,
    key: str,
    write_recipe: Callable[..., Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    table: dict[str, Any] = {"use": "remote", "url": url}
    if key == "rewards.0.endpoint":
        table = {"use": "caption", "model": url, "endpoint": {"model": "m"}}
    recipe = write_recipe(rewards=[table])

    for command in (["train", str(recipe), "--out", str(tmp_path / "run")], ["check", str(recipe)]):
        with pytest.raises(SystemExit) as caught:
            main(command)
        output = "".join(capsys.readouterr())
        assert caught.value.code == 2
        assert "holds a key or a password" in output and "${NAME}" in output
        assert "Wx83" not in output

    assert not (tmp_path / "run").exists()
    with pytest.raises(ValueError, match=r"\$\{NAME\}") as refused:
        Wire(url)
    assert "Wx83" not in str(refused.value)


def test_a_password_on_the_command_line_is_not_repeated(write_recipe: Callable[..., Path]) -> None:
    change = f"rewards=[{{use='remote', url='{BAD_URLS[0]}'}}]"
    with pytest.raises(ValueError, match=r"rewards\.0\.url holds a key") as caught:
        configuration.load(write_recipe(), [change])
    assert "Wx83" not in str(caught.value)


def test_a_url_with_variables_is_called_with_their_values(
    server: LocalServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PASS_WORD", "p@ss/w:rd?1")
    monkeypatch.setenv("QUERY", "a&b=c")
    monkeypatch.setenv("PORT", server.url.rpartition(":")[2])
    server.answer = lambda body: (500, f"{server.paths} {server.headers} p@ss/w:rd?1".encode())
    wire = Wire("http://me:${PASS_WORD}@127.0.0.1:${PORT}/x?key=${QUERY}", retries=0)

    with pytest.raises(NoAnswer) as caught:
        wire.post({})

    assert server.paths == ["/x?key=a%26b%3Dc"]
    expected = base64.b64encode(b"me:p@ss/w:rd?1").decode()
    assert server.headers[0]["Authorization"] == f"Basic {expected}"
    assert expected[4:] not in str(caught.value) and "ss/w:rd" not in str(caught.value)
    with pytest.raises(ValueError, match="variable UNSET_WORD is not set; export it"):
        Wire("http://me:${UNSET_WORD}@127.0.0.1/x")


@pytest.mark.parametrize(
    "options",
    [
        {"wandb": {"settings": {"api_key": "0123456789abcdef0123456789abcdef01234567"}}},
        {"wandb": {"api_key": "abc"}},
        {"mlflow": {"password": "correct horse"}},
        {"trackio": {"hf_token": "hf_" + "aB3" * 12}},
        {"wandb": {"notes": "use sk-proj-" + "a1" * 20}},
        {"wandb": {"base_url": "https://me:Wx83kkQ2v9@host"}},
    ],
)
def test_keys_of_trackers_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"^run\.tracker_options.* holds a key .*WANDB_API_KEY"):
        configuration.parse({"run": {"tracker_options": options}})
    with pytest.raises(ValueError, match="holds a key"):
        configuration.dump(Config(run=RunConfig(tracker_options=options)))


def test_ordinary_configurations_hold_no_secret() -> None:
    import tomllib

    for name in configuration.recipes():
        assert secret_in(tomllib.loads(configuration.recipe(name).read_text("utf-8"))) == ""
    for tree in (
        {"key_variable": "OPENAI_API_KEY", "key": "base", "identifiers": "tokens"},
        {"model": {"id": "hf_my_models/some-long-name-2024"}},
        {"use": "sk-learn-like-rewards.py:mine"},
        {"prompts": {"key": "caption"}, "api_key": "${MY_KEY}"},
    ):
        assert secret_in(tree) == "", tree


# A whole run ------------------------------------------------------------------------------------


def test_a_run_keeps_the_key_out_of_everything(
    server: LocalServer,
    write_recipe: Callable[..., Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MY_KEY", HEADER_KEY)
    monkeypatch.setenv("HF_TOKEN", "quiet-Wx83kkQ2v9")

    def answer(body: Any) -> tuple[int, Any]:
        if len(server.bodies) % 3 == 0:
            bearer = server.headers[-1]["Authorization"]
            return 400, f"no: {bearer} {base64.b64encode(bearer.encode()).decode()}".encode()
        return 200, {"scores": [float(len(image)) for image in body["images"]]}

    server.answer = answer
    code = (
        "def mine(images, prompts):\n"
        "    if float(images[0].sum()) % 2 > 1:\n"
        "        raise PermissionError("
        f"{'quiet-Wx83kkQ2v9 is no token; key ' + HEADER_KEY!r})\n"
        "    return images.mean((1, 2, 3))\n"
    )
    table = {"use": "remote", "url": server.url, "key_variable": "MY_KEY", "batch": 1, "workers": 1}
    recipe = write_recipe(
        code,
        iterations=3,
        rewards=[table, {"use": "HERE/reward.py:mine"}],
        scoring={"missing": "mask", "patience": 99},
        batch={"prompts": 2, "images_per_prompt": 4, "sample_batch": 2},
        evaluation={"images_per_prompt": 0},
        run={"sample_every": 0},
    )
    run = tmp_path / "run"
    outputs = ""

    for command in (["check", str(recipe)], ["train", str(recipe), "--out", str(run)]):
        with pytest.raises(SystemExit):
            main(command)
        outputs += "".join(capsys.readouterr())
    with pytest.raises(SystemExit):
        main(["report", str(run)])

    assert "answered 400" in outputs
    assert "***" in (run / "log.jsonl").read_text()
    texts = {path: path.read_bytes().decode("latin-1") for path in run.rglob("*") if path.is_file()}
    for text in (outputs, *texts.values()):
        assert_hidden(text, HEADER_KEY)
        assert "Wx83kk" not in text


def test_a_traceback_is_shown_without_the_key(
    write_recipe: Callable[..., Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("SOME_TOKEN", "quiet-Wx83kkQ2v9")
    monkeypatch.setenv("BURNISH_DEBUG", "1")
    code = (
        "import os\n"
        "def mine(images, prompts):\n"
        "    raise RuntimeError('bad ' + os.environ['SOME_TOKEN'])\n"
    )
    recipe = write_recipe(code, rewards=[{"use": "HERE/reward.py:mine"}])
    with pytest.raises(SystemExit) as caught:
        main(["train", str(recipe), "--out", str(tmp_path / "run")])
    err = capsys.readouterr().err
    assert caught.value.code == 1
    assert "Traceback" in err and "RuntimeError: bad ***" in err and "Wx83" not in err
