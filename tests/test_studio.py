"""The studio: pages that say what a run directory says, and forms that start what they promise."""

from __future__ import annotations

import asyncio
import errno
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("starlette", reason="needs the extra studio: pip install 'burnish[studio]'")

from starlette.testclient import TestClient
from test_studio_safety import CONFIG, ORIGIN, browser, write_run

from burnish import votes
from burnish.files import dumps
from burnish.report.results import Change, panel_changes
from burnish.report.suspects import ranks, suspects
from burnish.run_control import Requests, pending
from burnish.runs import Run, try_lock
from burnish.studio import cards, events, processes, reading
from burnish.studio.cards import Cards, sparkline
from burnish.studio.folder import RunsFolder
from burnish.studio.health import lights, trained_change
from burnish.studio.launches import OF_RUN
from burnish.studio.pages import DRAWN, thinned, vote_effects
from burnish.studio.reading import (
    PACE,
    POINTS,
    is_training,
    log_cache,
    settings_cache,
    spread_records,
)
from burnish.studio.safety import Access
from burnish.studio.studio import Studio

TOKEN = {"token": "right"}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write_run(tmp_path / "runs", "one")
    return tmp_path / "runs"


@pytest.fixture
def client(root: Path) -> Iterator[TestClient]:
    with browser(root, Access(token="right")) as opened:
        yield opened


def post(client: TestClient, path: str, **form: str) -> tuple[int, str]:
    """Return the status of a form that is sent, and where it leads or what it says."""
    answer = client.post(path, data={**TOKEN, **form}, headers=ORIGIN)
    alert = re.search(r'role="alert">(.*?)</p>', answer.text, re.DOTALL)
    return answer.status_code, answer.headers.get("location") or (alert[1] if alert else "")


def records(count: int, **more: object) -> str:
    rows = [
        {
            "iteration": number,
            "images": 4,
            "rewards": {"compressibility": {"mean": -2.0 + number / 1000, "std": 0.1}},
            "seconds_sampling": 1.0,
            "seconds_training": 2.0,
            **more,
        }
        for number in range(1, count + 1)
    ]
    return "".join(f"{dumps(row)}\n" for row in rows)


# Runs ---------------------------------------------------------------------------------------------


def test_the_list_says_where_each_run_is(root: Path, client: TestClient) -> None:
    (write_run(root, "done") / "log.jsonl").write_text(records(4))
    guarded = write_run(root, "guarded")
    guard = {"iteration": 1, "best": 0, "action": "stop", "reasons": ["it fell"]}
    (guarded / "guard.json").write_text(dumps(guard))
    (write_run(root, "new") / "log.jsonl").unlink()

    text = re.sub(r"\s+", " ", client.get("/").text)
    assert "4 in " in text
    for name, state, done in (("done", "finished", 4), ("guarded", "ended by the guard", 1)):
        card = text.split(f"/runs/{name}/curves")[1].split("</li>")[0]
        assert f">{state}<" in card and f"{done} of 4" in card
    assert "0 of 4" in text.split("/runs/new/curves")[1].split("</li>")[0]
    assert "polyline" in text.split("/runs/done/curves")[1].split("</li>")[0]


def test_a_run_is_running_while_a_process_holds_it(root: Path, client: TestClient) -> None:
    run = Run(root / "one")
    (root / "one" / "log.jsonl").write_text(records(2))
    assert not is_training(run)
    code = (
        "import sys; from burnish.runs import Run\n"
        "with Run.open(sys.argv[1]).lock(): print(flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", code, str(run.folder)]
    holder = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    with holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        assert is_training(run)
        held = events.signatures(RunsFolder.open(root), "one")
        page = client.get("/runs/one/curves").text
        assert "about 6 s left" in re.sub(r"\s+", " ", page)
        assert "Stop and save" in page

        assert post(client, "/runs/one/ask", what="save", page="health") == (
            303,
            "/runs/one/health",
        )
        post(client, "/runs/one/ask", what="strength", strength="50")
        post(client, "/runs/one/ask", what="stop")
        assert pending(run) == Requests(stop=True, save=True, strength=0.5)
        assert "Asked for: stop, save, draw with the adapter at 50%" in (
            client.get("/runs/one/curves").text
        )
        assert ">stopping<" in client.get("/").text
        assert post(client, "/runs/one/ask", what="strength", strength="900")[0] == 400
        assert post(client, "/runs/one/ask", what="dance")[0] == 400
        assert "running already" in post(client, "/runs/one/resume")[1]
        back = post(client, "/runs/one/rollback", iteration="3", sure="yes")
        assert "stop it first" in back[1]

    assert not is_training(run)
    (root / "one" / "control.json").unlink()
    assert held != events.signatures(RunsFolder.open(root), "one"), "though no file has changed"
    assert "nobody to ask" in post(client, "/runs/one/ask", what="stop")[1]


