"""Fréchet distance, precision and recall: on Gaussians and points whose answer is known."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from model_zoo import sample_quality
from model_zoo.anchors import principal_samples, shift
from model_zoo.classifier import Classifier
from model_zoo.data import Examples
from model_zoo.sample_quality import Gaussian, Judge, frechet_distance, precision_and_recall


def gaussian(mean: list[float], deviations: list[float]) -> Gaussian:
    variance = torch.tensor(deviations).double().square()
    return Gaussian(torch.tensor(mean).double(), torch.diag(variance))


def normal(count: int, seed: int, mean: float = 0.0, deviation: float = 1.0) -> Tensor:
    points = torch.randn(count, 4, generator=torch.Generator().manual_seed(seed))
    return mean + deviation * points


def test_gaussians_along_the_same_axes_differ_by_means_and_deviations():
    one, other = gaussian([0, 1, 0], [1, 2, 0]), gaussian([3, 1, 0], [2, 5, 0])
    assert frechet_distance(one, other) == pytest.approx(9 + 1 + 9)
    assert frechet_distance(one, one) == pytest.approx(0, abs=1e-9)


def test_the_distance_is_symmetric_and_does_not_change_as_both_are_turned():
    turn = torch.linalg.qr(torch.randn(3, 3, generator=torch.Generator().manual_seed(1)).double())[
        0
    ]
    one, other = gaussian([0, 1, 0], [1, 2, 0.5]), gaussian([3, 1, 0], [2, 5, 1])
    mixed = Gaussian(other.mean, turn @ other.covariance @ turn.T)
    assert frechet_distance(one, mixed) == pytest.approx(frechet_distance(mixed, one))
    turned = [Gaussian(turn @ g.mean, turn @ g.covariance @ turn.T) for g in (one, other)]
    assert frechet_distance(*turned) == pytest.approx(frechet_distance(one, other))


def test_covariances_that_do_not_commute_have_the_closed_form_of_two_dimensions():
    """Tr (A B)^(1/2) = (Tr A B + 2 det(A B)^(1/2))^(1/2) for 2x2 matrices."""
    a = torch.tensor([[2.0, 0.6], [0.6, 1.0]]).double()
    b = torch.tensor([[1.0, -0.3], [-0.3, 3.0]]).double()
    root = ((a @ b).trace() + 2 * (a @ b).det().sqrt()).sqrt()
    mean = torch.zeros(2).double()
    expected = a.trace() + b.trace() - 2 * root
    assert frechet_distance(Gaussian(mean, a), Gaussian(mean, b)) == pytest.approx(expected.item())


def test_moments_of_chunks_are_those_of_all():
    points = normal(100, seed=0, mean=3.0)
    found = sample_quality._moments(points.split(30))
    assert torch.allclose(found.mean, points.double().mean(0))
    assert torch.allclose(found.covariance, points.double().T.cov())


def test_samples_of_the_same_distribution_are_precise_and_recalled():
    precision, recall = precision_and_recall(normal(500, 0), normal(500, 1))
    assert precision > 0.85 and recall > 0.85


def test_a_narrow_model_is_precise_and_a_wide_one_recalls():
    real = normal(500, 0)
    precision, recall = precision_and_recall(real, normal(500, 1, deviation=0.2))
    assert precision > 0.95 and recall < 0.2
    precision, recall = precision_and_recall(real, normal(500, 1, deviation=3.0))
    assert precision < 0.4 and recall > 0.9


def test_what_is_far_away_is_neither():
    assert precision_and_recall(normal(50, 0), normal(50, 1, mean=100.0)) == (0.0, 0.0)


def test_one_real_point_repeated_is_precise_and_recalls_itself_alone():
    real = normal(50, 0)
    assert precision_and_recall(real, real[:1].repeat(50, 1)) == (1.0, pytest.approx(1 / 50))


@pytest.fixture
def judge(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Judge:
    """A small untrained classifier, and images that count as those it was trained on."""
    torch.manual_seed(0)
    classifier = Classifier(image_shape=(1, 8, 8), classes=3, width=4).eval()
    images = torch.randint(256, (300, 1, 8, 8), generator=torch.Generator().manual_seed(0))
    examples = Examples(images.to(torch.uint8), torch.arange(300) % 3, torch.arange(300))
    monkeypatch.setattr(sample_quality, "load_trained", lambda _: classifier)
    monkeypatch.setattr(sample_quality, "_training_images", lambda _: examples)
    monkeypatch.setattr(sample_quality, "KEPT", tmp_path)
    monkeypatch.setattr(sample_quality, "_hash", lambda _: "0123456789abcdef")
    for cached in (sample_quality._training_features, sample_quality._training_moments):
        cached.cache_clear()
    yield Judge("judge")
    for cached in (sample_quality._training_features, sample_quality._training_moments):
        cached.cache_clear()


def test_the_training_images_are_at_no_distance_from_themselves(
    judge: Judge, monkeypatch: pytest.MonkeyPatch
):
    images = sample_quality._training_images("judge").images.float()
    few = {figure.name: figure.value for figure in judge.compare(images)}
    assert few == {"precision": 1.0, "recall": 1.0}
    monkeypatch.setattr(sample_quality, "FULL_COUNT", 300)
    distance, *_ = judge.compare(images)
    assert (distance.name, distance.value) == ("frechet_distance", pytest.approx(0, abs=1e-6))
    assert "300 images" in distance.protocol and "sha256 0123456789ab" in distance.protocol
    shifted, *_ = judge.compare(images.roll(1, dims=3))
    assert shifted.value > 0


def test_what_moves_to_the_right_leaves_black_behind():
    levels = torch.arange(1.0, 17.0).reshape(1, 1, 4, 4)
    moved = shift(levels)
    assert torch.equal(moved[..., 1:], levels[..., :-1]) and not moved[..., 0].any()


def test_principal_samples_have_mean_and_variance_of_the_images():
    levels = (128 + 20 * torch.randn(500, 1, 8, 8)).round().clamp(0, 255)
    levels[:, :, 4:] = levels[:, :, :4]  # so that half as many components are all there are
    drawn = principal_samples(levels, 2000)
    assert drawn.shape == (2000, 1, 8, 8) and torch.equal(drawn, drawn.round())
    assert torch.allclose(drawn.mean(0), levels.mean(0), atol=3)
    assert torch.allclose(drawn.std(0), levels.std(0), rtol=0.2)
