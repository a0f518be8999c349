"""The Bradley-Terry head against closed forms and brute force, and its file as a reward."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor
from torch.nn.functional import logsigmoid
from typer.testing import CliRunner

from burnish import catalog
from burnish import config as configuration
from burnish.cli import app
from burnish.images import open_image
from burnish.rewards import bradley_terry as bt
from burnish.rewards.bradley_terry import Comparisons, Head, HeldOut
from burnish.rewards.clip import Clip
from burnish.rewards.taste import FORMAT, head_bytes, read_head
from burnish.tools.taste import FittedTaste, fit_taste, read_by_votes
from burnish.types import Prompt

N = 60
D = 5
TRUE = torch.tensor([3.0, -2.0, 0, 1, 0], dtype=torch.float64)


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def answered(count: int = N, seed: int = 0) -> Comparisons:
    """Return comparisons of random images by a taste that is the weight `TRUE`."""
    one, other = randn(2, count, D, seed=seed)
    first = (one - other) @ TRUE > 0
    better = torch.where(first[:, None], one, other)
    worse = torch.where(first[:, None], other, one)
    return Comparisons(better, worse, torch.arange(count))


def loss(weight: Tensor, d: Tensor, prior: float) -> Tensor:
    return -logsigmoid(d @ weight).sum() + weight.square().sum() / (2 * prior)


def test_the_weight_is_where_the_gradient_is_zero() -> None:
    d = answered().differences
    weight = bt.most_probable(d, 0.7).requires_grad_()
    (gradient,) = torch.autograd.grad(loss(weight, d, 0.7), weight)
    assert gradient.abs().max() < 1e-7
    assert weight.abs().max() > 0.5


def test_one_feature_is_solved_by_brute_force() -> None:
    d = torch.tensor([[1.0], [1.0], [-1.0], [2.0]], dtype=torch.float64)
    grid = torch.linspace(-5, 5, 200_001, dtype=torch.float64)
    losses = -logsigmoid(d * grid).sum(0) + grid.square() / (2 * 1.5)
    assert float(bt.most_probable(d, 1.5)) == pytest.approx(float(grid[losses.argmin()]), abs=1e-4)


def test_the_covariance_is_the_inverse_hessian() -> None:
    comparisons = answered()
    head = bt.fit(comparisons, scale=2.0)
    d = comparisons.differences
    assert head.prior == pytest.approx(4 / float(d.square().sum(1).mean()))
    hessian = torch.autograd.functional.hessian(lambda w: loss(w, d, head.prior), head.weight)
    torch.testing.assert_close(head.covariance @ hessian, torch.eye(D, dtype=torch.float64))


def test_a_score_is_the_logit_of_the_mean_probability() -> None:
    """MacKay's approximation of the mean of sigmoid(f) over f ~ N(mean, variance)."""
    head = bt.fit(answered(), scale=2.0)
    x = randn(1, D, seed=4)
    mean = (x - head.centre) @ head.weight
    variance = (x - head.centre) @ head.covariance @ (x - head.centre).T
    f = mean + variance.sqrt() * randn(100_000, seed=5)
    score, _ = head.score(x)
    assert float(score.sigmoid()) == pytest.approx(float(f.sigmoid().mean()), abs=0.01)


def test_what_no_comparison_was_about_is_unknown() -> None:
    comparisons = answered(400)
    better = comparisons.better.clone()
    worse = comparisons.worse.clone()
    better[:, 4] = worse[:, 4] = 0.0  # of which nothing is said
    head = bt.fit(Comparisons(better, worse, comparisons.unit), scale=2.0)

    known = head.centre + torch.tensor([3.0, 0, 0, 0, 0], dtype=torch.float64)
    strange = head.centre + torch.tensor([0, 0, 0, 0, 3.0], dtype=torch.float64)
    score, unknown = head.score(
        torch.stack([known, strange, known + 100 * (strange - head.centre)])
    )
    assert unknown[1] == pytest.approx(1.0)
    assert score[1] == pytest.approx(0.0, abs=1e-9)
    assert unknown[0] < 0.5
    assert 0 < score[2] < score[0] / 10  # shrunk towards 0, not turned


