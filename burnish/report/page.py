"""A run directory as one self-contained HTML page: results, curves, images, configuration.

It reads the files of a run and nothing else, so a page can be made while the run goes on and where
torch is not installed. Parts that a run does not have yet are left out.
"""

from __future__ import annotations

import base64
import io
import json
import math
import tomllib
from collections.abc import Mapping, Sequence
from html import escape
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Any

from burnish import runs
from burnish.report import fronts
from burnish.report.charts import Series, duration, line_chart, number

FRAMES = 12  # at most so many sample grids go into the page, evenly spread over the run
STRIP = 7  # of these, so many stand side by side
ROWS = 8  # prompts that get such a row
LARGEST = 1280  # pixels: a larger grid is scaled down
SECONDS = ("seconds_sampling", "seconds_scoring", "seconds_training")

# title, keys of the record, note
DIAGNOSTICS = (
    (
        "Ratio deviation",
        ("ratio_deviation",),
        "max |ρ − 1| before the first update: more than rounding is a fault",
    ),
    (
        "Clip fraction",
        ("clip_fraction",),
        "fraction of transitions outside the trust region; 0.1 to 0.5 is healthy",
    ),
    (
        "Approximate KL",
        ("approx_kl",),
        "to the weights that sampled, in nats per image and transition",
    ),
    (
        "KL to the reference",
        ("kl",),
        "how far training has moved the model, in nats per image and transition",
    ),
    (
        "Explained variance",
        ("explained_variance",),
        "fraction of the advantages' variance that the baseline of x0 previews removes",
    ),
    (
        "Pareto front",
        ("pareto_front",),
        "fraction of images that no other image dominates; more where rewards are in conflict",
    ),
    (
        "Expansions",
        ("expander_logp",),
        "mean log-probability of a text in nats; towards 0 all texts become alike",
    ),
    (
        "Expansions: KL",
        ("expander_kl",),
        "to the language model as it was when training began, in nats a text",
    ),
    ("Expansions: length", ("expander_length",), "tokens drawn and kept, the end included"),
    (
        "Expansions: truncated",
        ("expander_truncated",),
        "fraction of texts that were too long for the generator's text encoder",
    ),
    ("Gradient norm", ("grad_norm",), "before clipping"),
    ("Learning rate", ("lr",), ""),
    ("Seconds", SECONDS, "of an iteration"),
)


def write_report(folder: str | Path, out: str | Path | None = None) -> Path:
    """Write the page of a run and return its path.

    Args:
        folder: the run directory.
        out: where the page goes; by default `report.html` in the run directory.

    Raises:
        FileNotFoundError: `folder` holds no run.
    """
    run = runs.Run.open(folder)
    path = Path(out) if out else run.folder / "report.html"
    runs.write(path, page(run))
    return path


def page(run: runs.Run) -> str:
    """Return the page of a run as text."""
    source = run.config.read_text("utf-8")
    records = run.records()
    evaluation = _json(run.evaluation)
    grids = _grids(run)
    identifier_grid = max(run.samples.glob("identifiers-*.png"), default=None)

    parts = {
        "title": escape(run.folder.resolve().name),
        "subtitle": escape(_subtitle(tomllib.loads(source))),
        "images_css": _images_css(grids, identifier_grid),
        "tiles": _tiles(records, evaluation),
        "evaluation": _evaluation(evaluation) + _panel(evaluation) + _guard(_json(run.guard)),
        "images": _images(grids),
        "strips": _strips(run, _spread(list(grids), STRIP)) + _identifiers(identifier_grid),
        "rewards": _rewards(records) + _fronts(run, records),
        "diagnostics": _expansions(records) + _diagnostics(records),
        "configuration": (
            "<h2>Configuration</h2><details class='sheet'><summary>config.toml</summary>"
            f"<pre>{escape(source)}</pre></details>"
        ),
    }
    template = (files("burnish") / "data" / "report.html").read_text("utf-8")
    return Template(template).substitute(parts)


def _images_css(grids: Mapping[int, Path], identifier_grid: Path | None) -> str:
    rule = '.{} {{ background-image: url("{}"); }}'
    rules = [rule.format(f"s{i}", _data_uri(path)) for i, path in grids.items()]

    if identifier_grid is not None:
        rules.append(rule.format("identifiers", _data_uri(identifier_grid)))

    return "\n".join(rules)


def _subtitle(config: Mapping[str, Any]) -> str:
    tables = config.get("rewards", ())
    rewards = " + ".join(_named(table) for table in tables)
    model = config.get("model", {})
    train = str(model.get("train", ""))

    parts = [
        str(model.get("id", "")),
        f"LoRA rank {model.get('rank')}" if train == "lora" else train,
        *(f"{kind} {_named(config.get(kind, {}))}" for kind in ("objective", "advantage")),
    ]
    return f"{rewards}: " + " · ".join(part for part in parts if part)


