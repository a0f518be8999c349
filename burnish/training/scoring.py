"""Scoring: the rewards of an iteration's images, in a thread, while the next ones are sampled."""

from __future__ import annotations

import time
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from dataclasses import replace
from threading import Event

import torch
from torch import Tensor

from burnish.rewards import score
from burnish.rewards.tolerance import STEP
from burnish.training.job import Job, Stopped
from burnish.types import Prompt, Scores


class Scoring:
    """Scores chunks of images in a thread, one after the other, while the next are sampled."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self._abandoned = Event()
        self._tolerance = replace(job.parts.tolerance, poll=self._end_if_abandoned)
        self._futures: list[Future[tuple[Scores, float]]] = []
        self._thread = ThreadPoolExecutor(1)

    def __enter__(self) -> Scoring:
        return self

    def __exit__(self, *error: object) -> None:
        """After a failure no other chunk is scored, and a reward that hangs not waited for."""
        self._abandoned.set()
        self._thread.shutdown(cancel_futures=True)

    def submit(self, images: Tensor, prompts: list[Prompt]) -> None:
        """Score a chunk; a reward that failed is reported now, not after all chunks."""
        self._futures.append(self._thread.submit(self._score, images, prompts))
        for future in self._futures:
            if future.done():
                future.result()

    def results(self) -> list[tuple[Scores, float]]:
        """Return the scores of each chunk and the seconds they took.

        All processes wait together, so that they end together when a stop is requested.
        """
        job = self.job
        while job.world.any(not all(future.done() for future in self._futures)):
            done, _ = wait(self._futures, STEP, FIRST_EXCEPTION)
            for future in done:
                future.result()
            job.poll()

        return [future.result() for future in self._futures]

    def _score(self, images: Tensor, prompts: list[Prompt]) -> tuple[Scores, float]:
        started = time.perf_counter()
        scores = score(self.job.parts.rewards, images, prompts, self._tolerance)
        return scores, time.perf_counter() - started

    def _end_if_abandoned(self) -> None:
        if self._abandoned.is_set():
            raise Stopped


def join_scores(chunks: list[Scores], target_reward: Tensor | None) -> Scores:
    """Return the scores of several chunks as one."""
    problems = tuple(problem for chunk in chunks for problem in chunk.problems)
    parts = torch.cat([chunk.parts for chunk in chunks])
    return Scores(parts, chunks[0].names, problems, target_reward)
