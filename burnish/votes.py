"""Votes: the pairs of images that a run asks about, and the answers, as files of its directory.

    RUN/questions.jsonl     one JSON object a question, in the order in which they were asked
        {"id": "000003-00-1f2e3d4c", "iteration": 3, "prompt": "a fox",
         "left": "0a1b2c3d4e5f6071.png", "right": "8293a4b5c6d7e8f9.png", "repeats": ""}
    RUN/questions/*.png     the images, each named by the SHA-256 of its bytes
    RUN/waiting.json        the questions that were asked last: those that the training waits for
        {"questions": ["000003-00-1f2e3d4c"]}
    RUN/votes.jsonl         one JSON object a vote, in the order in which they were given
        {"question": "000003-00-1f2e3d4c", "answer": "left", "seconds": 1.8}
        {"undo": "000003-00-1f2e3d4c"}      takes back the vote on that question
    RUN/rounds.jsonl        one JSON object for each iteration that the training has gone on with
        {"iteration": 3, "round": "1f2e3d4c5b6a7988", "questions": 40, "votes": 37}
                            after so many lines of the other two; the last line of an iteration
                            counts

The training writes the questions and rounds, and whoever asks a person writes the votes by `answer`
and `undo`; any number of programs may do so at once. Files of lines only grow. A line is on the
disk when the function returns that adds it. What a crash leaves of a line is ignored, and removed
before the next one is added. A question with `repeats` shows the images of an earlier one again,
perhaps with the sides changed. Standard library only.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Annotated, Any, Literal, NotRequired, TypedDict, get_args

from burnish.annotations import Count, CountOrZero, PositiveOrZero, Rule, complaint
from burnish.files import decode_row, dumps, flush, json_object, raw_rows, read_text, write
from burnish.runs import Run, locked

Choice = Literal["left", "right", "both_bad", "skip"]
"""An answer: the better image, none of the two, or no answer at all."""

CHOICES: tuple[Choice, ...] = get_args(Choice)
IMAGE = re.compile(r"[0-9a-f]{16}\.png")
REMEDY = "delete this line"


@dataclass(frozen=True)
class IsImageName(Rule):
    """The name of an image of a question: no path, so that nothing else is ever opened."""

    def wanted(self, value: Any) -> str:
        """Return what the name must be; "" if it is."""
        return "" if IMAGE.fullmatch(value) else "16 hexadecimal digits and .png"


ImageName = Annotated[str, IsImageName()]


class QuestionRow(TypedDict):
    """A line of questions.jsonl."""

    id: str
    iteration: Count
    prompt: str
    left: ImageName
    right: ImageName
    repeats: NotRequired[str]


class WaitingFile(TypedDict):
    """waiting.json."""

    questions: list[str]


class RoundRow(TypedDict):
    """A line of rounds.jsonl."""

    iteration: Count
    round: str
    questions: NotRequired[CountOrZero]
    votes: CountOrZero


class VoteRow(TypedDict, total=False):
    """A line of votes.jsonl: a vote or an undo."""

    question: str
    answer: Choice
    seconds: PositiveOrZero
    undo: str


@dataclass(frozen=True)
class Question:
    """A pair of images that somebody is asked about."""

    id: str
    iteration: int  # whose images they are
    prompt: str
    left: str  # names of files, see `image_path`
    right: str
    repeats: str = ""  # the id of the question whose images these are; "": of none


@dataclass(frozen=True)
class Vote:
    """An answer that was given and not taken back."""

    question: str  # its id
    answer: Choice
    seconds: float  # from the question to the answer


@dataclass(frozen=True)
class Known:
    """The beginnings of the files that an iteration was learned from with, in lines."""

    questions: int | None  # of questions.jsonl; None: all
    votes: int  # of votes.jsonl


# Asking -----------------------------------------------------------------------------------------


def add_image(run: Run, png: bytes) -> str:
    """Write an image for questions, if it is not there yet; return its name.

    Args:
        run: the run directory.
        png: the file's bytes.
    """
    name = image_name(png)
    path = image_path(run, name)
    if not path.is_file():
        write(path, png)
    return name


def image_name(png: bytes) -> str:
    """Return the name of an image for questions by the file's bytes."""
    return f"{hashlib.sha256(png).hexdigest()[:16]}.png"


