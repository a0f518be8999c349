"""A run directory as one self-contained HTML page: what changed, how it got there, and from which
configuration.

Reads the files of a run and nothing else, so a page can be made while the run goes on and where
torch is not installed. Parts that a run does not have yet are left out.
"""

from __future__ import annotations

import base64
import io
import json
import math
import sys
from collections.abc import Mapping, Sequence
from html import escape
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Any

from burnish import runs
from burnish.report import fronts
from burnish.report.charts import Series, line_chart, number

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

FRAMES = 12  # at most so many sample grids go into the page, evenly spread over the run
STRIP = 7  # of these, so many stand side by side
ROWS = 8  # prompts that get such a row
PICTURE = 1280  # pixels: a larger grid is scaled down

DIAGNOSTICS = (
    (
        "Ratio deviation",
        ("ratio_deviation",),
        "max |ρ − 1| before the first update: more than rounding is a fault",
    ),
    (
        "Clip fraction",
        ("clip_fraction",),
        "share of transitions outside the trust region; 0.1 to 0.5 is healthy",
    ),
    (
        "Approximate KL",
        ("approx_kl",),
        "to the weights that sampled, in nats per image and transition",
    ),
    (
        "KL to the reference",
        ("kl",),
        "how far the model has gone, in nats per image and transition",
    ),
    (
        "Settled before",
        ("settled",),
        "share of the advantages' variance that previews leave out of the gradient",
    ),
    (
        "Front",
        ("front",),
        "share of images that none beats on all counts; more where rewards are in conflict",
    ),
    (
        "Expansions",
        ("expander_logp",),
        "mean log-probability of a text in nats; towards 0 they become all alike",
    ),
    (
        "Expansions: KL",
        ("expander_kl",),
        "to the language model as it was when training began, in nats a text",
    ),
    ("Expansions: length", ("expander_length",), "tokens drawn and kept, the end included"),
    (
        "Expansions: cut",
        ("expander_cut",),
        "share of texts that the generator had no room for to the end",
    ),
    ("Gradient norm", ("grad_norm",), "before clipping"),
    ("Learning rate", ("lr",), ""),
    ("Seconds", ("seconds_sampling", "seconds_scoring", "seconds_training"), "of an iteration"),
)


def write_report(folder: str | Path, out: str | Path | None = None) -> Path:
    """Write the page of a run.

    Args:
        folder: the run directory.
        out: where the page goes; by default `report.html` in the run directory.

    Returns:
        The page's path.

    Raises:
        FileNotFoundError: `folder` holds no run.
    """
    run = runs.Run.open(folder)
    path = Path(out) if out else run.folder / "report.html"
    runs.write(path, page(run))
    return path


def page(run: runs.Run) -> str:
    """The page as text."""
    source = run.config.read_text("utf-8")
    records = run.records()
    evaluation = _json(run.evaluation)
    grids = _grids(run)
    asked = max(run.samples.glob("asked-*.png"), default=None)
    css = "\n".join(
        f'.s{i} {{ background-image: url("{_data_uri(path)}"); }}' for i, path in grids.items()
    )

    if asked is not None:
        css += f'\n.asked {{ background-image: url("{_data_uri(asked)}"); }}'

    parts = {
        "title": escape(run.folder.resolve().name),
        "subtitle": escape(_subtitle(tomllib.loads(source))),
        "pictures_css": css,
        "tiles": _tiles(records, evaluation),
        "evaluation": _evaluation(evaluation) + _panel(evaluation) + _guard(_json(run.guard)),
        "pictures": _pictures(grids),
        "strips": _strips(run, _spread(list(grids), STRIP)) + _asked(asked),
        "rewards": _rewards(records) + _fronts(run, records),
        "diagnostics": _expansions(records) + _diagnostics(records),
        "configuration": f"<h2>Configuration</h2><details class='sheet'><summary>config.toml</summary>"
        f"<pre>{escape(source)}</pre></details>",
    }
    return Template((files("burnish") / "data" / "report.html").read_text("utf-8")).substitute(
        parts
    )


def _subtitle(config: Mapping[str, Any]) -> str:
    rewards = " + ".join(
        str(table.get("name") or table["use"]) for table in config.get("rewards", ())
    )
    model = config.get("model", {})
    how = (
        f"LoRA rank {model.get('rank')}"
        if model.get("train") == "lora"
        else str(model.get("train", ""))
    )
    parts = [
        str(model.get("id", "")),
        how,
        f"objective {config.get('objective', {}).get('use', '')}",
        f"advantage {config.get('advantage', {}).get('use', '')}",
    ]

    return f"{rewards}: " + " · ".join(part for part in parts if part)


