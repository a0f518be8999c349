"""The workload that both libraries are measured on, as plain numbers. Standard library only.

Equal for both: the model, prompts, sampling steps, guidance, eta, images an iteration, optimizer
steps an iteration, LoRA rank and targets, every timestep trained once, the reward (JPEG size at
quality 95), AdamW, float32.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

STEPS = 10
GUIDANCE = 3.0
RANK = 4
IMAGES = 32
UPDATES = 2  # optimizer steps an iteration
QUALITY = 95  # of the JPEG files
VOCABULARY = json.loads(
    (Path(__file__).parent.parent / "burnish" / "zoo" / "vocabulary.json").read_text()
)
PROMPTS = tuple(f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}" for noun in VOCABULARY["animals"])


def for_old_transformers(model: Path, folder: Path) -> Path:
    """Return a pipeline whose tokenizer transformers 4 can read too: `model`, or a copy of it.

    That version needs the vocabulary and the merges in files of their own.
    """
    tokenizer = model / "tokenizer"
    if (tokenizer / "vocab.json").exists():
        return model
    if folder.exists():
        return folder

    shutil.copytree(model, folder)
    contents = json.loads((tokenizer / "tokenizer.json").read_text())["model"]
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in contents["merges"]]
    (folder / "tokenizer" / "vocab.json").write_text(json.dumps(contents["vocab"]))
    (folder / "tokenizer" / "merges.txt").write_text("\n".join(["#version: 0.2", *merges, ""]))

    return folder
