"""The probe: equal where bits must be, and another as soon as one kernel is."""

import re

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - torch's own custom

from model import local_steps, numerics, transformer
from pipeline import compression
from pipeline.probe import probe_digest
from tests.fresh import run_fresh


def test_exact_bits_do_not_depend_on_the_number_of_threads():
    code = (
        "from model import numerics\n"
        "for threads in (2, 3, 7):\n"
        "    numerics.prepare('exact', threads)\n"
        "    import torch\n"
        "    from pipeline.probe import probe_digest\n"
        "    assert torch.get_num_threads() == threads\n"
        "    print(numerics.numerics_class('exact', threads), probe_digest())\n"
    )
    # Without MKL_DYNAMIC=FALSE MKL would use no more threads than there are cores.
    answers = run_fresh(code, MKL_DYNAMIC="FALSE", OMP_WAIT_POLICY="passive").splitlines()
    assert torch.get_num_threads() == 1
    assert answers == [f"{numerics.numerics_class('exact', 1)} {probe_digest()}"] * 3


def test_the_probe_notices_another_instruction_set():
    exact = probe_digest()
    assert exact == probe_digest()
    native = run_fresh(
        "from model import numerics; numerics.prepare('native', 1)\n"
        "from pipeline.probe import probe_digest; print(probe_digest())",
        ATEN_CPU_CAPABILITY="default",
    )
    assert re.fullmatch("sha256:[0-9a-f]{64}", native)
    assert native != exact


def _mean_of_halves(x, dim, keepdim=False):
    half = x.shape[dim] // 2
    first, second = x.narrow(dim, 0, half), x.narrow(dim, half, x.shape[dim] - half)
    return (first.sum(dim, keepdim=keepdim) + second.sum(dim, keepdim=keepdim)) / x.shape[dim]


def _linear_in_halves(x, weight):
    half = x.shape[-1] // 2
    return x[..., :half] @ weight[:, :half].t() + x[..., half:] @ weight[:, half:].t()


KERNELS = {
    "SiLU": lambda patch: patch.setattr(transformer, "_silu", lambda x: x / (1 + torch.exp(-x))),
    "softmax": lambda patch: patch.setattr(
        transformer, "_softmax", lambda x: torch.softmax(x.double(), -1).float()
    ),
    "RMS norm": lambda patch: patch.setattr(
        transformer,
        "_rms_norm",
        lambda config, gain, x: (
            x * (_mean_of_halves(x * x, -1, keepdim=True) + config.norm_eps).rsqrt() * gain
        ),
    ),
    "matrix product": lambda patch: patch.setattr(F, "linear", _linear_in_halves),
    "norm of the gradient": lambda patch: patch.setattr(
        local_steps, "_norm", lambda vector: float(vector.norm())
    ),
    "power": lambda patch: patch.setattr(
        local_steps, "_power", lambda base, exponent: float(np.float32(base) ** exponent)
    ),
    "error feedback": lambda patch: patch.setattr(
        "pipeline.probe.accumulate",
        lambda codec, update, error, beta: (error.astype(np.float64) * beta + update).astype(np.float32),
    ),
    "codec": lambda patch: patch.setattr(
        compression.Codec, "encode", lambda self, vector, old=compression.Codec.encode: old(self, -vector)
    ),
}


@pytest.mark.parametrize("kernel", KERNELS)
def test_the_probe_notices_one_other_kernel(kernel, monkeypatch):
    exact = probe_digest()
    KERNELS[kernel](monkeypatch)
    assert probe_digest() != exact
    monkeypatch.undo()
    assert probe_digest() == exact