def test_a_taste_is_foretold_and_noise_is_not() -> None:
    found = bt.held_out(answered(200))
    assert found.count == 200
    assert found.accuracy > 0.9
    assert found.nats < 0.35

    comparisons = answered(200)
    noise = Comparisons(randn(200, D, seed=8), randn(200, D, seed=9), comparisons.unit)
    assert 0.4 < bt.held_out(noise).accuracy < 0.6
    assert bt.best_scale(noise) < bt.best_scale(comparisons)


def test_fewer_comparisons_than_features_are_fitted_in_the_space_that_they_span() -> None:
    wide = Comparisons(randn(24, 40, seed=1), randn(24, 40, seed=2), torch.arange(24))
    narrow = bt.reduced(wide)
    assert narrow.better.shape == (24, 24)
    torch.testing.assert_close(bt.fit(narrow, 2.0).prior, bt.fit(wide, 2.0).prior)

    d = wide.differences
    variances = ((d @ bt.fit(wide, 2.0).covariance) * d).sum(1)
    d = narrow.differences
    torch.testing.assert_close(((d @ bt.fit(narrow, 2.0).covariance) * d).sum(1), variances)


def test_a_pair_that_was_asked_twice_is_held_out_at_once() -> None:
    folds = bt.folds_of(torch.tensor([4, 7, 4, 9, 7, 1]))
    assert folds[0] == folds[2]
    assert folds[1] == folds[4]
    assert len(folds.unique()) == 4
    with pytest.raises(ValueError, match="single comparison"):
        bt.held_out(answered(1))


def test_information_is_the_mutual_information_by_quadrature() -> None:
    """I = H(E p) - E H(p), with p = sigmoid(f), f ~ N(mean, variance)."""
    mean = torch.tensor([0.0, 0.0, 1.0, 2.0, 0.5], dtype=torch.float64)
    variance = torch.tensor([0.01, 4.0, 1.0, 9.0, 0.0], dtype=torch.float64)
    z = torch.linspace(-8, 8, 4001, dtype=torch.float64)
    density = (-z.square() / 2).exp()
    density /= density.sum()

    def entropy(p: Tensor) -> Tensor:
        return torch.special.entr(p) + torch.special.entr(1 - p)

    p = (mean[:, None] + variance.sqrt()[:, None] * z).sigmoid()
    exact = entropy((p * density).sum(1)) - (entropy(p) * density).sum(1)
    torch.testing.assert_close(bt.information(mean, variance), exact, atol=0.03, rtol=0.0)


def test_the_pairs_to_ask_about_are_apart_from_each_other() -> None:
    """Brute force: after each choice the covariance is computed anew."""
    features = randn(12, D, seed=3)
    candidates = [(i, j) for i in range(12) for j in range(i + 1, 12) if (i < 6) == (j < 6)]
    head = bt.fit(answered(10), scale=2.0)
    chosen = bt.most_informative(head, features, candidates, 4)

    covariance = head.covariance
    used: set[int] = set()
    for pair in chosen:
        gains = {}
        for i, j in candidates:
            d = features[i] - features[j]
            if not used & {i, j}:
                gains[i, j] = float(bt.information(d @ head.weight, d @ covariance @ d))
        assert pair == max(gains, key=lambda key: gains[key])

        d = features[pair[0]] - features[pair[1]]
        p = (d @ head.weight).sigmoid()
        covariance = (covariance.inverse() + p * (1 - p) * d[:, None] * d).inverse()
        used |= {*pair}

    assert len({*sum(bt.most_informative(head, features, candidates, 6), ())}) == 12
    assert len(bt.most_informative(head, features, candidates, 99)) == len(candidates)
    assert bt.most_informative(head, features, [], 3) == []


