"""The minGRU: parallel = step by step, exported = torch, batches do not matter."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

torch = pytest.importorskip("torch", reason="torch is in the extra `train`")

from torch import Tensor  # noqa: E402

from scoring.generation import Manifest, build  # noqa: E402
from scoring.interface import Floats  # noqa: E402
from scoring.zoo.mingru import MinGRU  # noqa: E402
from scoring.zoo.mingru_net import Net, export  # noqa: E402
from scoring.zoo.nets import CLIP, Frame, Scaling  # noqa: E402

T, F, H, W = 7, 21, 3, 32
STATIC = 8  # the first columns are the same at all query times


def make_net(seed: int = 0) -> Net:
    torch.manual_seed(seed)
    r = np.random.default_rng(seed)
    tokens = Scaling.of(r.normal(1, 3, (500, T)).astype(np.float32))
    features = r.normal(2, 2, (500, F)).astype(np.float32)
    features[:, 5] = 3.0  # constant in training
    net = Net(Frame(tokens, Scaling.of(features), H, offset=2, static=STATIC), width=W)
    net.log_cap.fill_(7.0)
    with torch.no_grad():
        net.out.weight.mul_(3)
    return net


def manifest(**changes: object) -> Manifest:
    base = {"family": "mingru", "horizons_s": (7 * 86400, 30 * 86400, 90 * 86400)}
    return Manifest.model_validate({**base, **changes})


def serve(net: Net) -> MinGRU:
    model = build(manifest(), export(net)).model
    assert isinstance(model, MinGRU)
    return model


def steps(
    lengths: list[int], seed: int = 0
) -> tuple[Floats, npt.NDArray[np.int32], npt.NDArray[np.int32]]:
    r = np.random.default_rng(seed)
    tokens = r.normal(1, 3, (sum(lengths), T)).astype(np.float32)
    rows = np.repeat(np.arange(len(lengths)), lengths).astype(np.int32)
    ranks = np.concatenate([np.arange(n, dtype=np.int32) for n in lengths])
    return tokens, rows, ranks


def one_by_one(net: Net, tokens: Tensor, lengths: list[int]) -> Tensor:
    made: list[Tensor] = []
    at = 0
    for n in lengths:
        carry = torch.zeros(1, 2 * W)
        for i in range(at, at + n):
            carry = net.step(carry, tokens[i : i + 1])
            made.append(carry)
        at += n
    whole: Tensor = torch.cat(made)
    return whole


def test_the_parallel_sequence_equals_single_steps_in_values_and_gradients() -> None:
    net, lengths = make_net(), [1, 5, 2, 37, 1, 130]
    tokens, _, ranks = steps(lengths)
    got_in = torch.from_numpy(tokens).requires_grad_()
    want_in = torch.from_numpy(tokens).requires_grad_()
    weigh = torch.randn(len(tokens), 2 * W)
    got = net.sequence(got_in, torch.from_numpy(ranks))
    (got * weigh).sum().backward()
    grads = [p.grad.clone() for p in net.cell1.parameters() if p.grad is not None]
    net.zero_grad()
    want = one_by_one(net, want_in, lengths)
    (want * weigh).sum().backward()
    assert got_in.grad is not None
    assert want_in.grad is not None
    torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(got_in.grad, want_in.grad, atol=1e-5, rtol=1e-4)
    for a, b in zip(grads, net.cell1.parameters(), strict=True):
        assert b.grad is not None
        torch.testing.assert_close(a, b.grad, atol=1e-4, rtol=1e-4)


def test_the_served_steps_equal_torch_however_they_are_batched() -> None:
    net = make_net()
    model = serve(net)
    lengths = [3, 1, 200, 7, 1, 1]
    tokens, rows, ranks = steps(lengths)
    ends = np.cumsum(lengths) - 1
    want = net.sequence(torch.from_numpy(tokens), torch.from_numpy(ranks)).detach().numpy()[ends]
    shuffled = np.random.default_rng(1).permutation(len(rows))
    # any interleaving of users that keeps each user's own order
    mixed = np.empty_like(shuffled)
    for user in range(len(lengths)):
        mixed[rows[shuffled] == user] = np.flatnonzero(rows == user)
    zeros = np.zeros((len(lengths), model.carry_size), np.float32)
    whole = model.advance(zeros, rows[mixed], tokens[mixed])
    np.testing.assert_allclose(whole, want, atol=1e-5)
    assert not zeros.any()
    carry = zeros
    for start in range(0, len(mixed), 17):
        part = mixed[start : start + 17]
        carry = model.advance(carry, rows[part], tokens[part])
    np.testing.assert_allclose(carry, want, atol=1e-5)


def test_the_exported_head_equals_torch() -> None:
    net = make_net()
    model = serve(net)
    r = np.random.default_rng(2)
    users, knots = 700, 10  # several calls of 1,024 rows
    carry = r.normal(size=(users, 2 * W)).astype(np.float32)
    features = r.normal(2, 2, (users, knots, F)).astype(np.float32)
    features[:, :, :STATIC] = features[:, :1, :STATIC]
    got = model.predict(carry, features)
    with torch.no_grad():
        flat = torch.from_numpy(features.reshape(-1, F))
        spread = torch.from_numpy(carry).repeat_interleave(knots, 0)
        expected, p_active = net.values(spread, flat)
    np.testing.assert_allclose(got.expected, expected.reshape(users, knots, H), rtol=1e-4)
    np.testing.assert_allclose(
        got.p_active, p_active.reshape(users, knots, H), rtol=1e-4, atol=1e-6
    )
    assert got.p50.shape == (users, H)
    assert (np.diff(got.expected, axis=-1) >= 0).all()


def test_a_column_that_was_constant_in_training_moves_no_value() -> None:
    model = serve(make_net())
    r = np.random.default_rng(3)
    carry = r.normal(size=(5, 2 * W)).astype(np.float32)
    features = r.normal(2, 2, (5, 1, F)).astype(np.float32)
    moved = features.copy()
    moved[..., 5] += 1e6
    np.testing.assert_array_equal(
        model.predict(carry, features).expected, model.predict(carry, moved).expected
    )


def test_a_query_far_outside_training_stays_finite() -> None:
    net = make_net()
    model = serve(net)
    carry = np.zeros((1, 2 * W), np.float32)
    features = np.full((1, 1, F), 1e30, np.float32)
    features[..., net.offset] = 4.0
    made = model.predict(carry, features)
    assert np.isfinite(made.expected).all()
    assert CLIP < 10


def test_serving_loads_no_torch_and_no_onnx() -> None:
    code = (
        "import sys; import scoring.zoo.mingru, scoring.generation, scoring.scorer;"
        "bad = {'torch', 'onnx', 'faust', 'redis'} & set(sys.modules); assert not bad, bad"
    )
    root = Path(__file__).parents[2]
    subprocess.run([sys.executable, "-c", code], check=True, cwd=root)
