"""Pins the golden runs anew, or repeats them as other processors would calculate.

python -m tests.golden [RUN …]        pin these runs, or all, as they are now
python -m tests.golden --elsewhere    test with the kernels of other processors
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.golden.pins import pin
from tests.golden.runs import RUNS

NO_AVX512 = "AVX512F AVX512CD AVX512_SKX AVX512_CLX AVX512_CNL AVX512_ICL AVX512_SPR"

# Each makes PyTorch, MKL, oneDNN, OpenBLAS or NumPy take the kernels of older processors.
PROCESSORS = (
    {"ATEN_CPU_CAPABILITY": "default"},
    {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2"},
    {"MKL_CBWR": "COMPATIBLE"},
    {"OPENBLAS_CORETYPE": "Haswell", "NPY_DISABLE_CPU_FEATURES": NO_AVX512},
    {
        "ATEN_CPU_CAPABILITY": "default",
        "MKL_CBWR": "COMPATIBLE",
        "ONEDNN_MAX_CPU_ISA": "SSE41",
        "OPENBLAS_CORETYPE": "Nehalem",
        "NPY_DISABLE_CPU_FEATURES": f"{NO_AVX512} AVX2 FMA3",
    },
)


def elsewhere() -> int:
    """How many of the other processors' kernels give something else."""
    tests = ["-m", "pytest", "-q", str(Path(__file__).with_name("test_golden.py"))]
    failed = 0
    for settings in PROCESSORS:
        sys.stdout.write(" ".join(f"{name}={value}" for name, value in settings.items()) + "\n")
        sys.stdout.flush()
        done = subprocess.run([sys.executable, *tests], env=os.environ | settings, check=False)
        failed += done.returncode != 0
    return failed


if __name__ == "__main__":
    if sys.argv[1:] == ["--elsewhere"]:
        sys.exit(elsewhere())
    for name in sys.argv[1:] or RUNS:
        pin(name)
