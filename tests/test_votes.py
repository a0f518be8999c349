"""Votes are lines of files: none is lost, each can be taken back, and a torn line is repaired."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from burnish import runs, votes
from burnish.runs import Run, tidy
from burnish.votes import Known, Question, Vote


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Return a run with two rounds of two questions, of which the last repeats the first."""
    run = Run(tmp_path)
    images = [votes.add_image(run, bytes([number])) for number in range(6)]
    first = votes.make_question(1, 0, "a fox", images[0], images[1])
    votes.ask(run, [first, votes.make_question(1, 1, "a cat", images[2], images[3])])
    again = votes.make_question(2, 1, "a fox", images[1], images[0], repeats=first.id)
    votes.ask(run, [votes.make_question(2, 0, "a dog", images[4], images[5]), again])
    return run


def ids(questions: list[Question]) -> list[str]:
    """Return the ids of questions."""
    return [question.id for question in questions]


def test_the_last_round_is_pending_until_it_is_answered(run: Run) -> None:
    listed = votes.questions(run)
    assert [question.iteration for question in listed] == [1, 1, 2, 2]
    assert votes.pending(run) == listed[2:]

    votes.answer(run, listed[2].id, "left", 1.5)
    votes.answer(run, listed[0].id, "both_bad", 2)  # of a round that was passed over
    assert votes.pending(run) == listed[3:]
    assert votes.votes(run) == [
        Vote(listed[2].id, "left", 1.5),
        Vote(listed[0].id, "both_bad", 2.0),
    ]


def test_a_vote_that_is_taken_back_is_asked_for_again_first(run: Run) -> None:
    listed = votes.questions(run)
    votes.answer(run, listed[0].id, "left", 1)
    votes.answer(run, listed[2].id, "right", 1)

    assert votes.undo(run) == listed[2].id
    assert votes.undo(run) == listed[0].id
    assert votes.undo(run) == ""
    assert votes.votes(run) == []
    assert ids(votes.pending(run)) == [listed[0].id, listed[2].id, listed[3].id]

    votes.answer(run, listed[0].id, "right", 1)
    assert votes.votes(run) == [Vote(listed[0].id, "right", 1.0)]
    assert votes.votes(run, lines=2) == [
        Vote(listed[0].id, "left", 1.0),
        Vote(listed[2].id, "right", 1.0),
    ]
    assert len(run.votes.read_text().splitlines()) == 5  # nothing was removed


@pytest.mark.parametrize(
    ("question", "answer", "seconds", "message"),
    [
        ("nothing", "left", 1, "has no question 'nothing'"),
        ("", "up", 1, "answer"),
        ("", "left", -1, "seconds"),
        ("", "left", float("nan"), "seconds"),
    ],
)
def test_what_is_no_vote_is_refused(
    run: Run, question: str, answer: str, seconds: float, message: str
) -> None:
    question = question or votes.questions(run)[0].id
    with pytest.raises(ValueError, match=message):
        votes.answer(run, question, answer, seconds)  # type: ignore[arg-type]
    assert not run.votes.exists()


def test_a_question_has_one_vote(run: Run) -> None:
    question = votes.questions(run)[0].id
    votes.answer(run, question, "left", 1)
    with pytest.raises(ValueError, match="has a vote already"):
        votes.answer(run, question, "right", 1)


def test_a_line_that_a_crash_cut_off_is_ignored_and_then_removed(run: Run) -> None:
    listed = votes.questions(run)
    votes.answer(run, listed[2].id, "left", 1)
    whole = run.votes.read_bytes()

    for length in range(1, len(whole)):
        run.votes.write_bytes(whole + whole[:length])
        complete = whole[:length].endswith(b"}")
        assert len(votes.vote_rows(run)) == 1 + complete
        if not complete:
            votes.answer(run, listed[3].id, "right", 1)
            assert [vote.question for vote in votes.votes(run)] == [listed[2].id, listed[3].id]

    run.votes.write_bytes(whole.rstrip())  # an editor took away the last line's end
    votes.answer(run, listed[3].id, "right", 1)
    assert len(votes.votes(run)) == 2


def test_questions_of_a_start_that_was_given_up_are_not_pending(run: Run) -> None:
    listed = votes.questions(run)
    anew = votes.make_question(2, 0, "a pig", listed[0].left, listed[2].right)
    votes.ask(run, [anew])
    assert votes.pending(run) == [anew]


def test_pending_is_what_was_asked_last_although_all_of_it_is_known(run: Run) -> None:
    listed = votes.questions(run)
    anew = votes.make_question(2, 0, "a pig", listed[0].left, listed[2].right)
    votes.ask(run, [anew, listed[3]])  # as of a start with another setting
    assert votes.pending(run) == [anew, listed[3]]

    votes.answer(run, anew.id, "left", 1)
    votes.undo(run)
    before = run.questions.read_bytes()
    votes.ask(run, listed[2:])  # and back again
    assert votes.pending(run) == listed[2:]
    assert run.questions.read_bytes() == before

    run.waiting.write_text('{"questions": 1}')
    with pytest.raises(ValueError, match=r"waiting\.json: questions"):
        votes.pending(run)


def test_what_was_noted_for_a_round_counts_again(run: Run) -> None:
    listed = votes.questions(run)
    assert votes.close_round(run, 1, listed[:2]) == Known(4, 0)
    votes.answer(run, listed[2].id, "left", 1)
    assert votes.close_round(run, 2, listed[2:]) == Known(4, 1)

    before = run.rounds.read_bytes()
    votes.answer(run, listed[3].id, "left", 1)
    assert votes.close_round(run, 2, listed[2:]) == Known(4, 1)
    assert run.rounds.read_bytes() == before

    # other questions, as of another seed, and the former ones again
    assert votes.close_round(run, 2, listed[3:]) == Known(4, 2)
    assert [votes.known_before(run, i) for i in (1, 2, 3)] == [
        Known(0, 0),
        Known(4, 0),
        Known(4, 2),
    ]
    assert votes.close_round(run, 2, listed[2:]) == Known(4, 1)
    assert votes.known_before(run, 3) == Known(4, 1)


