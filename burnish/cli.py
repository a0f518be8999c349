"""The commands; heavy imports are inside them, so that `burnish --help` answers at once."""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from burnish.terminal import adapt_streams, say
from burnish.zoo import MICRO_QR_CONTROLNET, MICRO_QR_GENERATOR, QR_CONTROLNET, QR_GENERATOR

if TYPE_CHECKING:
    from burnish.config import Config
    from burnish.diffusion.policy import Policy
    from burnish.diffusion.sampler import Sampler
    from burnish.qr.layout import Layout
    from burnish.qr.phone import Phone
    from burnish.qr.scanner import Scanner
    from burnish.tools.qr_search import Search
    from burnish.tools.qr_tries import TryLog
    from burnish.trust import Trust
    from burnish.types import Prompt

app = typer.Typer(
    name="burnish",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="""Fine-tune image generators with reinforcement learning, on your own definition of good.

    [dim]A first run, on two CPU cores:[/dim]
      burnish train demo --out runs/first
      burnish report runs/first

    [dim]With a reward of your own, a function (images, prompts) -> one number an image:[/dim]
      burnish train demo --set rewards.0.use=my_rewards.py:redness --out runs/red
    """,
)
zoo_app = typer.Typer(
    no_args_is_help=True, help="The embedded models: their names, sizes and quality."
)
app.add_typer(zoo_app, name="zoo")
taste_app = typer.Typer(
    no_args_is_help=True, help="Your own taste, fitted to pairs of images, as a reward."
)
app.add_typer(taste_app, name="taste")

Recipe = Annotated[
    str, typer.Argument(metavar="RECIPE", help="A recipe's name (burnish list) or a TOML file.")
]
RecipeOrResume = Annotated[
    str,
    typer.Argument(
        metavar="RECIPE", help="A recipe's name or a TOML file; not needed with --resume."
    ),
]
RunFolder = Annotated[
    Path, typer.Argument(metavar="RUN", help="A run directory: the --out of a training.")
]
Source = Annotated[
    str, typer.Argument(metavar="RUN_OR_MODEL", help="A run, zoo:NAME, a folder or a hub id.")
]
Changes = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Change a key of the recipe; repeatable."),
]
Trusted = Annotated[
    bool,
    typer.Option(
        "--trust",
        help=(
            "Run the code that the recipe or run names by use = FILE.py:NAME or MODULE:NAME. "
            "[dim]default: you are asked once for each, and refused without a terminal[/dim]"
        ),
    ),
]
Steps = Annotated[
    int,
    typer.Option(
        min=0,
        help=(
            "Network calls an image. [dim]0: the run's, else 50, 28 of a flow, 4 of a consistency "
            "model[/dim]"
        ),
    ),
]


def finite(value: float) -> float:
    """Refuse a number that is none, which every comparison would take for too small."""
    if not math.isfinite(value):
        raise typer.BadParameter(f"{value} is no finite number")
    return value


Guidance = Annotated[
    float,
    typer.Option(
        help="Guidance weight. [dim]below 0: the run's, else as the model likes[/dim]",
        callback=finite,
    ),
]
Before = Annotated[bool, typer.Option("--before", help="The run's model before training.")]
Strength = Annotated[
    float,
    typer.Option(
        help="Scale of a run's LoRA: 0 is before training, but for identifiers and the expander, "
        "1 as trained. LoRA only.",
        callback=finite,
    ),
]
Prefer = Annotated[
    str,
    typer.Option(
        metavar="REWARD,...",
        help=(
            "Rewards whose identifiers are added to the prompt, of a run trained with "
            "sampler.identifiers. [dim]default: all of them[/dim]"
        ),
    ),
]
Plain = Annotated[
    bool,
    typer.Option("--plain", help="Without the prompt expander of a run that was trained with one."),
]
Original = Annotated[
    float,
    typer.Option(
        min=0,
        max=1,
        help="With an expander: the fraction of the guidance weight on the original prompt.",
    ),
]
ControlNet = Annotated[
    str,
    typer.Option(
        help=(
            "The ControlNet of a model that is no run. "
            f"[dim]default: {QR_CONTROLNET} for {QR_GENERATOR}, {MICRO_QR_CONTROLNET} for "
            "the zoo's other models[/dim]"
        )
    ),
]
CanvasSize = Annotated[
    int,
    typer.Option(
        min=0,
        help=(
            "Side of the images in pixels; below 128 the code is Micro QR. "
            "[dim]0: the model's, or as much more as an ordinary code of the payload needs[/dim]"
        ),
    ),
]
ControlScale = Annotated[
    float,
    typer.Option(
        help=(
            "Control scale of the code. [dim]below 0: the run's, else from a low one up until "
            "images are read[/dim]"
        ),
        callback=finite,
    ),
]
Licence = Annotated[
    str,
    typer.Option(
        help="Of the weights, as the hub names it. [dim]default: the model's, if it is known[/dim]"
    ),
]
Push = Annotated[
    str, typer.Option(metavar="OWNER/NAME", help="Also put it on the hub, by HF_TOKEN.")
]
Public = Annotated[
    bool, typer.Option("--public", help="With --push: a new repository is seen by everybody.")
]
Decoders = Annotated[
    list[str] | None,
    typer.Option(
        help=(
            "zxing, zxing-global, zxing-fixed, opencv or pyzbar; repeatable. "
            "[dim]default: zxing[/dim]"
        )
    ),
]