def test_the_owner_of_a_lock_that_is_dead_is_not_asked(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Run(root / "one").lock():
        pass
    lock = root / "one" / "lock"
    lock.write_text(re.sub(r"process \d+", "process 99999999", lock.read_text()))

    def refuse(run: Run) -> bool:
        raise AssertionError("the lock was tried")

    monkeypatch.setattr("burnish.studio.reading.is_locked", refuse)
    assert not is_training(Run(root / "one"))


def test_a_long_log_is_read_at_few_places(root: Path) -> None:
    (root / "one" / "log.jsonl").write_text(records(1000) + '{"iterat')
    found = [record["iteration"] for record in spread_records(Run(root / "one"))]

    assert len(found) <= POINTS + PACE
    assert found[0] == 1
    assert found[-PACE:] == [*range(1001 - PACE, 1001)]
    assert found == sorted(found)


def test_of_a_log_that_grows_the_new_rows_are_read(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Run(root / "one")
    run.log.write_text(records(30))
    cache = log_cache()
    rows: list[int] = []

    def counted(run: Run, row: int, line: bytes) -> dict[str, object]:
        rows.append(row)
        return reading.parsed(run, row, line)

    monkeypatch.setattr(reading, "checked", counted)

    def read_rows() -> list[int]:
        rows.clear()
        assert cache.of(run).records == run.records()
        return [row for row in rows if row <= len(run.records())]

    assert read_rows() == [*range(1, 31)]
    assert read_rows() == []
    run.append({"iteration": 31})
    run.append({"iteration": 32, "images": 1})
    assert read_rows() == [31, 32]
    run.append({"iteration": 32, "images": 22}, amend=True)
    assert read_rows() == [*range(1, 33)], "the last row is another one"
    run.forget(20)
    assert read_rows() == [*range(1, 21)]
    with run.log.open("a") as file:
        file.write('{"iteration": 21}')
    assert read_rows() == [21]
    with run.log.open("a") as file:
        file.write("\n" + '{"iteration": 22}\n{"iter')
    assert read_rows() == [21, 22]
    run.log.unlink()
    assert read_rows() == []


def test_long_curves_are_thinned_to_their_end() -> None:
    assert thinned(list(range(DRAWN))) == list(range(DRAWN))  # type: ignore[arg-type,comparison-overlap]
    some = thinned(list(range(1, 1001)))  # type: ignore[arg-type]
    assert len(some) <= DRAWN and some[-1] == 1000 and {b - a for a, b in pairwise(some)} == {4}  # type: ignore[operator]


def test_a_sparkline_is_scaled_to_its_box() -> None:
    assert sparkline([1.0, None, 3.0], 104, 30) == "2.0,27.0 102.0,3.0"
    assert sparkline([1.0, float("nan")]) == ""
    assert sparkline([2.0, 2.0], 104, 30) == "2.0,27.0 102.0,27.0"


# Starting -----------------------------------------------------------------------------------------


@pytest.fixture
def echoed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let commands print their arguments instead of training."""
    code = "import sys; print('\\n'.join(sys.argv[1:])); sys.exit('FAIL' in str(sys.argv))"
    monkeypatch.setattr(
        processes, "command", lambda arguments: [sys.executable, "-c", code, *arguments]
    )


def printed(client: TestClient, name: str) -> tuple[str, ...]:
    """Return the lines that a command has printed once it has ended."""
    for _ in range(200):
        page = client.get(f"/process/{name}").text
        if "goes on" not in page:
            output = re.search(r"<pre[^>]*>(.*?)</pre>", page, re.DOTALL)
            assert output is not None
            return tuple(output[1].split("\n"))
        time.sleep(0.05)
    raise AssertionError("the command did not end")


@pytest.mark.usefixtures("echoed")
def test_a_form_becomes_the_command_that_one_would_type(root: Path, client: TestClient) -> None:
    form = {"recipe": "demo", "name": "new", "changes": "iterations=3\r\n\r\noptimizer.lr=1e-3"}
    assert post(client, "/new", **form, do="start") == (303, "/process/new")
    changes = ("--set=iterations=3", "--set=optimizer.lr=1e-3")
    assert printed(client, "new") == ("train", "demo", *changes, f"--out={root / 'new'}")

    assert post(client, "/new", **form, do="check") == (303, "/process/check")
    assert printed(client, "check") == ("check", "demo", *changes)

    config = str(root / "one" / "config.toml")
    assert post(client, "/runs/one/resume", accept="yes")[0] == 303
    expected = ("train", config, "--resume", f"--out={root / 'one'}", "--accept-changes")
    assert printed(client, "one") == expected

    assert post(client, "/runs/one/ask", what="strength", strength="150", page="images") == (
        303,
        "/runs/one/images",
    )
    assert printed(client, "one") == ("sample", str(root / "one"), "--grid", "--strength=1.5")

    post(client, "/new", recipe=f"{OF_RUN}one", name="again", do="start")
    assert printed(client, "again") == ("train", config, f"--out={root / 'again'}")


@pytest.mark.usefixtures("echoed")
def test_a_run_may_have_the_name_of_a_recipe(root: Path, client: TestClient) -> None:
    config = write_run(root, "demo") / "config.toml"
    form = client.get("/new").text
    values = re.findall(r'<option value="([^"]+)"[^>]*>demo</option>', form)
    assert values == [f"{OF_RUN}demo"] and ">demo</option>" in form.split("<optgroup")[1]

    post(client, "/new", recipe=values[0], name="as-run", do="start")
    assert printed(client, "as-run")[:2] == ("train", str(config))
    post(client, "/new", recipe="demo", name="as-recipe", do="start")
    assert printed(client, "as-recipe")[:2] == ("train", "demo")


@pytest.mark.usefixtures("echoed")
def test_a_start_that_fails_is_told_of(client: TestClient) -> None:
    post(client, "/new", recipe="demo", name="FAIL", do="start")
    printed(client, "FAIL")
    assert "failed" in client.get("/process/FAIL").text
    assert "did not start" in client.get("/").text


@pytest.mark.parametrize(
    ("form", "message"),
    [
        ({"changes": "batch.promts=4"}, "did you mean &#34;prompts&#34;"),
        ({"changes": "no equals sign"}, "write it as"),
        ({"name": ""}, "a name is missing"),
        ({"name": "../up"}, "is no name for a folder"),
        ({"name": "one"}, "is there already"),
        ({"recipe": "nothing"}, "there is no recipe nothing"),
        ({"recipe": "one"}, "there is no recipe one"),
        ({"recipe": "run:nothing"}, "there is no run nothing"),
        ({"recipe": "--help"}, "there is no recipe --help"),
    ],
)
def test_a_mistake_is_a_sentence_beside_what_was_filled_in(
    client: TestClient, form: dict[str, str], message: str
) -> None:
    filled = {"recipe": "demo", "name": "new", "changes": "iterations=3", "do": "start", **form}
    answer = client.post("/new", data={**TOKEN, **filled}, headers=ORIGIN)

    assert answer.status_code == 400
    assert message in answer.text
    assert f'value="{filled["name"]}"' in answer.text
    assert f">{filled['changes']}</textarea>" in answer.text


def test_a_branch_and_a_way_back_are_those_of_the_command_line(
    root: Path, client: TestClient
) -> None:
    code, sentence = post(client, "/runs/one/branch", iteration="3", name="new")
    assert code == 400 and "no checkpoint of iteration 3" in sentence
    assert post(client, "/runs/one/branch", iteration="3", name="../up")[0] == 400
    assert "choose an iteration" in post(client, "/runs/one/branch", name="new")[1]
    assert "tick that you are sure" in post(client, "/runs/one/rollback", iteration="3")[1]
    assert post(client, "/runs/one/dance")[0] == 404
    assert post(client, "/runs/nobody/resume")[0] == 404


WAITS = """
import sys, time
from pathlib import Path
while not Path({!r}).exists():
    time.sleep(0.02)
{}
"""
"""A command that goes on until there is a file, and then does something."""


def let_commands(
    monkeypatch: pytest.MonkeyPatch, ends: Path | None, sentence: str | None = None
) -> None:
    """Let commands end with a sentence, which is an error, once there is a file; None: at once."""
    code = WAITS.format(str(ends or "/"), f"sys.exit({sentence!r})")
    monkeypatch.setattr(processes, "command", lambda arguments: [sys.executable, "-c", code])


def test_a_branch_that_takes_long_goes_on(
    root: Path, client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processes, "SHORT", 0.1)
    let_commands(monkeypatch, root / "ends")
    where = post(client, "/runs/one/branch", iteration="3", name="new")
    assert where == (303, "/process/new") and "goes on" in client.get("/process/new").text
    where = post(client, "/runs/one/rollback", iteration="3", sure="yes")
    assert where == (303, "/process/one")
    assert "still goes on" in post(client, "/runs/one/branch", iteration="3", name="new")[1]

    (root / "ends").touch()
    assert all(printed(client, name) for name in ("new", "one"))
    monkeypatch.setattr(processes, "SHORT", 60.0)
    let_commands(monkeypatch, None, "a library's warning\nburnish: no checkpoint\nat the exit")
    code, sentence = post(client, "/runs/one/branch", iteration="3", name="new")
    assert (code, sentence) == (400, "<b>Error:</b> no checkpoint")


def test_the_end_of_a_command_is_a_change(
    root: Path, client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = RunsFolder.open(root)
    studio = Studio(folder, Access())
    let_commands(monkeypatch, root / "ends")
    studio.launches.processes.launch("one", ["sample"])
    of_run, of_list = studio.version("one"), studio.version()
    files = events.signatures(folder, "one")

    (root / "ends").touch()
    studio.launches.processes.let_end("one")
    assert files == events.signatures(folder, "one")
    assert of_run != studio.version("one") and of_list != studio.version()


def test_the_page_of_a_run_that_begins_comes_by_itself(
    root: Path, client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    let_commands(monkeypatch, root / "ends")
    assert client.get("/runs/new/curves").status_code == 404
    post(client, "/new", recipe="demo", name="new", do="start")
    answer = client.get("/runs/new/curves")
    assert answer.status_code == 200 and "this page shows it in a moment" in answer.text
    assert 'data-events="/events?run=new' in answer.text

    (root / "ends").touch()
    printed(client, "new")
    answer = client.get("/runs/new/curves")
    assert answer.status_code == 404 and "data-events" not in answer.text


def test_another_studio_finds_a_command_that_goes_on_and_ends_it(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    let_commands(monkeypatch, root / "ends")
    folder = RunsFolder.open(root)
    earlier = Studio(folder, Access()).launches.processes
    earlier.launch("search", ["qr"])

    with browser(root, Access(token="right")) as client:
        page = client.get("/codes/search").text
        assert "goes on" in page or "begins" in page
        assert 'action="/codes/search/stop"' in page
        assert "still goes on" in post(client, "/codes", payload="X", name="search")[1]
        assert post(client, "/codes/search/stop") == (303, "/codes/search")
        assert earlier.started["search"].wait(30) == -signal.SIGTERM
        assert "nothing goes on" in post(client, "/codes/search/stop")[1]


def test_a_command_survives_the_end_of_the_studio(root: Path) -> None:
    """Also Ctrl+C, which a terminal sends to all processes of its own."""
    ends, done = root / "ends", root / "done"
    work = WAITS.format(str(ends), f"Path({str(done)!r}).touch()")
    server = (
        "import sys\nfrom burnish.studio import processes\n"
        "from burnish.studio.folder import RunsFolder\n"
        f"processes.command = lambda arguments: [sys.executable, '-c', {work!r}]\n"
        f"started = processes.Processes(RunsFolder.open({str(root)!r}))\n"
        "started.launch('one', ['train'])\nprint(flush=True)\nsys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", server],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    ) as studio:
        assert studio.stdout is not None
        studio.stdout.readline()
        os.killpg(studio.pid, signal.SIGINT)
    assert studio.returncode and not done.exists()

    ends.touch()
    until = time.monotonic() + 60
    while not done.exists() and time.monotonic() < until:
        time.sleep(0.05)
    assert done.exists()


@pytest.fixture
def stranger() -> Iterator[int]:
    """The number of a process that leads a session, as every daemon does."""
    command = [sys.executable, "-c", "import sys; sys.stdin.read()"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True) as process:
        yield process.pid


@pytest.mark.parametrize("number", ["", "x", "0", "-1", "1", "99999999", str(2**70), "stranger"])
def test_no_process_is_ended_that_does_not_write_the_log(
    root: Path, monkeypatch: pytest.MonkeyPatch, stranger: int, number: str
) -> None:
    """The file with the number of a process is that of anybody, or of another machine."""
    signalled: list[tuple[int, int]] = []
    monkeypatch.setattr(processes.os, "kill", lambda *one: signalled.append(one))
    folder = RunsFolder.open(root)
    (root / ".studio").mkdir()
    with (root / ".studio" / "evil.log").open("wb") as log:
        assert try_lock(log)
        text = str(stranger) if number == "stranger" else number
        (root / ".studio" / "evil.pid").write_text(text)
        with pytest.raises(ValueError, match="does not name its process"):
            Studio(folder, Access()).launches.processes.end("evil")
    assert signalled == []


# Pages --------------------------------------------------------------------------------------------


def test_images_are_rows_of_iterations_and_columns_of_prompts(
    root: Path, client: TestClient
) -> None:
    samples = root / "one" / "samples"
    layout = {"texts": ["a cat", "a dog"], "columns": 2}
    (samples / "prompts.json").write_text(dumps(layout))
    for name in ("000002", "strength-000002-050", "strength-000001-070"):
        (samples / f"{name}.png").write_bytes((samples / "000000.png").read_bytes())

    text = client.get("/runs/one/images").text
    assert text.count('class="cell"') == 4
    assert re.findall(r'aria-label="(a \w+, .*?)"', text) == [
        "a cat, after iteration 2",
        "a dog, after iteration 2",
        "a cat, before training",
        "a dog, before training",
    ]
    assert "background-size: 200% 100%; background-position: 100% 0%" in text
    assert "50 % of iteration 2</figcaption>" in text and "70 %" not in text
    assert client.get("/files/one/samples/000002.png").headers["content-type"] == "image/png"


def test_groups_have_their_best_and_worst_and_those_without_spread_are_flagged(
    root: Path, client: TestClient
) -> None:
    (root / "one" / "groups").mkdir()
    groups = {
        "iteration": 7,
        "columns": 3,
        "texts": ["a cat"] * 3 + ["a dog"] * 2,
        "group": [5, 5, 5, 2, 2],
        "rewards": ["compressibility"],
        "parts": [[-3.0], [-1.0], [None], [-2.0], [-2.0]],
    }
    (root / "one" / "groups" / "000007.json").write_text(dumps(groups))

    text = client.get("/runs/one/groups").text
    cat, dog = text.split("<section")[1:]
    assert re.findall(r'<figure class="(\w*)">', cat) == ["worst", "best", ""]
    assert re.findall(r'<figure class="(\w*)">', dog) == ["", ""]
    assert "no spread" not in cat and "no spread" in dog
    assert "1 of 2 groups have no spread" in text


def levels(record: dict[str, object], **more: dict[str, object]) -> dict[str, str]:
    found = lights(
        [record], more.get("evaluation", {}), more.get("guard", {}), more.get("tree", {})
    )
    return {light.title: light.level for light in found}


def test_lights_tell_a_sound_run_from_one_that_is_not() -> None:
    sound = {"ratio_deviation": 1e-6, "clip_fraction": 0.1, "zero_advantage": 0.1, "grad_norm": 1.0}
    sick = {"ratio_deviation": 0.3, "clip_fraction": 0.9, "zero_advantage": 1, "grad_norm": None}
    titles = ("Ratio", "Clipped", "Something to learn")
    assert [levels(sound)[title] for title in titles] == ["good"] * 3
    assert [levels(sick)[title] for title in titles] == ["bad", "warning", "bad"]
    assert "Gradient" not in levels(sound) and levels(sick)["Gradient"] == "bad"
    assert "Ratio" not in levels(sick, tree={"old_policy": {"decay": 0.9}})
    assert levels(sick, tree={"old_policy": {"decay": 0.0}})["Ratio"] == "bad"
    assert levels({"kl": 0.2})["KL"] == "unknown"
    assert levels({"approx_kl": 0.2})["KL"] == "unknown" and "KL" not in levels({})

    reasons = {"iteration": 3, "best": 1, "action": "stop", "reasons": ["it fell"]}
    assert levels({}, guard=reasons)["Guard"] == "bad"
    assert levels({}, tree={"guard": {"action": "stop"}})["Guard"] == "good"


def test_an_image_that_nobody_was_asked_about_is_no_fault() -> None:
    missing = {"votes": 2, "clip_similarity": 0}  # as training writes it
    record = {"iteration": 2, "images": 20, "missing": missing, "problems": ["of 2 images"]}
    tree = {"rewards": [{"use": "votes"}, {"use": "clip_similarity"}]}
    assert "Rewards" not in levels(record, tree=tree)
    assert levels(record)["Rewards"] == "warning"
    assert levels({**record, "missing": {"clip_similarity": 1}}, tree=tree)["Rewards"] == "warning"


@pytest.mark.parametrize(
    ("kl", "budget", "level"), [(20.0, 0.0, "unknown"), (20.0, 30.0, "good"), (40.0, 30.0, "bad")]
)
def test_the_light_of_the_kl_knows_the_guards_budget(kl: float, budget: float, level: str) -> None:
    """And the KL is no held-out measure, which would be better the higher it is."""
    entry = {"before": 0.0, "after": kl, "paired_mean": kl, "ci95": [kl - 1, kl + 1]}
    train = {"before": 0.0, "after": 1.0, "paired_mean": 1.0, "ci95": [0.5, 1.5]}
    evaluation = {"train": {**train, "rewards": {"r": train}, "panel": {"kl": entry}}}
    record = {"kl": 3.0}
    found = lights([record], evaluation, {}, {"guard": {"kl": budget, "action": "warn"}})

    (light,) = [light for light in found if light.title == "KL"]
    assert light.level == level and f"{kl:g} nats an image away" in light.text
    assert "guard.panel" in next(light.text for light in found if light.title == "Held-out")
    assert [change.verdict for change in panel_changes(evaluation["train"])] == [""]


@pytest.mark.parametrize(
    ("reward", "held_out", "level"),
    [(1.0, -1.0, "bad"), (-1.0, -1.0, "warning"), (1.0, 1.0, "good"), (1.0, 0.0, "good")],
)
def test_a_held_out_measure_that_falls_while_the_reward_rises_is_a_red_light(
    reward: float, held_out: float, level: str
) -> None:
    def change(gain: float) -> dict[str, object]:
        interval = [gain - 0.1, gain + 0.1]
        return {"before": 0.0, "after": gain, "paired_mean": gain, "ci95": interval}

    train = {**change(reward), "rewards": {"r": change(reward)}, "panel": {"m": change(held_out)}}
    assert levels({}, evaluation={"train": train})["Held-out"] == level


def test_suspects_are_liked_by_the_reward_and_by_nothing_else() -> None:
    table = {
        "prompts": ["a cat", "a dog"],
        "images_per_prompt": 2,
        "rewards": ["r", "s"],
        "parts": [[1.0, 0.0], [4.0, 0.0], [3.0, None], [2.0, 0.0]],
        "judged": [True, False, False, True],
        "panel": {"m": [0.9, 0.1, 0.2, 0.3]},
    }
    (worst,) = suspects(table, {"r": 1.0, "s": 2.0})
    assert (worst.number, worst.prompt, worst.reward) == (1, "a cat", 4.0)
    assert worst.held_out == {"judged right": 0.0, "m": 0.1}
    # its reward is the first of three; its judgement shares the last two places, its m is the last
    assert worst.suspicion == pytest.approx(1 - (1 / 6 + 0) / 2)

    assert suspects(table, {"r": -1.0}) == []
    assert suspects({**table, "judged": None, "panel": {}}, {}) == []
    far = {**table["panel"], "kl": [9.0, None, None, None]}  # type: ignore[dict-item]
    assert suspects({**table, "panel": far}, {"r": 1.0, "s": 2.0}) == [worst]
    assert ranks([1.0, 1.0, float("nan")]) == [0.5, 0.5, None]

    # what is the same for all images tells none from another
    sound = {**table, "judged": [True] * 4, "panel": {}}
    assert suspects(sound, {"r": 1.0, "s": 2.0}) == []
    assert suspects(table, {"r": 0.0, "s": 0.0}) == []


def test_a_reward_that_is_only_measured_is_not_the_trained_one() -> None:
    changes = [Change("clip", 0.8, 0.7)]
    measured = {"rewards": [{"use": "votes"}, {"use": "clip", "weight": 0.0}]}
    assert trained_change(changes, measured) is None
    assert trained_change(changes, {"rewards": [{"use": "clip"}]}) == changes[0]


def test_a_finished_run_is_resumed_with_more_iterations_only(
    root: Path, client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    let_commands(monkeypatch, None)
    (root / "one" / "log.jsonl").write_text(records(4))
    assert post(client, "/runs/one/resume") == (303, "/process/one"), "its adapter is missing"
    printed(client, "one")
    (root / "one" / "adapter.json").write_text("{}")
    assert "all 4 iterations are done" in post(client, "/runs/one/resume")[1]
    assert post(client, "/runs/one/resume", changes="iterations=8")[0] == 303
    printed(client, "one")


def test_a_folder_that_cannot_be_written_is_a_sentence(
    client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path, *others: object, **more: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(Path, "mkdir", refuse)
    code, sentence = post(client, "/runs/one/resume")
    assert code == 400 and "one.log could not be written: no permission" in sentence


def test_a_file_is_no_folder_of_runs(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(FileExistsError, match="is a file; give the folder that holds the runs"):
        RunsFolder.open(tmp_path / "file")


def test_seeds_are_laid_over_each_other(root: Path, client: TestClient) -> None:
    for seed in (1, 2):
        folder = write_run(root, f"seed{seed}", f"seed = {seed}\n{CONFIG}")
        (folder / "log.jsonl").write_text(records(5))

    text = client.get("/compare?run=seed1&run=seed2").text
    assert text.count('class="line series-') == 2
    assert re.search(r'<th scope="row">seed</th><td>1</td><td>2</td>', text)
    assert "2 to 8 runs" in client.get("/compare?run=seed1").text


def test_an_address_that_is_none_is_a_page(client: TestClient) -> None:
    for path in ("/nowhere", "/runs/one/nowhere", "/runs/nobody/curves", "/static/nothing.js"):
        assert client.get(path).status_code == 404
    assert client.get("/runs/one").headers["location"] == "/runs/one/curves"


def test_what_the_pages_ask_for_is_there(client: TestClient) -> None:
    page = client.get("/").text
    for path in re.findall(r'(?:src|href)="(/static/[^"]+)"', page):
        assert client.get(path).status_code == 200
        tag = client.get(path).headers["etag"]
        assert client.get(path, headers={"if-none-match": tag}).status_code == 304
        assert client.get(path, headers={"if-none-match": '"of another version"'}).content
    assert "--paper" in client.get("/static/report.css").text


@pytest.fixture
def questioned(root: Path) -> Run:
    """A run that asks about two pairs."""
    run = Run(root / "one")
    png = (run.samples / "000000.png").read_bytes()
    images = [votes.add_image(run, png + bytes([number])) for number in range(3)]
    first = votes.make_question(1, 0, "a cat", images[0], images[1])
    second = votes.make_question(1, 1, "a <dog>", images[1], images[2])
    votes.ask(run, [first, second])
    return run


def test_an_answer_that_comes_too_late_is_called_so(questioned: Run, client: TestClient) -> None:
    questioned.log.write_text("")
    assert "too late" not in client.get("/runs/one/votes").text
    questioned.append({"iteration": 1, "images": 4})
    assert "Iteration 1 has been learned from" in client.get("/runs/one/votes").text


def test_votes_are_given_by_the_page_and_taken_back(questioned: Run, client: TestClient) -> None:
    first, second = votes.questions(questioned)
    page = client.get("/runs/one/votes").text
    assert "a cat" in page and "2 left, 0 given" in page
    shown = re.findall(r'src="(/files/one/questions/[^"]+)"', page)
    assert shown == [f"/files/one/questions/{name}" for name in (first.left, first.right)]
    assert all(client.get(path).status_code == 200 for path in shown)

    now = str(time.time() - 5)
    where = (303, "/runs/one/votes#vote")
    assert post(client, "/runs/one/vote", question=first.id, answer="left", now=now) == where
    (vote,) = votes.votes(questioned)
    assert (vote.question, vote.answer) == (first.id, "left")
    assert vote.seconds == pytest.approx(5, abs=2)
    page = client.get("/runs/one/votes").text
    assert "a &lt;dog&gt;" in page and "1 left, 1 given" in page

    assert post(client, "/runs/one/vote", question=second.id, answer="both_bad", now="x") == where
    assert "No question is waiting" in client.get("/runs/one/votes").text
    assert post(client, "/runs/one/vote", answer="undo") == where
    assert [vote.question for vote in votes.votes(questioned)] == [first.id]
    assert "a &lt;dog&gt;" in client.get("/runs/one/votes").text


def test_what_the_votes_have_changed_is_said_in_words() -> None:
    record = {
        "votes": {"accuracy": 0.611},
        "rewards": {"votes": {"mean": 0}, "clip": {"gain": -0.0677}},
    }
    assert vote_effects(record) == [
        "A head fitted to your votes foretells 61% of those that it was not fitted to; "
        "chance is 50%.",
        "clip of the latest images: -0.0677 compared with images of their prompts before training.",
    ]
    assert vote_effects({"votes": [1], "rewards": "none"}) == []


def test_a_vote_that_is_none_is_refused(questioned: Run, client: TestClient) -> None:
    first = votes.questions(questioned)[0]
    assert post(client, "/runs/one/vote", question=first.id, answer="maybe")[0] == 400
    assert post(client, "/runs/one/vote", question="nothing", answer="left")[0] == 400
    assert not votes.votes(questioned)


def test_a_run_that_asks_nobody_has_no_page_of_votes_among_its_tabs(
    questioned: Run, root: Path, client: TestClient
) -> None:
    write_run(root, "two")
    assert "/runs/two/votes" not in client.get("/runs/two/curves").text
    assert "/runs/one/votes" in client.get("/runs/one/curves").text


# Events -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("early", [True, False])
def test_a_browser_is_told_of_a_change_once(root: Path, client: TestClient, early: bool) -> None:
    """Also of one between the page and the stream."""
    page = client.get("/runs/one/curves").text
    since = re.findall(r"since=(\w+)", page)[0] if early else ""
    if early:
        Run(root / "one").guard.write_text("{}")
    looks = 0

    async def is_gone() -> bool:
        nonlocal looks
        looks += 1
        if looks == 2 and not early:
            with Run(root / "one").log.open("a") as file:
                file.write(records(1))
        return looks > 4

    async def collected() -> list[str]:
        version = partial(Studio(RunsFolder.open(root), Access()).version, "one")
        stream = events.changes(version, since, is_gone, every=0.01)
        return [event async for event in stream]

    changed = [event for event in asyncio.run(collected()) if "changed" in event]
    assert len(changed) == 1


def test_a_card_is_made_again_only_once_its_run_has_changed(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = RunsFolder.open(root)
    write_run(root, "two")
    made = []
    card = cards.card

    def counted(folder: RunsFolder, name: str, *others: Any) -> cards.Card:
        made.append(name)
        return card(folder, name, *others)

    monkeypatch.setattr(cards, "card", counted)
    remembered = Cards(settings_cache())

    def done() -> dict[str, int]:
        shown = remembered.of(folder, events.signatures(folder))
        return {one.name: one.done for one in shown}

    before = done()
    assert sorted(made) == ["one", "two"]
    assert done() == before and sorted(made) == ["one", "two"]

    (root / "two" / "log.jsonl").write_text(records(7))
    assert done() == {**before, "two": 7} and made[2:] == ["two"]

    shutil.rmtree(root / "one")
    assert done() == {"two": 7} and made[2:] == ["two"]
    write_run(root, "one")
    assert done() == {**before, "two": 7} and made[2:] == ["two", "one"]


def link_out(run: Path) -> None:
    """Put a link out of the folder of runs in the place of a run, with the very same files."""
    elsewhere = run.parent.parent / "elsewhere"
    run.rename(elsewhere)
    run.symlink_to(elsewhere)


def end_training(run: Path) -> None:
    """Leave what a process that trained here leaves."""
    (run / "lock").write_text(f"process 99999999 on {socket.gethostname()}")


CHANGES: dict[str, Callable[[Path], object]] = {
    "the configuration": lambda run: (run / "config.toml").write_text(
        CONFIG.replace("iterations = 4", "iterations = 9")
    ),
    "the guard": lambda run: (run / "guard.json").write_text('{"iteration": 1}'),
    "the log": lambda run: (run / "log.jsonl").write_text(records(7)),
    "a broken log": lambda run: (run / "log.jsonl").write_text("{\n"),
    "a link": link_out,
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_card_is_never_older_than_its_run(root: Path, change: Callable[[Path], object]) -> None:
    folder = RunsFolder.open(root)
    remembered = Cards(settings_cache())

    def shown() -> cards.Card:
        (one,) = remembered.of(folder, events.signatures(folder))
        return one

    def fresh() -> cards.Card:
        (one,) = Cards(settings_cache()).of(folder, events.signatures(folder))
        return one

    (root / "one" / "log.jsonl").write_text(records(4))
    before = shown()
    change(root / "one")
    assert shown() == fresh() != before


def test_an_error_card_goes_once_what_was_wrong_is_mended(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = RunsFolder.open(root)
    remembered = Cards(settings_cache())
    (root / "one" / "log.jsonl").write_text(records(4))

    with monkeypatch.context() as broken:
        broken.setattr(cards, "seconds_left", lambda *_: 1 / 0)
        broken.setattr(cards, "state_of", lambda *_: "running")
        (card,) = remembered.of(folder, events.signatures(folder))
        assert card.error == "division by zero"

    (card,) = remembered.of(folder, events.signatures(folder))
    assert not card.error and card.done == 4


def test_a_card_says_running_while_a_process_holds_its_run(root: Path) -> None:
    folder = RunsFolder.open(root)
    remembered = Cards(settings_cache())

    def state() -> str:
        (one,) = remembered.of(folder, events.signatures(folder))
        return one.state

    (root / "one" / "log.jsonl").write_text(records(2))
    end_training(root / "one")
    assert state() == "stopped"
    with Run(root / "one").lock():
        assert state() == "running"
        (root / "one" / "control.json").write_text(dumps({"stop": True}))
        assert state() == "stopping"
    assert state() == "stopped"


def test_a_new_run_is_a_change_of_the_list(root: Path) -> None:
    folder = RunsFolder.open(root)
    before = events.signatures(folder)
    assert before == events.signatures(folder)
    write_run(root, "two")
    assert before != events.signatures(folder)
