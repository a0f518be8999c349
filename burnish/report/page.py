"""A run directory as one self-contained HTML page: results, curves, images, configuration.

It reads the files of a run and nothing else, so a page can be made while the run goes on and where
torch is not installed. Parts that a run does not have yet are left out.
"""

from __future__ import annotations

import io
import json
import math
import re
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from burnish import runs
from burnish.annotations import complaint
from burnish.files import read_text, write
from burnish.redaction import redact
from burnish.report import fronts
from burnish.report.charts import Series, duration, line_chart, number
from burnish.report.groups import Group, Groups, latest_groups
from burnish.report.markup import Child, Html, fill, image_rule, join, tag
from burnish.report.results import (
    SUM,
    Change,
    judge_change,
    panel_changes,
    reward_changes,
    reward_weights,
    size,
    stored,
)
from burnish.report.suspects import Suspects, latest_suspects
from burnish.run_files import (
    ConfigFile,
    EvaluationFile,
    GridFile,
    GuardFile,
    numbered,
    read_evaluation,
    read_toml,
)

FRAMES = 12  # at most so many sample grids go into the page, evenly spread over the run
STRIP = 7  # of these, so many stand side by side
ROWS = 8  # prompts that get such a row
TILES = 4  # rewards that get a tile at the top
MOST_GROUPS = 16  # prompts of the latest iteration whose images are shown
LEAST_KNOWN = 0.5  # of a run's images with an evaluated prompt, for a curve of their changes
LARGEST = 1280  # pixels: a larger grid is scaled down
PNG_END = b"IEND\xaeB`\x82"  # the last bytes of every file; a torn one lacks them
SECONDS = ("seconds_sampling", "seconds_scoring", "seconds_training")
WAITING = "seconds_waiting"  # for votes