@app.command()
def train(
    recipe: RecipeOrResume = "",
    change: Changes = None,
    out: Annotated[
        Path | None, typer.Option(help="The run directory. [dim]default: runs/RECIPE[/dim]")
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue the run in --out from its newest checkpoint.")
    ] = False,
    accept_changes: Annotated[
        bool,
        typer.Option(
            "--accept-changes",
            help=(
                "With --resume: also if the recipe, a file that it names, the log or the number of "
                "processes has changed."
            ),
        ),
    ] = False,
    trust: Trusted = False,
) -> None:
    """Train a model, and leave a run directory.

    Ctrl+C stops at the next safe point, saves, and says how to go on.

      burnish train demo
      burnish train sd15-compressibility --set optimizer.lr=1e-4 --out runs/jpeg
      burnish train --resume --out runs/jpeg
    """
    quiet()
    from burnish.config import load
    from burnish.runs import Run

    if not recipe and not (resume and out):
        raise ValueError(
            "train needs a RECIPE, or --resume with the --out of a run; "
            "burnish list shows the recipes"
        )

    if accept_changes and not resume:
        raise ValueError("--accept-changes goes with --resume; a new run has nothing to compare")

    folder = out or Path("runs") / Path(recipe).stem
    source = recipe or Run.open(folder).config
    config = load(source, change or [], trust=trust or consent())
    from burnish.training import loop

    # of several processes that were launched together only one prints
    progress = os.environ.get("RANK", "0") == "0"
    with stopping() as stop:
        loop.train(
            config,
            folder,
            resume=resume,
            accept_changes=accept_changes,
            stop=stop,
            progress=progress,
        )

    if stop.signals:
        raise typer.Exit(128 + stop.signals[0])


