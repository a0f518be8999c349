"""Direct preference optimisation: the better of two images against the worse, without a likelihood.

With e the mean squared error of the prediction for a noised image and e_ref the reference's, and w
and l the preferred and the other image of a pair, noised to the same time with the same noise:

    m  =  (e_ref - e) of w  -  (e_ref - e) of l
    L  =  -(2 / beta) log sigmoid(beta / 2 m)

This is Diffusion-DPO (arXiv 2311.12908, equation 14, as in its code, with errors that are means
over the latent's dimensions), divided by beta / 2, so that gradients are of the size of other
objectives'. Of flows e is the velocity's error. The reference is the model with the adapter
switched off. The pairs are the best and the worst image of each drawn prompt, by any reward
(online DPO), or pairs that were chosen before (`prompts.pairs`). With votes, set
batch.images_per_prompt to 2: then each pair is one that was voted on. Metrics, beside those of
objectives without a ratio:

    preference_margin   mean of beta / 2 m; 0 before the first update
    preference_right    share of pairs and times at which it is above 0: the policy, as a judge by
                        its errors, agrees
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from burnish.rl.forward_objectives import denoising_metrics
from burnish.rl.objectives import check_setting, column, fraction, penalty
from burnish.types import Loss, Objective, Replay


@dataclass(frozen=True)
class DPO(Objective):
    """The best image of each prompt against its worst, by an implicit reward.

    Only these two are learned from. Equal advantages make no pair. The gradient of the loss is
    sigmoid(-beta / 2 m) (grad e of w - grad e of l): `targets` computes its factor without
    gradient, so that the two images need not be in one training call.

    Attributes:
        beta: how far the policy may leave the reference; the paper has 2000 for Stable Diffusion
            1.5 and 5000 for SDXL.
        kl: coefficient of a further KL to the anchor.
    """

    beta: float = 2000.0
    kl: float = 0.0
    process = "forward"
    compares_images = True
    compares_with_reference = True

    def __post_init__(self) -> None:
        check_setting("beta", self.beta, self.beta > 0)
        check_setting("kl", self.kl, self.kl >= 0)

    def learns_from(self, adv: Tensor, group: Tensor) -> Tensor:
        """Return the images (b,) bool that are in a pair."""
        return pair_signs(adv, group) != 0

    def targets(self, change: Tensor, adv: Tensor, group: Tensor, transitions: int) -> Tensor:
        """Return the weight of each image's error, (b, T): above 0 of a preferred image.

        Args:
            change: (b, T) e_ref - e.
            adv: (b,) advantages.
            group: (b,) prompts.
            transitions: of one image.
        """
        sign = pair_signs(adv, group)[:, None].to(change)
        _, index = group.unique(return_inverse=True)
        margin = change.new_zeros(int(index.max()) + 1, change.shape[1])
        margin.index_add_(0, index, sign * change)
        weights: Tensor = sign * (-self.beta / 2 * margin[index]).sigmoid()
        return weights

    def __call__(self, replay: Replay, adv: Tensor) -> Loss:
        """Return the loss, with in `adv` (b,) what `targets` made of the advantages.

        It is a mean over images, of which each pair has two.
        """
        value = -2 * (column(adv, replay) * replay.logp).mean()
        metrics = {**denoising_metrics(replay), **preference_metrics(adv)}
        return Loss(value + penalty(self.kl, replay), metrics)


def pair_signs(adv: Tensor, group: Tensor) -> Tensor:
    """Return 1 for the best image of each group, -1 for its worst and 0 for others, (b,) float64.

    Of several that are best, or worst, it is the first. A group whose images are all alike has
    neither.

    Args:
        adv: (b,) advantages.
        group: (b,) prompts.
    """
    signs = torch.zeros(len(adv), dtype=torch.float64, device=adv.device)

    for number in group.unique():
        rows = (group == number).nonzero()[:, 0]
        best = rows[adv[rows].argmax()]
        worst = rows[adv[rows].argmin()]
        if adv[best] > adv[worst]:
            signs[best] = 1
            signs[worst] = -1

    return signs


@torch.no_grad()
def preference_metrics(weights: Tensor) -> dict[str, float]:
    """Return what the weights (b,) of `targets` say about the margins of their pairs."""
    doubt = weights[weights != 0].abs().cpu().double()
    if not len(doubt):
        return {}
    return {
        "preference_margin": float(-doubt.logit(eps=1e-12).mean()),
        "preference_right": fraction(doubt < 0.5),
    }
