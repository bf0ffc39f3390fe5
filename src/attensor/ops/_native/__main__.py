"""`python -m attensor.ops._native`: build the C++ kernels, unless they are there."""

from attensor.errors import BackendError
from attensor.ops._native.build import build

try:
    build()
except BackendError as failure:
    raise SystemExit(str(failure)) from None
