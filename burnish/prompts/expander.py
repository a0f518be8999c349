"""The prompt expander: a language model that adds details to a prompt, as a policy over words.

    p(words | prompt) = prod_i softmax(logits(prompt, words before i) / temperature)_i
                                                                    (Parrot, arXiv 2401.05675)

The prompt stays as it is, and the words are put behind it. An action is a token, the one that ends
the text included. A token is drawn from the whole vocabulary: after a top-k or nucleus limit a
later model could give a drawn token no probability at all, and the ratio would be infinite. Text
encoders read only a limited number of tokens: of what is drawn, the longest beginning is kept with
which the whole prompt fits. What is truncated is no action and has no log-probability, for it
changed no image.

Drawing goes token by token with a cache, training reads all of a text at once: `replay` under the
weights that drew it gives back the stored log-probabilities, up to rounding.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from inspect import signature
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from burnish import pretrained
from burnish.diffusion import lora
from burnish.errors import first_line
from burnish.files import publishing
from burnish.prompts.tokens import PromptTokens
from burnish.seeds import generator
from burnish.types import Prompt

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
TRAINED = ("lora", "full", "none")


@dataclass(frozen=True)
class Expansions:
    """n texts as they were drawn: P tokens of the prompt, padded on the left, then G drawn ones."""

    prompts: list[Prompt]  # n, expanded; the metadata's "original" is the text before
    ids: Tensor  # (n, P + G) int64
    attention_mask: Tensor  # (n, P + G) bool: no padding, and nothing that was truncated
    action_mask: Tensor  # (n, G) bool: the drawn tokens that are actions
    logp: Tensor  # (n, G) float32 of each action under the sampling weights; 0 where there is none
    truncated: Tensor  # (n,) bool: words were left out because the prompt would be too long

    @classmethod
    def from_pairs(cls, pairs: Sequence[tuple[str, str]], tokens: PromptTokens) -> Expansions:
        """Return given (prompt, words behind it) as if they had been drawn, to be imitated."""
        prompt_ids, prompt_mask = tokens.encode_prompts([prompt for prompt, _ in pairs])
        ids, action_mask = tokens.encode_words([words for _, words in pairs])

        return cls(
            [_expanded(Prompt(prompt), words) for prompt, words in pairs],
            torch.cat([prompt_ids, ids], 1),
            torch.cat([prompt_mask, action_mask], 1),
            action_mask,
            torch.zeros(action_mask.shape),
            torch.zeros(len(pairs), dtype=torch.bool),
        )


@dataclass(frozen=True)
class TokenLogProbs:
    """Log-probabilities of the tokens of b texts, (b, G) each; 0 where there is no action."""

    logp: Tensor  # under the current weights, with gradient
    kl: Tensor | None  # KL of the whole next-token distribution to the starting model's, in nats


class Expander:
    """A language model that expands prompts and can be trained. Made by `Expander.load`.

    Attributes:
        model: the transformers model, with peft's adapter if it has one.
        tokenizer: the transformers tokenizer.
        prompt_tokens: the way in which the model reads a prompt.
        train: "lora", "full" or "none".
        trainable: the parameters that learn, float32; empty with `train="none"`.
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
        """Wrap a loaded model.

        Args:
            model: of transformers.
            tokenizer: of the model.
            train: "lora", "full" or "none".
            temperature: of the distribution that is drawn from and trained.
            tokens: that are drawn at most.
            instruction: for a model with a chat template, with `{prompt}` in it.
            fits: says whether the generator reads a prompt to its end.
        """
        self.model = model.eval()
        self.tokenizer = tokenizer
        self.prompt_tokens = PromptTokens(
            tokenizer, model.generation_config.eos_token_id, instruction
        )
        self.train = train
        self.temperature = temperature
        self.tokens = tokens
        self.fits = fits

        self._named: dict[str, Any] = {}
        if train != "none":
            self._named = {name: p for name, p in model.named_parameters() if p.requires_grad}

        self.trainable = list(self._named.values())
        self._initial: list[Tensor] | None = None
        self._cache = _cache_name(model)

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
        temperature: float = 1.0,
        tokens: int = 48,
        instruction: str = "",
        fits: Callable[[Prompt], bool] = lambda prompt: True,
    ) -> Expander:
        """Return an expander from `zoo:NAME`, a folder or a hub id.

        Args:
            model: any causal language model of transformers. One with a chat template reads
                `instruction`, another one continues the prompt.
            train: "lora" (every linear layer but the last), "full" or "none".
            rank: of a new adapter; its scale is 1.
            dtype: "float32" or "bfloat16", of what is frozen; what learns is float32.
            device: where it computes.
            adapter: a folder that `save` wrote, to start from, with the same `train`.
            temperature: of the distribution that is drawn from and trained.
            tokens: that are drawn at most.
            instruction: for a model with a chat template, with `{prompt}` in it.
            fits: says whether the generator reads a prompt to its end.

        Raises:
            FileNotFoundError: the folder `adapter` holds no expander.
            ValueError: a setting is wrong, or there is no such model; the message names it.
        """
        for name, value, known in (("train", train, TRAINED), ("dtype", dtype, tuple(DTYPES))):
            if value not in known:
                raise ValueError(
                    f"expander.{name} must be one of {', '.join(known)}, not '{value}'"
                )

        if adapter and not Path(adapter).exists():
            raise FileNotFoundError(f"expander.adapter: {adapter} does not exist")

        saved = Path(adapter)
        saved_model = bool(adapter) and (saved / "config.json").is_file()
        saved_lora = bool(adapter) and not saved_model

        if saved_lora and not (saved / "adapter_config.json").is_file():
            raise FileNotFoundError(
                f"{adapter} holds no expander (neither adapter_config.json nor config.json)"
            )

        if saved_model and train == "lora":
            raise ValueError(
                f"expander.adapter: {adapter} is a whole model, and a LoRA on top of it would be "
                f'saved without it; set expander.model = "{adapter}" and leave expander.adapter '
                'out, or set expander.train = "full"'
            )
        if saved_lora and train == "full":
            raise ValueError(
                f"expander.adapter: {adapter} is a LoRA, which does not start a whole model; set "
                'expander.train = "lora"'
            )

        weights = str(adapter) if saved_model else ""
        learned_whole = train == "full" or saved_model
        frozen = torch.float32 if learned_whole else DTYPES[dtype]
        network, tokenizer = _load_model(model, weights, frozen)
        network = network.to(device).requires_grad_(train == "full")

        if saved_lora:
            network = _with_saved_lora(network, saved, train, rank)
        elif train == "lora":
            network = _with_new_lora(network, rank, model)

        return cls(
            network,
            tokenizer,
            train,
            temperature=temperature,
            tokens=tokens,
            instruction=instruction,
            fits=fits,
        )

    @torch.no_grad()
    def draw(self, prompts: Sequence[Prompt], generator: torch.Generator) -> Expansions:
        """Return an expansion of each of n prompts.

        All random numbers come from the CPU `generator`. From one state of it, a model that
        changed a little draws mostly the same words (the draw is an exponential race), so that
        evaluations before and after training can be compared.
        """
        device = self.model.device
        tokens = self.prompt_tokens
        prompt_ids, prompt_mask = tokens.encode_prompts([prompt.text for prompt in prompts])
        ends = torch.tensor(sorted(tokens.end_ids), dtype=torch.long, device=device)
        inputs = prompt_ids.to(device)
        mask = prompt_mask.to(device)
        alive = torch.ones(len(prompts), 1, dtype=torch.bool, device=device)
        cache = None
        ids = [inputs]
        actions: list[Tensor] = []
        logp: list[Tensor] = []

        while len(actions) < self.tokens and alive.any():
            position = (mask.cumsum(1) - 1).clamp(min=0)[:, -inputs.shape[1] :]
            out = self.model(
                input_ids=inputs,
                attention_mask=mask.long(),
                position_ids=position,
                **{self._cache: cache},
                use_cache=True,
                logits_to_keep=1,
            )
            log_probs = _log_softmax(out.logits[:, -1], self.temperature)
            cache = out[self._cache]
            drawn = torch.multinomial(log_probs.exp().cpu(), 1, generator=generator).to(device)
            inputs = torch.where(alive, drawn, tokens.pad_id)

            ids.append(inputs)
            actions.append(alive)
            logp.append(torch.where(alive, log_probs.gather(1, inputs), 0.0))
            mask = torch.cat([mask, alive], 1)
            alive = alive & ~torch.isin(inputs, ends)

        return _truncate(
            prompts,
            tokens,
            self.fits,
            ids=torch.cat(ids, 1).cpu(),
            attention_mask=mask.cpu(),
            action_mask=torch.cat(actions, 1).cpu(),
            logp=torch.cat(logp, 1).cpu(),
        )

    def replay(self, drawn: Expansions, rows: Tensor, reference: bool = False) -> TokenLogProbs:
        """Return the log-probabilities of some texts under the current weights, with gradient.

        Args:
            drawn: what `draw` returned.
            rows: (b,) the texts.
            reference: also call the model as it was when `remember` was called, for `kl`.
        """
        ids = drawn.ids[rows].to(self.model.device)
        attention_mask = drawn.attention_mask[rows].to(ids.device)
        actions = drawn.action_mask[rows].to(ids.device)
        count = actions.shape[1]

        now = _next_token_log_probs(self.model, ids, attention_mask, count, self.temperature)
        logp = torch.where(actions, now.gather(2, ids[:, -count:, None])[..., 0], 0.0)

        if not reference:
            return TokenLogProbs(logp, None)

        with torch.no_grad(), self.reference():
            initial = _next_token_log_probs(
                self.model, ids, attention_mask, count, self.temperature
            )

        kl = (now.exp() * (now - initial)).sum(-1)
        return TokenLogProbs(logp, torch.where(actions, kl, 0.0))

    @property
    def remembers(self) -> bool:
        """True if `remember` was called, so that `replay` has a reference for its KL."""
        return self._initial is not None

    def remember(self) -> None:
        """Keep a copy of the weights that learn, as the starting model of `replay`'s KL."""
        self._initial = [p.detach().clone() for p in self.trainable]

    @contextmanager
    def reference(self) -> Iterator[None]:
        """Give the model the weights of `remember` while the context is open.

        Raises:
            RuntimeError: `remember` was never called.
        """
        if self._initial is None:
            raise RuntimeError("an expander has a reference only after remember()")

        now = [p.data for p in self.trainable]
        for parameter, initial in zip(self.trainable, self._initial, strict=True):
            parameter.data = initial

        try:
            yield
        finally:
            for parameter, data in zip(self.trainable, now, strict=True):
                parameter.data = data

    def state(self) -> dict[str, Tensor]:
        """Return a copy of what was learned, by parameter name, float32 on the CPU."""
        return lora.copied_state(self._named)

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Restore what `state` returned.

        Raises:
            ValueError: it does not fit; then nothing is changed.
        """
        lora.copy_state(self._named, state, "the checkpoint's expander")

    def save(self, folder: Path) -> None:
        """Write what was learned into `folder`; nothing with `train="none"`.

        It is a LoRA for peft's `PeftModel.from_pretrained`, or the whole model for transformers.
        """
        if self.train == "none":
            return

        with publishing(folder, lora.sort_metadata) as made:
            if self.train == "full":
                self.model.save_pretrained(made)
                self.tokenizer.save_pretrained(made)
            else:
                self.model.save_pretrained(made, save_embedding_layers=False)
                (made / "README.md").unlink(missing_ok=True)  # an empty form


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


def _expanded(prompt: Prompt, words: str) -> Prompt:
    metadata = {**prompt.metadata, "original": prompt.text}
    return replace(prompt, text=prompt.text + words, metadata=metadata)


def _truncate(
    prompts: Sequence[Prompt],
    tokens: PromptTokens,
    fits: Callable[[Prompt], bool],
    *,
    ids: Tensor,
    attention_mask: Tensor,
    action_mask: Tensor,
    logp: Tensor,
) -> Expansions:
    """Return the expansions, of each text the longest beginning that fits."""
    start = ids.shape[1] - action_mask.shape[1]
    truncated = torch.zeros(len(ids), dtype=torch.bool)
    expanded: list[Prompt] = []

    for row, prompt in enumerate(prompts):
        prompt_ids = ids[row, :start][attention_mask[row, :start]].tolist()
        drawn_ids = ids[row, start:].tolist()

        for count in range(int(action_mask[row].sum()), -1, -1):
            words = tokens.decode_words(prompt.text, prompt_ids, drawn_ids[:count]) if count else ""
            if not words or fits(_expanded(prompt, words)):
                break
            truncated[row] = True

        if truncated[row]:
            action_mask[row, count:] = False

        expanded.append(_expanded(prompt, words))

    attention_mask[:, start:] = action_mask
    ids[:, start:] = torch.where(action_mask, ids[:, start:], tokens.pad_id)
    logp = torch.where(action_mask, logp, 0.0)

    return Expansions(expanded, ids, attention_mask, action_mask, logp, truncated)


def _cache_name(model: Any) -> str:
    """Return the argument of a model's call that takes the cache.

    transformers calls it `cache` since 5.24 and warns of the old name, the only
    one that 5.20 to 5.23 know.
    """
    bare = model.get_base_model() if hasattr(model, "get_base_model") else model
    names = signature(bare.forward).parameters
    return "cache" if "cache" in names else "past_key_values"


def _log_softmax(logits: Tensor, temperature: float) -> Tensor:
    exact = logits if logits.dtype == torch.float64 else logits.float()
    return (exact / temperature).log_softmax(-1)


def _next_token_log_probs(
    model: Any, ids: Tensor, attention_mask: Tensor, count: int, temperature: float
) -> Tensor:
    """Return the log-probabilities (b, count, V) of every token in the last `count` places."""
    position = (attention_mask.cumsum(1) - 1).clamp(min=0)
    out = model(
        input_ids=ids,
        attention_mask=attention_mask.long(),
        position_ids=position,
        use_cache=False,
        logits_to_keep=count + 1,
    )
    return _log_softmax(out.logits[:, -count - 1 : -1], temperature)


def _load_model(name: str, weights: str, dtype: torch.dtype) -> tuple[Any, Any]:
    """Return a causal language model and its tokenizer.

    Args:
        name: `zoo:NAME`, a folder or a hub id.
        weights: a folder with other weights of the same model, "" for its own.
        dtype: of the weights.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    source = pretrained.find(name, "expander.model")

    try:
        tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
        network = pretrained.load(
            AutoModelForCausalLM,
            weights or source,
            part="language model",
            dtype=dtype,
            trust_remote_code=False,
        )
    except Exception as error:  # a damaged file makes the libraries below raise anything
        reason = first_line(error)
        raise ValueError(
            f"expander.model = '{name}' is no causal language model: {reason}"
        ) from error

    return network, tokenizer