@app.command()
def sample(
    source: Source,
    prompt: Annotated[
        list[str] | None,
        typer.Option("--prompt", "-p", help="A prompt: one row of the grid. Repeatable."),
    ] = None,
    grid: Annotated[
        bool,
        typer.Option(
            "--grid",
            help="Draw the run's own sample grid, at a --strength, into RUN/samples instead.",
        ),
    ] = False,
    n: Annotated[int, typer.Option("--n", "-n", min=1, help="Images for each prompt.")] = 4,
    steps: Steps = 0,
    guidance: Guidance = -1.0,
    seed: Annotated[int, typer.Option(help="The same seed draws the same noise.")] = 0,
    before: Before = False,
    strength: Strength = 1.0,
    prefer: Prefer = "",
    plain: Plain = False,
    original: Original = 0.0,
    model_config: Annotated[
        str,
        typer.Option(
            "--config",
            metavar="MODEL",
            help="Of a model in a single file: the model whose configuration it has.",
        ),
    ] = "",
    out: Annotated[
        Path, typer.Option(help="A .png for a grid, anything else for a folder of single files.")
    ] = Path("samples.png"),
    trust: Trusted = False,
) -> None:
    r"""Sample images from a trained run, or from any model.

    burnish sample runs/jpeg --prompt "a cat" --prompt "a wolf" --out after.png
    burnish sample runs/jpeg --prompt "a cat" --before --out before.png
    burnish sample runs/jpeg --prompt "a cat" --strength 0.5
    burnish sample runs/jpeg --grid --strength 0.5
    burnish sample runs/worded --prompt "a cat" --plain
    burnish sample runs/worded --prompt "a cat" --original 0.8
    burnish sample runs/many --prompt "a cat" --prefer aesthetic,alignment
    burnish sample zoo:emoji-sd --prompt "two cats on a blue background" --n 6
    burnish sample zoo:emoji-lcm --prompt "a fox" --steps 2
    burnish sample mine.safetensors --prompt "a fox" \
      --config stable-diffusion-v1-5/stable-diffusion-v1-5
    """
    quiet()
    if grid:
        from burnish.tools.redraw import redraw

        with watching(slow_only=True):
            path = redraw(Path(source), strength, trust or consent())
        say(path)
        return

    if not prompt:
        raise ValueError("sample needs a --prompt, or --grid for the sample grid of a run")

    from burnish.tools.gallery import (
        centred,
        check_out,
        draw,
        drawn_state,
        open_expander,
        open_source,
        preferred,
        save,
    )
    from burnish.types import Prompt

    check_out(out)
    template = preferred(source, prefer, before)
    with watching(slow_only=True):
        policy, sampler = open_source(
            source,
            steps=steps,
            guidance=guidance,
            before=before,
            strength=strength,
            model_config=model_config,
            trust=trust or consent(),
        )
        expander = None if plain else open_expander(source, policy, before=before)

        if original:
            if expander is None:
                raise ValueError(
                    "--original needs an expanded prompt to weigh the original against, "
                    f"and {source} is sampled without an expander"
                )
            sampler = replace(sampler, guidance=centred(sampler.guidance, original))

        prompts = [Prompt(text, template=template) for text in prompt]
        images = draw(policy, sampler, prompts, n, seed, expander)

    if state := drawn_state(source, before):
        say(state, sys.stderr)
    say(save(images, prompt, n, out))


@app.command()
def evaluate(
    run: RunFolder,
    images: Annotated[
        int, typer.Option(min=0, help="Images for each prompt. [dim]0: as the recipe says[/dim]")
    ] = 0,
    reward: Annotated[
        list[str] | None,
        typer.Option(
            metavar="REWARD",
            help=(
                "Judge by this reward in place of the run's: a name, FILE.py:NAME, a TOML table, "
                "or a TOML file with rewards in it; repeatable."
            ),
        ),
    ] = None,
    trust: Trusted = False,
) -> None:
    r"""Compare a run with the model it started from, on the same prompts and noise.

    Writes RUN/evaluation.json; with --reward it only prints.

      burnish evaluate runs/jpeg
      burnish evaluate runs/jpeg --images 16
      burnish evaluate runs/jpeg \
        --reward "{use='clip_similarity', model='zoo:emoji-clip'}"
    """
    quiet()
    from burnish.config import named_rewards
    from burnish.report.results import evaluation_lines
    from burnish.runs import Run
    from burnish.tools.evaluate_run import evaluate_run
    from burnish.training.checkpoint import newest

    found = Run.open(run)
    allowed = trust or consent()
    judged_by = named_rewards(reward or (), allowed)
    with watching():
        evaluation = evaluate_run(found, images, judged_by, trust=allowed)

    done = newest(found.checkpoints)["iteration"]
    say(f"{run} after iteration {done}, compared with before training", sys.stderr)
    for text in evaluation_lines(evaluation):
        say(text)


@app.command("branch")
def branch_run(
    run: RunFolder,
    iteration: Annotated[
        int, typer.Argument(metavar="ITERATION", min=1, help="Of one of its checkpoints.")
    ],
    out: Annotated[Path, typer.Option(help="The new run directory.")],
) -> None:
    """Copy a run as it was after an iteration, to go on from there in another way.

    Without changes the copy goes on as the run itself did, bit for bit.

      burnish branch runs/jpeg 40 --out runs/gentle
      burnish train runs/gentle/config.toml --resume --out runs/gentle
    """
    from burnish.runs import Run
    from burnish.tools.branch import branch

    new = branch(Run.open(run), iteration, out)
    say(f"{new.folder} is {run} after iteration {iteration}")
    say(f"Go on with: burnish train --resume --out {quote(str(new.folder))}")