def test_a_head_that_knows_nothing_asks_about_the_largest_difference() -> None:
    features = randn(6, D, seed=3)
    head = bt.blank(features)
    (pair,) = bt.most_informative(head, features, [(0, 1), (2, 3), (4, 5)], 1)
    distances = [float((features[i] - features[i + 1]).norm()) for i in (0, 2, 4)]
    assert pair[0] == 2 * distances.index(max(distances))

    d = features[:, None] - features
    spread = float((d @ head.covariance * d).sum(-1).sum() / 30)
    assert math.sqrt(spread * 30 / 36) == pytest.approx(bt.SCALE)
    assert head.score(features)[0].abs().max() == 0


# Files --------------------------------------------------------------------------------------------


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    """Return a file of twelve pairs, of which the redder image is preferred."""
    rows = []
    for number in range(12):
        for name, colour in (("red", (200, 5 * number, 40)), ("blue", (40, 5 * number, 200))):
            image = Image.new("RGB", (64, 64), "white")
            image.paste(colour, (8 + number, 10, 40 + number, 50))
            image.save(tmp_path / f"{number}{name}.png")
        chosen, rejected = f"{number}red.png", f"{number}blue.png"
        rows.append({"prompt": "a", "chosen": chosen, "rejected": rejected})

    path = tmp_path / "pairs.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


@pytest.mark.parametrize(
    ("count", "accuracy", "by_chance"),
    [(2, 1.0, True), (4, 1.0, True), (12, 1.0, False), (12, 0.5, True), (100, 0.7, False)],
)
def test_few_pairs_may_be_right_by_chance(count: int, accuracy: float, by_chance: bool) -> None:
    """All of four are right by chance once in sixteen times."""
    found = FittedTaste(Path("t"), count, 2 * count, 1.0, HeldOut(accuracy, 0.5, count))
    assert found.error > 0
    assert ("that may be chance" in found.lines()[-1]) == by_chance


@pytest.mark.parametrize("features", ["embedding", "patches"])
def test_a_fitted_taste_is_a_reward(pairs: Path, tmp_path: Path, features: str) -> None:
    out = tmp_path / "taste.safetensors"
    arguments = ["taste", "fit", str(pairs), "--model", "zoo:emoji-clip", "--out", str(out)]
    options = ["--features", features, "--device", "cpu"]
    result = CliRunner().invoke(app, [*arguments, *options])
    assert result.exit_code == 0, result.output
    assert "fitted to 12 pairs of 24 images" in result.output
    assert "of 12 pairs that it had not seen it foretells 100%" in result.output

    stored = read_head(out)
    assert (stored.model, stored.features) == ("zoo:emoji-clip", features)
    assert stored.about["accuracy"] == "1.0000"

    images = [open_image(tmp_path / f"3{name}.png") for name in ("red", "blue")]
    noise = torch.rand(3, 64, 64, generator=torch.Generator().manual_seed(0))
    batch = torch.stack([*images, noise])
    prompts = [Prompt("a")] * 3
    reward = catalog.build("reward", {"use": "taste", "head": str(out)})
    values = reward(batch, prompts)
    assert values[0] > 0.5
    assert values[1] < -0.5

    abstaining = {"use": "taste", "head": str(out), "most_unknown": 0.9}
    careful = catalog.build("reward", abstaining)(batch, prompts)
    assert careful[:2].equal(values[:2])
    assert careful[2].isnan()


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ('{"prompt": "a", "chosen": "0red.png", "rejected": "pairs.jsonl"}', "pairs.jsonl: not an"),
        ("", "one pair alone says nothing"),
    ],
)
def test_pairs_that_cannot_be_fitted_are_refused(pairs: Path, row: str, message: str) -> None:
    first = pairs.read_text().splitlines()[0]
    pairs.write_text(f"{first}\n{row}\n")
    with pytest.raises(ValueError, match=message):
        fit_taste(pairs, "zoo:emoji-clip", pairs.with_suffix(".safetensors"))
    with pytest.raises(ValueError, match="a head is a .safetensors file"):
        fit_taste(pairs, "zoo:emoji-clip", pairs)