def test_a_vote_that_was_changed_counts_when_its_round_is_asked_again(run: Run) -> None:
    listed = votes.questions(run)
    votes.answer(run, listed[2].id, "left", 1)
    votes.answer(run, listed[3].id, "left", 1)
    assert votes.close_round(run, 2, listed[2:]).votes == 2

    votes.undo(run)
    votes.answer(run, listed[3].id, "left", 9)  # the same, after a second thought
    assert votes.close_round(run, 2, listed[2:]).votes == 2
    votes.undo(run)
    votes.answer(run, listed[3].id, "right", 1)
    assert votes.close_round(run, 2, listed[2:]).votes == 6
    assert votes.close_round(run, 2, listed[2:]).votes == 6
    assert votes.known_before(run, 3).votes == 6


def test_rounds_of_an_older_version_count_all_questions(run: Run) -> None:
    run.rounds.write_text('{"iteration": 1, "round": "0", "votes": 3}\n')
    assert votes.known_before(run, 2) == Known(None, 3)


def test_a_copy_has_what_was_there_after_an_iteration(run: Run, tmp_path: Path) -> None:
    listed = votes.questions(run)
    rows = run.questions.read_bytes().splitlines(keepends=True)
    run.questions.write_bytes(b"".join(rows[:2]))
    votes.answer(run, listed[0].id, "left", 1)
    votes.close_round(run, 1, listed[:2])
    votes.undo(run)
    votes.ask(run, listed[2:])
    votes.close_round(run, 2, listed[2:])

    new = Run(tmp_path / "new")
    new.folder.mkdir()
    votes.copy_until(run, new, 0)
    assert not list(new.folder.iterdir())
    votes.copy_until(run, new, 1)
    assert votes.questions(new) == listed[:2]
    assert [vote.answer for vote in votes.votes(new)] == ["left"]
    assert len(list(new.question_images.iterdir())) == 4
    assert votes.pending(new) == []
    for number in (1, 2):
        assert votes.known_before(new, number) == votes.known_before(run, number)
    votes.copy_until(run, new, 7)
    assert new.votes.read_bytes() == run.votes.read_bytes()


def test_questions_are_asked_once(run: Run) -> None:
    before = run.questions.read_bytes()
    votes.ask(run, votes.questions(run)[2:])
    assert run.questions.read_bytes() == before


def test_consistency_compares_images_and_not_sides(run: Run) -> None:
    first, _, _, again = votes.questions(run)
    left = Vote(first.id, "left", 1.0)
    assert votes.consistency(votes.questions(run), [left]) == (0, 0)
    assert votes.consistency(votes.questions(run), [left, Vote(again.id, "right", 1.0)]) == (1, 1)
    assert votes.consistency(votes.questions(run), [left, Vote(again.id, "left", 1.0)]) == (0, 1)
    assert votes.consistency(votes.questions(run), [left, Vote(again.id, "skip", 1.0)]) == (0, 0)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("[]", "row 5: not a JSON object"),
        ('{"id": "x", "iteration": 1, "prompt": "", "left": "../a.png", "right": ""}', "left"),
        ('{"id": "x", "iteration": 0, "prompt": "", "left": "", "right": ""}', "iteration"),
    ],
)
def test_a_line_that_is_no_question_is_named(run: Run, line: str, message: str) -> None:
    with run.questions.open("a") as file:
        file.write(f"{line}\n")
    with pytest.raises(ValueError, match=message):
        votes.pending(run)


def test_a_blank_line_is_none(run: Run) -> None:
    question = votes.questions(run)[0]
    votes.answer(run, question.id, "left", 1.0)
    with run.votes.open("a") as file:
        file.write("\n \n")
    assert [vote.question for vote in votes.votes(run)] == [question.id]


def test_a_line_that_is_no_vote_is_named(run: Run) -> None:
    run.votes.write_text('{"question": "x", "seconds": 1}\n')
    with pytest.raises(ValueError, match="row 1: neither a vote nor an undo"):
        votes.votes(run)


def give(folder: Path, numbers: range) -> None:
    """Answer questions by their numbers."""
    listed = votes.questions(Run(folder))
    for number in numbers:
        votes.answer(Run(folder), listed[number].id, "left", 0.1)


def test_several_programs_may_answer_at_once(tmp_path: Path) -> None:
    run = Run(tmp_path)
    votes.ask(
        run,
        [votes.make_question(1, n, "", "0" * 16 + ".png", "1" * 16 + ".png") for n in range(20)],
    )
    with ThreadPoolExecutor(2) as threads:
        list(threads.map(give, [tmp_path] * 2, (range(10), range(10, 20))))
    assert len(votes.votes(run)) == 20


def test_a_file_that_is_held_for_too_long_is_named(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runs, "LONGEST_WAIT", 0.0)
    monkeypatch.setattr(runs, "try_lock", lambda file: False)
    with pytest.raises(RuntimeError, match="was held by another program"):
        votes.undo(run)


def test_images_that_were_half_written_are_tidied(run: Run) -> None:
    name = votes.add_image(run, b"half")
    half = run.question_images / f".{name}.123.part"
    half.write_bytes(b"ha")
    tidy(run)
    assert not half.exists()
    assert votes.image_path(run, name).read_bytes() == b"half"
