"""What a run was trained with is compared on resume with its checkpoint, not a file with itself."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import log
from PIL import Image

from burnish import config as configuration
from burnish.cli import main
from burnish.config import Config, named_rewards
from burnish.runs import Run
from burnish.tools.evaluate_run import evaluate_run
from burnish.training import assembly, checkpoint
from burnish.training.loop import train
from burnish.training.origin import MAY_CHANGE, changes, leaves, named_images, origin_of
from burnish.training.resume import check_unchanged
from burnish.trust import UntrustedCodeError
from burnish.types import Prompt
from burnish.world import World

REWARD = """
def brightness(images, prompts):
    return images.mean((1, 2, 3))
def darkness(images, prompts):
    return 1 - images.mean((1, 2, 3))
"""


@pytest.fixture
def recipe(write_recipe: Callable[..., Path], tmp_path: Path) -> Path:
    (tmp_path / "prompts.txt").write_text("a cat\na dog\n", "utf-8")
    return write_recipe(
        REWARD,
        iterations=2,
        sampler={"steps": 2},
        prompts={"use": "lines", "path": "HERE/prompts.txt"},
        rewards=[{"use": "HERE/reward.py:brightness"}],
        batch={"prompts": 2, "images_per_prompt": 2, "minibatches": 1},
        evaluation={"images_per_prompt": 1},
        run={"sample_every": 0},
    )


@pytest.fixture
def run(recipe: Path, tmp_path: Path) -> Run:
    return Run(train(configuration.load(recipe), tmp_path / "run"))


def resume(run: Run, *changed: str, accept: bool = False) -> None:
    train(configuration.load(run.config, changed), run.folder, resume=True, accept_changes=accept)


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text("utf-8")
    assert old in text
    path.write_text(text.replace(old, new), "utf-8")


def refused(run: Run, *parts: str, changed: tuple[str, ...] = ()) -> str:
    """Return the sentence with which a resume is refused; nothing has changed then."""
    before = checkpoint.newest(run.checkpoints)
    with pytest.raises(ValueError, match=re.escape(str(run.folder))) as refusal:
        resume(run, *changed)

    message = str(refusal.value)
    assert all(part in message for part in parts), message
    assert "\n" not in message and checkpoint.newest(run.checkpoints) == before
    return message


@pytest.mark.parametrize(
    ("old", "new", "names"),
    [
        ("lr = 0.0003", "lr = 0.03", ["optimizer.lr", "it was 0.0003"]),
        (":brightness", ":darkness", ["rewards.0.use"]),
        ("images_per_prompt = 2", "images_per_prompt = 4", ["batch.images_per_prompt", "was 2"]),
        ("weight = 2.0", "weight = 3.0", ["sampler.guidance.weight"]),
        ("seed = 0\niter", "seed = 7\niter", ["seed"]),
    ],
)
def test_an_edited_configuration_is_refused_by_name(
    run: Run, old: str, new: str, names: list[str]
) -> None:
    edit(run.config, old, new)
    message = refused(run, "was trained with another", *names, "leave that as it was")
    assert "--accept-changes" in message


def test_a_half_copied_configuration_is_refused(run: Run) -> None:
    text = run.config.read_text("utf-8")
    run.config.write_text(text[: text.index("[batch]")], "utf-8")
    refused(run, "batch.prompts", "it was 2")


def test_an_accepted_change_goes_on(run: Run) -> None:
    edit(run.config, "lr = 0.0003", "lr = 0.03")
    resume(run, "iterations=3", accept=True)
    assert [record["lr"] for record in run.records()] == [3e-4, 3e-4, 3e-2]
    resume(run, "iterations=4")
    assert run.evaluation.is_file(), "a learning rate changes no evaluation"


def test_what_may_change_needs_no_consent(run: Run) -> None:
    assert set(MAY_CHANGE) >= {"iterations", "run", "scoring"}
    model = ("model.prompt_signs=letters", "model.gradient_checkpointing=true")
    resume(run, "iterations=3", "run.keep=5", "batch.train_batch=1", "scoring.timeout=9", *model)
    assert len(run.records()) == 3


def test_another_rank_cannot_be_accepted(run: Run) -> None:
    message = refused(run, "model.rank", "model.adapter", changed=("model.rank=2",))
    assert "--accept-changes" not in message


def test_a_changed_file_is_named(run: Run, tmp_path: Path) -> None:
    edit(tmp_path / "reward.py", "return images", "return -images")
    refused(run, "rewards.0.use", "the file of", "reward.py:brightness has changed")

    with (
        pytest.warns(UserWarning, match="000000.json is missing"),
        pytest.warns(UserWarning, match="evaluations are of what was before the change"),
    ):
        resume(run, "iterations=3", accept=True)
    assert len(run.records()) == 3 and not run.evaluation_file(0).exists()

    edit(tmp_path / "prompts.txt", "a dog", "a fox")
    refused(run, "prompts.path", "prompts.txt has changed")


def test_evaluate_does_not_compare_with_another_reward(run: Run, tmp_path: Path) -> None:
    first = evaluate_run(run)["train"]["before"]
    edit(run.config, ":brightness", ":darkness")
    assert evaluate_run(run)["train"]["before"] == pytest.approx(1 - first)


def test_another_reward_judges_and_leaves_the_evaluation_of_the_run(
    run: Run, tmp_path: Path
) -> None:
    own = evaluate_run(run)["train"]
    written = run.evaluation.read_bytes()
    eye = tmp_path / "eye" / "dark.toml"
    eye.parent.mkdir()
    eye.write_text("[[rewards]]\nuse = '../reward.py:darkness'\nweight = 2.0\n[batch]\nno = 1\n")
    (twice,) = named_rewards([str(eye)])
    assert twice["use"].endswith("reward.py:darkness") and twice["weight"] == 2.0

    plain = f"{{use='{tmp_path}/reward.py:darkness', name='dark', weight=2.0}}"
    for tables in ([twice], named_rewards([plain])):
        found = evaluate_run(run, rewards=tables)["train"]
        for when in ("before", "after"):
            assert found[when] == pytest.approx(2 - 2 * own[when])
    assert list(found["rewards"]) == ["dark"]
    assert run.evaluation.read_bytes() == written


def test_a_reward_of_training_images_is_refused_as_a_judge_before_the_model_is_loaded(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(assembly, "load_policy", pytest.fail)
    for name in ("votes", "chosen"):
        with pytest.raises(ValueError, match=f"'{name}' knows only .* with --reward$"):
            evaluate_run(run, rewards=named_rewards([name]))

    voted = ("rewards=[{use='votes'}]", "evaluation.images_per_prompt=1")
    with pytest.raises(ValueError, match=r"'votes' knows only .*images_per_prompt = 0$"):
        assembly.assemble(configuration.load(run.config, voted))


@pytest.mark.untrusted
def test_a_file_of_rewards_needs_consent_to_its_code_and_a_typed_name_does_not(
    tmp_path: Path,
) -> None:
    (tmp_path / "reward.py").write_text(REWARD)
    (tmp_path / "eye.toml").write_text("[[rewards]]\nuse = 'reward.py:darkness'\n")
    with pytest.raises(UntrustedCodeError, match="eye.toml: rewards.0 = "):
        named_rewards([str(tmp_path / "eye.toml")])
    assert named_rewards([f"{tmp_path}/reward.py:brightness"])[0]["use"].endswith(":brightness")
    assert named_rewards([str(tmp_path / "eye.toml")], trust=True)


def test_rewards_that_a_command_line_cannot_name(tmp_path: Path) -> None:
    (tmp_path / "empty.toml").write_text("iterations = 1\n")
    for texts, words in (
        (["compressibility", "compressibility"], "two rewards are called compressibility"),
        (["compresibility"], '--reward compresibility: .*did you mean "compressibility"'),
        (["{use='compressibility', quality='x'}"], "rewards.0.quality"),
        ([str(tmp_path / "empty.toml")], r"empty.toml: the file has no \[\[rewards\]\]"),
    ):
        with pytest.raises(ValueError, match=words):
            named_rewards(texts)
    with pytest.raises(FileNotFoundError, match="none.toml"):
        named_rewards([str(tmp_path / "none.toml")])


def test_a_moved_file_with_the_same_content_is_the_same(run: Run, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    for name in ("reward.py", "prompts.txt"):
        (tmp_path / name).rename(tmp_path / "elsewhere" / name)
    here = str(tmp_path / "elsewhere")
    changed = (f"rewards.0.use={here}/reward.py:brightness", f"prompts.path={here}/prompts.txt")
    resume(run, "iterations=3", *changed)
    assert len(run.records()) == 3


def test_a_changed_module_of_a_package_is_named(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "my_package").mkdir()
    module = tmp_path / "my_package" / "scores.py"
    (tmp_path / "my_package" / "__init__.py").touch()
    module.write_text(REWARD, "utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    config = configuration.load(recipe, ["rewards=[{use='my_package.scores:brightness'}]"])
    run = Run(train(config, tmp_path / "run"))

    edit(module, "return images", "return 2 * images")
    refused(run, "my_package.scores:brightness has changed")


def test_adapters_model_folders_and_control_images_count(recipe: Path, tmp_path: Path) -> None:
    (tmp_path / "start").mkdir()
    weights = tmp_path / "start" / "pytorch_lora_weights.safetensors"
    weights.write_bytes(b"1")
    config = configuration.load(recipe, [f"model.adapter={tmp_path / 'start'}"])
    before = origin_of(config, World())
    assert {"model.adapter", "model.id", "prompts.path", "rewards.0.use"} == set(before["files"])
    weights.write_bytes(b"2")
    assert list(changes(before, origin_of(config, World()))) == ["model.adapter"]
    shutil.rmtree(tmp_path / "start")
    assert "is missing" in changes(before, origin_of(config, World()))["model.adapter"]

    image = tmp_path / "a.png"
    Image.new("RGB", (4, 4)).save(image)
    prompts = [Prompt("a cat. It sits", {"control": str(image), "payload": "x.y"})]
    images = named_images({"prompts": prompts})
    assert list(images) == [str(image)]
    Image.new("RGB", (4, 4), "red").save(image)
    old = {**before, "images": images}
    new = {**before, "images": named_images({"prompts": prompts})}
    assert changes(old, new) == {f"file {image}": "it has changed"}


def test_another_number_of_processes_is_refused(run: Run) -> None:
    config = configuration.load(run.config)
    with pytest.raises(ValueError, match=r"another number of processes; .*it was 1, and is 2 now"):
        check_unchanged(config, run, World(count=2))
    check_unchanged(config, run, World(count=2), accept_changes=True)


def test_a_state_with_a_wrong_iteration_is_not_read(run: Run) -> None:
    expected = log(run.folder)
    state = run.checkpoints / "000002" / "state.json"
    edit(state, '"iteration": 2,', '"iteration": 1,')
    with pytest.warns(UserWarning, match="000002: damaged: its state.json is not what was written"):
        resume(run)
    assert log(run.folder) == expected

    about = json.loads(state.read_text("utf-8"))
    state.write_text(json.dumps({**about, "iteration": 1, "digest": None}), "utf-8")
    with pytest.warns(UserWarning, match="000002: damaged: its state.json is of iteration 1"):
        resume(run)


@pytest.mark.parametrize("damage", ["deleted", "truncated", "emptied", "edited", "first row lost"])
def test_a_log_that_does_not_match_is_noticed(run: Run, damage: str) -> None:
    lines = run.log.read_text("utf-8").split("\n")
    if damage == "deleted":
        run.log.unlink()
    elif damage == "edited":
        edit(run.log, '"iteration": 1, "images": 4', '"iteration": 1, "images": 5')
    else:
        left = {"truncated": lines[0] + "\n" + lines[1][:9], "emptied": "", "first row lost": ""}
        run.log.write_text(left[damage] or ("" if damage == "emptied" else lines[1] + "\n"))

    refused(run, "log.jsonl is not what it was after iteration 2", "--accept-changes")
    resume(run, "iterations=3", accept=True)
    assert run.records()[-1]["iteration"] == 3
    resume(run)


def test_where_nothing_was_learned_everything_may_change(recipe: Path, tmp_path: Path) -> None:
    def load(*changed: str) -> Config:
        return configuration.load(recipe, changed)

    run = Run(train(load(), tmp_path / "run", stop=lambda: True))
    assert not run.checkpoints.exists()
    train(load(), run.folder, resume=True, stop=run.evaluation_file(0).is_file)
    assert run.evaluation_file(0).is_file() and not run.records()

    changed = ["seed=3", "model.rank=2", "prompts={use='list',texts=['an ox','a bee']}"]
    train(load(*changed), run.folder, resume=True)
    fresh = Run(train(load(*changed), tmp_path / "fresh"))
    assert log(run.folder) == log(fresh.folder)
    assert run.evaluation.read_bytes() == fresh.evaluation.read_bytes()
    assert run.origin.read_bytes() == fresh.origin.read_bytes()


def test_an_initial_evaluation_of_the_same_configuration_is_kept(
    recipe: Path, tmp_path: Path
) -> None:
    path = Run(tmp_path / "run").evaluation_file(0)
    run = Run(train(configuration.load(recipe), tmp_path / "run", stop=path.is_file))
    written = path.stat().st_mtime_ns
    resume(run)
    assert path.stat().st_mtime_ns == written


def test_a_checkpoint_of_before_goes_on(run: Run) -> None:
    state = run.checkpoints / "000002" / "state.json"
    about = json.loads(state.read_text("utf-8"))
    del about["origin"], about["digest"]
    state.write_text(json.dumps(about), "utf-8")
    run.export.unlink()
    resume(run, "iterations=3")
    assert len(run.records()) == 3

    state = run.checkpoints / "000003" / "state.json"
    assert "origin" in json.loads(state.read_text("utf-8"))


def test_the_command_line_names_the_key_and_takes_consent(
    run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    edit(run.config, "lr = 0.0003", "lr = 0.03")

    def command(*options: str) -> tuple[Any, str]:
        with pytest.raises(SystemExit) as ended:
            main(["train", "--out", str(run.folder), *options])
        return ended.value.code, capsys.readouterr().err

    code, err = command("--resume")
    assert code == 2 and "another optimizer.lr" in err and err.count("\n") == 1
    code, err = command("--resume", "--accept-changes", "--set", "iterations=3")
    assert not code and len(run.records()) == 3, err


def test_leaves_of_a_tree() -> None:
    tree = {"a": {"b": 1}, "c": [{"d": 2}], "e": [3, 4], "f": [], "g": {}}
    assert dict(leaves(tree)) == {"a.b": 1, "c.0.d": 2, "e": [3, 4], "f": []}