def _tiles(records: Sequence[runs.Record], evaluation: Mapping[str, Any]) -> str:
    tiles = []
    train = evaluation.get("train")

    if train:
        low, high = train["ci95"]
        clear = "good" if low > 0 else "bad" if high < 0 else ""
        change = f"{number(train['before'])} → {number(train['after'])}"
        tiles.append((change, "reward, before → after, same noise", ""))
        tiles.append(
            (
                _signed(train["paired_mean"]),
                f"paired gain, 95 % in [{number(low)}, {number(high)}]",
                clear,
            )
        )

        if train.get("judge_before") is not None:
            tiles.append(
                (
                    f"{_percent(train['judge_before'])} → {_percent(train['judge_after'])}",
                    "judged right",
                    "",
                )
            )

    if records:
        seconds = sum(record.get(key) or 0 for record in records for key in DIAGNOSTICS[-1][1])
        images = sum(record.get("images") or 0 for record in records)
        count = f"{images:,}".replace(",", " ")
        tiles.append(
            (
                f"{records[-1]['iteration']} iterations",
                f"{count} images in {_duration(seconds)}",
                "",
            )
        )

    cells = "".join(
        f'<div class="tile"><b class="{kind}">{a}</b><span>{b}</span></div>' for a, b, kind in tiles
    )
    return f'<div class="tiles">{cells}</div>'


def _evaluation(evaluation: Mapping[str, Any]) -> str:
    names = {"train": "training prompts", "unseen": "unseen prompts"}
    rows = []

    for key, one in evaluation.items():
        if not one:
            continue

        low, high = one["ci95"]
        clear = "good" if low > 0 else "bad" if high < 0 else "soft"
        judged = [_percent(one.get(name)) for name in ("judge_before", "judge_after")]
        gain = f'<span class="{clear}">{_signed(one["paired_mean"])}</span>'
        interval = f"[{number(low)}, {number(high)}]"
        cells = [
            names.get(key, key),
            number(one["before"]),
            number(one["after"]),
            gain,
            interval,
            *judged,
        ]
        rows.append("".join(f"<td>{cell}</td>" for cell in cells))

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
        "<h2>Evaluation</h2><p class='soft small'>The same prompts from the same noise, before and after. A gain whose "
        "interval excludes zero is not chance.</p><div class='sheet'><table><tr>"
        + "".join(f"<th>{head}</th>" for head in heads)
        + "</tr>"
        + "".join(f"<tr>{row}</tr>" for row in rows)
        + "</table></div>"
    )


def _panel(evaluation: Mapping[str, Any]) -> str:
    """The measures that were not trained on."""
    rows = []

    for key, one in evaluation.items():
        for name, seen in ((one or {}).get("panel") or {}).items():
            low, high = seen["ci95"]
            change = f"{_signed(seen['paired_mean'])} [{number(low)}, {number(high)}]"
            cells = (
                escape(name),
                f"{key} prompts",
                number(seen["before"]),
                number(seen["after"]),
                change,
            )
            rows.append("".join(f"<td>{cell}</td>" for cell in cells))

    if not rows:
        return ""

    heads = "".join(
        f"<th>{head}</th>" for head in ("held out", "", "before", "after", "change, 95 % interval")
    )
    return (
        "<p class='soft small'>Measures that were not trained on: where they fall while the reward climbs, the reward "
        f"is being fooled.</p><div class='sheet'><table><tr>{heads}</tr>"
        + "".join(f"<tr>{row}</tr>" for row in rows)
        + "</table></div>"
    )


def _guard(about: Mapping[str, Any]) -> str:
    if not about:
        return ""

    went = f" and went back to iteration {about['best']}" if about["action"] == "rollback" else ""
    return (
        f"<p><b class='bad'>The guard ended the run after iteration {about['iteration']}{went}:</b> "
        f"{escape('; '.join(about['reasons']))}.</p>"
    )


