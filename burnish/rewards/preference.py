"""What people prefer, as a CLIP model fine-tuned on their choices predicts it: PickScore (arXiv
2305.01569).

    score = exp(logit_scale) * <E_image(image), E_text(prompt)> / (|E_image| |E_text|)

The probability that the first of two images is preferred is sigmoid(score_1 - score_2), so a
difference of scores of one prompt is in nats. The model was fitted to choices between images of one
prompt: use an advantage per prompt.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from burnish.rewards.clip import Clip, cosine
from burnish.types import Prompt, Reward

PICKSCORE = "yuvalkirstain/PickScore_v1"
# its own repository has the weights only
PROCESSORS = {PICKSCORE: "laion/CLIP-ViT-H-14-laion2B-s32B-b79K"}


def preference(model: str = PICKSCORE, processor: str = "", device: str = "auto") -> Reward:
    """How much people would like each image as an answer to its prompt: PickScore. In practice
    around 20.

    Costs one pass of CLIP's image tower (ViT-H/14: 335 GFLOP an image; 3.9 GB of float32 weights).

    Args:
        model: a CLIPModel fine-tuned on preferences: a hub id or a folder.
        processor: a hub id or a folder with its tokenizer and its image processor; "" for what
            belongs to PickScore,
            and for another model the model itself.
        device: `auto` takes the device of the images, so that nothing is moved.

    Raises:
        ValueError: the model or its processor cannot be found, or the model is not a CLIP model.
    """
    clip = Clip.load(model, processor or PROCESSORS.get(model, ""))
    scale = float(clip.model.logit_scale.exp())
    similarity = cosine(clip, device)

    def reward(images: Tensor, prompts: Sequence[Prompt]) -> Tensor:
        return scale * similarity(images, prompts)

    return reward