@app.command("rollback")
def roll_run_back(
    run: RunFolder,
    iteration: Annotated[
        int, typer.Argument(metavar="ITERATION", min=1, help="Of one of its checkpoints.")
    ],
) -> None:
    """Go back to a run's state after an iteration; all that is later is deleted.

    burnish rollback runs/jpeg 40
    """
    from burnish.runs import Run
    from burnish.tools.branch import roll_back

    roll_back(Run.open(run), iteration)
    say(f"{run} is as it was after iteration {iteration}")
    say(f"Go on with: burnish train --resume --out {quote(str(run))}")


@app.command("export")
def export_weights(
    run: RunFolder,
    to: Annotated[
        str,
        typer.Option(
            help=(
                "diffusers, kohya (one LoRA file, also for Forge), comfyui, or merged (a whole "
                "pipeline)."
            )
        ),
    ] = "diffusers",
    out: Annotated[
        Path | None, typer.Option(help="A new folder. [dim]default: RUN/exports/TO[/dim]")
    ] = None,
    licence: Licence = "",
    push: Push = "",
    public: Public = False,
) -> None:
    """Write what a run has learned for other programs, with a model card.

    burnish export runs/jpeg --to kohya
    burnish export runs/jpeg --to merged --out models/jpeg
    burnish export runs/jpeg --push me/jpeg --licence openrail++
    """
    quiet()
    from burnish.runs import Run
    from burnish.tools.export import export_run
    from burnish.tools.push import check_repository

    check_repository(push)
    with watching(slow_only=True):
        folder = export_run(Run.open(run), to, out, licence)
    say(folder)
    upload(folder, push, public)


@app.command("merge")
def merge_weights(
    sources: Annotated[
        list[str],
        typer.Argument(metavar="ADAPTER...", help="Runs, or LoRA files, folders or hub ids."),
    ],
    out: Annotated[Path, typer.Option(help="A new folder.")],
    weights: Annotated[
        str, typer.Option(help="One an adapter: 0.7,0.3. [dim]default: the mean of all[/dim]")
    ] = "",
    to: Annotated[str, typer.Option(help="As in burnish export.")] = "diffusers",
    model: Annotated[
        str, typer.Option(help="The model they were trained on, where none of them is a run.")
    ] = "",
    rank: Annotated[
        int, typer.Option(min=0, help="Of the result. [dim]0: the sum of theirs, exactly[/dim]")
    ] = 0,
    licence: Licence = "",
    push: Push = "",
    public: Public = False,
) -> None:
    r"""Put several adapters of one model together, each with a weight.

    burnish merge runs/sharp runs/colourful --out both
    burnish merge runs/sharp style.safetensors --weights 1,0.5 \
      --to kohya --out both
    """
    quiet()
    from burnish.tools.merge import merge_adapters
    from burnish.tools.push import check_repository

    check_repository(push)
    try:
        factors = [float(weight) for weight in weights.split(",") if weight.strip()]
    except ValueError:
        raise ValueError(
            f"--weights {weights}: give numbers with commas, such as 0.7,0.3"
        ) from None

    folder = merge_adapters(
        sources, out, weights=factors, target=to, model=model, rank=rank, licence=licence
    )
    say(folder)
    upload(folder, push, public)


def upload(folder: Path, repository: str, public: bool) -> None:
    """Put a folder on the hub, if it is to go there, and print the address."""
    if repository:
        from burnish.tools.push import push

        say(push(folder, repository, public))


@app.command()
def report(
    run: RunFolder,
    out: Annotated[
        Path | None, typer.Option(help="The page. [dim]default: RUN/report.html[/dim]")
    ] = None,
) -> None:
    """Write one self-contained HTML page about a run: curves, images, evaluation, configuration.

    burnish report runs/jpeg
    """
    from burnish.report.page import write_report

    say(write_report(run, out))


@app.command("compare")
def compare_runs(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Two or more runs.")],
    out: Annotated[
        Path | None, typer.Option(help="Also write an HTML page with the curves here.")
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object instead of a table.")
    ] = False,
) -> None:
    """Compare runs: what differs in their configurations, their gains, their curves.

    burnish compare runs/a runs/b
    burnish compare runs/a runs/b runs/c --out comparison.html
    """
    from burnish.files import dumps, write
    from burnish.report import comparison

    if out is not None and out.suffix.lower() not in (".html", ".htm"):
        raise ValueError(f"--out {out}: the page is HTML; let its name end in .html")

    compared = comparison.compare(runs)
    if as_json:
        print(dumps(comparison.as_json(compared), indent=1))
    else:
        print(comparison.as_text(compared))

    if out is not None:
        write(out, comparison.as_page(compared))
        print(out, file=sys.stderr if as_json else sys.stdout)