def _rewards(records: Sequence[runs.Record]) -> str:
    x = [record["iteration"] for record in records]
    names = dict.fromkeys(name for record in records for name in record.get("rewards", {}))
    figures = []

    for name in names:
        shown = [record.get("rewards", {}).get(name, {}) for record in records]
        series = Series(name, [one.get("mean") for one in shown], [one.get("std") for one in shown])
        wide = len(names) == 1
        chart = line_chart(x, [series], *((960, 300) if wide else (460, 220)))

        if chart:
            caption = f"<b>{escape(name)}</b> mean of an iteration's images ± their spread{_details(shown[-1])}"
            caption = f"<figcaption>{caption}</figcaption>"
            figures.append(f"<figure>{caption}{chart}</figure>")

    if not figures:
        return ""

    size = "wide" if len(figures) == 1 else "charts"
    return f"<h2>Reward</h2><div class='{size}'>{''.join([*figures, _curriculum(x, records, size)])}</div>"


def _curriculum(x: Sequence[int], records: Sequence[runs.Record], size: str) -> str:
    """The control scale next to the rewards and as wide, so that what it did to them is seen."""
    scales = Series("control scale", [record.get("control_scale") for record in records])
    chart = line_chart(x, [scales], *((960, 180) if size == "wide" else (460, 220)))
    caption = "<b>Control scale</b> how closely pictures followed their control in training: the curriculum"
    return f"<figure><figcaption>{caption}</figcaption>{chart}</figure>" if chart else ""


def _fronts(run: runs.Run, records: Sequence[runs.Record]) -> str:
    """Reward against reward, from the first evaluation and the last."""
    config = tomllib.loads(run.config.read_text("utf-8"))
    weights = {
        str(table.get("name") or str(table["use"]).rpartition(":")[2]): float(
            table.get("weight", 1.0)
        )
        for table in config.get("rewards", ())
    }

    if len(weights) < 2:
        return ""

    made = [int(path.stem) for path in run.measured(0).parent.glob("*.json") if path.stem.isdigit()]
    last = max(made, default=0)
    before, after = (_json(run.measured(i)).get("train") or {} for i in (0, last))

    return fronts.section(before, after if last else {}, records, weights)


def _details(last: Mapping[str, Any]) -> str:
    """What the last iteration's record says of one reward among several."""
    within = (
        f" (at the end {number(last['std'])}, within a prompt {number(last['within'])})"
        if "within" in last
        else ""
    )
    return within + (f"; {number(last['asked'])} where it was asked for" if "asked" in last else "")


def _expansions(records: Sequence[runs.Record]) -> str:
    """What an expander made of a few prompts, in the first iteration and in the last."""
    told = [record for record in records if record.get("expansions")]
    rows = [
        f"<tr><td>{record['iteration']}</td><td>{escape(before)}</td><td>{escape(after)}</td></tr>"
        for record in (told[:1] + told[1:][-1:])
        for before, after in record["expansions"]
    ]

    if not rows:
        return ""

    heads = "".join(f"<th>{head}</th>" for head in ("iteration", "asked for", "drawn"))
    return f"<h2>Expansions</h2><div class='sheet'><table><tr>{heads}</tr>{''.join(rows)}</table></div>"


def _diagnostics(records: Sequence[runs.Record]) -> str:
    x = [record["iteration"] for record in records]
    figures = []

    for title, keys, note in DIAGNOSTICS:
        series = [
            Series(key.removeprefix("seconds_"), [record.get(key) for record in records])
            for key in keys
        ]
        chart = line_chart(x, series)

        if chart:
            named = enumerate(series if len(series) > 1 else ())
            legend = "".join(
                f'<span class="name"><i class="key series-{i}"></i>{one.label}</span>'
                for i, one in named
            )
            figures.append(
                f"<figure><figcaption><b>{title}</b> {note}{legend}</figcaption>{chart}</figure>"
            )

    return f"<h2>Diagnostics</h2><div class='charts'>{''.join(figures)}</div>" if figures else ""


def _grids(run: runs.Run) -> dict[int, Path]:
    """The sample grids that go into the page, by iteration."""
    found = {
        int(path.stem): path for path in sorted(run.samples.glob("*.png")) if path.stem.isdigit()
    }
    return {i: found[i] for i in _spread(list(found), FRAMES)}