# title, keys of the record, note
DIAGNOSTICS = (
    (
        "Ratio deviation",
        ("ratio_deviation",),
        "max |ρ − 1| before the first update: more than rounding is a fault, unless [old_policy] "
        "lets the policy that samples lag behind",
    ),
    (
        "Clip fraction",
        ("clip_fraction",),
        "fraction of transitions whose ratio left the clip range. 0 is no fault: updates were "
        "small. Above 0.5 most of an update is cut off; lower optimizer.lr",
    ),
    (
        "Denoising error",
        ("denoising_error",),
        "mean squared error of the network's prediction for the images, noised again",
    ),
    (
        "Approximate KL",
        ("approx_kl",),
        "to the weights that sampled, in nats per image and transition",
    ),
    (
        "KL to the reference",
        ("kl",),
        "how far training has moved the model, in nats per image and transition; or how far it is "
        "from the forward.anchor that is set",
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
    (
        "No advantage",
        ("zero_advantage",),
        "fraction of images with an advantage of exactly 0, from which nothing is learned",
    ),
    ("Gradient norm", ("grad_norm",), "before clipping"),
    ("Learning rate", ("lr",), ""),
    ("Seconds", (*SECONDS, WAITING), "of an iteration"),
)

ELSEWHERE = ("iteration", "images", "rewards", "control_scale")
"""Keys of a record that the page shows in another place than among its charts of one number."""

FURTHER = 24  # at most so many charts of numbers that the library does not know

FORWARD_NOTES = {
    "Ratio deviation": "max |ρ − 1| before the first update, where ρ = exp of the fall of an "
    "image's denoising error: more than rounding is a fault",
    "Clip fraction": "fraction of (image, noise level) pairs whose denoising error changed by more "
    "than the clip range. 0 is no fault: updates were small. Above 0.5 most of an update is cut "
    "off; lower optimizer.lr",
    "Approximate KL": "from the change of the denoising error since sampling: a measure of how far "
    "an update goes, not the KL of transitions",
}
"""The meaning of these charts where an objective learns from images noised again."""

FORWARD = ("awm", "dgpo")
"""Built-in objectives that have a ratio on the forward process."""


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
    write(path, page(run))
    return path


def page(run: runs.Run) -> str:
    """Return the page of a run as text."""
    config = report_config(run)
    source = redact(read_text(run.config))
    objective = str(config.get("objective", {}).get("use", ""))
    records = run.records()
    evaluation = stored(run.evaluation, EvaluationFile)
    grids = _grids(run)
    identifier_grid = max(run.samples.glob("identifiers-*.png"), default=None)
    weights = reward_weights(config)
    groups = latest_groups(run, weights)
    suspects = latest_suspects(run, weights)

    tables = (
        evaluation_table(evaluation),
        panel_table(evaluation),
        guard_sentence(stored(run.guard, GuardFile)),
    )
    parts = {
        "title": join([run.folder.resolve().name]),
        "subtitle": join([subtitle(config)]),
        "images_css": _images_css(grids, identifier_grid, groups, suspects),
        "tiles": _tiles(records, evaluation),
        "evaluation": join(tables),
        "images": _images(grids),
        "strips": join([_strips(run, spread(list(grids), STRIP)), _identifiers(identifier_grid)]),
        "groups": join([_groups(groups), _suspects(suspects)]),
        "rewards": join([reward_charts(records), _fronts(run, config, records)]),
        "diagnostics": join(
            [_expansions(records), diagnostic_charts(records, objective), further_charts(records)]
        ),
        "configuration": _configuration(source),
    }
    template = (files("burnish") / "data" / "report.html").read_text("utf-8")
    return fill(template, parts)


def _configuration(source: str) -> Html:
    summary = tag("summary", "config.toml")
    sheet = tag("details", summary, tag("pre", source), class_="sheet")
    return join([tag("h2", "Configuration"), sheet])


def _images_css(
    grids: Mapping[int, Path],
    identifier_grid: Path | None,
    groups: Groups | None,
    suspects: Suspects | None,
) -> Html:
    """Return a class for each grid that the page shows."""
    named = {f"s{i}": path for i, path in grids.items()}
    if identifier_grid is not None:
        named["identifiers"] = identifier_grid
    if groups is not None and groups.grid.is_file():
        named["members"] = groups.grid
    if suspects is not None and suspects.suspects and suspects.grid.is_file():
        named["evaluated"] = suspects.grid
    return join(image_rule(name, *_image(path)) for name, path in named.items())


def subtitle(config: Mapping[str, Any]) -> str:
    """Return the rewards of a run, its model, objective and advantage on one line."""
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


def _tiles(records: Sequence[runs.Record], evaluation: Mapping[str, Any]) -> Html:
    tiles = _result_tiles(evaluation["train"]) if evaluation.get("train") else []

    if records:
        seconds = sum(record.get(key) or 0 for record in records for key in SECONDS)
        images = sum(record.get("images") or 0 for record in records)
        count = f"{images:,}".replace(",", " ")
        iterations = f"{records[-1]['iteration']} iterations"
        tiles.append(_tile(iterations, f"{count} images in {duration(seconds)}"))

    return tag("div", *tiles, class_="tiles")


def _result_tiles(result: Mapping[str, Any]) -> list[Html]:
    """Return the tiles about an evaluation: one or two for a reward, one for the judge."""
    changes = reward_changes(result)[:TILES]
    tiles = []

    for change in changes:
        values = f"{number(change.before)} → {number(change.after)}"
        gain = f"{_signed(change.gain)}, 95 % in {_interval(change)}"

        if len(changes) == 1:
            tiles.append(_tile(values, f"{change.name}, before → after, same noise"))
            interval = f"paired gain, 95 % in {_interval(change)}"
            tiles.append(_tile(_signed(change.gain), interval, change.verdict))
        else:
            tiles.append(_tile(values, f"{change.name}, paired gain {gain}", change.verdict))

    for change in judge_change(result):
        values = f"{_percent(change.before)} → {_percent(change.after)}"
        tiles.append(_tile(values, change.name))

    return tiles


def _tile(value: str, label: str, style: str = "") -> Html:
    return tag("div", tag("b", value, class_=style), tag("span", label), class_="tile")


# Evaluation
# --------------------------------------------------------------------------------------------------


def evaluation_table(evaluation: Mapping[str, Any]) -> Html:
    """Return the table of every reward, their weighted sum and the judge."""
    names = {"train": "training prompts", "unseen": "unseen prompts"}
    rows: list[list[Child]] = []

    for key, result in evaluation.items():
        if not result:
            continue

        for change in [*reward_changes(result), *judge_change(result)]:
            rows.append([names.get(key, key), *_change_cells(change)])

    if not rows:
        return join()

    sizes = [f"{names.get(key, key)}: {size(r)}" for key, r in evaluation.items() if r and size(r)]
    heads = ("prompts", "measure", "before", "after", "paired gain", "95 % interval")
    text = (
        "The same prompts from the same noise, before and after. The interval is over prompts, of "
        "this one run: if it excludes zero, the choice of prompts does not explain the gain, but "
        "another seed may give another. "
    )
    if any(row[1] == SUM for row in rows):
        text += f"The {SUM} adds the rewards with their weights, in their own units. "
    if sizes:
        text += f"{'; '.join(sizes)}."
    return join([tag("h2", "Evaluation"), paragraph(text), sheet(heads, rows)])


def _change_cells(change: Change) -> list[Child]:
    """Return the cells of a measure: name, before, after, gain and interval."""
    if change.percent:
        return [change.name, _percent(change.before), _percent(change.after), "", ""]

    gain = tag("span", _signed(change.gain), class_=change.verdict or "soft")
    return [
        change.name,
        number(change.before),
        number(change.after),
        gain,
        _interval(change),
    ]


def _interval(change: Change) -> str:
    if change.ci95 is None:
        return "–"
    low, high = change.ci95
    return f"[{number(low)}, {number(high)}]"


def panel_table(evaluation: Mapping[str, Any]) -> Html:
    """Return the table of the measures that were not trained on."""
    rows: list[list[Child]] = []

    for key, result in evaluation.items():
        for change in panel_changes(result or {}):
            name, before, after, gain, interval = _change_cells(change)
            rows.append([name, f"{key} prompts", before, after, gain, interval])

    if not rows:
        return join()

    note = (
        "Measures that were not trained on: where they fall while the reward rises, the policy "
        "exploits the reward."
    )
    heads = ("held out", "prompts", "before", "after", "change", "95 % interval")
    return join([paragraph(note), sheet(heads, rows)])


def paragraph(text: str) -> Html:
    """Return a note, in small soft letters."""
    return tag("p", text, class_="soft small")


def sheet(heads: Sequence[Child], rows: Sequence[Sequence[Child]], style: str = "") -> Html:
    """Return a table with a head."""
    head = tag("tr", *(tag("th", cell) for cell in heads))
    body = (tag("tr", *(tag("td", cell) for cell in row)) for row in rows)
    return tag("div", tag("table", head, *body, class_=style or None), class_="sheet")


def guard_sentence(decision: Mapping[str, Any]) -> Html:
    """Return the sentence about a guard that has ended the run; nothing if it has not."""
    if not decision:
        return join()

    back = ""
    if decision["action"] == "rollback":
        back = f" and went back to iteration {decision['best']}"

    ended = f"The guard ended the run after iteration {decision['iteration']}{back}:"
    reasons = "; ".join(map(str, decision["reasons"]))
    return tag("p", tag("b", ended, class_="bad"), f" {reasons}.")


# Curves
# --------------------------------------------------------------------------------------------------


def reward_charts(records: Sequence[runs.Record]) -> Html:
    """Return the charts of the rewards: centred on their prompts where these were evaluated."""
    x = [record["iteration"] for record in records]
    names = dict.fromkeys(name for record in records for name in record.get("rewards", {}))
    chart_size = (960, 300) if len(names) == 1 else (460, 220)
    figures = []
    notes: dict[str, list[str]] = {}  # the rewards that each note is about

    for name in names:
        rewards = [record.get("rewards", {}).get(name, {}) for record in records]
        share = known_share(records, rewards)
        mean, spread = ("gain", "gain_std") if share >= LEAST_KNOWN else ("mean", "std")
        values = [reward.get(mean) for reward in rewards]
        spreads = [reward.get(spread) for reward in rewards]

        if chart := line_chart(x, [Series(name, values, spreads)], *chart_size):
            notes.setdefault(_curve_note(share), []).append(name)
            about = " change since before training" if mean == "gain" else " mean of the images"
            caption = tag("figcaption", tag("b", name), f"{about}{_details(rewards[-1])}")
            figures.append(tag("figure", caption, chart))

    if not figures:
        return join()

    layout = "wide" if len(figures) == 1 else "charts"
    figures.append(_curriculum(x, records, layout))
    texts = [
        paragraph(f"{', '.join(about)}: {note}" if len(notes) > 1 else note)
        for note, about in notes.items()
    ]
    return join([tag("h2", "Reward"), *texts, tag("div", *figures, class_=layout)])


def known_share(records: Sequence[runs.Record], rewards: Sequence[Mapping[str, Any]]) -> float:
    """Return the fraction of a run's images whose prompt was evaluated before training."""
    images = sum(record.get("images") or 0 for record in records)
    known = sum(reward.get("gain_images") or 0 for reward in rewards)
    return known / images if images else 0.0


def _curve_note(share: float) -> str:
    if share < LEAST_KNOWN:
        return (
            "Mean of each iteration's images, and their spread. Which prompts are drawn moves it "
            "too: too few of them were evaluated before training to take that out."
        )

    note = (
        "Each image minus its prompt's mean before training, so that which prompts are drawn does "
        "not move the curve: mean of each iteration, and spread"
    )
    if share < 1:
        note += f", over the {_percent(share)} of images whose prompt was evaluated then"
    return f"{note}."


def _curriculum(x: Sequence[int], records: Sequence[runs.Record], layout: str) -> Html:
    """Return the chart of the control scale, as wide as the charts of the rewards beside it."""
    scales = Series("control scale", [record.get("control_scale") for record in records])
    chart = line_chart(x, [scales], *((960, 180) if layout == "wide" else (460, 220)))
    if not chart:
        return join()

    note = " how closely images followed their control in training: the curriculum"
    return tag("figure", tag("figcaption", tag("b", "Control scale"), note), chart)


def _fronts(run: runs.Run, config: Mapping[str, Any], records: Sequence[runs.Record]) -> Html:
    """Return the charts of reward against reward, from the first evaluation and the last."""
    weights = reward_weights(config)
    if len(weights) < 2:
        return join()

    evaluations = numbered(run.evaluation_file(0).parent, ".json")
    last = max(evaluations, default=0)
    tables: dict[int, Mapping[str, Any]] = {
        i: read_evaluation(evaluations[i])["train"] for i in {0, last} & evaluations.keys()
    }
    after = tables.get(last, {}) if last else {}
    return fronts.section(tables.get(0, {}), after, records, weights)


def _details(reward: Mapping[str, Any]) -> str:
    """Return the last iteration's further numbers about one reward among several."""
    text = ""

    if "within" in reward:
        spread = number(reward["std"])
        text = f"; spread at the end {spread}, within a prompt {number(reward['within'])}"
    if "targeted" in reward:
        text += f"; {number(reward['targeted'])} for the images that target it"

    return text


def _expansions(records: Sequence[runs.Record]) -> Html:
    """Return an expander's texts for a few prompts, in the first iteration and in the last."""
    expanded = [record for record in records if record.get("expander_texts")]
    rows = [
        [str(record["iteration"]), prompt, text]
        for record in expanded[:1] + expanded[1:][-1:]
        for prompt, text in record["expander_texts"]
    ]

    if not rows:
        return join()

    table = sheet(("iteration", "prompt", "expanded prompt"), rows)
    return join([tag("h2", "Expansions"), table])


def diagnostic_charts(records: Sequence[runs.Record], objective: str) -> Html:
    """Return the charts of what else was measured; their notes depend on the objective."""
    notes = FORWARD_NOTES if objective in FORWARD else {}
    x = [record["iteration"] for record in records]
    figures = []

    for title, keys, note in DIAGNOSTICS:
        series = [
            Series(key.removeprefix("seconds_"), [record.get(key) for record in records])
            for key in keys
        ]

        if chart := line_chart(x, series):
            text = f" {notes.get(title, note)}"
            caption = tag("figcaption", tag("b", title), text, legend(series))
            figures.append(tag("figure", caption, chart))

    if not figures:
        return join()
    return join([tag("h2", "Diagnostics"), tag("div", *figures, class_="charts")])


def further_charts(records: Sequence[runs.Record]) -> Html:
    """Return the charts of all other numbers: those of the run's own objective and learners."""
    known = {*ELSEWHERE, *(key for _, keys, _ in DIAGNOSTICS for key in keys)}
    rows = [
        runs.flat({key: value for key, value in record.items() if key not in known})
        for record in records
    ]
    names = list(dict.fromkeys(name for row in rows for name in row))
    x = [record["iteration"] for record in records]
    figures = []

    for name in names[:FURTHER]:
        series = Series(name, [row.get(name) for row in rows])
        if chart := line_chart(x, [series]):
            caption = tag("figcaption", tag("b", metric_title(name)), f" {name}")
            figures.append(tag("figure", caption, chart))

    if not figures:
        return join()

    text = "Other numbers of the log: of objective, learners and votes, and what on_record returned"
    if len(names) > FURTHER:
        text += f"; {len(names) - FURTHER} more are in log.jsonl"
    charts = tag("div", *figures, class_="charts")
    return join([tag("h2", "Further metrics"), paragraph(f"{text}."), charts])


def metric_title(name: str) -> str:
    """Return the name of a metric as a title.

    >>> metric_title("critic_loss"), metric_title("critic/lossPerImage")
    ('Critic loss', 'Critic: loss per image')
    """
    words = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", " ", name.replace("/", ": "))
    words = " ".join(re.split(r"[\s_.-]+", words)).strip()
    lowered = " ".join(word if word.isupper() else word.lower() for word in words.split())
    return lowered[:1].upper() + lowered[1:] or name


def legend(series: Sequence[Series]) -> Html:
    """Return the names of several curves with their colours; nothing for a single curve."""
    if len(series) == 1:
        return join()
    return join(
        tag("span", tag("i", class_=f"key series-{i}"), curve.label, class_="name")
        for i, curve in enumerate(series)
    )


# Images
# --------------------------------------------------------------------------------------------------


def _grids(run: runs.Run) -> dict[int, Path]:
    """Return the sample grids that go into the page, by iteration."""
    grids = numbered(run.samples, ".png")
    return {i: grids[i] for i in spread(list(grids), FRAMES)}


def _images(grids: Mapping[int, Path]) -> Html:
    """Return the first and the last grid side by side, with a slider through the run."""
    if not grids:
        return join()

    iterations = list(grids)
    first = iterations[0]
    last = iterations[-1]
    pixels = _png_size(grids[first])

    caption = [tag("b", "After"), f" {first} iterations"]
    if first == 0:
        caption = [tag("b", "Before"), " training"]
    figures = [_grid_figure(first, caption, pixels)]

    if len(iterations) > 1:
        end = len(iterations) - 1
        slider = tag(
            "input",
            type="range",
            min=0,
            max=end,
            value=end,
            aria_label="iteration",
            data_frames=json.dumps(iterations),
        )
        caption = [tag("b", "After"), " ", tag("output", last), " iterations"]
        figures.append(_grid_figure(last, caption, pixels, slider))

    note = paragraph("Every grid has the same prompts and the same noise.")
    return join([tag("h2", "Images"), note, tag("div", *figures, class_="pair")])


def _grid_figure(
    iteration: int, caption: Sequence[Child], pixels: tuple[int, int], *below: Html
) -> Html:
    width, height = pixels
    style = f"aspect-ratio: {width} / {height}; background-size: 100% 100%"
    image = tag("div", class_=f"image s{iteration}", style=style, role="img", aria_label="samples")
    return tag("figure", tag("figcaption", *caption), image, *below)


def _strips(run: runs.Run, iterations: Sequence[int]) -> Html:
    """Return one row a prompt, one column an iteration: single images, cut out of the grids."""
    layout = stored(run.samples / "prompts.json", GridFile)
    texts = layout.get("texts", [])
    columns = int(layout.get("columns", 1))

    if not texts or len(iterations) < 2:
        return join()

    rows = []
    for index in spread(range(len(texts)), ROWS):
        style = crop(index, len(texts), columns)
        cells = [tag("i", class_=f"cell s{i}", style=style) for i in iterations]
        rows.append([texts[index], *cells])

    heading = tag("h2", "Prompt by prompt")
    note = paragraph("The same image after more and more iterations.")
    return join([heading, note, sheet(["", *iterations], rows, "strip")])


def _identifiers(grid: Path | None) -> Html:
    """Return one row a prompt, one column for the identifiers of all rewards and of each."""
    layout = stored(grid.with_suffix(".json"), GridFile) if grid is not None else {}
    texts = layout.get("texts", [])
    rewards = layout.get("rewards", [])
    columns = int(layout.get("columns", 1))
    count = len(texts) * len(rewards)
    rows = []

    for row, text in enumerate(texts):
        indices = [column * len(texts) + row for column in range(len(rewards))]
        styles = [crop(index, count, columns) for index in indices]
        cells = [tag("i", class_="cell identifiers", style=style) for style in styles]
        rows.append([text, *cells])

    if not rows:
        return join()

    heading = tag("h2", "Reward identifiers")
    note = paragraph("The same noise, with the identifiers of all rewards and of each alone.")
    return join([heading, note, sheet(["", *rewards], rows, "strip")])


def _groups(found: Groups | None) -> Html:
    """Return each prompt's images of the latest iteration, with the best and the worst marked."""
    if found is None:
        return join()

    text = f"Each prompt's images with their (weighted) reward: {' + '.join(found.rewards)}. An "
    text += "image is compared with the others of its prompt. "
    notes = [paragraph(text)]
    if found.flat:
        flat = f"{found.flat} of {len(found.groups)} groups have no spread: nothing is learned "
        notes.append(tag("p", tag("b", f"{flat}from them.", class_="bad")))

    sections = [_group(found, group) for group in found.groups[:MOST_GROUPS]]
    if len(found.groups) > MOST_GROUPS:
        sections.append(paragraph(f"{len(found.groups) - MOST_GROUPS} more are not shown."))
    heading = tag("h2", f"Groups of iteration {found.iteration}")
    return join([heading, *notes, *sections])


def _group(found: Groups, group: Group) -> Html:
    """Return one prompt's images."""
    badge = tag("span", "no spread", class_="badge bad") if group.flat else join()
    figures = [
        tag(
            "figure",
            _thumbnail("members", member.place, found.count, found.columns, member.label),
            tag("figcaption", number(member.reward), " ", tag("b", member.mark)),
            class_=member.mark or None,
        )
        for member in group.members
    ]
    return tag(
        "section",
        tag("h3", group.prompt, " ", badge),
        tag("div", *figures, class_="group"),
        class_="card flat" if group.flat else "card",
    )


def _suspects(found: Suspects | None) -> Html:
    """Return the images that the reward ranks high and the held-out measures rank low."""
    if found is None or not found.measures:
        return join()

    text = "Images of the evaluation that the reward ranks high and the held-out measures "
    text += f"({', '.join(found.measures)}) rank low. If they look bad, the reward is exploited."
    if not found.suspects:
        text = "None: no image has a high reward and low held-out measures."

    items = []
    for one in found.suspects:
        values = {"reward": one.reward, **one.held_out}
        numbers = ", ".join(f"{name} {number(value)}" for name, value in values.items())
        small = join()
        if one.number < found.count:
            small = _thumbnail("evaluated", one.number, found.count, found.columns, one.prompt)
        suspicion = tag("span", f"suspicion {one.suspicion:.2f}", class_="soft small")
        lines = tag("div", tag("b", one.prompt), tag("br"), numbers, tag("br"), suspicion)
        items.append(tag("li", small, lines, class_="card"))

    heading = tag("h2", f"Suspects of iteration {found.iteration}")
    return join([heading, paragraph(text), tag("ul", *items, class_="suspects")])


def _thumbnail(name: str, index: int, count: int, columns: int, label: str) -> Html:
    style = crop(index, count, columns)
    return tag("i", class_=f"cell {name}", style=style, role="img", aria_label=label)


def crop(index: int, count: int, columns: int) -> str:
    """Return the CSS that shows one image of a grid of `count` images."""
    rows = math.ceil(count / columns)
    x = 100 * (index % columns) / max(columns - 1, 1)
    y = 100 * (index // columns) / max(rows - 1, 1)
    size = f"background-size: {columns * 100}% {rows * 100}%"
    return f"{size}; background-position: {x:.4g}% {y:.4g}%"


def _image(path: Path) -> tuple[str, bytes]:
    """Return an image's kind and content: as it is, or scaled down where it is large."""
    content = path.read_bytes()
    kind = "png"
    if not content.endswith(PNG_END):
        raise ValueError(f"{path}: no whole PNG image; delete it")

    if len(content) > 400_000:
        from PIL import Image

        buffer = io.BytesIO()
        try:
            with Image.open(io.BytesIO(content)) as stored:
                image = stored.convert("RGB")
                image.thumbnail((LARGEST, LARGEST))
                image.save(buffer, "JPEG", quality=88)
        except Exception as error:  # a damaged file makes the library raise anything
            raise ValueError(f"{path}: no image that can be read; delete it") from error

        content = buffer.getvalue()
        kind = "jpeg"

    return kind, content


def _png_size(path: Path) -> tuple[int, int]:
    """Return width and height from the header of a PNG."""
    header = path.read_bytes()[16:24]
    return int.from_bytes(header[:4], "big") or 1, int.from_bytes(header[4:], "big") or 1


def spread(items: Sequence[int], count: int) -> list[int]:
    """Return at most `count` of the items, evenly spread, with the first and the last."""
    if len(items) <= count:
        return list(items)
    return [items[round(i * (len(items) - 1) / (count - 1))] for i in range(count)]


# Numbers
# --------------------------------------------------------------------------------------------------


def report_config(run: runs.Run) -> Mapping[str, Any]:
    """Return what the report needs of a run's configuration."""
    config = read_toml(run.config)
    if wrong := complaint(config, ConfigFile, ""):
        raise ValueError(f"{run.config}: {wrong}; fix the file")
    return config


def _signed(value: float | None) -> str:
    return ("+" if value is not None and value > 0 else "") + number(value)


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.0f} %"