@app.command()
def studio(
    runs: Annotated[
        Path, typer.Argument(metavar="RUNS", help="The folder that holds the runs.")
    ] = Path("runs"),
    host: Annotated[
        str, typer.Option(help="The address to listen on; another one than this needs a key.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes any that is free.")] = 8765,
    allow_code: Annotated[
        bool,
        typer.Option(
            "--allow-code",
            help="Start and resume runs whose configuration names Python code, which runs then.",
        ),
    ] = False,
) -> None:
    """Show the runs of a folder in the browser, live: start, watch, stop, compare.

    Needs the extra named studio. Trainings that it starts go on without it.

      burnish studio
      burnish studio runs --port 9000
    """
    try:
        from burnish.studio.server import serve
    except ModuleNotFoundError as error:
        if error.name not in ("starlette", "uvicorn", "jinja2", "markupsafe"):
            raise
        raise RuntimeError(
            f"the studio needs {error.name}, which is not installed; run: "
            "pip install 'burnish[studio]'"
        ) from error

    serve(runs, host, port, allow_code)


@app.command()
def check(
    recipe: Recipe,
    change: Changes = None,
    memory: Annotated[
        float,
        typer.Option(
            min=0,
            metavar="GB",
            help=(
                "Only predict the memory on a GPU, with cheaper settings, and name the first that "
                "fits a card of so many GB. Needs no GPU and no weights."
            ),
        ),
    ] = 0,
    trust: Trusted = False,
) -> None:
    """Check a recipe before a long run: the ratio, the reward's spread, memory and time.

    burnish check sd15-clip
    burnish check my.toml --set batch.train_batch=4
    burnish check sdxl-compressibility --memory 24
    """
    quiet()
    from burnish.config import load
    from burnish.tools.preflight import preflight

    config = load(recipe, change or [], trust=trust or consent())
    if memory:
        check_memory(config, memory)
        return

    with watching():
        findings = preflight(config)

    for finding in findings:
        remedy = f"  ->  {finding.remedy}" if finding.remedy else ""
        say(f"{finding.level:<7} {finding.text}{remedy}")

    if any(finding.level == "error" for finding in findings):
        raise typer.Exit(1)


def check_memory(config: Config, card: float) -> None:
    """Print the predicted memory as a table; exit code 1 if nothing fits a card of so many GB."""
    from burnish.tools import memory_table

    table: list[memory_table.Row] = []
    for row in memory_table.rows(config):
        if not table:
            say(memory_table.heading())
        say(memory_table.line(row))
        table.append(row)

    say(memory_table.verdict(config, table, card))
    for note in memory_table.notes(config):
        say(note)

    if memory_table.first_fitting(table, card) is None:
        raise typer.Exit(1)