def _pictures(grids: Mapping[int, Path]) -> str:
    """The first and the last grid side by side; a slider moves the last one through the run."""
    if not grids:
        return ""

    chosen = list(grids)
    width, height = _png_size(grids[chosen[0]])

    def figure(iteration: int, caption: str, below: str = "") -> str:
        frame = f'style="aspect-ratio: {width} / {height}; background-size: 100% 100%"'
        picture = (
            f'<div class="picture s{iteration}" {frame} role="img" aria-label="samples"></div>'
        )
        return f"<figure><figcaption>{caption}</figcaption>{picture}{below}</figure>"

    figures = figure(
        chosen[0],
        "<b>Before</b> training" if chosen[0] == 0 else f"<b>After</b> {chosen[0]} iterations",
    )

    if len(chosen) > 1:
        slider = (
            f'<input type="range" min="0" max="{len(chosen) - 1}" value="{len(chosen) - 1}" '
            f'aria-label="iteration" data-frames="{json.dumps(chosen)}">'
        )
        figures += figure(
            chosen[-1], f"<b>After</b> <output>{chosen[-1]}</output> iterations", slider
        )

    return (
        "<h2>Pictures</h2><p class='soft small'>Every grid has the same prompts and the same noise.</p>"
        f"<div class='pair'>{figures}</div>"
    )


def _strips(run: runs.Run, chosen: Sequence[int]) -> str:
    """One row a prompt, one column an iteration: single pictures cut out of the grids by style
    alone.
    """
    layout = _json(run.samples / "prompts.json")
    texts = layout.get("texts", [])
    columns = layout.get("columns", 1)

    if not texts or len(chosen) < 2:
        return ""

    rows = []
    for place in _spread(range(len(texts)), ROWS):
        cut = _cut(place, len(texts), columns)
        cells = "".join(f'<td><i class="cell s{i}" style="{cut}"></i></td>' for i in chosen)
        rows.append(f"<tr><td>{escape(texts[place])}</td>{cells}</tr>")

    heads = "".join(f"<th>{i}</th>" for i in chosen)
    return (
        "<h2>Prompt by prompt</h2><p class='soft small'>The same picture after more and more iterations.</p>"
        f"<div class='sheet'><table class='strip'><tr><th></th>{heads}</tr>{''.join(rows)}</table></div>"
    )


def _cut(place: int, count: int, columns: int) -> str:
    """The style that shows one picture of a grid of so many."""
    lines = math.ceil(count / columns)
    across = 100 * (place % columns) / max(columns - 1, 1)
    down = 100 * (place // columns) / max(lines - 1, 1)
    return f"background-size: {columns * 100}% {lines * 100}%; background-position: {across:.4g}% {down:.4g}%"


def _asked(grid: Path | None) -> str:
    """What reward identifiers do: one row a prompt, one column for all of them and for each."""
    layout = _json(grid.with_suffix(".json")) if grid is not None else {}
    texts = layout.get("texts", [])
    asked = layout.get("asked", [])
    count = len(texts) * len(asked)
    rows = []

    for place, text in enumerate(texts):
        cuts = [
            _cut(one * len(texts) + place, count, layout["columns"]) for one in range(len(asked))
        ]
        cells = "".join(f'<td><i class="cell asked" style="{cut}"></i></td>' for cut in cuts)
        rows.append(f"<tr><td>{escape(text)}</td>{cells}</tr>")

    if not rows:
        return ""

    heads = "".join(f"<th>{escape(name)}</th>" for name in asked)
    return (
        "<h2>Asked for</h2><p class='soft small'>The same noise, asked for all rewards together and for each alone.</p>"
        f"<div class='sheet'><table class='strip'><tr><th></th>{heads}</tr>{''.join(rows)}</table></div>"
    )


def _data_uri(path: Path) -> str:
    """The picture as it is, or scaled down if it is large enough to make the page heavy."""
    content = path.read_bytes()
    kind = "png"

    if len(content) > 400_000:
        from PIL import Image

        with Image.open(io.BytesIO(content)) as stored:
            picture = stored.convert("RGB")
            picture.thumbnail((PICTURE, PICTURE))
            buffer = io.BytesIO()
            picture.save(buffer, "JPEG", quality=88)

        content = buffer.getvalue()
        kind = "jpeg"

    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def _png_size(path: Path) -> tuple[int, int]:
    head = path.read_bytes()[16:24]
    return int.from_bytes(head[:4], "big") or 1, int.from_bytes(head[4:], "big") or 1


def _spread(items: Sequence[int], count: int) -> list[int]:
    """At most `count` of `items`, evenly spread, with the first and the last."""
    if len(items) <= count:
        return list(items)
    return [items[round(i * (len(items) - 1) / (count - 1))] for i in range(count)]


def _json(path: Path) -> dict[str, Any]:
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


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02d} min"