def _named(table: Mapping[str, Any]) -> str:
    """Return the name of a part, or what it uses."""
    return str(table.get("name") or table.get("use", ""))


# Numbers at the top
# --------------------------------------------------------------------------------------------------


def _tiles(records: Sequence[runs.Record], evaluation: Mapping[str, Any]) -> str:
    tiles = _result_tiles(evaluation["train"]) if evaluation.get("train") else []

    if records:
        seconds = sum(record.get(key) or 0 for record in records for key in SECONDS)
        images = sum(record.get("images") or 0 for record in records)
        count = f"{images:,}".replace(",", " ")
        iterations = f"{records[-1]['iteration']} iterations"
        tiles.append((iterations, f"{count} images in {duration(seconds)}", ""))

    cells = "".join(
        f'<div class="tile"><b class="{style}">{value}</b><span>{label}</span></div>'
        for value, label, style in tiles
    )
    return f'<div class="tiles">{cells}</div>'


def _result_tiles(result: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """Return value, label and style of each tile about an evaluation."""
    low, high = result["ci95"]
    style = _significance(low, high, "")
    change = f"{number(result['before'])} → {number(result['after'])}"
    interval = f"95 % in [{number(low)}, {number(high)}]"
    tiles = [
        (change, "reward, before → after, same noise", ""),
        (_signed(result["paired_mean"]), f"paired gain, {interval}", style),
    ]

    if result.get("judge_before") is not None:
        fractions = f"{_percent(result['judge_before'])} → {_percent(result['judge_after'])}"
        tiles.append((fractions, "judged right", ""))

    return tiles


# Evaluation
# --------------------------------------------------------------------------------------------------


def _evaluation(evaluation: Mapping[str, Any]) -> str:
    names = {"train": "training prompts", "unseen": "unseen prompts"}
    rows = []

    for key, result in evaluation.items():
        if not result:
            continue

        low, high = result["ci95"]
        style = _significance(low, high, "soft")
        rows.append(
            [
                names.get(key, key),
                number(result["before"]),
                number(result["after"]),
                f'<span class="{style}">{_signed(result["paired_mean"])}</span>',
                f"[{number(low)}, {number(high)}]",
                _percent(result.get("judge_before")),
                _percent(result.get("judge_after")),
            ]
        )

    if not rows:
        return ""

    heads = (
        "prompts",
        "reward before",
        "after",
        "paired gain",
        "95 % interval",
        "judged right before",
        "after",
    )
    return (
        "<h2>Evaluation</h2><p class='soft small'>The same prompts from the same noise, before and "
        "after. The interval is over prompts, of this one run: if it excludes zero, "
        "the choice of prompts does not explain the gain, but another seed may give another.</p>"
    ) + _table(heads, rows)


def _panel(evaluation: Mapping[str, Any]) -> str:
    """Return the table of the measures that were not trained on."""
    rows = []

    for key, result in evaluation.items():
        for name, change in ((result or {}).get("panel") or {}).items():
            low, high = change["ci95"]
            rows.append(
                [
                    escape(name),
                    f"{key} prompts",
                    number(change["before"]),
                    number(change["after"]),
                    f"{_signed(change['paired_mean'])} [{number(low)}, {number(high)}]",
                ]
            )

    if not rows:
        return ""

    return (
        "<p class='soft small'>Measures that were not trained on: where they fall while the reward "
        "rises, the policy exploits the reward.</p>"
    ) + _table(("held out", "", "before", "after", "change, 95 % interval"), rows)


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    head = "".join(f"<th>{text}</th>" for text in heads)
    body = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for row in rows)
    return f"<div class='sheet'><table><tr>{head}</tr>{body}</table></div>"


def _significance(low: float, high: float, neutral: str) -> str:
    """Return the style of a gain: "good", "bad", or `neutral` if its interval includes zero."""
    if low > 0:
        return "good"
    return "bad" if high < 0 else neutral


def _guard(decision: Mapping[str, Any]) -> str:
    if not decision:
        return ""

    back = ""
    if decision["action"] == "rollback":
        back = f" and went back to iteration {decision['best']}"

    return (
        "<p><b class='bad'>The guard ended the run after iteration "
        f"{decision['iteration']}{back}:</b> {escape('; '.join(decision['reasons']))}.</p>"
    )


# Curves
# --------------------------------------------------------------------------------------------------