def make_question(
    iteration: int, number: int, prompt: str, left: str, right: str, repeats: str = ""
) -> Question:
    """Return a question; its id follows from what it shows, so that it is the same after a resume.

    Args:
        iteration: whose images they are.
        number: of the question in this iteration.
        prompt: of both images.
        left: the name of the image, from `add_image`.
        right: the same of the other one.
        repeats: the id of an earlier question with these images.
    """
    digest = hashlib.sha256(f"{left}/{right}/{repeats}/{prompt}".encode()).hexdigest()
    name = f"{iteration:06d}-{number:02d}-{digest[:8]}"
    return Question(name, iteration, prompt, left, right, repeats)


def ask(run: Run, listed: Sequence[Question]) -> None:
    """Make questions those that the training waits for; what is not in the file yet is added.

    Args:
        run: the run directory.
        listed: all questions of one iteration.
    """
    known = {question.id for question in questions(run)}
    new = [asdict(one) for one in listed if one.id not in known]
    if new:
        with locked(run.questions) as file:
            _add_lines(file, new)
    write(run.waiting, dumps({"questions": [one.id for one in listed]}))


def round_name(listed: Sequence[Question]) -> str:
    """Return what questions that are asked together are called, which follows from their ids."""
    return hashlib.sha256("/".join(one.id for one in listed).encode()).hexdigest()[:16]


def questions(run: Run, lines: int | None = None) -> list[Question]:
    """Return the questions, oldest first.

    Args:
        run: the run directory.
        lines: only the first lines of the file count; None: all.

    Raises:
        ValueError: a line is no question; the message names it.
    """
    known = QuestionRow.__annotations__
    rows = [_checked(run.questions, row, line, QuestionRow) for row, line in _rows(run.questions)]
    return [Question(**{key: row[key] for key in row if key in known}) for row in rows[:lines]]


def image_path(run: Run, name: str) -> Path:
    """Return the path of an image of a question by its name."""
    return run.question_images / name


def close_round(run: Run, iteration: int, listed: Sequence[Question]) -> Known:
    """Return what an iteration is learned from with, and note it.

    What was noted for the same questions counts again, so that a resumed run learns from the same
    votes. But once one of these votes was taken back or given anew in another way, those count
    that stand.

    Args:
        run: the run directory.
        iteration: whose questions were asked.
        listed: these questions.
    """
    name = round_name(listed)
    rows = [row for row in _round_rows(run) if row["iteration"] == iteration]
    row = next((row for row in reversed(rows) if row["round"] == name), None)
    given = vote_rows(run)

    if row is None or not _still_stand(given, row["votes"]):
        counts = {"questions": len(questions(run)), "votes": len(given)}
        row = {"iteration": iteration, "round": name, **counts}
    if row not in rows[-1:]:
        with locked(run.rounds) as file:
            _add_lines(file, [row])
    return _known(row)


def known_before(run: Run, iteration: int) -> Known:
    """Return what the last iteration before one was learned from with.

    Args:
        run: the run directory.
        iteration: from 1 on.
    """
    rows = _rounds_until(_round_rows(run), iteration - 1)
    return _known(rows[-1]) if rows else Known(0, 0)


def questions_before(run: Run, iteration: int) -> list[Question]:
    """Return the questions of earlier iterations that were there when the last of them was closed.

    Args:
        run: the run directory.
        iteration: from 1 on.
    """
    listed = questions(run, known_before(run, iteration).questions)
    return [question for question in listed if question.iteration < iteration]


def copy_until(run: Run, new: Run, iteration: int) -> None:
    """Copy the questions, votes and rounds of a run as they were after an iteration.

    Args:
        run: stays as it is, and may go on meanwhile.
        new: another run directory, without any.
        iteration: the last one whose votes are copied.
    """
    rounds = _rounds_until(_round_rows(run), iteration)
    if not rounds:
        return

    known = _known(rounds[-1])
    for source, target, count in (
        (run.questions, new.questions, known.questions),
        (run.votes, new.votes, known.votes),
        (run.rounds, new.rounds, len(rounds)),
    ):
        lines = [line for _, line in _rows(source)[:count]]
        write(target, b"".join(line + b"\n" for line in lines))

    for name in {side for one in questions(new) for side in (one.left, one.right)}:
        write(image_path(new, name), image_path(run, name).read_bytes())


