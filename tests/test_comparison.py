"""`burnish compare`: what differs, what came of it, and what is refused."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tomli_w
from test_cli import run as command

from burnish.files import dumps
from burnish.report.comparison import as_json, as_page, as_text, compare, differences, outcomes

CONFIG: dict[str, Any] = {
    "seed": 0,
    "rewards": [{"use": "compressibility"}, {"use": "mine.py:red", "weight": 0.5}],
    "optimizer": {"lr": 1e-4},
    "guard": {"panel": [{"use": "aesthetic", "name": "taste"}]},
}
CHANGE = {"before": 1.0, "after": 1.5, "paired_mean": 0.5, "ci95": [0.25, 0.75]}
RESULT = {
    **CHANGE,
    "judge_before": 1.0,
    "judge_after": 0.75,
    "prompts": 2,
    "images": 4,
    "rewards": {"compressibility": {"weight": 1.0, **CHANGE}, "red": {"weight": 0.5, **CHANGE}},
    "panel": {"taste": CHANGE},
}
INITIAL = {"prompts": ["a cat", "a dog"], "images_per_prompt": 2, "seed": 1234, "chunk": 32}


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., Path]:
    """A function that writes a run: `make(name, initial={...}, result={...}, **config)`."""

    def write(
        name: str,
        initial: dict[str, Any] | None = None,
        result: dict[str, Any] | None = None,
        iterations: int = 3,
        **config: Any,
    ) -> Path:
        folder = tmp_path / name
        (folder / "evaluations").mkdir(parents=True)
        (folder / "config.toml").write_text(tomli_w.dumps({**CONFIG, **config}))
        records = [
            {
                "iteration": i,
                "images": 4,
                "rewards": {"compressibility": {"mean": -1.0 / i}, "red": {"mean": 0.1 * i}},
                "seconds_sampling": 30.0,
            }
            for i in range(1, iterations + 1)
        ]
        (folder / "log.jsonl").write_text("".join(dumps(record) + "\n" for record in records))
        table = {**INITIAL, **(initial or {})}
        count = len(table["prompts"]) * table["images_per_prompt"]
        table |= {"rewards": ["compressibility", "red"], "parts": [[-1.0, 0.1]] * count}
        (folder / "evaluations" / "000000.json").write_text(dumps({"train": table}))
        (folder / "evaluation.json").write_text(
            dumps({"train": {**RESULT, **(result or {})}, "unseen": None})
        )
        return folder

    return write


def test_a_table_of_what_differs_and_what_came_of_it(make: Callable[..., Path]) -> None:
    runs = compare([make("a"), make("b", optimizer={"lr": 3e-4}, seed=1, iterations=5)])
    assert differences(runs) == [["seed", "0", "1"], ["optimizer.lr", "0.0001", "0.0003"]]

    table = {row[0]: row[1:] for row in outcomes(runs)}
    assert table["iterations"] == ["3", "5"] and table["images"] == ["12", "20"]
    assert table["time"] == ["2 min", "2 min"]
    gain = "+0.5 [0.25, 0.75] (1 → 1.5)"
    for name in ("compressibility", "red", "weighted sum", "taste"):
        assert table[f"{name}, train prompts"] == [gain, gain]
    assert table["judged right, train prompts"] == ["100 % → 75 %".replace(" %", "%")] * 2
    assert table["guard"] == ["–", "–"]

    text = as_text(runs)
    assert all(" ".join(row) in re.sub(r" +", " ", text) for row in outcomes(runs))
    assert json.loads(dumps(as_json(runs)))["b"]["differences"]["optimizer.lr"] == "0.0003"


def test_the_guards_verdict(make: Callable[..., Path]) -> None:
    first = make("a")
    decision = {"iteration": 2, "best": 1, "action": "rollback", "reasons": ["taste fell"]}
    (first / "guard.json").write_text(dumps(decision))
    runs = compare([first, make("b")])
    sentence = (
        "a: The guard ended the run after iteration 2, and went back to iteration 1: taste fell"
    )
    assert as_text(runs).splitlines()[-1] == sentence and sentence in as_page(runs)
    assert as_json(runs)["a"]["guard"] == decision and as_json(runs)["b"]["guard"] is None


def test_the_page_has_one_chart_a_reward_with_a_curve_a_run(make: Callable[..., Path]) -> None:
    runs = compare([make("a"), make("b", seed=1), make("<i>c", seed=2, iterations=9)])
    page = as_page(runs)
    for name in ("compressibility", "red"):
        chart = page[page.index(f"<figcaption><b>{name}</b>") :].partition("</figure>")[0]
        assert all(f'<path class="line series-{i}"' in chart for i in range(3))
    assert "<i>c" not in page and "&lt;i&gt;c" in page
    assert '<span class="name">' in page and "Differences of configuration" in page


def test_runs_of_one_name_go_by_their_paths(make: Callable[..., Path]) -> None:
    paths = [make("x/mine"), make("y/mine", seed=1)]
    assert [run.name for run in compare(paths)] == [str(path) for path in paths]


def test_equal_runs_have_no_difference(make: Callable[..., Path]) -> None:
    runs = compare([make("a"), make("b")])
    assert differences(runs) == [] and "There is no difference" in as_page(runs)


def test_a_run_that_has_just_begun(make: Callable[..., Path]) -> None:
    young = make("young", iterations=0)
    for path in (young / "evaluation.json", young / "evaluations" / "000000.json"):
        path.unlink()
    runs = compare([make("a"), young])
    table = {row[0]: row[1:] for row in outcomes(runs)}
    assert table["iterations"] == ["3", "0"] and table["red, train prompts"][1] == "–"
    assert "<svg" in as_page(runs)


def test_a_sum_with_other_weights_is_not_compared(make: Callable[..., Path]) -> None:
    rewards = [CONFIG["rewards"][0], {**CONFIG["rewards"][1], "weight": 2.0}]
    names = [row[0] for row in outcomes(compare([make("a"), make("b", rewards=rewards)]))]
    assert "red, train prompts" in names and "weighted sum, train prompts" not in names


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (
            {"initial": {"prompts": ["a cat", "an ox"]}},
            r'on the train prompts \(2 and 2 prompts, such as "a dog" in one only\)',
        ),
        ({"initial": {"prompts": ["a cat"]}}, r"2 and 1 prompts, such as"),
        ({"initial": {"prompts": ["a dog", "a cat"]}}, "2 and 2 prompts, in another order"),
        ({"initial": {"seed": 5}}, "1234 and 5 as evaluation.seed"),
        ({"initial": {"images_per_prompt": 4}}, "2 and 4 images a prompt"),
        ({"initial": {"chunk": 8}}, "32 and 8 as batch.sample_batch"),
        ({"result": {"images": 16}}, "4 and 16 images"),
        ({"rewards": [{"use": "aesthetic"}]}, "have no reward in common"),
        (
            {"rewards": [{"use": "other.py:red"}]},
            'mean different rewards by red: use = "mine.py:red" and "other.py:red"',
        ),
        (
            {"rewards": [{"use": "compressibility", "quality": 50}]},
            "mean different rewards by compressibility: quality = none and 50",
        ),
        (
            {"guard": {"panel": [{"use": "preference", "name": "taste"}]}},
            'mean different rewards by taste: use = "aesthetic" and "preference"',
        ),
    ],
)
def test_unlike_runs_are_refused(
    other: dict[str, Any], message: str, make: Callable[..., Path]
) -> None:
    first, second, third = make("a"), make("b"), make("c", **other)
    for folders in ([first, third], [first, second, third]):
        with pytest.raises(ValueError, match=message):
            compare(folders)


def test_arguments_that_change_no_number_are_no_matter(make: Callable[..., Path]) -> None:
    rewards = [{**CONFIG["rewards"][0], "device": "cuda", "batch": 3}, CONFIG["rewards"][1]]
    assert len(compare([make("a"), make("b", rewards=rewards)])) == 2


def test_secrets_are_not_shown(make: Callable[..., Path]) -> None:
    tables = [
        [CONFIG["rewards"][0], {"use": "remote", "url": f"http://me:{word}@host/?key={word}"}]
        for word in ("hush", "quiet")
    ]
    with pytest.raises(ValueError, match="mean different rewards by remote") as refused:
        compare([make("a", rewards=tables[0]), make("b", rewards=tables[1])])
    assert "hush" not in str(refused.value) and "quiet" not in str(refused.value)

    options = [{"tracker_options": {"wandb": {"api_key": word}}} for word in ("hush", "quiet")]
    runs = compare([make("c", run=options[0]), make("d", run=options[1])])
    assert "hush" not in as_text(runs) + as_page(runs) + dumps(as_json(runs))


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("evaluation.json", '{"train": 3}'),
        ("evaluation.json", '{"train": {"ci95": []}}'),
        ("evaluation.json", "{"),
        ("evaluations/000000.json", '{"train": []}'),
        ("guard.json", '{"action": 1}'),
        ("guard.json", "3"),
        ("log.jsonl", "3\n"),
        ("log.jsonl", '{"iteration": 1, "images": "many"}\n'),
        ("config.toml", "rewards = 3"),
        ("config.toml", "rewards = ["),
        ("config.toml", "[[rewards]]"),
    ],
)
def test_broken_files_are_one_sentence(file: str, content: str, make: Callable[..., Path]) -> None:
    broken = make("broken")
    (broken / file).write_text(content)
    with pytest.raises(ValueError, match="broken"):
        compare([make("a"), broken])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["a"], "compare takes 2 to 8 runs, not 1"),
        (["a", "a"], "the same run is named twice"),
        (["a", "nowhere"], "nowhere holds no run"),
        (["a", "b", "--out", "b/config.toml"], "let its name end in .html"),
    ],
)
def test_mistakes_at_the_command_line(
    arguments: list[str],
    message: str,
    make: Callable[..., Path],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(make("a").parent)
    make("b")
    code, out, err = command(capsys, "compare", *arguments)
    assert code == 2 and out == "" and message in err and err.count("\n") == 1


def test_the_command(make: Callable[..., Path], capsys: pytest.CaptureFixture[str]) -> None:
    first, second = make("a"), make("b", seed=1)
    page = first.parent / "both.html"
    code, out, _ = command(capsys, "compare", str(first), str(second), "--out", str(page))
    assert code == 0 and out.splitlines()[-1] == str(page) and "<svg" in page.read_text("utf-8")

    code, out, _ = command(capsys, "compare", "--json", str(first), str(second))
    assert code == 0 and list(json.loads(out)) == ["a", "b"]
