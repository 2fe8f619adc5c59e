import pytest
import torch
from torch import Tensor, nn

from simclr_lightning.evaluation import extract
from simclr_lightning.evaluation.features import _BATCHES_PER_COPY


def small_encoder() -> nn.Sequential:
    torch.manual_seed(0)
    encoder = nn.Sequential(
        nn.Conv2d(3, 6, 3, bias=False), nn.BatchNorm2d(6), nn.ReLU(), nn.Dropout(0.5),
        nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(24, 10),
    )  # fmt: skip
    encoder(torch.rand(64, 3, 8, 8) * 3)  # statistics other than the initial ones
    return encoder


def images(count: int) -> Tensor:
    return torch.rand(count, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def naive_features(encoder: nn.Sequential, x: Tensor) -> Tensor:
    """Convolution, normalization by the running statistics and pooling, computed image by image."""
    conv, bn, linear = encoder[0], encoder[1], encoder[6]
    rows = []
    for image in x:
        a = nn.functional.conv2d(image[None].double(), conv.weight.double())[0]
        scale = bn.weight.double() / (bn.running_var.double() + bn.eps).sqrt()
        a = (a - bn.running_mean.double()[:, None, None]) * scale[:, None, None]
        a = (a + bn.bias.double()[:, None, None]).clamp(min=0)
        pooled = torch.stack([a[:, i : i + 3, j : j + 3].mean((1, 2)) for i in (0, 3) for j in (0, 3)], 1)
        rows.append(pooled.flatten() @ linear.weight.double().T + linear.bias.double())
    return torch.stack(rows)


def test_features_are_those_of_the_frozen_network_in_the_order_of_the_images() -> None:
    encoder, x = small_encoder(), images(2 * _BATCHES_PER_COPY * 3 + 5)
    h = extract(encoder, torch.split(x, 3))
    assert h.shape == (len(x), 10)
    assert h.dtype == torch.float32
    assert h.device.type == "cpu"
    torch.testing.assert_close(h.double(), naive_features(encoder, x), atol=1e-5, rtol=1e-5)


def test_the_encoder_does_not_change() -> None:
    encoder = small_encoder().train()
    encoder[1].eval()  # a part that the user froze
    encoder[1].momentum = None
    before = {key: value.clone() for key, value in encoder.state_dict().items()}
    flags = [part.training for part in encoder.modules()]
    extract(encoder, [images(16)])
    extract(encoder, [images(16)], precision="bf16-mixed")
    assert [part.training for part in encoder.modules()] == flags
    assert encoder.training
    assert not encoder[1].training
    for key, value in encoder.state_dict().items():
        assert torch.equal(value, before[key]), key
    assert all(p.grad is None and p.requires_grad for p in encoder.parameters())


def test_training_flags_are_restored_after_an_error() -> None:
    encoder = small_encoder().train()
    encoder[3].eval()
    with pytest.raises(RuntimeError, match="channels"):
        extract(encoder, [torch.rand(2, 5, 8, 8)])
    assert encoder.training
    assert encoder[1].training
    assert not encoder[3].training


def test_a_generator_is_read_one_batch_at_a_time_outside_inference_mode() -> None:
    made: list[bool] = []
    live: list[int] = []

    class Watched(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            live.append(len(made))
            return x.flatten(1)

    def batches():
        for _ in range(5):
            batch = images(2)
            made.append(batch.is_inference() or torch.is_inference_mode_enabled())
            yield batch

    h = extract(Watched(), batches())
    assert made == [False] * 5
    assert live == [1, 2, 3, 4, 5]
    assert not h.is_inference()
    assert not h.requires_grad
    nn.Linear(h.shape[1], 2)(h).sum().backward()  # an inference tensor would refuse


def test_mixed_precision_is_used_and_returns_float32() -> None:
    encoder, x = small_encoder(), images(12)
    exact, mixed = extract(encoder, [x]), extract(encoder, [x], precision="bf16-mixed")
    assert mixed.dtype == torch.float32
    difference = (exact - mixed).abs().max()
    assert 1e-5 < difference < 3e-2
    assert torch.equal(exact, extract(encoder, [x], precision="32-true"))
    assert torch.equal(mixed, extract(encoder, [x], precision="bf16"))


def test_an_encoder_without_parameters_and_an_explicit_device_work() -> None:
    x = images(4)
    assert torch.equal(extract(nn.Flatten(), [x], device="cpu"), x.flatten(1))


def test_wrong_use_is_refused() -> None:
    with pytest.raises(ValueError, match="no images"):
        extract(small_encoder(), [])
    with pytest.raises(ValueError, match="bf16-mixed"):
        extract(small_encoder(), [images(2)], precision="64-true")