def _rewards(records: Sequence[runs.Record]) -> str:
    x = [record["iteration"] for record in records]
    names = dict.fromkeys(name for record in records for name in record.get("rewards", {}))
    size = (960, 300) if len(names) == 1 else (460, 220)
    figures = []

    for name in names:
        rewards = [record.get("rewards", {}).get(name, {}) for record in records]
        means = [reward.get("mean") for reward in rewards]
        spreads = [reward.get("std") for reward in rewards]

        if chart := line_chart(x, [Series(name, means, spreads)], *size):
            caption = f"<b>{escape(name)}</b> mean of an iteration's images ± their spread"
            caption = f"<figcaption>{caption}{_details(rewards[-1])}</figcaption>"
            figures.append(f"<figure>{caption}{chart}</figure>")

    if not figures:
        return ""

    layout = "wide" if len(figures) == 1 else "charts"
    figures.append(_curriculum(x, records, layout))
    return f"<h2>Reward</h2><div class='{layout}'>{''.join(figures)}</div>"


def _curriculum(x: Sequence[int], records: Sequence[runs.Record], layout: str) -> str:
    """Return the chart of the control scale, as wide as the charts of the rewards beside it."""
    scales = Series("control scale", [record.get("control_scale") for record in records])
    chart = line_chart(x, [scales], *((960, 180) if layout == "wide" else (460, 220)))
    if not chart:
        return ""

    caption = (
        "<b>Control scale</b> how closely images followed their control in training: the curriculum"
    )
    return f"<figure><figcaption>{caption}</figcaption>{chart}</figure>"


def _fronts(run: runs.Run, records: Sequence[runs.Record]) -> str:
    """Return the charts of reward against reward, from the first evaluation and the last."""
    config = tomllib.loads(run.config.read_text("utf-8"))
    weights = {}
    for table in config.get("rewards", ()):
        name = str(table.get("name") or str(table["use"]).rpartition(":")[2])
        weights[name] = float(table.get("weight", 1.0))

    if len(weights) < 2:
        return ""

    paths = run.evaluation_file(0).parent.glob("*.json")
    last = max((int(path.stem) for path in paths if path.stem.isdigit()), default=0)
    before = _json(run.evaluation_file(0)).get("train") or {}
    after = _json(run.evaluation_file(last)).get("train") or {}
    return fronts.section(before, after if last else {}, records, weights)


def _details(reward: Mapping[str, Any]) -> str:
    """Return the last iteration's further numbers about one reward among several."""
    text = ""

    if "within" in reward:
        spread = number(reward["std"])
        text = f" (at the end {spread}, within a prompt {number(reward['within'])})"
    if "targeted" in reward:
        text += f"; {number(reward['targeted'])} for the images that target it"

    return text


def _expansions(records: Sequence[runs.Record]) -> str:
    """Return an expander's texts for a few prompts, in the first iteration and in the last."""
    expanded = [record for record in records if record.get("expander_texts")]
    rows = [
        [str(record["iteration"]), escape(prompt), escape(text)]
        for record in expanded[:1] + expanded[1:][-1:]
        for prompt, text in record["expander_texts"]
    ]

    if not rows:
        return ""
    return "<h2>Expansions</h2>" + _table(("iteration", "prompt", "expanded prompt"), rows)


def _diagnostics(records: Sequence[runs.Record]) -> str:
    x = [record["iteration"] for record in records]
    figures = []

    for title, keys, note in DIAGNOSTICS:
        series = [
            Series(key.removeprefix("seconds_"), [record.get(key) for record in records])
            for key in keys
        ]

        if chart := line_chart(x, series):
            caption = f"<b>{title}</b> {note}{_legend(series)}"
            figures.append(f"<figure><figcaption>{caption}</figcaption>{chart}</figure>")

    if not figures:
        return ""
    return f"<h2>Diagnostics</h2><div class='charts'>{''.join(figures)}</div>"


def _legend(series: Sequence[Series]) -> str:
    """Return the names of several curves with their colours; "" for a single curve."""
    if len(series) == 1:
        return ""
    return "".join(
        f'<span class="name"><i class="key series-{i}"></i>{curve.label}</span>'
        for i, curve in enumerate(series)
    )


# Images
# --------------------------------------------------------------------------------------------------


def _grids(run: runs.Run) -> dict[int, Path]:
    """Return the sample grids that go into the page, by iteration."""
    grids = {
        int(path.stem): path for path in sorted(run.samples.glob("*.png")) if path.stem.isdigit()
    }
    return {i: grids[i] for i in _spread(list(grids), FRAMES)}


def _images(grids: Mapping[int, Path]) -> str:
    """Return the first and the last grid side by side, with a slider through the run."""
    if not grids:
        return ""

    iterations = list(grids)
    first = iterations[0]
    last = iterations[-1]
    size = _png_size(grids[first])

    caption = "<b>Before</b> training" if first == 0 else f"<b>After</b> {first} iterations"
    figures = _grid_figure(first, caption, size)

    if len(iterations) > 1:
        end = len(iterations) - 1
        slider = (
            f'<input type="range" min="0" max="{end}" value="{end}" '
            f'aria-label="iteration" data-frames="{json.dumps(iterations)}">'
        )
        caption = f"<b>After</b> <output>{last}</output> iterations"
        figures += _grid_figure(last, caption, size, slider)

    return (
        "<h2>Images</h2>"
        "<p class='soft small'>Every grid has the same prompts and the same noise.</p>"
        f"<div class='pair'>{figures}</div>"
    )


