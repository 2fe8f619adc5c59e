import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.neighbors import KNeighborsClassifier
from torch import Tensor

from simclr_lightning.evaluation import knn_accuracy, knn_predict, knn_sweep, pixels


def digits(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Real images of handwritten digits, 8 x 8: bank features and labels, query features and labels."""
    x, y = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(x))
    h, labels = torch.from_numpy(x[order]).to(dtype), torch.from_numpy(y[order]).long()
    return h[:1000], labels[:1000], h[1000:], labels[1000:]


def blobs(classes: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Classes that overlap so much that the votes of many queries are tied."""
    generator = torch.Generator().manual_seed(3)
    y = torch.randint(classes, (1500,), generator=generator)
    centers = torch.randn(classes, 12, generator=generator, dtype=torch.float64)
    h = 0.4 * centers[y] + torch.randn(1500, 12, generator=generator, dtype=torch.float64)
    return h[:1000], y[:1000], h[1000:], y[1000:]


@pytest.mark.parametrize("k", [1, 2, 5, 20, 200])
@pytest.mark.parametrize("temperature", [None, 0.07, 1.0])
def test_equals_scikit_learn(k: int, temperature: float | None) -> None:
    for bank, bank_y, queries, queries_y in (digits(), blobs(10), blobs(3)):
        votes = "uniform" if temperature is None else lambda d, t=temperature: np.exp((1 - d) / t)
        peer = KNeighborsClassifier(k, metric="cosine", algorithm="brute", weights=votes)
        peer.fit(bank.numpy(), bank_y.numpy())
        ours = knn_predict(bank, bank_y, queries, k=k, temperature=temperature)
        assert (ours.numpy() == peer.predict(queries.numpy())).mean() >= 0.999
        score = knn_accuracy(bank, bank_y, queries, queries_y, k=k, temperature=temperature)
        assert score == pytest.approx(peer.score(queries.numpy(), queries_y.numpy()), abs=1e-3)


def test_float32_features_give_the_same_classes() -> None:
    bank, bank_y, queries, _ = digits(torch.float32)
    peer = KNeighborsClassifier(20, metric="cosine", algorithm="brute").fit(bank.numpy(), bank_y.numpy())
    ours = knn_predict(bank, bank_y, queries)
    assert (ours.numpy() == peer.predict(queries.numpy())).mean() >= 0.999


def test_of_tied_classes_the_smallest_wins() -> None:
    bank = torch.tensor([[1.0, 0.0], [1.0, 0.1], [1.0, 0.2], [1.0, 0.3]])
    query = torch.tensor([[1.0, 0.0]])
    assert knn_predict(bank, torch.tensor([2, 1, 1, 2]), query, k=4).tolist() == [1]
    assert knn_predict(bank, torch.tensor([2, 1, 1, 2]), query, k=3).tolist() == [1]
    assert knn_predict(bank, torch.tensor([2, 1, 1, 2]), query, k=1).tolist() == [2]


def test_a_temperature_gives_nearer_neighbors_more_votes() -> None:
    bank = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
    labels, query = torch.tensor([0, 1, 1]), torch.tensor([[2.0, 0.1]])
    assert knn_predict(bank, labels, query, k=3).tolist() == [1]
    assert knn_predict(bank, labels, query, k=3, temperature=0.07).tolist() == [0]
    assert knn_predict(bank, labels, query, k=3, temperature=100.0).tolist() == [1]
    # exp(cosine / 1e-6) overflows for every neighbor: computed directly, the smaller class would win.
    assert knn_predict(bank, 1 - labels, query, k=3, temperature=1e-6).tolist() == [1]


def test_classes_without_a_row_in_the_bank_are_never_predicted() -> None:
    bank, bank_y, queries, _ = blobs(3)
    predicted = knn_predict(bank, bank_y, queries, classes=7)
    assert torch.equal(predicted, knn_predict(bank, bank_y, queries))


def test_pixels_are_the_raw_values_over_255() -> None:
    images = torch.arange(2 * 3 * 2 * 2, dtype=torch.uint8).reshape(2, 3, 2, 2)
    h = pixels(images)
    assert h.dtype == torch.float32
    np.testing.assert_array_equal(h.numpy(), images.numpy().reshape(2, 12).astype(np.float32) / np.float32(255))
    with pytest.raises(ValueError, match="uint8"):
        pixels(images.float())


def test_wrong_use_is_refused() -> None:
    bank, labels, queries = torch.eye(4), torch.tensor([0, 1, 2, 1]), torch.eye(4)[:2]
    with pytest.raises(ValueError, match="k = 20 neighbors"):
        knn_predict(bank, labels, queries)
    with pytest.raises(ValueError, match="one label each"):
        knn_predict(bank, labels[:3], queries, k=1)
    with pytest.raises(ValueError, match="from -1 to 2"):
        knn_predict(bank, torch.tensor([0, -1, 2, 1]), queries, k=1)
    with pytest.raises(ValueError, match="0 to 1"):
        knn_predict(bank, labels, queries, k=1, classes=2)
    for temperature in (0.0, -1.0, float("nan")):
        with pytest.raises(ValueError, match="temperature"):
            knn_predict(bank, labels, queries, k=1, temperature=temperature)
    with pytest.raises(ValueError, match="got 2 queries and 1 labels"):
        knn_accuracy(bank, labels, queries, torch.tensor([0]), k=1)


def test_every_k_and_temperature_of_a_sweep_against_plain_numpy() -> None:
    for bank, bank_y, queries, _ in (digits(), blobs(10)):
        ks, temperatures = [1, 2, 5, 50, 200], (None, 0.07, 0.5)
        found = knn_sweep(bank, bank_y, queries[:60], ks=ks, temperatures=temperatures)
        assert list(found) == [(k, temperature) for temperature in temperatures for k in ks]
        unit = bank.numpy() / np.linalg.norm(bank.numpy(), axis=1, keepdims=True)
        for row, query in enumerate(queries[:60].numpy()):
            cosine = unit @ (query / np.linalg.norm(query))
            order = np.argsort(-cosine, kind="stable")
            for (k, temperature), classes in found.items():
                votes = np.zeros(10)
                for index in order[:k]:
                    votes[bank_y[index]] += 1 if temperature is None else np.exp(cosine[index] / temperature)
                best = np.flatnonzero(np.isclose(votes, votes.max(), rtol=1e-12))
                assert int(classes[row]) in best, (row, k, temperature)
                if temperature is None:
                    assert int(classes[row]) == best[0]
