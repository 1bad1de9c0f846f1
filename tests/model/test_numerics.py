"""Profiles and classes: exact bits do not depend on threads, and wrong use is refused in words."""

import pytest
import torch

from model import numerics
from tests.fresh import run_fresh
from verification.errors import UsageError


def test_importing_array_code_does_not_import_torch():
    code = "import sys, model.numerics, model.arrays, model.init, model.export; print('torch' in sys.modules)"
    assert run_fresh(code) == "False"


def test_torch_imported_too_early_is_refused_with_a_way_out():
    code = (
        "import os, torch\n"
        "from model import numerics\n"
        "torch.rand(1)\n"
        "for attempt in range(2):\n"
        "    try:\n"
        "        numerics.prepare('exact', 1)\n"
        "    except numerics.UsageError as error:\n"
        "        print(error)\n"
        "    os.environ.update(numerics.environment('exact'))\n"
    )
    without, too_late = run_fresh(code, ATEN_CPU_CAPABILITY="default").splitlines()
    assert "torch was imported before the exact profile was set up" in without
    assert "ATEN_CPU_CAPABILITY=avx2 MKL_CBWR=AVX2,STRICT" in without
    assert "{\"torch's CPU capability\": 'DEFAULT'}" in too_late


def test_the_native_profile_takes_back_what_a_parent_of_the_exact_one_has_set():
    code = (
        "import os, sys\n"
        "from model import numerics\n"
        "numerics.prepare('native', 1)\n"
        "print([os.environ.get(name) for name in numerics.environment('exact')])\n"
        "print(numerics.numerics_class('native', 1))\n"
    )
    exact = numerics.environment("exact")
    left, name = run_fresh(code, **exact).splitlines()
    assert left == "[None, None]"
    assert "/mkl-auto/" in name
    # What its owner has set otherwise is left alone.
    left, name = run_fresh(code, **{**exact, "MKL_CBWR": "COMPATIBLE"}).splitlines()
    assert left == "[None, 'COMPATIBLE']"
    assert "/mkl-COMPATIBLE/" in name


def test_the_exact_profile_holds_in_a_child_of_a_process_that_has_it():
    code = (
        "from model import numerics; numerics.prepare('exact', 1); print(numerics.numerics_class('exact', 1))"
    )
    assert run_fresh(code, **numerics.environment("exact")).startswith("exact-")


def test_prepare_sets_torch_up():
    numerics.prepare("exact", 1)
    assert torch.backends.cpu.get_cpu_capability() == "AVX2"
    assert torch.are_deterministic_algorithms_enabled()
    assert not torch.backends.mkldnn.enabled
    with pytest.raises(UsageError, match="threads"):
        numerics.prepare("exact", 0)


def test_classes_name_what_changes_bits():
    version = f"torch-{torch.__version__}"
    exact = numerics.numerics_class("exact", 1).split("/")
    assert exact == ["exact-avx2.v2", "x86-64", version]
    native = numerics.numerics_class("native", 2)
    assert native.startswith(f"native.v1/{numerics._processor()[0]}-")
    assert native.endswith(f"/AVX2/mkl-AVX2,STRICT/threads-2/{version}")


def test_the_exact_profile_needs_x86(monkeypatch):
    monkeypatch.setattr("platform.machine", lambda: "aarch64")
    with pytest.raises(UsageError, match="x86-64"):
        numerics.prepare("exact", 1)
    with pytest.raises(UsageError, match="native profile"):
        numerics.numerics_class("exact", 1)