def _round_rows(run: Run) -> list[dict[str, Any]]:
    return [_checked(run.rounds, row, line, RoundRow) for row, line in _rows(run.rounds)]


def _rounds_until(rows: list[dict[str, Any]], iteration: int) -> list[dict[str, Any]]:
    """Return the lines of rounds.jsonl up to the newest of an iteration, or of one before it.

    A run that was taken back has later iterations among them.
    """
    last = max((row["iteration"] for row in rows if row["iteration"] <= iteration), default=0)
    ends = [number for number, row in enumerate(rows, 1) if row["iteration"] == last]
    return rows[: ends[-1]] if ends else []


def _known(row: Mapping[str, Any]) -> Known:
    return Known(row.get("questions"), row["votes"])


def _still_stand(rows: Sequence[Mapping[str, Any]], lines: int) -> bool:
    """Return whether the votes in the first lines of votes.jsonl are the same after all of them."""
    now = {vote.question: vote.answer for vote in standing(rows)}
    return all(now.get(vote.question) == vote.answer for vote in standing(rows[:lines]))


# Answering --------------------------------------------------------------------------------------


def pending(run: Run) -> list[Question]:
    """Return the questions that want an answer, in the order in which to ask them.

    First come those whose vote was taken back, then the others that were asked last: the training
    waits for these. All others are passed over: the training has gone on without them, or asks
    other questions in their place.

    Args:
        run: the run directory.

    Raises:
        ValueError: a file, or a line of one, cannot be used; the message names it.
    """
    by_id = {question.id: question for question in questions(run)}
    waiting = [by_id[name] for name in _waiting_ids(run) if name in by_id]
    present = min((question.iteration for question in waiting), default=None)

    rows = vote_rows(run)
    answered = {vote.question for vote in standing(rows)}
    taken_back = {row["undo"] for row in rows if "undo" in row} - answered

    again = [
        question
        for question in by_id.values()
        if question.id in taken_back
        and (question in waiting or present is None or question.iteration < present)
    ]
    rest = [one for one in waiting if one.id not in answered | taken_back]
    return again + rest


def _waiting_ids(run: Run) -> list[str]:
    """Return the ids of the questions that were asked last."""
    if not run.waiting.is_file():
        return []

    remedy = "delete it, and go on with the run"
    content = json_object(read_text(run.waiting), str(run.waiting), remedy)
    if wrong := complaint(content, WaitingFile, ""):
        raise ValueError(f"{run.waiting}: {wrong}; {remedy}")
    return list(content["questions"])


def answer(run: Run, question: str, choice: Choice, seconds: float) -> None:
    """Add a vote; it is on the disk then.

    Args:
        run: the run directory.
        question: the id of the question.
        choice: the better image, "both_bad", or "skip" for no answer.
        seconds: from the question to the answer.

    Raises:
        ValueError: there is no such question, it has a vote already, or the vote is none.
        RuntimeError: another program holds the file.
    """
    vote = {"question": question, "answer": choice, "seconds": seconds}
    if wrong := complaint(vote, VoteRow, ""):
        raise ValueError(f"this vote cannot be taken: {wrong}")
    if question not in {one.id for one in questions(run)}:
        raise ValueError(f"{run.questions} has no question {question!r}; answer one of `pending`")

    with locked(run.votes) as file:
        if question in {one.question for one in votes(run)}:
            raise ValueError(
                f"question {question} has a vote already; take it back by `undo` first"
            )
        _add_lines(file, [vote])


def undo(run: Run) -> str:
    """Take back the newest vote that was not taken back; return its question's id, "" if none.

    Args:
        run: the run directory.

    Raises:
        RuntimeError: another program holds the file.
    """
    with locked(run.votes) as file:
        given = votes(run)
        if not given:
            return ""

        _add_lines(file, [{"undo": given[-1].question}])
        return given[-1].question