@app.command()
def qr(
    payload: Annotated[
        str, typer.Argument(metavar="PAYLOAD", help="The text in the code, such as a link.")
    ] = "",
    prompt: Annotated[str, typer.Option("--prompt", "-p", help="What the image shows.")] = "",
    model: Annotated[
        str,
        typer.Option(
            help="A run with a ControlNet, zoo:NAME, a folder or a hub id. "
            f"[dim]default: {QR_GENERATOR}; below 128 px {MICRO_QR_GENERATOR}[/dim]"
        ),
    ] = "",
    controlnet: ControlNet = "",
    n: Annotated[int, typer.Option("--n", "-n", min=1, help="Images to find.")] = 4,
    tries: Annotated[int, typer.Option(min=1, help="Images to sample at most.")] = 64,
    size: CanvasSize = 0,
    scale: ControlScale = -1.0,
    steps: Steps = 0,
    guidance: Guidance = -1.0,
    seed: Annotated[int, typer.Option(help="The same seed draws the same images.")] = 0,
    out: Annotated[Path, typer.Option(help="The folder for the images.")] = Path("codes"),
    keep_tries: Annotated[
        bool,
        typer.Option("--keep-tries", help="Also write every try to OUT/tries, with who reads it."),
    ] = False,
    verify: Annotated[
        Path | None,
        typer.Option("--verify", metavar="IMAGE", help="Only read the code in this image."),
    ] = None,
    decoder: Decoders = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object instead of text.")
    ] = False,
    trust: Trusted = False,
) -> None:
    r"""Sample images that are QR codes and keep those that are read under every condition.

    Or read one with --verify. Exit code 1: no image is read under every
    condition, or, with --verify, it is not read at all.

      burnish qr https://example.org --prompt "a cat" --out codes
      burnish qr https://example.org --prompt "a cat" --model runs/qr -n 8
      burnish qr https://example.org --prompt "a cat" --keep-tries
      burnish qr HELLO --prompt "a garden" --scale 1.4 \
        --model stable-diffusion-v1-5/stable-diffusion-v1-5 \
        --controlnet monster-labs/control_v1p_sd15_qrcode_monster
      burnish qr --verify art.png
      burnish qr https://example.org --verify art.png --decoder opencv

    Verdicts: strict means that every --decoder reads the code under every
    condition; phone, that under every condition a reader that took no part
    does (ZBar or OpenCV), in the image as it is or softened; lenient, that it
    is read at all, or that phone is yes.
    """
    decoders = tuple(decoder or ["zxing"])
    if verify is not None:
        read_code(verify, payload, decoders, as_json)
        return

    if not (payload and prompt):
        raise ValueError(
            "qr needs a PAYLOAD and a --prompt to draw, or --verify IMAGE to read; "
            "see burnish qr --help"
        )

    quiet()
    from burnish.qr.layout import TINY
    from burnish.qr.phone import Phone
    from burnish.qr.scanner import Scanner
    from burnish.tools.gallery import preferred
    from burnish.tools.qr_search import (
        check_out,
        choose_canvas,
        code_settings,
        deciding_decoders,
        open_controlled,
        scale_step,
    )
    from burnish.tools.qr_tries import TryLog
    from burnish.types import Prompt

    model = model or (MICRO_QR_GENERATOR if 0 < size < TINY else QR_GENERATOR)
    check_out(out)
    scanner = Scanner(decoders, "all")
    phone = Phone(deciding_decoders(model, decoders))
    policy, sampler = open_controlled(
        model,
        controlnet,
        steps=steps,
        guidance=guidance,
        scale=scale,
        trust=trust or consent(),
    )
    prompted = Prompt(
        prompt, {"payload": payload, "qr": code_settings(model)}, template=preferred(model)
    )
    layout = choose_canvas(policy, prompted, size)
    step = scale_step(model, scale)
    log = None
    if keep_tries:
        log = TryLog(
            out,
            payload=payload,
            prompt=prompt,
            model=model,
            code=layout.designator,
            size=layout.side,
            count=n,
            tries=tries,
        )
    result = search_codes(policy, sampler, prompted, scanner, phone, n, tries, seed, step, log)
    show_codes(result, layout, phone, out, as_json)


def search_codes(
    policy: Policy,
    sampler: Sampler,
    prompt: Prompt,
    scanner: Scanner,
    phone: Phone,
    count: int,
    tries: int,
    seed: int,
    step: float,
    log: TryLog | None = None,
) -> Search:
    """Return `count` images that are read, with a progress bar on stderr meanwhile."""
    from rich.console import Console
    from rich.progress import Progress

    from burnish.tools.qr_search import search

    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("0 kept", total=tries)

        def on_try(sampled: int, found: int) -> None:
            bar.update(task, completed=sampled, description=f"{found} kept")

        return search(
            policy,
            sampler,
            prompt,
            scanner,
            count=count,
            tries=tries,
            seed=seed,
            step=step,
            phone=phone,
            on_try=on_try,
            on_read=log.add if log else None,
        )


def show_codes(result: Search, layout: Layout, phone: Phone, out: Path, as_json: bool) -> None:
    """Save the images that are read and print the result; exit code 1 if there are none."""
    from burnish.tools.qr_search import save, summary

    paths = save(result, out) if result.images else []
    verdicts = [found.phone for found in result.images]

    if as_json:
        content = {
            "payload": result.payload,
            "code": layout.designator,
            "size": layout.side,
            "kept": len(paths),
            "tries": result.tries,
            "passed": result.passed,
            "read": result.read,
            "scales": result.scales,
            "phone": verdicts,
            "phone_note": phone.note(layout.micro),
            "files": [str(path) for path in paths],
        }
        print(json.dumps(content, indent=1))
    else:
        for path in paths:
            say(path)
        for line in summary(result, layout, phone).split("\n"):
            say(line)

    if not paths:
        raise typer.Exit(1)