def _grid_figure(iteration: int, caption: str, size: tuple[int, int], below: str = "") -> str:
    width, height = size
    style = f"aspect-ratio: {width} / {height}; background-size: 100% 100%"
    image = (
        f'<div class="image s{iteration}" style="{style}" role="img" aria-label="samples"></div>'
    )
    return f"<figure><figcaption>{caption}</figcaption>{image}{below}</figure>"


def _strips(run: runs.Run, iterations: Sequence[int]) -> str:
    """Return one row a prompt, one column an iteration: single images, cut out of the grids."""
    layout = _json(run.samples / "prompts.json")
    texts = layout.get("texts", [])
    columns = layout.get("columns", 1)

    if not texts or len(iterations) < 2:
        return ""

    rows = []
    for index in _spread(range(len(texts)), ROWS):
        style = _crop(index, len(texts), columns)
        cells = [f'<i class="cell s{i}" style="{style}"></i>' for i in iterations]
        rows.append([escape(texts[index]), *cells])

    return (
        "<h2>Prompt by prompt</h2>"
        "<p class='soft small'>The same image after more and more iterations.</p>"
    ) + _strip_table([str(i) for i in iterations], rows)


def _identifiers(grid: Path | None) -> str:
    """Return one row a prompt, one column for the identifiers of all rewards and of each."""
    layout = _json(grid.with_suffix(".json")) if grid is not None else {}
    texts = layout.get("texts", [])
    rewards = layout.get("rewards", [])
    count = len(texts) * len(rewards)
    rows = []

    for row, text in enumerate(texts):
        indices = [column * len(texts) + row for column in range(len(rewards))]
        styles = [_crop(index, count, layout["columns"]) for index in indices]
        cells = [f'<i class="cell identifiers" style="{style}"></i>' for style in styles]
        rows.append([escape(text), *cells])

    if not rows:
        return ""

    return (
        "<h2>Reward identifiers</h2>"
        "<p class='soft small'>The same noise, with the identifiers of all rewards and of each "
        "alone.</p>"
    ) + _strip_table([escape(name) for name in rewards], rows)


def _strip_table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table of small images, in each row behind their prompt."""
    head = "".join(f"<th>{text}</th>" for text in heads)
    body = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for row in rows)
    table = f"<table class='strip'><tr><th></th>{head}</tr>{body}</table>"
    return f"<div class='sheet'>{table}</div>"


def _crop(index: int, count: int, columns: int) -> str:
    """Return the CSS that shows one image of a grid of `count` images."""
    rows = math.ceil(count / columns)
    x = 100 * (index % columns) / max(columns - 1, 1)
    y = 100 * (index // columns) / max(rows - 1, 1)
    size = f"background-size: {columns * 100}% {rows * 100}%"
    return f"{size}; background-position: {x:.4g}% {y:.4g}%"


def _data_uri(path: Path) -> str:
    """Return the image as it is, or scaled down if it is so large that it makes the page heavy."""
    content = path.read_bytes()
    kind = "png"

    if len(content) > 400_000:
        from PIL import Image

        with Image.open(io.BytesIO(content)) as stored:
            image = stored.convert("RGB")
            image.thumbnail((LARGEST, LARGEST))
            buffer = io.BytesIO()
            image.save(buffer, "JPEG", quality=88)

        content = buffer.getvalue()
        kind = "jpeg"

    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def _png_size(path: Path) -> tuple[int, int]:
    """Return width and height from the header of a PNG."""
    header = path.read_bytes()[16:24]
    return int.from_bytes(header[:4], "big") or 1, int.from_bytes(header[4:], "big") or 1


def _spread(items: Sequence[int], count: int) -> list[int]:
    """Return at most `count` of the items, evenly spread, with the first and the last."""
    if len(items) <= count:
        return list(items)
    return [items[round(i * (len(items) - 1) / (count - 1))] for i in range(count)]


# Files and numbers
# --------------------------------------------------------------------------------------------------


def _json(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file; {} if there is no file."""
    if not path.is_file():
        return {}

    try:
        return dict(json.loads(path.read_text("utf-8")))
    except ValueError as error:
        raise ValueError(
            f"{path}: not a JSON object; delete it, or make it again with burnish evaluate"
        ) from error


def _signed(value: float | None) -> str:
    return ("+" if value is not None and value > 0 else "") + number(value)


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.0f} %"
