"""Voting: which pairs are asked about, what votes say of images, and the same after a resume."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from burnish import votes as files
from burnish.config import load
from burnish.images import open_image
from burnish.rewards.bradley_terry import Comparisons, fit
from burnish.rewards.votes import SimulatedVoter, Votes, outcomes
from burnish.runs import Run
from burnish.training import voting
from burnish.training.assembly import Overrides
from burnish.training.job import Stopped
from burnish.training.loop import train
from burnish.training.requirements import check_votes
from burnish.training.voting import Round, with_votes
from burnish.types import Prompt, Scores
from burnish.votes import Question, Vote
from burnish.world import World

GROUP = torch.arange(3).repeat_interleave(4)
PROMPTS = [Prompt(f"prompt {number}") for number in GROUP.tolist()]
B = len(GROUP)


def redness(images: Tensor) -> Tensor:
    return images[:, 0].mean((1, 2)) - images[:, 2].mean((1, 2))


class Colours:
    """A model in the place of CLIP, whose features are the mean colours."""

    def move_to(self, device: str, images: Tensor) -> None:
        """Do nothing."""

    def features(self, images: Tensor, which: str) -> Tensor:
        """Return the mean colours (B, 3)."""
        return images.mean((2, 3))


def images_of(iteration: int) -> Tensor:
    """Return images of one colour each, (B, 3, 8, 8)."""
    stream = torch.Generator().manual_seed(iteration)
    return torch.rand(B, 3, 1, 1, generator=stream).expand(B, 3, 8, 8).clone()


@dataclass
class Voting:
    """A run in which the reward is votes, without a model that is trained."""

    folder: Path
    reward: Votes
    stop: bool = False
    seed: int = 5
    together: int = 4  # images of one drawn prompt

    @property
    def run(self) -> Run:
        """The run directory."""
        return Run(self.folder)

    def poll(self) -> None:
        """Raise `Stopped` if a stop is wanted."""
        if self.stop:
            raise Stopped

    def round(self, iteration: int) -> Tensor:
        """Return the rewards (B,) of an iteration."""
        job: Any = SimpleNamespace(
            run=self.run,
            world=World(),
            parts=SimpleNamespace(rewards={"other": None, "votes": self.reward}),
            config=SimpleNamespace(
                seed=self.seed, batch=SimpleNamespace(images_per_prompt=self.together)
            ),
            poll=self.poll,
        )
        placeholders = Scores(torch.zeros(B, 2, dtype=torch.float64), ("other", "votes"))
        scores = with_votes(job, iteration, images_of(iteration), PROMPTS, GROUP, placeholders)
        assert scores.parts[:, 0].tolist() == [0] * B
        self.problems = scores.problems
        return scores.parts[:, 1]


def with_head(**settings: Any) -> Votes:
    colours: Any = Colours()
    voter = SimulatedVoter(redness, wrong=0.0)
    return Votes(colours, **{"per_iteration": 4, "voter": voter, **settings})


def without_head(**settings: Any) -> Votes:
    voter = SimulatedVoter(redness, wrong=0.0)
    return Votes(None, **{"per_iteration": 4, "voter": voter, **settings})


def shown(run: Run, question: Question) -> Tensor:
    """Return the images of a question, (2, 3, H, W)."""
    sides = (question.left, question.right)
    return torch.stack([open_image(files.image_path(run, name)) for name in sides])


def test_without_a_head_only_images_that_were_asked_about_have_a_reward(tmp_path: Path) -> None:
    run = Voting(tmp_path, without_head(repeats=0.0))
    values = run.round(1)
    listed = files.questions(run.run)
    assert len(listed) == 4
    assert int(values.isfinite().sum()) == 8
    assert run.problems == ("votes: votes say nothing of 4 images",)

    red = redness(images_of(1))
    for number in GROUP.unique():
        rows = (number == GROUP) & values.isfinite()
        best, worst = values == 1, values == -1
        assert (best | worst)[rows].all()
    for question in listed:
        ratings = redness(shown(run.run, question)).tolist()
        rows = [int((red - rating).abs().argmin()) for rating in ratings]
        assert GROUP[rows[0]] == GROUP[rows[1]]
        assert question.prompt == PROMPTS[rows[0]].text
        assert values[rows].tolist() == ([1, -1] if ratings[0] > ratings[1] else [-1, 1])


def test_a_head_scores_all_images_as_the_voter_would(tmp_path: Path) -> None:
    run = Voting(tmp_path, with_head())
    for iteration in range(1, 9):
        values = run.round(iteration)

    red = redness(images_of(8))
    correlation = torch.corrcoef(torch.stack([values, red.double()]))[0, 1]
    assert correlation > 0.95
    assert run.reward.metrics["given"] == 32
    assert run.reward.metrics["accuracy"] > 0.8
    # half of a question in each iteration shows an earlier pair
    assert run.reward.metrics["repeated"] == run.reward.metrics["consistent"] == 4


def test_the_head_is_that_of_the_votes(tmp_path: Path) -> None:
    run = Voting(tmp_path, with_head(repeats=0.0))
    values = run.round(1)
    given = files.votes(run.run)
    pairs = []
    for question, vote in zip(files.questions(run.run), given, strict=True):
        colours = shown(run.run, question).mean((2, 3)).double()
        pairs.append(colours if vote.answer == "left" else colours.flip(0))

    better, worse = torch.stack(pairs).unbind(1)
    known = Comparisons(better, worse, torch.arange(4))
    features = images_of(1).mean((2, 3)).double()
    torch.testing.assert_close(values, fit(known).score(features)[0])


def test_sides_are_drawn_and_no_pair_comes_twice_by_chance(tmp_path: Path) -> None:
    run = Voting(tmp_path, with_head(repeats=0.25))
    for iteration in range(1, 7):
        run.round(iteration)

    listed = files.questions(run.run)
    new = [question for question in listed if not question.repeats]
    pairs = [frozenset((question.left, question.right)) for question in new]
    assert len(set(pairs)) == len(pairs)
    again = [question for question in listed if question.repeats]
    assert len(again) == 5  # one of four, after the first iteration
    assert len({question.repeats for question in again}) == 5
    by_id = {question.id: question for question in listed}
    for question in again:
        earlier = by_id[question.repeats]
        assert {question.left, question.right} == {earlier.left, earlier.right}

    left_is_redder = [bool(vote.answer == "left") for vote in files.votes(run.run)]
    assert 0 < sum(left_is_redder) < len(left_is_redder)


@pytest.mark.parametrize("make", [with_head, without_head])
def test_a_resumed_run_asks_and_learns_the_same(tmp_path: Path, make: Callable[..., Votes]) -> None:
    voter = SimulatedVoter(redness, wrong=0.3)
    first = Voting(tmp_path, make(voter=voter))
    values = [first.round(iteration) for iteration in (1, 2, 3)]
    before = {path.name: path.read_bytes() for path in tmp_path.glob("*.jsonl")}
    assert len(before) == 3

    # votes that came after it went on do not change what an iteration was learned from
    files.undo(first.run)
    again = Voting(tmp_path, make(voter=voter))
    for iteration in (2, 3):
        torch.testing.assert_close(
            again.round(iteration), values[iteration - 1], rtol=0, atol=0, equal_nan=True
        )
    assert (tmp_path / "questions.jsonl").read_bytes() == before["questions.jsonl"]
    assert (tmp_path / "rounds.jsonl").read_bytes() == before["rounds.jsonl"]


def test_votes_that_were_given_before_a_crash_are_not_asked_for_again(tmp_path: Path) -> None:
    named: list[str] = []

    def tires(question: Question, left: Tensor, right: Tensor) -> Any:
        named.append(question.id)
        if len(named) == 3:
            raise KeyboardInterrupt
        return "left"

    with pytest.raises(KeyboardInterrupt):
        Voting(tmp_path, with_head(voter=tires)).round(1)
    assert len(files.votes(Run(tmp_path))) == 2
    Voting(tmp_path, with_head(voter=tires)).round(1)
    assert len(named) == 5
    assert len(set(named)) == 4


def test_training_waits_for_the_last_vote(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(voting, "PAUSE", 0.001)
    run = Voting(tmp_path, with_head(voter=None))
    thread = threading.Thread(target=run.round, args=(1,), daemon=True)
    thread.start()
    while len(files.pending(run.run)) < 4:
        pass

    for question in files.pending(run.run)[:-1]:
        files.answer(run.run, question.id, "left", 0.5)
    thread.join(0.2)
    assert thread.is_alive()
    files.answer(run.run, files.pending(run.run)[0].id, "skip", 0.5)
    thread.join(20)
    assert not thread.is_alive()
    assert run.reward.metrics["median_seconds"] == 0.5


def test_a_stop_ends_the_waiting(tmp_path: Path) -> None:
    run = Voting(tmp_path, with_head(voter=None), stop=True)
    with pytest.raises(Stopped):
        run.round(1)
    assert len(files.pending(run.run)) == 4


def test_without_waiting_the_head_goes_on_once_it_knows_something(tmp_path: Path) -> None:
    run = Voting(tmp_path, with_head(wait=False))
    run.round(1)
    run.reward.voter = None
    values = run.round(2)
    assert values.isfinite().all()
    assert len(files.pending(run.run)) == 4
    assert run.reward.metrics["given"] == 4


def test_without_waiting_all_questions_of_the_first_iteration_are_answered_first(
    tmp_path: Path,
) -> None:
    voting = Round(Run(tmp_path), with_head(wait=False), 1, 0)
    names = [files.add_image(voting.run, content) for content in (b"1", b"2", b"3", b"4")]
    pairs = (names[:2], names[2:])
    listed = [files.make_question(1, row, "a", *pair) for row, pair in enumerate(pairs)]
    files.ask(voting.run, listed)
    files.answer(voting.run, listed[0].id, "left", 1.0)
    assert voting.lacks(listed)
    files.answer(voting.run, listed[1].id, "left", 1.0)
    assert not voting.lacks(listed)


def test_questions_are_about_images_that_were_drawn_together(tmp_path: Path) -> None:
    """A prompt that is drawn twice has pairs of two draws, of which each is learned from."""
    run = Voting(tmp_path, without_head(per_iteration=6, repeats=0.0), together=2)
    values = run.round(1)
    assert values.view(6, 2).sum(1).tolist() == [0] * 6


def test_skipped_questions_say_nothing(tmp_path: Path) -> None:
    run = Voting(tmp_path, with_head(voter=lambda question, left, right: "skip"))
    assert run.round(1).isnan().all()
    assert run.problems == (f"votes: votes say nothing of {B} images",)


def test_both_bad_is_worse_than_the_others(tmp_path: Path) -> None:
    run = Voting(tmp_path, with_head(repeats=0.0))

    def voter(question: Question, left: Tensor, right: Tensor) -> Any:
        ratings = redness(torch.stack([left, right]))
        if ratings.max() < 0:
            return "both_bad"
        return "left" if ratings[0] > ratings[1] else "right"

    run.reward.voter = voter
    for iteration in range(1, 7):
        values = run.round(iteration)
    assert "both_bad" in {vote.answer for vote in files.votes(run.run)}
    red = redness(images_of(6)).double()
    assert torch.corrcoef(torch.stack([values, red]))[0, 1] > 0.9


def test_the_outcome_of_an_image_is_the_mean_of_its_questions() -> None:
    listed = [
        Question(name, 1, "", *sides)
        for name, sides in zip("abcd", ("pq", "qr", "rs", "tu"), strict=True)
    ]
    given = [
        Vote("a", "left", 1),
        Vote("b", "left", 1),
        Vote("c", "both_bad", 1),
        Vote("d", "skip", 1),
    ]
    assert outcomes(listed, given) == {"p": 1, "q": 0, "r": -1, "s": -1}


def test_a_simulated_voter_is_wrong_as_often_as_it_says() -> None:
    voter = SimulatedVoter(redness, wrong=0.2, seed=1)
    red = torch.zeros(3, 4, 4)
    red[0] = 1
    questions = [Question(str(number), 1, "", "", "") for number in range(400)]
    answers = [voter(question, red, red.flip(0)) for question in questions]
    assert answers == [voter(question, red, red.flip(0)) for question in questions]
    assert 0.14 < answers.count("right") / 400 < 0.26


def test_equal_images_are_no_pair() -> None:
    images = images_of(1)[:4]
    images[1] = images[0]
    found = voting.pairs_within(images, torch.tensor([0, 0, 0, 1]))
    assert found == [(0, 2)]
    images[2] = images[0]
    assert voting.pairs_within(images, torch.tensor([0, 0, 0, 1])) == []


@pytest.mark.parametrize("make", [with_head, without_head])
def test_no_pair_is_asked_twice_although_images_come_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make: Callable[..., Votes]
) -> None:
    images = images_of(1)
    images[4:8] = images[:4]  # another prompt's, so that is another question
    images[9] = images[8]
    monkeypatch.setitem(globals(), "images_of", lambda iteration: images)
    run = Voting(tmp_path, make(repeats=0.0))
    for iteration in range(1, 6):
        run.round(iteration)

    listed = files.questions(run.run)
    shown = {(one.prompt, frozenset((one.left, one.right))) for one in listed}
    assert len(listed) == len(shown) == 6 + 6 + 3  # all that there are
    assert files.pending(run.run) == []


def waits_for(run: Voting, iteration: int) -> list[str]:
    """Return the ids of the questions that a training waits for; it is stopped then."""
    run.stop = True
    found: list[list[Question]] = []
    lacks = voting.Round.lacks

    def noted(self: voting.Round, listed: list[Question]) -> bool:
        found.append(listed)
        return lacks(self, listed)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(voting.Round, "lacks", noted)
        with pytest.raises(Stopped):
            run.round(iteration)
    answered = {vote.question for vote in files.votes(run.run)}
    return [question.id for question in found[-1] if question.id not in answered]


def test_what_is_pending_is_what_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = Voting(tmp_path, without_head(voter=None))
    four = waits_for(first, 1)
    assert [one.id for one in files.pending(first.run)] == four
    files.answer(first.run, four[0], "left", 1)

    more = Voting(tmp_path, without_head(voter=None, per_iteration=6))
    assert len(waits_for(more, 1)) == 5
    assert [one.id for one in files.pending(first.run)] == waits_for(more, 1)

    images = images_of(1)
    question = files.questions(first.run)[1]
    rows = [
        int((images[:, 0] - one[0]).abs().sum((1, 2)).argmin())
        for one in shown(first.run, question)
    ]
    images[rows[0], 0] += 1 / 255 * (1 if images[rows[0], 0, 0, 0] < 0.5 else -1)
    with monkeypatch.context() as patch:
        patch.setitem(globals(), "images_of", lambda iteration: images)
        assert len({*waits_for(first, 1)} - {*four}) == 1
        assert [one.id for one in files.pending(first.run)] == waits_for(first, 1)

    first.seed = 6
    assert not {*waits_for(first, 1)} & {*four[1:]}
    first.seed = 5
    assert waits_for(first, 1) == four[1:]
    assert [one.id for one in files.pending(first.run)] == four[1:]


def test_a_vote_that_was_changed_teaches_after_a_resume(tmp_path: Path) -> None:
    first = Voting(tmp_path, without_head())
    values = first.round(1)
    question = files.undo(first.run)
    (given,) = [one for one in files.vote_rows(first.run) if one.get("question") == question]
    other = {"left": "right", "right": "left"}[given["answer"]]
    files.answer(first.run, question, other, 1)  # type: ignore[arg-type]

    changed = Voting(tmp_path, without_head(voter=None)).round(1)
    differs = (changed != values) & values.isfinite()
    assert int(differs.sum()) == 2
    assert torch.equal(changed[differs], -values[differs])


@pytest.mark.parametrize(
    ("reward", "override", "message"),
    [
        (with_head(), "batch.images_per_prompt=1", "pairs of images of a prompt"),
        (with_head(), "batch.baseline='x0_preview'", "batch.baseline = ''"),
        (without_head(), "seed=1", "set scoring.missing"),
        (with_head(most_unknown=0.5), "seed=1", "set scoring.missing"),
        (without_head(wait=False), "scoring.missing='mask'", "set its wait = true"),
    ],
)
def test_settings_that_do_not_fit_are_refused(
    write_recipe: Callable[..., Path], reward: Votes, override: str, message: str
) -> None:
    config = load(write_recipe(advantage={"use": "batch"}), [override])
    with pytest.raises(ValueError, match=message):
        check_votes(config, {"votes": reward})
    with pytest.raises(ValueError, match="one reward 'votes' only"):
        check_votes(config, {"one": reward, "two": reward})


def test_images_that_were_judged_before_are_not_voted_on(write_recipe: Callable[..., Path]) -> None:
    config = load(write_recipe(prompts={"use": "pairs", "path": "HERE"}))
    with pytest.raises(ValueError, match='prompts.use = "pairs" .* nothing to vote on'):
        check_votes(config, {"votes": with_head()})


def test_a_model_is_trained_by_votes(
    write_recipe: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = write_recipe(
        iterations=2,
        objective={"use": "dpo"},
        scoring={"missing": "mask"},
        batch={"prompts": 2, "images_per_prompt": 3, "transitions": 1, "minibatches": 1},
        evaluation={"images_per_prompt": 0},
        run={"sample_every": 0},
    )
    reward = without_head(per_iteration=2, repeats=0.5)
    quick, clock, late = reward.voter, time.perf_counter, [0.0]

    def thinks(*question: Any) -> Any:
        late[0] += 1000.0
        return quick(*question)

    monkeypatch.setattr(time, "perf_counter", lambda: clock() + late[0])
    reward.voter = thinks
    overrides = Overrides(rewards={"votes": reward})
    run = Run(train(load(recipe), tmp_path / "out", overrides=overrides))
    first, last = run.records()
    assert first["votes"] == {
        "asked": 2,
        "given": 2,
        "repeated": 0,
        "consistent": 0,
        "median_seconds": 0,
    }
    assert last["votes"]["repeated"] == 1
    for record in (first, last):
        assert 2000 <= record["seconds_waiting"] < 2900 and record["seconds_sampling"] < 900
    assert first["missing"] == {"votes": 2}
    assert first["grad_norm"] > 0
    assert len(files.votes(run)) == 4
