"""The commands. Everything heavy is imported inside them, so `burnish --help` answers at once."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from burnish.tools.qr_search import Search

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
    no_args_is_help=True, help="The embedded models: what there is, and how good it is."
)
app.add_typer(zoo_app, name="zoo")

Recipe = Annotated[
    str, typer.Argument(metavar="RECIPE", help="A recipe's name (burnish list) or a TOML file.")
]
RunFolder = Annotated[
    Path, typer.Argument(metavar="RUN", help="A run directory: the --out of a training.")
]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Change a key of the recipe; repeatable."),
]
Steps = Annotated[
    int,
    typer.Option(
        min=0,
        help="Network calls an image. [dim]0: the run's, else 50, or 4 of a consistency model[/dim]",
    ),
]
Guidance = Annotated[
    float, typer.Option(help="Guidance weight. [dim]below 0: the run's, else 5[/dim]")
]


@app.command()
def train(
    recipe: Annotated[
        str,
        typer.Argument(
            metavar="RECIPE", help="A recipe's name or a TOML file; not needed with --resume."
        ),
    ] = "",
    change: Overrides = None,
    out: Annotated[
        Path | None, typer.Option(help="Where the run goes. [dim]default: runs/RECIPE[/dim]")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in --out.")] = False,
) -> None:
    """Train, and leave a run directory.

    Ctrl+C finishes the step, saves, and says how to go on.

      burnish train demo
      burnish train sd15-compressibility --set optimizer.lr=1e-4 --set batch.prompts=16 --out
      runs/jpeg burnish train --resume --out runs/jpeg
    """
    quiet()
    from burnish.config import load
    from burnish.report.progress import Progress
    from burnish.runs import Run

    if not recipe and not (resume and out):
        raise ValueError(
            "train needs a RECIPE, or --resume with the --out of a run; burnish list shows the recipes"
        )

    folder = out or Path("runs") / Path(recipe).stem
    config = load(recipe or Run.open(folder).config, change or [])
    from burnish.training import loop as trainer

    main_process = os.environ.get("RANK", "0") == "0"  # only one of those launched together speaks

    with (
        stopping() as stop,
        Progress(config.iterations) if main_process else nullcontext() as progress,
    ):
        trainer.train(config, folder, resume=resume, on_record=progress, stop=stop)

    if not main_process:
        return

    if stop.signals:
        records = Run(folder).records()
        done = records[-1]["iteration"] if records else 0
        print(f"Stopped after iteration {done}. Go on with: burnish train --resume --out {folder}")
        raise typer.Exit(128 + stop.signals[0])

    print(f"Done: {folder}")
    if (folder / "guard.json").is_file():
        show_guard(json.loads((folder / "guard.json").read_text("utf-8")))
    if (folder / "evaluation.json").is_file():
        show_evaluation(json.loads((folder / "evaluation.json").read_text("utf-8")))

    print(f"Next: burnish report {folder}, or burnish sample {folder} --prompt 'a cat'")


@app.command()
def sample(
    source: Annotated[
        str, typer.Argument(metavar="RUN_OR_MODEL", help="A run, zoo:NAME, a folder or a hub id.")
    ],
    prompt: Annotated[
        list[str],
        typer.Option("--prompt", "-p", help="What to draw; one row of the grid for each."),
    ],
    n: Annotated[int, typer.Option("--n", "-n", min=1, help="Images for each prompt.")] = 4,
    steps: Steps = 0,
    guidance: Guidance = -1.0,
    seed: Annotated[int, typer.Option(help="The same seed draws the same noise.")] = 0,
    before: Annotated[
        bool, typer.Option("--before", help="The run's model before it was trained.")
    ] = False,
    strength: Annotated[
        float,
        typer.Option(
            help="Of what a run has learned: 0 is before training, 1 as trained. LoRA only."
        ),
    ] = 1.0,
    prefer: Annotated[
        str,
        typer.Option(
            metavar="REWARD,...",
            help="Rewards to please, of a run trained with sampler.identifiers. [dim]default: all of them[/dim]",
        ),
    ] = "",
    plain: Annotated[
        bool,
        typer.Option(
            "--plain", help="Without the prompt expander of a run that was trained with one."
        ),
    ] = False,
    original: Annotated[
        float,
        typer.Option(
            min=0,
            max=1,
            help="With an expander: the share of the guidance weight that the prompt has as it was typed.",
        ),
    ] = 0.0,
    out: Annotated[
        Path, typer.Option(help="A .png for a grid, anything else for a folder of single files.")
    ] = Path("samples.png"),
) -> None:
    """Draw images with a trained run, or with any model.

    burnish sample runs/jpeg --prompt "a cat" --prompt "a wolf" --n 6 --out after.png
    burnish sample runs/jpeg --prompt "a cat" --prompt "a wolf" --n 6 --out before.png --before
    burnish sample runs/jpeg --prompt "a cat" --strength 0.5
    burnish sample runs/worded --prompt "a cat" --plain
    burnish sample runs/worded --prompt "a cat" --original 0.8
    burnish sample runs/many --prompt "a cat" --prefer aesthetic,alignment
    burnish sample zoo:emoji-sd --prompt "two cats on a blue background" --steps 25
    burnish sample zoo:emoji-lcm --prompt "a fox" --steps 2
    """
    quiet()
    from burnish.tools.gallery import centred, draw, open_expander, open_source, preferred, save
    from burnish.types import Prompt

    template = preferred(source, prefer, before)
    policy, sampler = open_source(
        source, steps=steps, guidance=guidance, before=before, strength=strength
    )
    expander = None if plain else open_expander(source, policy, before=before)

    if original:
        if expander is None:
            raise ValueError(
                f"--original needs words to weigh the prompt against, and {source} is drawn without any"
            )
        sampler = replace(sampler, guidance=centred(sampler.guidance, original))

    images = draw(
        policy, sampler, [Prompt(text, template=template) for text in prompt], n, seed, expander
    )
    print(save(images, prompt, n, out))


@app.command()
def evaluate(
    run: RunFolder,
    images: Annotated[
        int, typer.Option(min=0, help="Images for each prompt. [dim]0: as the recipe says[/dim]")
    ] = 0,
) -> None:
    """Compare a run with the model it started from: same prompts, same noise; writes
    RUN/evaluation.json.

    burnish evaluate runs/jpeg
    burnish evaluate runs/jpeg --images 16
    """
    quiet()
    from burnish.runs import Run
    from burnish.tools.evaluate_run import evaluate_run

    show_evaluation(evaluate_run(Run.open(run), images))


@app.command()
def report(
    run: RunFolder,
    out: Annotated[
        Path | None, typer.Option(help="The page. [dim]default: RUN/report.html[/dim]")
    ] = None,
) -> None:
    """Write one self-contained HTML page about a run: curves, pictures, evaluation, configuration.

    burnish report runs/jpeg
    """
    from burnish.report.page import write_report

    print(write_report(run, out))


@app.command()
def check(recipe: Recipe, change: Overrides = None) -> None:
    """Before hours are spent: is the ratio 1, does the reward spread, will it fit, how long will it
    take?

    burnish check sd15-clip
    burnish check my.toml --set batch.train_batch=4
    """
    quiet()
    from burnish.config import load
    from burnish.tools.preflight import preflight

    findings = preflight(load(recipe, change or []))

    for finding in findings:
        print(
            f"{finding.level:<7} {finding.text}"
            + (f"  ->  {finding.remedy}" if finding.remedy else "")
        )

    if any(finding.level == "error" for finding in findings):
        raise typer.Exit(1)


@app.command()
def qr(
    payload: Annotated[
        str, typer.Argument(metavar="PAYLOAD", help="What the code says, such as a link.")
    ] = "",
    prompt: Annotated[str, typer.Option("--prompt", "-p", help="What the picture shows.")] = "",
    model: Annotated[
        str, typer.Option(help="A run with a ControlNet, zoo:NAME, a folder or a hub id.")
    ] = "zoo:emoji-lcm",
    controlnet: Annotated[
        str,
        typer.Option(
            help="The ControlNet of a model that is no run. [dim]default: zoo:emoji-qr for the zoo's models[/dim]"
        ),
    ] = "",
    n: Annotated[int, typer.Option("--n", "-n", min=1, help="Pictures to hand out.")] = 4,
    tries: Annotated[int, typer.Option(min=1, help="Pictures to draw at most.")] = 64,
    scale: Annotated[
        float,
        typer.Option(
            help="How closely the code is followed. [dim]below 0: the run's, else 1[/dim]"
        ),
    ] = -1.0,
    steps: Steps = 0,
    guidance: Guidance = -1.0,
    seed: Annotated[int, typer.Option(help="The same seed draws the same pictures.")] = 0,
    out: Annotated[Path, typer.Option(help="The folder for the pictures.")] = Path("codes"),
    verify: Annotated[
        Path | None,
        typer.Option("--verify", metavar="IMAGE", help="Only read the code in this picture."),
    ] = None,
    decoder: Annotated[
        list[str] | None,
        typer.Option(
            help="zxing, zxing-global, zxing-fixed, opencv or pyzbar; repeatable. [dim]default: zxing[/dim]"
        ),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="One JSON object instead of words.")
    ] = False,
) -> None:
    """Draw pictures that are QR codes, and keep those that are read under every condition; or read
    one with --verify.

    Exit code 1: no picture is read.

      burnish qr HELLO --prompt "a cat" --out codes
      burnish qr https://example.org --prompt "a garden" --model runs/qr --n 8 --out codes
      burnish qr HELLO --prompt "a garden" --model stable-diffusion-v1-5/stable-diffusion-v1-5 \\
        --controlnet monster-labs/control_v1p_sd15_qrcode_monster --scale 1.4
      burnish qr --verify art.png
      burnish qr https://example.org --verify art.png --decoder zxing --decoder opencv

    Of --verify: strict means that every decoder reads it under every condition; phone, that under
    every condition some decoder reads it, or would if the picture were softened; lenient, that it
    is read at all.
    """
    decoders = tuple(decoder or ["zxing"])
    if verify is not None:
        read_code(verify, payload, decoders, as_json)
        return

    if not (payload and prompt):
        raise ValueError(
            "qr needs a PAYLOAD and a --prompt to draw, or --verify IMAGE to read; see burnish qr --help"
        )

    quiet()
    from rich.console import Console
    from rich.progress import Progress

    from burnish.qr.scanner import Scanner
    from burnish.tools.qr_search import open_artist, search
    from burnish.types import Prompt

    scanner = Scanner(decoders, "all")
    artist = open_artist(model, controlnet, steps=steps, guidance=guidance, scale=scale)
    asked = Prompt(prompt, {"payload": payload})

    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("0 kept", total=tries)

        def tell(drawn: int, kept: int) -> None:
            bar.update(task, completed=drawn, description=f"{kept} kept")

        found = search(*artist, asked, scanner, count=n, tries=tries, seed=seed, on_try=tell)

    show_codes(found, out, as_json)


def show_codes(found: Search, out: Path, as_json: bool) -> None:
    """Saves the pictures that are read, and says what came of the search; exit code 1 if there are
    none.
    """
    from burnish.tools.qr_search import save

    paths = save(found, out) if found.found else []
    numbers = {"kept": len(paths), "tries": found.tries, "passed": found.passed, "read": found.read}

    if as_json:
        print(
            json.dumps(
                {"payload": found.payload, **numbers, "files": [str(path) for path in paths]},
                indent=1,
            )
        )
    else:
        for path in paths:
            print(path)

        kept = (
            f"{len(paths)} kept, they say {found.payload!r}"
            if paths
            else "raise --scale or --tries"
        )
        print(
            f"{found.passed} of {found.tries} tries are read under every condition, {found.read} under some; {kept}"
        )

    if not paths:
        raise typer.Exit(1)


def read_code(image: Path, payload: str, decoders: tuple[str, ...], as_json: bool) -> None:
    """What is read of a picture; exit code 1 if nothing is."""
    from burnish.qr.verify import verify

    verdict = verify(image, payload, decoders)
    print(json.dumps(verdict.json(), indent=1) if as_json else verdict.text())

    if not verdict.lenient:
        raise typer.Exit(1)


@app.command("list")
def list_parts() -> None:
    """Show every recipe, reward, advantage, objective, kernel, guidance and prompt set."""
    from burnish import catalog, config

    print("recipes")

    for name in config.recipes():
        print(f"  {name:<24} {_first_comment(config.recipe(name))}")

    for kind, table in catalog.BUILTIN.items():
        print(f"\n{kind}")
        for name in table:
            print(f"  {name:<24} {_first_sentence(catalog.resolve(kind, name))}")


@zoo_app.command("list")
def zoo_list() -> None:
    """Show the embedded models and their size."""
    from burnish import zoo

    for name in zoo.names():
        print(f"zoo:{name:<16} {zoo.size_mb(name):5.1f} MB   {zoo.path(name)}")


@zoo_app.command("check")
def zoo_check(
    as_json: Annotated[
        bool, typer.Option("--json", help="One JSON object instead of a table.")
    ] = False,
    images: Annotated[
        int, typer.Option(min=1, help="Generated images for each noun; more is surer and slower.")
    ] = 4,
    seed: Annotated[int, typer.Option(help="Of the scenes and the noise.")] = 1,
) -> None:
    """Measure the embedded models on fresh scenes and seeds, beside what they must reach.

    burnish zoo check
    burnish zoo check --json
    """
    quiet()
    from burnish.tools import control_curve as steering
    from burnish.tools.zoo_check import measure, table

    measured, points = measure(images=images, seed=seed)

    if as_json:
        print(json.dumps({**measured, "control": [asdict(point) for point in points]}, indent=1))
    else:
        print(
            table(measured), "", "zoo:emoji-qr by control scale:", steering.table(points), sep="\n"
        )


@app.callback(invoke_without_command=True)
def root(
    version: Annotated[
        bool, typer.Option("--version", help="Show the version.", is_eager=True)
    ] = False,
) -> None:
    if version:
        from burnish import __version__

        print(__version__)
        raise typer.Exit


class Stop:
    """Answers True once a signal asked for the end; a second signal ends at once."""

    def __init__(self) -> None:
        self.signals: list[int] = []

    def __call__(self) -> bool:
        return bool(self.signals)

    def catch(self, number: int, frame: object) -> None:
        if self.signals:
            raise KeyboardInterrupt

        self.signals.append(number)
        print(
            "\nFinishing the step, then saving; once more to stop at once.",
            file=sys.stderr,
            flush=True,
        )


@contextmanager
def stopping() -> Iterator[Stop]:
    """Within it Ctrl+C and SIGTERM ask for the end instead of taking it."""
    stop = Stop()
    old = {number: signal.signal(number, stop.catch) for number in (signal.SIGINT, signal.SIGTERM)}

    try:
        yield stop
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)


def show_evaluation(evaluation: Mapping[str, Any]) -> None:
    """Two lines a set of prompts."""
    for name, one in evaluation.items():
        if not one:
            continue

        low, high = one["ci95"]
        print(f"{name:<7} reward {one['before']:.4g} -> {one['after']:.4g}", end="  ")
        print(
            f"paired gain {one['paired_mean']:+.4g}, 95 % interval [{low:.4g}, {high:.4g}]", end=""
        )
        judged = one["judge_before"] is not None
        print(
            f"  judged right {one['judge_before']:.1%} -> {one['judge_after']:.1%}"
            if judged
            else ""
        )

        if held_out := one.get("panel"):
            print(
                " " * 8
                + "  ".join(
                    f"{n} {v['before']:.4g} -> {v['after']:.4g}" for n, v in held_out.items()
                )
            )


def show_guard(about: Mapping[str, Any]) -> None:
    """What the guard did, and why."""
    went = f", and went back to iteration {about['best']}" if about["action"] == "rollback" else ""
    print(
        f"The guard ended the run after iteration {about['iteration']}{went}: {'; '.join(about['reasons'])}"
    )


def quiet() -> None:
    """Keep the loading chatter of other libraries out of the output; their errors still come
    through.
    """
    for name in ("TRANSFORMERS_VERBOSITY", "DIFFUSERS_VERBOSITY"):
        os.environ.setdefault(name, "error")

    from transformers.utils import logging

    # reading weights from the disk takes a moment; downloads keep their own bars
    logging.disable_progress_bar()


def main(argv: list[str] | None = None) -> None:
    """The entry point: what a user can mend is one sentence and exit code 2; BURNISH_DEBUG=1 shows
    where it arose.
    """
    import warnings

    warnings.showwarning = lambda message, *_, **__: print(
        f"burnish: warning: {message}", file=sys.stderr
    )

    try:
        app(argv, prog_name="burnish")
    except (ValueError, OSError, RuntimeError) as error:
        if os.environ.get("BURNISH_DEBUG"):
            raise
        print(f"burnish: {error}", file=sys.stderr)
        raise SystemExit(2) from error


def _first_comment(path: Path) -> str:
    first = path.read_text("utf-8").splitlines()[0]
    return _sentence(first.lstrip("# ")) if first.startswith("#") else ""


def _first_sentence(part: Callable[..., Any]) -> str:
    return _sentence((part.__doc__ or "").strip().split("\n")[0])


def _sentence(text: str) -> str:
    import textwrap

    return textwrap.shorten(text.split(". ")[0].rstrip("."), 92, placeholder=" …")


if __name__ == "__main__":
    main()