def read_code(image: Path, payload: str, decoders: tuple[str, ...], as_json: bool) -> None:
    """Print how well the code in an image is read; exit code 1 if it is not."""
    from burnish.qr.verify import verify

    verdict = verify(image, payload, decoders)
    text = json.dumps(verdict.json(), indent=1) if as_json else verdict.text()
    for line in text.split("\n"):
        say(line)

    if not verdict.lenient:
        raise typer.Exit(1)


@app.command("list")
def list_parts(
    kind: Annotated[
        str, typer.Argument(metavar="KIND", help="reward, recipe, kernel, ... Default: all.")
    ] = "",
    name: Annotated[str, typer.Argument(metavar="NAME", help="One of this kind.")] = "",
) -> None:
    """Show what a recipe can name, or one of it: its arguments, text, and TOML to paste.

    burnish list
    burnish list rewards
    burnish list reward aesthetic
    """
    from burnish.tools.listing import listing, page

    # sentences are wrapped for a reader only: a program gets each on a line
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else 0
    print(page(kind, name) if name else listing(kind, width))


@app.command("recipe")
def print_recipe(
    name: Annotated[
        str, typer.Argument(metavar="RECIPE", help="A recipe's name. Default: list them.")
    ] = "",
) -> None:
    """Print a recipe as it stands, with its comments, to be edited.

    burnish recipe
    burnish recipe demo > my.toml
    burnish train my.toml
    """
    if not name:
        list_parts("recipe")
        return

    from burnish.config import packaged_recipe

    try:
        content = packaged_recipe(name.removesuffix(".toml")).read_bytes()
    except FileNotFoundError as error:
        raise ValueError(f"there is no recipe {name}; {error}") from None

    # as it stands, whatever the terminal's encoding
    sys.stdout.buffer.write(content)
    sys.stdout.flush()


@zoo_app.command("list")
def zoo_list() -> None:
    """Show the embedded models and their size."""
    from burnish import zoo

    for name in zoo.names():
        print(f"zoo:{name:<16} {zoo.size_mb(name):5.1f} MB   {zoo.path(name)}   {zoo.MODELS[name]}")


@zoo_app.command("check")
def zoo_check(
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object instead of a table.")
    ] = False,
    images: Annotated[
        int, typer.Option(min=1, help="Generated images for each noun; more is surer and slower.")
    ] = 4,
    seed: Annotated[int, typer.Option(help="Of the scenes and the noise.")] = 1,
) -> None:
    """Measure the embedded models on fresh scenes and noise, beside their goals.

    burnish zoo check
    burnish zoo check --json
    """
    quiet()
    from burnish.tools import control_curve
    from burnish.tools.zoo_check import measure, table

    with watching():
        measured, points = measure(images=images, seed=seed)

    if as_json:
        print(json.dumps({**measured, "control": [asdict(point) for point in points]}, indent=1))
        return

    print(table(measured))
    print()
    print(f"{QR_CONTROLNET} by control scale:")
    print(control_curve.table(points))


@taste_app.command("fit")
def taste_fit(
    pairs: Annotated[
        Path,
        typer.Argument(
            metavar="PAIRS",
            help=(
                "A JSONL file of {prompt, chosen, rejected}, a folder with the folders chosen and "
                "rejected, or a run with votes."
            ),
        ),
    ],
    model: Annotated[
        str | None,
        typer.Option(
            help="The CLIP model whose features are read: zoo:NAME, folder, hub id.",
            show_default="that of the run's reward votes, or openai/clip-vit-large-patch14",
        ),
    ] = None,
    out: Annotated[Path, typer.Option(help="The file that is written.")] = Path(
        "taste.safetensors"
    ),
    features: Annotated[
        Literal["embedding", "patches"] | None,
        typer.Option(
            help=(
                "What is read of an image: the embedding tells what it shows, the patches how it "
                "looks."
            ),
            show_default="what the run's reward votes reads, or embedding",
        ),
    ] = None,
    device: Annotated[str, typer.Option(help="Where the model computes.")] = "auto",
) -> None:
    """Fit a reward to pairs of images of which you preferred one.

    It says how many pairs it foretells that it had not seen. The file is a reward:
    use = "taste", head = "taste.safetensors".

      burnish taste fit pairs.jsonl --model zoo:emoji-clip --out taste.safetensors
      burnish taste fit runs/voted
    """
    quiet()
    from burnish.diffusion.loading import choose_device
    from burnish.tools.taste import fit_taste, read_by_votes

    with watching():
        model_of_run, features_of_run = read_by_votes(pairs)
        fitted = fit_taste(
            pairs,
            model or model_of_run,
            out,
            str(choose_device(device)),
            features or features_of_run,
        )
    for text in fitted.lines():
        say(text)