def votes(run: Run, lines: int | None = None) -> list[Vote]:
    """Return the votes that stand, oldest first.

    Args:
        run: the run directory.
        lines: only the first lines of the file count; None: all.

    Raises:
        ValueError: a line is no vote; the message names it.
    """
    return standing(vote_rows(run)[:lines])


def preferences(run: Run) -> list[tuple[str, str, str]]:
    """Return the (prompt, preferred image, other image) of each vote for one of two images.

    The images are names, see `image_path`.

    Args:
        run: the run directory.
    """
    by_id = {question.id: question for question in questions(run)}
    found = []

    for vote in votes(run):
        question = by_id.get(vote.question)
        if question is None or vote.answer not in ("left", "right"):
            continue
        images = (question.left, question.right)
        better, worse = images if vote.answer == "left" else images[::-1]
        found.append((question.prompt, better, worse))
    return found


def vote_rows(run: Run) -> list[dict[str, Any]]:
    """Return the lines of votes.jsonl, those that take votes back too.

    Raises:
        ValueError: a line is no vote; the message names it.
    """
    rows = []
    for row, line in _rows(run.votes):
        record = _checked(run.votes, row, line, VoteRow)
        if "undo" not in record and not {"question", "answer", "seconds"} <= record.keys():
            raise ValueError(f"{run.votes}, row {row}: neither a vote nor an undo; {REMEDY}")
        rows.append(record)
    return rows


def standing(rows: Sequence[Mapping[str, Any]]) -> list[Vote]:
    """Return the votes among lines of votes.jsonl that no later line takes back, oldest first."""
    given: dict[str, Vote] = {}
    for row in rows:
        if "undo" in row:
            given.pop(row["undo"], None)
        else:
            # a vote that two programs gave at once counts as the later one
            given.pop(row["question"], None)
            given[row["question"]] = Vote(row["question"], row["answer"], float(row["seconds"]))
    return list(given.values())


def consistency(listed: Sequence[Question], given: Sequence[Vote]) -> tuple[int, int]:
    """Return how many repeated pairs were answered alike, and how many were repeated.

    Only pairs count of which an image was preferred both times.

    Args:
        listed: questions.
        given: votes.
    """
    by_id = {question.id: question for question in listed}
    preferred = {
        vote.question: getattr(by_id[vote.question], vote.answer)
        for vote in given
        if vote.answer in ("left", "right") and vote.question in by_id
    }
    pairs = [
        (preferred[question.repeats], preferred[question.id])
        for question in listed
        if question.repeats in preferred and question.id in preferred
    ]
    return sum(first == second for first, second in pairs), len(pairs)


# The lines of a file ----------------------------------------------------------------------------


def _rows(path: Path) -> list[tuple[int, bytes]]:
    """Return the (number, line) of each row, without a last one that is not complete."""
    if not path.is_file():
        return []

    *complete, (last, unfinished) = raw_rows(path)
    if _is_whole(unfinished):  # an editor took away the last line's end
        complete.append((last, unfinished))
    return [(row, line) for row, line in complete if line.strip()]


def _is_whole(line: bytes) -> bool:
    """Return whether a line is a JSON object; the beginning of one never is."""
    try:
        json_object(line.decode("utf-8"), "", "")
    except ValueError:
        return False
    return True


def _checked(path: Path, row: int, line: bytes, layout: Any) -> dict[str, Any]:
    place = f"{path}, row {row}"
    record = json_object(decode_row(path, row, line), place, REMEDY)
    if wrong := complaint(record, layout, ""):
        raise ValueError(f"{place}: {wrong}; {REMEDY}")
    return record


def _add_lines(file: IO[bytes], records: Sequence[Mapping[str, Any]]) -> None:
    """Add lines to an open file, after removing what a crash left of a line."""
    file.seek(0)
    content = file.read()
    rest = content.rpartition(b"\n")[2]
    whole = _is_whole(rest)
    if not whole:
        file.truncate(len(content) - len(rest))

    text = "".join(f"{dumps(record)}\n" for record in records)
    file.write(b"\n" * whole + text.encode())
    flush(file)
