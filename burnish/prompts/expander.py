"""The prompt expansion network: a language model that adds details to a prompt, as a policy over
words.

    p(words | prompt) = prod_i softmax(logits(prompt, words before i) / temperature)_i        (Parrot, arXiv 2401.05675)

The prompt stays as it is, and the words are put behind it. An action is a token, the one that ends
the text included. A
token is drawn from the whole vocabulary: after a top-k or nucleus cut a later model could give a
drawn token no probability at all, and the ratio would be infinite. Text encoders read so many
tokens and no more: of what is drawn, the longest beginning is kept with which the whole prompt
fits. What is cut off is no action and has no log-probability, for it changed no picture.

Drawing goes token by token with a cache, training reads all of a text at once: `replay` under the
weights that drew it gives back the stored log-probabilities, up to rounding.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from inspect import signature
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from burnish import zoo
from burnish.diffusion import lora
from burnish.errors import first_line
from burnish.seeds import generator
from burnish.types import Prompt

INSTRUCTION = (
    "Here is a prompt for an image generator: {prompt}\nWrite a few words to put behind it that make the picture more "
    "beautiful: style, light, place, details. Answer with these words alone, separated by commas."
)
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
TRAINED = ("lora", "full", "none")


@dataclass(frozen=True)
class Expansions:
    """n texts as they were drawn: P tokens that ask, padded on the left, then G drawn ones."""

    prompts: list[Prompt]  # n, expanded; the metadata's "original" is the text before
    ids: Tensor  # (n, P + G) int64
    attention_mask: Tensor  # (n, P + G) bool: no padding, and nothing that was cut off
    action_mask: Tensor  # (n, G) bool: the actions
    # (n, G) float32, log-probability of each action under the sampling weights; 0 where there is
    # none
    logp: Tensor
    truncated: Tensor  # (n,) bool: words were left out because the prompt would have been too long


@dataclass(frozen=True)
class TokenLogProbs:
    """What the current weights say about b stored texts, (b, G) each; 0 where there is no action."""

    logp: Tensor  # with gradient
    kl: Tensor | None  # KL of the whole next-token distribution to the starting model's, in nats


class Expander:
    """A language model that expands prompts and can be trained. Made by ``Expander.load``.

    Attributes:
        model: the transformers model, with peft's adapter if it has one.
        trainable: the parameters that learn, float32; empty with ``train="none"``.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        train: str = "none",
        *,
        temperature: float = 1.0,
        tokens: int = 48,
        instruction: str = "",
        fits: Callable[[Prompt], bool] = lambda prompt: True,
    ) -> None:
        """``fits`` says whether the generator reads a prompt to its end; see ``load`` for the rest."""
        self.model = model.eval()
        self.tokenizer = tokenizer
        self.train = train
        self.temperature = temperature
        self.tokens = tokens
        self.fits = fits
        self.instruction = instruction or INSTRUCTION
        self._named = (
            {name: p for name, p in model.named_parameters() if p.requires_grad}
            if train != "none"
            else {}
        )
        self.trainable = list(self._named.values())
        self._first: list[Tensor] | None = None
        ends = model.generation_config.eos_token_id
        ends = tokenizer.eos_token_id if ends is None else ends
        self._ends = {
            end for end in (ends if isinstance(ends, list) else [ends]) if end is not None
        }
        self._pad = (
            next(iter(self._ends), 0) if tokenizer.pad_token_id is None else tokenizer.pad_token_id
        )
        bare = model.get_base_model() if hasattr(model, "get_base_model") else model
        # transformers names its cache `cache` since 5.24 and warns of the old name, the only one
        # that 5.0 knows
        names = signature(bare.forward).parameters
        self._cache = "cache" if "cache" in names else "past_key_values"

    @classmethod
    def load(
        cls,
        model: str,
        *,
        train: str = "lora",
        rank: int = 8,
        dtype: str = "float32",
        device: str | torch.device = "cpu",
        adapter: str | Path = "",
        **settings: Any,
    ) -> Expander:
        """An expander from ``zoo:NAME``, a folder or a hub id.

        Args:
            model: any causal language model of transformers. One with a chat template is asked by
                ``instruction``,
                another one continues the prompt.
            train: "lora" (every linear layer but the last), "full" or "none".
            rank: of a new adapter; its scale is 1.
            dtype: "float32" or "bfloat16", of what is frozen; what learns is float32.
            device: where it computes.
            adapter: a folder that ``save`` wrote, to start from.
            settings: ``temperature`` of the distribution that is drawn from and trained, ``tokens``
                at most,
                ``instruction`` with ``{prompt}`` in it, and ``fits``.

        Raises:
            ValueError: a setting is wrong, or there is no such model; the message names it.
        """
        for name, value, known in (("train", train, TRAINED), ("dtype", dtype, tuple(DTYPES))):
            if value not in known:
                raise ValueError(
                    f"expander.{name} must be one of {', '.join(known)}, not '{value}'."
                )

        from transformers import AutoModelForCausalLM, AutoTokenizer

        whole = str(adapter) if adapter and (Path(adapter) / "config.json").is_file() else ""

        if adapter and not whole and not (Path(adapter) / "adapter_config.json").is_file():
            raise FileNotFoundError(
                f"{adapter} holds no expander (neither adapter_config.json nor config.json)."
            )

        source = zoo.resolve(model)
        kind = torch.float32 if train == "full" else DTYPES[dtype]

        try:
            tokenizer = AutoTokenizer.from_pretrained(source)
            network = AutoModelForCausalLM.from_pretrained(whole or source, dtype=kind)
        except (OSError, ValueError, KeyError) as error:
            reason = first_line(error)
            raise ValueError(
                f"expander.model = '{model}' is no causal language model: {reason}"
            ) from error

        network = network.to(device).requires_grad_(train == "full")
        if adapter and not whole:
            network = _adapted(network, Path(adapter), train, rank)
        elif train == "lora":
            network = _adapt(network, rank, model)

        return cls(network, tokenizer, train, **settings)

    @torch.no_grad()
    def draw(self, prompts: Sequence[Prompt], generator: torch.Generator) -> Expansions:
        """An expansion of each of n prompts; all chance comes from the CPU ``generator``.

        From one generator state, a model that changed a little draws mostly the same words (the
        draw is an exponential race), so that evaluations before and after training can be compared.
        """
        asked, seen = self._ask([prompt.text for prompt in prompts])
        ends = torch.tensor(sorted(self._ends), dtype=torch.long, device=asked.device)
        ids = asked
        alive = torch.ones(len(prompts), 1, dtype=torch.bool, device=asked.device)
        inputs = asked
        cache = None
        logps: list[Tensor] = []
        alives: list[Tensor] = []

        while len(logps) < self.tokens and alive.any():
            position = (seen.cumsum(1) - 1).clamp(min=0)[:, -inputs.shape[1] :]
            out = self.model(
                input_ids=inputs, attention_mask=seen.long(), position_ids=position, **{self._cache: cache},
                use_cache=True, logits_to_keep=1,
            )  # fmt: skip
            chances = self._log(out.logits[:, -1])
            cache = out[self._cache]
            drawn = torch.multinomial(chances.exp().cpu(), 1, generator=generator).to(asked.device)
            inputs = torch.where(alive, drawn, self._pad)
            logps.append(torch.where(alive, chances.gather(1, inputs), 0.0))
            alives.append(alive)
            ids = torch.cat([ids, inputs], 1)
            seen = torch.cat([seen, alive], 1)
            alive = alive & ~torch.isin(inputs, ends)

        return self._cut(
            prompts,
            asked,
            ids.cpu(),
            seen.cpu(),
            torch.cat(alives, 1).cpu(),
            torch.cat(logps, 1).cpu(),
        )

    def replay(self, drawn: Expansions, rows: Tensor, reference: bool = False) -> TokenLogProbs:
        """The log-probabilities of the texts in ``rows`` (b,) under the current weights, with
        gradient.

        ``reference`` also asks the model as it was when ``remember`` was called, for ``kl``.
        """
        ids = drawn.ids[rows].to(self.model.device)
        seen = drawn.attention_mask[rows].to(self.model.device)
        said = drawn.action_mask[rows].to(ids.device)
        now = self._chances(ids, seen, said.shape[1])
        logp = torch.where(said, now.gather(2, ids[:, -said.shape[1] :, None])[..., 0], 0.0)

        if not reference:
            return TokenLogProbs(logp, None)

        with torch.no_grad(), self.reference():
            first = self._chances(ids, seen, said.shape[1])

        return TokenLogProbs(logp, torch.where(said, (now.exp() * (now - first)).sum(-1), 0.0))

    def pairs(self, pairs: Sequence[tuple[str, str]]) -> Expansions:
        """Given (prompt, words to put behind it) as if they had been drawn, each with its end, to
        be imitated.
        """
        asked, seen = self._ask([prompt for prompt, _ in pairs])
        ends = (
            sorted(self._ends)[:1]
            if self.tokenizer.eos_token_id is None
            else [self.tokenizer.eos_token_id]
        )
        words = [
            self.tokenizer(words, add_special_tokens=False)["input_ids"] + ends
            for _, words in pairs
        ]
        longest = max(map(len, words))
        ids = torch.tensor([row + [self._pad] * (longest - len(row)) for row in words])
        said = torch.arange(longest) < torch.tensor([[len(row)] for row in words])
        prompts = [_expanded(Prompt(prompt), words) for prompt, words in pairs]
        ids = torch.cat([asked.cpu(), ids], 1)
        seen = torch.cat([seen.cpu(), said], 1)

        return Expansions(
            prompts,
            ids,
            seen,
            said,
            torch.zeros(said.shape),
            torch.zeros(len(said), dtype=torch.bool),
        )

    @property
    def remembers(self) -> bool:
        """Whether ``replay`` can be asked for its KL to a starting model."""
        return self._first is not None

    def remember(self) -> None:
        """Keeps a copy of the weights that learn, as they are now: the starting model of
        ``replay``'s KL.
        """
        self._first = [p.detach().clone() for p in self.trainable]

    @contextmanager
    def reference(self) -> Iterator[None]:
        """Within it the model is as it was when ``remember`` was called; RuntimeError if it never
        was.
        """
        if self._first is None:
            raise RuntimeError("an expander has a reference only after remember().")

        now = [p.data for p in self.trainable]
        for parameter, first in zip(self.trainable, self._first, strict=True):
            parameter.data = first

        try:
            yield
        finally:
            for parameter, data in zip(self.trainable, now, strict=True):
                parameter.data = data

    def state(self) -> dict[str, Tensor]:
        """A copy of what was learned by parameter name, float32 on the CPU."""
        return {
            name: p.detach().cpu().clone(memory_format=torch.contiguous_format)
            for name, p in self._named.items()
        }

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Takes over what ``state`` gave; raises ValueError and changes nothing if it does not fit."""
        lora.copy_state(self._named, state, "the checkpoint's expander")

    def save(self, folder: Path) -> None:
        """Writes what was learned: a LoRA for peft's ``PeftModel.from_pretrained``, or the whole
        model for transformers; nothing with ``train="none"``.
        """
        if self.train == "none":
            return

        with lora.publishing(folder) as made:
            if self.train == "full":
                self.model.save_pretrained(made)
                self.tokenizer.save_pretrained(made)
            else:
                self.model.save_pretrained(made, save_embedding_layers=False)
                (made / "README.md").unlink(missing_ok=True)  # an empty form

    def _log(self, logits: Tensor) -> Tensor:
        exact = logits if logits.dtype == torch.float64 else logits.float()
        return (exact / self.temperature).log_softmax(-1)

    def _chances(self, ids: Tensor, seen: Tensor, drawn: int) -> Tensor:
        """(b, drawn, V) log-probabilities of every next token."""
        position = (seen.cumsum(1) - 1).clamp(min=0)
        out = self.model(
            input_ids=ids,
            attention_mask=seen.long(),
            position_ids=position,
            use_cache=False,
            logits_to_keep=drawn + 1,
        )
        return self._log(out.logits[:, -drawn - 1 : -1])

    def _ask(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """What the model is told, (n, P) tokens padded on the left, and where there is none of
        that.
        """
        rows = [self._told(text) for text in texts]
        longest = max(map(len, rows))
        ids = torch.stack(
            [pad(torch.tensor(row), (longest - len(row), 0), value=self._pad) for row in rows]
        )
        seen = torch.arange(longest) >= torch.tensor([[longest - len(row)] for row in rows])
        return ids.to(self.model.device), seen.to(self.model.device)

    def _told(self, text: str) -> list[int]:
        if self.tokenizer.chat_template is None:
            ids = list(self.tokenizer(text)["input_ids"])
            return ids[:-1] if len(ids) > 1 and ids[-1] in self._ends else ids or [self._pad]

        message = {"role": "user", "content": self.instruction.replace("{prompt}", text)}
        # models that think before they speak are asked not to; the templates of others do not look
        told = self.tokenizer.apply_chat_template(
            [message], add_generation_prompt=True, tokenize=False, enable_thinking=False
        )
        return list(self.tokenizer(told, add_special_tokens=False)["input_ids"])

    def _words(self, text: str, asked: list[int], drawn: list[int]) -> str:
        """What is put behind ``text``: drawn tokens as words, on one line."""
        decode = self.tokenizer.decode
        # decoded with what they continue, they know whether a space is due
        if self.tokenizer.chat_template is None:
            drawn = [token for token in drawn if token not in self.tokenizer.all_special_ids]
            words = decode(asked + drawn).removeprefix(decode(asked))
            return (" " if words[:1].isspace() else "") + " ".join(words.split())

        words = " ".join(decode(drawn, skip_special_tokens=True).split()).strip(' "')
        if words.lower().startswith(text.lower()):
            words = words[len(text) :].strip()

        return words if not words or words[0] in ",.;:" else f" {words}"

    def _cut(
        self,
        prompts: Sequence[Prompt],
        asked: Tensor,
        ids: Tensor,
        seen: Tensor,
        said: Tensor,
        logp: Tensor,
    ) -> Expansions:
        """Keeps of each text the longest beginning that fits."""
        start = asked.shape[1]
        texts = []
        cut = torch.zeros(len(ids), dtype=torch.bool)

        for row, prompt in enumerate(prompts):
            told = ids[row, :start][seen[row, :start]].tolist()

            for count in range(int(said[row].sum()), -1, -1):
                words = (
                    self._words(prompt.text, told, ids[row, start : start + count].tolist())
                    if count
                    else ""
                )

                if not words or self.fits(_expanded(prompt, words)):
                    break

                cut[row] = True

            if cut[row]:
                said[row, count:] = False

            texts.append(_expanded(prompt, words))

        seen[:, start:] = said
        ids[:, start:] = torch.where(said, ids[:, start:], self._pad)
        return Expansions(texts, ids, seen, said, torch.where(said, logp, 0.0), cut)


def _expanded(prompt: Prompt, words: str) -> Prompt:
    return replace(
        prompt, text=prompt.text + words, metadata={**prompt.metadata, "original": prompt.text}
    )


@contextmanager
def _without_warnings() -> Iterator[None]:
    """peft 0.21 asks transformers 5.23 for an attribute by a name that is going away."""
    with warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning
        )
        yield


def _adapt(network: Any, rank: int, name: str) -> Any:
    """The network with a fresh adapter: B = 0, so it is silent yet. A does not depend on when it is
    loaded.
    """
    from peft import LoraConfig, get_peft_model

    settings = LoraConfig(
        r=rank, lora_alpha=rank, target_modules="all-linear", task_type="CAUSAL_LM"
    )

    with torch.random.fork_rng(devices=[]), _without_warnings():
        torch.default_generator.manual_seed(0)
        adapted = get_peft_model(network, settings)

    adapted.peft_config["default"].base_model_name_or_path = name
    for parameter in adapted.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()

    return adapted


def _adapted(network: Any, folder: Path, train: str, rank: int) -> Any:
    """The network with the adapter in ``folder``."""
    from peft import PeftModel

    try:
        with _without_warnings():
            adapted = PeftModel.from_pretrained(network, str(folder), is_trainable=train == "lora")
    # a damaged file or another model's makes the libraries below raise anything
    except Exception as error:
        first = first_line(error)
        raise ValueError(f"the expander's adapter in {folder} cannot be read: {first}") from error

    theirs = adapted.peft_config["default"].r
    if train == "lora" and theirs != rank:
        raise ValueError(f"{folder} has rank {theirs}: set expander.rank = {theirs}.")

    return adapted


def expand_in_chunks(
    expander: Expander | None, prompts: Sequence[Prompt], chunk: int, *keys: object
) -> list[Prompt]:
    """Return the prompts expanded, each chunk from the random stream (keys, its first row).

    Without an expander they are returned as they are.
    """
    if expander is None:
        return list(prompts)

    expanded: list[Prompt] = []
    for start in range(0, len(prompts), chunk):
        stream = generator(*keys, start)
        expanded += expander.draw(prompts[start : start + chunk], stream).prompts

    return expanded