@app.callback(invoke_without_command=True)
def root(
    version: Annotated[
        bool, typer.Option("--version", help="Show the version.", is_eager=True)
    ] = False,
) -> None:
    """Show the version if it is requested; without a command, the help is shown."""
    if version:
        from burnish import __version__

        print(__version__)
        raise typer.Exit


def consent() -> Trust:
    """Return the way to ask for consent to code: on a terminal, in the process that prints."""
    on_terminal = sys.stdin and sys.stdin.isatty() and sys.stderr.isatty()
    return ask if on_terminal and os.environ.get("RANK", "0") == "0" else False


def ask(question: str) -> bool:
    """Return the answer to a question about code; only a yes counts."""
    print(f"{question} [y/N] ", end="", file=sys.stderr, flush=True)
    return sys.stdin.readline().strip().lower() in ("y", "yes")


@contextmanager
def watching(slow_only: bool = False) -> Iterator[None]:
    """Show the stages of a command's work on stderr within this context.

    With `slow_only` nothing is printed, where stderr is no terminal, unless it takes long.
    """
    from rich.console import Console

    from burnish.report.progress import Progress
    from burnish.stages import listening

    progress = Progress(console=Console(stderr=True), slow_only=slow_only)
    with progress, listening(progress):
        yield


class Stop:
    """True once a signal has requested the end; a second signal ends at once."""

    def __init__(self) -> None:
        self.signals: list[int] = []
        self._terminals = [stream for stream in (1, 2) if os.isatty(stream)]

    def __call__(self) -> bool:
        """Return True once the end has been requested."""
        return bool(self.signals)

    def catch(self, number: int, frame: object) -> None:
        """Handle a signal."""
        if self.signals:
            raise KeyboardInterrupt

        self.signals.append(number)
        self._leave_closed_terminal()
        print(
            "\nStopping at the next safe point, then saving; once more to stop at once.",
            file=sys.stderr,
            flush=True,
        )

    def _leave_closed_terminal(self) -> None:
        """Write nothing to a terminal that is gone: that fails, and the end must not."""
        for stream in self._terminals:
            if not os.isatty(stream):
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, stream)
                os.close(nowhere)


@contextmanager
def stopping() -> Iterator[Stop]:
    """Let Ctrl+C, SIGTERM and a closed terminal request the end within this context.

    SIGHUP stays without effect where it is, as under nohup.
    """
    stop = Stop()
    numbers = [signal.SIGINT, signal.SIGTERM]
    if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
        numbers.append(signal.SIGHUP)

    handlers = {number: signal.signal(number, stop.catch) for number in numbers}

    try:
        yield stop
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def quiet() -> None:
    """Keep progress bars and known noise of other libraries out of the output, nothing else."""
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    from burnish import noise

    diffusers_logging.get_verbosity()  # gives the library its handler
    transformers_logging.get_verbosity()
    noise.silence()

    # reading weights from the disk takes a moment; downloads keep their own bars
    transformers_logging.disable_progress_bar()


def main(argv: list[str] | None = None) -> None:
    """Run the command line.

    An error that a user can fix is one sentence and exit code 2; BURNISH_DEBUG=1 shows where it
    arose.
    """
    import traceback
    import warnings

    def show_warning(message: Warning | str, *_: object, **__: object) -> None:
        say(f"burnish: warning: {message}", sys.stderr)

    warnings.showwarning = show_warning
    adapt_streams()

    try:
        app(argv, prog_name="burnish")
    except MemoryError as error:
        say("burnish: out of memory; lower the numbers of images and prompts", sys.stderr)
        raise SystemExit(2) from error
    except Exception as error:
        fixable = isinstance(error, (ValueError, OSError, RuntimeError))
        if fixable and not os.environ.get("BURNISH_DEBUG"):
            say(f"burnish: {error}", sys.stderr)
            raise SystemExit(2) from error

        # a library's error may have a key in it, so it is not left to Python to show
        for line in traceback.format_exc().rstrip("\n").split("\n"):
            say(line, sys.stderr)
        raise SystemExit(1) from error


if __name__ == "__main__":
    main()
