"""People's preference, predicted by a CLIP model fine-tuned on their choices.

    score = exp(logit_scale) * <E_image(image), E_text(prompt)> / (|E_image| |E_text|)

This is PickScore (arXiv 2305.01569). The probability that the first of two images is preferred is
sigmoid(score_1 - score_2), so a difference between scores of one prompt is in nats. The model was
fitted to choices between images of one prompt: use an advantage per prompt.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from burnish.annotations import DeviceName, ModelPath
from burnish.rewards.clip import Clip, cosine
from burnish.types import Prompt, Reward, differentiable

PICKSCORE = "yuvalkirstain/PickScore_v1"
# where a model's tokenizer and image processor are, if its own repository has the weights only
PROCESSORS = {PICKSCORE: "laion/CLIP-ViT-H-14-laion2B-s32B-b79K"}


def preference(
    model: ModelPath = PICKSCORE, processor: ModelPath = "", device: DeviceName = "auto"
) -> Reward:
    """Reward how much people would like each image for its prompt: PickScore, around 20.

    Costs one pass of CLIP's image tower (ViT-H/14: 335 GFLOP an image; 3.9 GB of float32 weights).

    Args:
        model: a CLIPModel fine-tuned on preferences: a hub id or a folder.
        processor: a hub id or a folder with its tokenizer and its image processor; "" for
            PickScore's own, and for another model the model itself.
        device: `auto` takes the device of the images, so that nothing is moved.

    Raises:
        ValueError: the model or its processor cannot be found, or the model is not a CLIP model.
    """
    clip = Clip.load(model, processor or PROCESSORS.get(model, ""))
    scale = float(clip.model.logit_scale.exp())
    similarity = cosine(clip, device)

    @differentiable
    def reward(images: Tensor, prompts: Sequence[Prompt]) -> Tensor:
        return scale * similarity(images, prompts)

    return reward