def head(width: int = D) -> Head:
    return bt.blank(randn(4, width))


def test_a_head_belongs_to_a_model(tmp_path: Path) -> None:
    path = tmp_path / "head.safetensors"
    path.write_bytes(head_bytes(head(), "zoo:emoji-clip", {}))
    with pytest.raises(ValueError, match="reads 5 features, but zoo:emoji-clip gives"):
        catalog.build("reward", {"use": "taste", "head": str(path)})


def test_a_head_of_before_reads_the_embedding(tmp_path: Path) -> None:
    path = tmp_path / "head.safetensors"
    tensors = {
        "weight": torch.zeros(D),
        "centre": torch.zeros(D),
        "covariance": torch.eye(D),
        "prior": torch.ones(1),
    }
    about = {"format": FORMAT, "model": "zoo:emoji-clip"}
    save_file(tensors, path, metadata=about)
    assert read_head(path).features == "embedding"
    save_file(tensors, path, metadata={**about, "features": "words"})
    with pytest.raises(ValueError, match='features is "words"'):
        read_head(path)


def test_patches_are_the_moments_of_the_states_half_way_up() -> None:
    clip = Clip.load("zoo:emoji-clip")
    layers = clip.model.vision_model.encoder.layers
    images = torch.rand(3, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    seen: list[Tensor] = []
    hook = layers[len(layers) // 2 - 1].register_forward_hook(
        lambda module, given, made: seen.append(made[0] if isinstance(made, tuple) else made)
    )
    features = clip.features(images, "patches")
    hook.remove()

    patches = seen[0][:, 1:].numpy()
    moments = np.concatenate([patches.mean(1), patches.std(1)], 1)
    np.testing.assert_allclose(features.numpy(), moments, rtol=1e-5, atol=1e-6)
    assert features.shape == (3, clip.feature_width("patches"))
    assert clip.features(images).equal(clip.images(images))

    table = {"use": "votes", "model": "zoo:emoji-clip", "features": "patches"}
    assert catalog.build("reward", table).features(images).equal(features.double())


def test_what_is_no_head_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "head.safetensors"
    with pytest.raises(FileNotFoundError, match="no such head"):
        read_head(path)

    path.write_bytes(b"x")
    with pytest.raises(ValueError, match="is no head of a taste"):
        read_head(path)

    save_file({"weight": torch.zeros(3)}, path)
    with pytest.raises(ValueError, match="make one by burnish taste fit"):
        read_head(path)

    broken = head()
    broken.weight[0] = torch.nan
    path.write_bytes(head_bytes(broken, "zoo:emoji-clip", {}))
    with pytest.raises(ValueError, match="weight is not finite"):
        read_head(path)

    narrow = Head(torch.zeros(3), torch.zeros(4), torch.eye(3), 1.0)
    path.write_bytes(head_bytes(narrow, "zoo:emoji-clip", {}))
    with pytest.raises(ValueError, match=r"centre has shape \(4,\), not \(3,\)"):
        read_head(path)


def test_a_taste_of_a_run_reads_what_its_votes_read(tmp_path: Path) -> None:
    assert read_by_votes(tmp_path) == ("openai/clip-vit-large-patch14", "embedding")

    settings = 'rewards=[{use="votes",model="zoo:emoji-clip",features="patches"}]'
    config = configuration.load("emoji-votes", [settings])
    (tmp_path / "config.toml").write_text(configuration.dump(config))
    assert read_by_votes(tmp_path) == ("zoo:emoji-clip", "patches")