def _with_new_lora(network: Any, rank: int, name: str) -> Any:
    """Return the network with a fresh adapter, which changes nothing yet: B = 0.

    A does not depend on when it is loaded.
    """
    from peft import LoraConfig, get_peft_model

    settings = LoraConfig(
        r=rank, lora_alpha=rank, target_modules="all-linear", task_type="CAUSAL_LM"
    )

    with lora.fixed_seed(), _without_warnings():
        adapted = get_peft_model(network, settings)

    adapted.peft_config["default"].base_model_name_or_path = name
    lora.sort_targets(adapted)
    lora.cast_trainable(adapted)
    return adapted


def _with_saved_lora(network: Any, folder: Path, train: str, rank: int) -> Any:
    """Return the network with the adapter in `folder`."""
    from peft import PeftModel

    try:
        settings = json.loads((folder / "adapter_config.json").read_text("utf-8"))
        # peft imports the module of that name
        if settings.get("megatron_config"):
            raise ValueError("it names a module to import (megatron_core)")
        with _without_warnings():
            adapted = PeftModel.from_pretrained(network, str(folder), is_trainable=train == "lora")
        _check_adapter(adapted, folder)
    # a damaged file or another model's makes the libraries below raise anything
    except Exception as error:
        reason = first_line(error)
        raise ValueError(f"the expander's adapter in {folder} cannot be read: {reason}") from error

    saved_rank = adapted.peft_config["default"].r
    if train == "lora" and saved_rank != rank:
        raise ValueError(f"{folder} has rank {saved_rank}: set expander.rank = {saved_rank}")

    lora.sort_targets(adapted)
    return adapted


def _check_adapter(adapted: Any, folder: Path) -> None:
    """Raise ValueError if the model has not taken a saved adapter's tensors one by one."""
    from peft import get_peft_model_state_dict
    from safetensors.torch import load_file

    saved = load_file(folder / "adapter_model.safetensors")
    taken = get_peft_model_state_dict(adapted, save_embedding_layers=False)

    for name in sorted(saved.keys() ^ taken.keys()):
        problem = "has no place for" if name in saved else "finds no"
        raise ValueError(f"the model {problem} {name}")
    for name, value in saved.items():
        if not value.isfinite().all():
            raise ValueError(f"its {name} is not finite; the file is damaged")


@contextmanager
def _without_warnings() -> Iterator[None]:
    """Silence peft 0.21, which reads an attribute of transformers 5.23 by its old name."""
    with warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning
        )
        yield
