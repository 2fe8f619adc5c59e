"""Compare the projector with naive NumPy, and its layers with the papers."""

import numpy as np
import pytest
import torch
from torch import nn

from simclr_lightning.projector import Projector


def _naive(projector: Projector, h_NF: torch.Tensor) -> np.ndarray:
    """Return z in float64, computed from the weights: dense layers, batch statistics, ReLU between layers."""
    state = {key: value.double().numpy() for key, value in projector.state_dict().items()}
    weights = [state[key] for key in state if state[key].ndim == 2]
    gammas = [state[key] for key in state if key.endswith("weight") and state[key].ndim == 1]
    betas = [state[key] for key in state if key.endswith("bias")]
    x = h_NF.double().numpy()
    for number, (w, gamma) in enumerate(zip(weights, gammas, strict=True)):
        x = x @ w.T
        x = gamma * (x - x.mean(0)) / np.sqrt(x.var(0) + 1e-5)
        if number < len(weights) - 1:
            x = np.maximum(x + betas[number], 0)
    return x


@pytest.mark.parametrize("layers", [1, 2, 3])
def test_values_equal_naive_numpy(layers: int) -> None:
    torch.manual_seed(layers)
    projector = Projector(12, 20, 8, layers).double()
    for module in projector.modules():
        if isinstance(module, nn.BatchNorm1d):
            nn.init.normal_(module.weight)
            if module.bias is not None:
                nn.init.normal_(module.bias)
    h_NF = torch.randn(32, 12, dtype=torch.float64)
    np.testing.assert_allclose(projector(h_NF).detach().numpy(), _naive(projector, h_NF), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("layers", [1, 2, 3])
def test_layers_are_those_of_the_papers(layers: int) -> None:
    projector = Projector(12, 20, 8, layers)
    linears = [m for m in projector.modules() if isinstance(m, nn.Linear)]
    norms = [m for m in projector.modules() if isinstance(m, nn.BatchNorm1d)]
    assert len(linears) == len(norms) == layers
    assert sum(isinstance(m, nn.ReLU) for m in projector.modules()) == layers - 1
    assert all(m.bias is None for m in linears)
    assert [m.out_features for m in linears] == [20] * (layers - 1) + [8]
    assert [m.bias is None for m in norms] == [False] * (layers - 1) + [True]
    assert all(m.weight is not None and m.eps == 1e-5 and m.momentum == 0.1 for m in norms)
    assert projector.out_dim == 8
    assert not any(key.endswith(f"{3 * layers - 2}.bias") for key in projector.state_dict())


def test_the_hidden_layer_is_as_wide_as_h_by_default() -> None:
    projector = Projector(12)
    assert [m.out_features for m in projector.modules() if isinstance(m, nn.Linear)] == [12, 128]
    assert projector.out_dim == 128


def test_no_layers_is_the_identity() -> None:
    projector = Projector(12, layers=0)
    h_NF = torch.randn(3, 12)
    assert torch.equal(projector(h_NF), h_NF)
    assert projector.out_dim == 12
    assert not list(projector.parameters())


def test_nothing_is_normalized_to_unit_length() -> None:
    z_ND = Projector(12)(torch.randn(16, 12))
    assert (z_ND.norm(dim=1) - 1).abs().min() > 1


def test_every_batchnorm_can_be_synchronized() -> None:
    projector = Projector(12, layers=3)
    wanted = {key: value.clone() for key, value in projector.state_dict().items()}
    converted = nn.SyncBatchNorm.convert_sync_batchnorm(projector)
    norms = [m for m in converted.modules() if isinstance(m, nn.SyncBatchNorm)]
    assert len(norms) == 3
    assert norms[-1].bias is None
    assert converted.state_dict().keys() == wanted.keys()
    assert not any(isinstance(m, nn.BatchNorm1d) for m in converted.modules())


@pytest.mark.parametrize("arguments", [(0,), (8, 0), (8, 8, 0), (8, 8, 8, 4), (8, 8, 8, -1)])
def test_widths_and_layers_out_of_range_are_refused(arguments: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="projector"):
        Projector(*arguments)
