"""The report: complete, self-contained and well formed, from any state of a run."""

from __future__ import annotations

import html
import json
import math
import random
import re
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import Image

from burnish.report import fronts
from burnish.report.charts import HOVERED, Series, line_chart, number, ticks
from burnish.report.page import FRAMES, write_report
from burnish.report.results import SUM, evaluation_lines, reward_changes

CONFIG = """
[model]
id = "zoo:emoji-sd"
train = "lora"
rank = 4
[objective]
use = "clipped"
[advantage]
use = "group"
[[rewards]]
use = "compressibility"
name = "small <file>"
"""
PAIRED = {
    "before": -2.5,
    "after": -2.0,
    "paired_mean": 0.5,
    "ci95": [0.4, 0.6],
    "judge_before": 0.8,
    "judge_after": 0.7,
}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A made-up run of 30 iterations."""
    folder = tmp_path / "my & run"
    (folder / "samples").mkdir(parents=True)
    (folder / "config.toml").write_text(CONFIG)
    records = [
        {
            "iteration": i,
            "images": 64,
            "rewards": {"small <file>": {"mean": -2.5 + 0.01 * i, "std": 0.3}},
            "ratio_deviation": 1e-7,
            "clip_fraction": 0.2,
            "approx_kl": 0.01,
            "grad_norm": None if i == 7 else 0.5,
            "seconds_sampling": 2.0,
            "seconds_scoring": 0.1,
            "seconds_training": 4.0,
        }
        for i in range(1, 31)
    ]
    (folder / "log.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))

    for i in range(0, 31, 2):
        Image.new("RGB", (16, 16), (8 * i, 100, 0)).save(folder / "samples" / f"{i:06d}.png")

    (folder / "samples" / "prompts.json").write_text(
        json.dumps({"texts": ["a cat", "a <b>dog</b>", "an ant", "a fox"], "columns": 2, "size": 8})
    )
    (folder / "evaluation.json").write_text(json.dumps({"train": PAIRED, "unseen": None}))
    return folder


def test_several_rewards_show_their_spread_within_a_prompt_and_the_front(run: Path) -> None:
    text = write_report(run).read_text()
    # nothing more about a single reward
    assert "within a prompt" not in text and "<b>Pareto front</b>" not in text

    records = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]

    for record in records:
        record["rewards"] |= {"red": {"mean": 0.5, "std": 0.25, "within": 0.125, "targeted": 0.75}}
        record["pareto_front"] = 0.3

    (run / "log.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    text = write_report(run).read_text()
    details = "; spread at the end 0.25, within a prompt 0.125; 0.75 for the images that target it"
    assert details in text and text.count("within a prompt") == 1
    assert "<b>Pareto front</b>" in text


def test_each_reward_has_a_row_and_an_interval(run: Path) -> None:
    rewards = {
        "jpeg": {**PAIRED, "weight": 1.0, "paired_mean": 0.25, "ci95": [0.125, 0.375]},
        "size": {**PAIRED, "weight": -2.0, "paired_mean": 0.75, "ci95": [0.625, 0.875]},
    }
    result = {**PAIRED, "prompts": 64, "images": 128, "rewards": rewards}
    (run / "evaluation.json").write_text(json.dumps({"train": result, "unseen": None}))
    page = write_report(run).read_text("utf-8")
    rows = re.findall("<tr>(.*?)</tr>", page)
    table = [re.sub("<[^>]+>", " ", row).split() for row in rows if "training prompts" in row]
    names = [row[2] for row in table]
    assert names == ["jpeg", "size", "weighted", "judged"]
    assert "+0.25 [0.125, 0.375]" in " ".join(table[0])
    assert "+0.75 [0.625, 0.875]" in " ".join(table[1])
    assert "+0.5 [0.4, 0.6]" in " ".join(table[2]), "of the weighted sum"
    assert "64 prompts x 2 = 128 images" in page
    # more of a reward with a negative weight is worse
    assert '<span class="bad">+0.75</span>' in page and '<span class="good">+0.25</span>' in page
    assert "jpeg, paired gain +0.25, 95 % in [0.125, 0.375]" in page, "a tile for each"

    heard = list(evaluation_lines({"train": result}))
    assert heard[0] == "train prompts, 64 prompts x 2 = 128 images"
    assert heard[1] == (
        "  jpeg          -2.5 -> -2  paired gain +0.25, 95 % interval [0.125, 0.375]"
    )
    assert [text.split()[0] for text in heard[2:]] == ["size", "weighted", "judged"]


def test_a_single_reward_has_one_row_unless_it_is_weighted() -> None:
    single = {"jpeg": {**PAIRED, "weight": 1.0}}
    assert [row.name for row in reward_changes({**PAIRED, "rewards": single})] == ["jpeg"]
    single["jpeg"]["weight"] = 2.0
    assert [row.name for row in reward_changes({**PAIRED, "rewards": single})] == ["jpeg", SUM]
    assert [row.name for row in reward_changes(PAIRED)] == ["reward"], "of an older run"


def test_the_curve_is_centred_where_prompts_were_evaluated_and_says_so(run: Path) -> None:
    assert "too few of them were evaluated before" in write_report(run).read_text()
    records = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]

    for share, words in ((64, "minus its prompt's mean"), (48, "over the 75 % of images")):
        for record in records:
            gain = {"gain": record["iteration"], "gain_std": 0.5, "gain_images": share}
            record["rewards"]["small <file>"] |= gain
        text = "".join(json.dumps(record) + "\n" for record in records)
        (run / "log.jsonl").write_text(text)
        page = html.unescape(write_report(run).read_text("utf-8"))
        assert words in page and "too few" not in page
        assert "30: small <file> 30 ± 0.5" in page


@pytest.mark.parametrize(
    ("objective", "keys", "words"),
    [
        ("clipped", ["ratio_deviation", "clip_fraction"], "whose ratio left the clip range"),
        ("awm", ["ratio_deviation", "clip_fraction"], "whose denoising error changed by more"),
        ("rwr", ["denoising_error"], "prediction for the images, noised again"),
    ],
)
def test_notes_fit_the_objective(run: Path, objective: str, keys: list[str], words: str) -> None:
    (run / "config.toml").write_text(CONFIG.replace("clipped", objective))
    numbers = ("ratio_deviation", "clip_fraction", "approx_kl")
    records = []
    for line in (run / "log.jsonl").read_text().splitlines():
        record = {key: value for key, value in json.loads(line).items() if key not in numbers}
        records.append(json.dumps(record | dict.fromkeys(keys, 0.03)) + "\n")

    (run / "log.jsonl").write_text("".join(records))
    page = write_report(run).read_text("utf-8")
    assert words in page and "healthy" not in page
    assert ("<b>Clip fraction</b>" in page) == ("clip_fraction" in keys)


def front_by_definition(points: list[tuple[float, float]], signs: tuple[int, int]) -> list[bool]:
    """Return the front by its definition."""
    signed = [(signs[0] * x, signs[1] * y) for x, y in points]
    return [
        # at least as good, and somewhere better
        not any(c >= a and d >= b and (c, d) != (a, b) for c, d in signed)
        for a, b in signed
    ]


@pytest.mark.parametrize("signs", [(1, 1), (-1, 1), (1, -1), (-1, -1)])
def test_no_point_dominates_the_front(signs: tuple[int, int]) -> None:
    draw = random.Random(0)
    # with ties and twins
    points = [(float(draw.randint(0, 9)), float(draw.randint(0, 9))) for _ in range(60)]
    # twins on the front
    points += [points[i] for i, best in enumerate(front_by_definition(points, signs)) if best]
    assert fronts.front(points, signs) == front_by_definition(points, signs)
    assert fronts.front([], signs) == []


def measured(parts: list[list[float | None]]) -> dict[str, object]:
    return {
        "prompts": ["a <cat>", "a dog"],
        "images_per_prompt": 2,
        "rewards": ["red", "flat"],
        "parts": parts,
    }


def test_rewards_are_drawn_against_each_other(run: Path) -> None:
    (run / "evaluations").mkdir()
    before = [[0, 0], [1, 3], [2, 2], [3, 1]]
    after = [[0, 0], [None, 9], [5, 5], [4, 4]]

    for iteration, parts in ((0, before), (5, [[9, 9]] * 4), (30, after)):
        (run / "evaluations" / f"{iteration:06d}.json").write_text(
            json.dumps({"train": measured(parts)})
        )

    assert "Reward against reward" not in write_report(run).read_text(), (
        "a single reward has no front"
    )
    table = (
        '\n[[rewards]]\nuse = "mine.py:red"\n[[rewards]]\nuse = "x"\nname = "flat"\nweight = 2.0\n'
    )
    (run / "config.toml").write_text(CONFIG.partition("[[rewards]]")[0] + table)
    records = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]

    for record in records:
        record["rewards"] = {"red": {"mean": record["iteration"] / 10}, "flat": {"mean": 2.0}}

    (run / "log.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    page = write_report(run).read_text("utf-8")
    parse(page)
    chart = page[page.index('<div class="fronts">') :]
    root = ElementTree.fromstring(chart[chart.index("<svg") : chart.index("</svg>") + 6])
    styles = [circle.attrib["class"] for circle in root.iter("circle")]
    assert styles.count("ring series-1") == 3 and styles.count("ring series-1 faint") == 1
    # one image has no number for both
    assert styles.count("dot series-0") == 1 and styles.count("dot series-0 faint") == 2

    titles = [title.text for title in root.iter("title")]
    assert "after, a dog: red 5, flat 5" in titles and "before, a <cat>: red 1, flat 3" in titles

    (walk,) = [path.attrib["d"] for path in root.iter("path") if path.attrib["class"] == "walk"]
    assert walk.count("L") == 29
    (steps,) = [path.attrib["d"] for path in root.iter("path") if "steps" in path.attrib["class"]]
    assert steps.count("V") == steps.count("H") == 2, "down, then on to the next"

    for circle in root.iter("circle"):
        assert 0 <= float(circle.attrib["cx"]) <= fronts.WIDTH
        assert 0 <= float(circle.attrib["cy"]) <= fronts.HEIGHT


def test_where_less_is_better_the_front_is_on_that_side() -> None:
    evaluation = measured([[0, 0], [1, 3], [2, 2], [3, 1]])
    text = fronts.section(evaluation, {}, [], {"red": -1.0})
    assert "before, a &lt;cat&gt;: red 0, flat 0" in text
    assert "before, a &lt;cat&gt;: red 1, flat 3" in text
    assert text.count("<title>") == 2
    assert fronts.section({}, {}, [], {}) == ""
    four = {**evaluation, "rewards": list("abcd"), "parts": [[float(i)] * 4 for i in range(4)]}
    assert fronts.section(four, four, [], {}).count("<svg") == 6


def write_groups(run: Path) -> None:
    """Write three groups: one with a spread, one without, and one of an image without a reward."""
    (run / "groups").mkdir()
    groups = {
        "iteration": 30,
        "columns": 3,
        "texts": ["a <cat>"] * 3 + ["a dog"] * 2 + ["an ant"],
        "group": [7, 7, 7, 2, 2, 1],
        "rewards": ["small <file>"],
        "parts": [[-3.0], [-1.0], [-2.0], [-2.0], [-2.0], [None]],
    }
    (run / "groups" / "000030.json").write_text(json.dumps(groups))
    Image.new("RGB", (24, 16), (8, 100, 0)).save(run / "groups" / "000030.png")


def test_the_groups_of_the_last_iteration_are_in_the_page(run: Path) -> None:
    write_groups(run)
    page = write_report(run).read_text("utf-8")
    assert parse(page).links == []
    body = page.split("<body>")[1]
    assert "Groups of iteration 30" in body and "2 of 3 groups have no spread" in body

    cat, dog, ant = [part.split("</section>")[0] for part in body.split("<section")[1:]]
    figures = re.findall(r"<figure(.*?)</figure>", cat)
    marks = [re.findall("(best|worst)", figure) for figure in figures]
    assert marks == [["worst"] * 2, ["best"] * 2, []], "as the class, and as a word"
    rewards = re.findall(r"<figcaption>(\S+) ", cat)
    assert rewards == ["−3", "−1", "−2"], "in the order of the grid"
    assert "no spread" not in cat and "no spread" in dog and "no spread" in ant
    assert "a &lt;cat&gt;" in cat and not re.search("best|worst", dog)

    # the fourth of six images in three columns is the first of the second row
    assert "background-size: 300% 200%; background-position: 0% 100%" in dog
    assert page.count(".members { background-image") == 1

    (run / "groups" / "000030.png").unlink()
    assert "Groups of iteration 30" in write_report(run).read_text("utf-8")


def test_suspects_are_in_the_page(run: Path) -> None:
    assert "Suspects" not in write_report(run).read_text("utf-8")
    (run / "evaluations").mkdir()
    table = {
        "prompts": ["a <cat>", "a dog"],
        "images_per_prompt": 2,
        "rewards": ["small <file>"],
        "parts": [[1.0], [4.0], [3.0], [2.0]],
    }
    path = run / "evaluations" / "000030.json"
    path.write_text(json.dumps({"train": table}))
    assert "Suspects" not in write_report(run).read_text("utf-8"), "nothing is held out"

    table |= {"judged": [True, False, True, True], "panel": {"m <x>": [0.9, 0.1, 0.5, 0.8]}}
    path.write_text(json.dumps({"train": table}))
    (run / "groups").mkdir()
    layout = {"columns": 2, "count": 4}
    (run / "groups" / "evaluation-000030.json").write_text(json.dumps(layout))
    Image.new("RGB", (16, 16)).save(run / "groups" / "evaluation-000030.png")
    page = write_report(run).read_text("utf-8")
    assert parse(page).links == []
    body = page.split("<body>")[1]
    (suspect,) = re.findall(r"<li.*?</li>", body)
    assert "Suspects of iteration 30" in body and "(judged right, m &lt;x&gt;)" in body
    assert "a &lt;cat&gt;" in suspect and "reward 4, judged right 0, m &lt;x&gt; 0.1" in suspect
    assert "suspicion 1.00" in suspect and "background-position: 100% 0%" in suspect

    table["panel"] = {"m <x>": [0.1, 0.9, 0.8, 0.5]}
    path.write_text(json.dumps({"train": {**table, "judged": None}}))
    assert "no image has a high reward and low held-out measures" in write_report(run).read_text(
        "utf-8"
    )


def test_groups_that_do_not_fit_are_one_sentence(run: Path) -> None:
    write_groups(run)
    path = run / "groups" / "000030.json"
    groups = json.loads(path.read_text())
    for change in ({"group": [1]}, {"parts": [[1.0]]}, {"parts": [[1.0, 2.0]] * 6}):
        path.write_text(json.dumps({**groups, **change}))
        with pytest.raises(ValueError, match=r"000030\.json: .*delete it"):
            write_report(run)


class Tags(HTMLParser):
    """A parser that collects tags, and links to anything that the page would load."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.all: list[str] = []
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.all.append(tag)
        self.links += [value or "" for name, value in attrs if name in ("src", "href")]
        if tag not in ("meta", "input", "line", "path", "circle", "rect", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.all.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def parse(page: str) -> Tags:
    tags = Tags()
    tags.feed(page)
    assert tags.open == []
    return tags


def test_page_shows_everything_and_loads_nothing(run: Path) -> None:
    path = write_report(run)
    page = path.read_text("utf-8")
    tags = parse(page)
    assert path == run / "report.html"
    assert tags.links == [] and "http" not in page.replace("http-equiv", "")
    assert page.count("data:image/png;base64,") == FRAMES
    # reward, ratio, clip, approximate KL, gradient, seconds; no KL to a reference
    assert tags.all.count("svg") == 6

    for words in (
        "my &amp; run",
        "small &lt;file&gt;",
        "+0.5",
        "[0.4, 0.6]",
        "80 %",
        "70 %",
        "a &lt;b&gt;dog",
        "1 920",
    ):
        assert words in page, words

    assert "<b>dog</b>" not in page and "$" not in page.split("<body>")[1]


def test_page_of_a_run_that_has_only_begun(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text(CONFIG)
    page = write_report(tmp_path, tmp_path / "elsewhere" / "page.html").read_text("utf-8")
    assert parse(page).all.count("svg") == 0 and "Configuration" in page


def test_large_images_are_scaled_down(run: Path) -> None:
    noise = Image.effect_noise((2000, 1000), 90).convert("RGB")
    for path in (run / "samples").glob("*.png"):
        path.unlink()

    noise.save(run / "samples" / "000000.png")
    noise.save(run / "samples" / "000004.png")
    assert (run / "samples" / "000000.png").stat().st_size > 1_000_000
    page = write_report(run).read_text("utf-8")
    assert page.count("data:image/jpeg;base64,") == 2 and "aspect-ratio: 2000 / 1000" in page


@pytest.mark.parametrize("side", [16, 1000])
def test_a_torn_image_is_named(run: Path, side: int) -> None:
    path = run / "samples" / "000000.png"
    Image.effect_noise((side, side), 90).save(path)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(ValueError, match=r"000000\.png: no whole PNG image; delete it"):
        write_report(run)


def test_no_run_and_broken_files_are_one_sentence(run: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="holds no run"):
        write_report(tmp_path)
    (run / "evaluation.json").write_text("{")
    with pytest.raises(ValueError, match=r"evaluation\.json: not a JSON object"):
        write_report(run)


def test_chart_is_well_formed_and_in_its_frame() -> None:
    y = [1.0, 2.0, None, 4.0, math.nan, 3.0]
    root = ElementTree.fromstring(
        line_chart([1, 2, 3, 4, 5, 6], [Series("a < b", y, [0.5] * 6), Series("c", [2.0] * 6)])
    )
    lines = [e.attrib["d"] for e in root.iter("path") if e.attrib["class"] == "line series-0"]
    assert [d.count("L") for d in lines] == [1, 0, 0]  # gaps at None and NaN split the curve
    assert len([e for e in root.iter("path") if e.attrib["class"] == "band series-0"]) == 3

    for circle in root.iter("circle"):
        assert 0 <= float(circle.attrib["cx"]) <= 340 and 0 <= float(circle.attrib["cy"]) <= 190

    heights = [
        float(e.attrib["cy"]) for e in root.iter("circle") if e.attrib["class"] == "series-0"
    ]
    assert heights[0] > heights[1] > heights[3] > heights[2]  # 1, 2, 4, 3: larger values lie higher


def test_chart_of_nothing_and_of_one_point() -> None:
    assert line_chart([], [Series("a", [])]) == ""
    assert line_chart([1], [Series("a", [None])]) == ""
    assert "h.01" in line_chart([1], [Series("a", [5.0])])


def test_a_long_curve_stays_small() -> None:
    root = ElementTree.fromstring(
        line_chart(range(5000), [Series("a", [float(i) for i in range(5000)])])
    )
    assert len(list(root.iter("g"))) <= HOVERED


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0, 1, [0, 0.2, 0.4, 0.6, 0.8, 1]),
        (-2.6, -1.4, [-2.5, -2, -1.5]),
        (0, 1e-7, [0, 2e-8, 4e-8, 6e-8, 8e-8, 1e-7]),
    ],
)
def test_ticks_are_round(low: float, high: float, expected: list[float]) -> None:
    assert ticks(low, high) == pytest.approx(expected)


def test_numbers_are_readable() -> None:
    values = [0, 1.23456, -12.5, 2.5e-7, 12345678, None, math.inf]
    assert [number(v) for v in values] == ["0", "1.235", "−12.5", "2.5e−7", "1.23e7", "–", "–"]
