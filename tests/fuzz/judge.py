"""What came of one call, beside what the documentation says of it."""

from __future__ import annotations

import inspect
import random
import re
import time
import traceback
import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import numpy
import torch

from attensor.errors import BackendError, DataError, MissingExtraError, RoomError, ShapeError
from tests.fuzz import kinds
from tests.fuzz.calls import Call, Illegal, evaluate, need, tensors_in, values_of
from tests.fuzz.corruptions import RESHAPED, corrupt
from tests.fuzz.operator_rules import NOTHING
from tests.fuzz.subjects import draw

__all__ = ["FAULTS", "OUTCOMES", "Outcome", "call_of", "judge", "outcome"]

FAULTS = ("crash", "hang", "silent acceptance", "raw error", "wrong numbers", "refusal of what is legal")
OUTCOMES = ("clear error", "accepted", "Python's TypeError", *FAULTS)
CLEAR = (ShapeError, BackendError, DataError, MissingExtraError, TypeError, ValueError, FileNotFoundError)
# relative to the largest number of the definition
LIMITS = {torch.float64: 1e-6, torch.float32: 1e-3, torch.float16: 3e-2, torch.bfloat16: 1e-1}
# an error ends with what was expected or what to do
ADVICE = re.compile(
    r"\b(must|use|pass|give|choose|call|leave|needs?|change|cut|draw|keep|only|has no|have no|there is no|expected|crop"
    r"|set|make|one of|is not a|not on|does not|do not|cannot|exclude|fits?|unexpected keyword|missing \d)\b",
    re.IGNORECASE,
)


class Outcome(NamedTuple):
    """Of one call.

    Attributes:
        title: row of the table.
        kind: one of `OUTCOMES`.
        line: the call, to paste.
        what: the error's text, or what the documentation says against it.
        corrupted: what was done to it.
        seconds: it took.
    """

    title: str
    kind: str
    line: str
    what: str
    corrupted: str
    seconds: float = 0.0


def call_of(seed: int, index: int) -> Call:
    """Call number `index`."""
    rng = random.Random(f"{seed} {index}")
    return corrupt(rng, draw(rng))


def judge(seed: int, index: int) -> Outcome:
    """Make a call and say what came of it."""
    call, begin = call_of(seed, index), time.monotonic()
    kind, what = outcome(call)
    changes = ", ".join(f"{name}: {how}" for name, how in call.corrupted.items())
    return Outcome(call.title, kind, str(call), what[:600], changes, time.monotonic() - begin)


def outcome(call: Call) -> tuple[str, str]:
    """One of `OUTCOMES` and what there is to say."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        function, arguments = evaluate(call.target), values_of(call.arguments)
    illegal, unsaid = _reasons(call, function, arguments)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            torch.manual_seed(0)
            result = function(**arguments)
        except Exception as error:
            return _refused(call, error, illegal, unsaid)
        if illegal:
            return "silent acceptance", illegal
        is_comparable = unsaid is None or unsaid == NOTHING
        return _compared(call, result) if is_comparable else ("accepted", unsaid or "")


def _reasons(call: Call, function: Callable[..., Any], arguments: dict[str, Any]) -> tuple[str | None, str | None]:
    """What the documentation says against a call, and what it leaves open."""
    unsaid = None
    try:
        _need_all(function, arguments)
        unsaid = kinds.check(call.kinds, arguments)
        # a rule may trip over what the kind leaves open, but not over an integer
        if unsaid is None or unsaid.endswith(kinds.NUMPY_INTEGER):
            plain = {name: int(x) if isinstance(x, numpy.integer) else x for name, x in arguments.items()}
            unsaid = call.rules(plain) or unsaid
    except Illegal as error:
        return str(error), None
    return None, unsaid


def _names(call: Call, reason: str | None) -> set[str]:
    """Of arguments that an error may be about: those that were changed, and all that are wrong."""
    reasons = [reason]
    # each change may make another argument wrong, sizes that are drawn may be, and the first hides the others
    for name in call.corrupted:
        others = {other: how for other, how in call.corrupted.items() if other != name}
        arguments = {other: text for other, text in call.arguments.items() if other != name}
        if name in call.legal:
            arguments[name] = call.legal[name]
        one = replace(call, arguments=arguments, corrupted=others)
        reasons += _reasons(one, evaluate(call.target), values_of(arguments))
    # where sizes are wrong, or there is nothing, which argument is it that is wrong?
    is_any = NOTHING in reasons or RESHAPED.intersection(call.corrupted.values())
    words = (re.findall(r"\w+", (why or "").partition(":")[0]) for why in reasons)
    return {*(call.arguments if is_any else call.corrupted), *(word for found in words for word in found)}


def _need_all(function: Callable[..., Any], arguments: dict[str, Any]) -> None:
    """What has no default is given."""
    for name, parameter in inspect.signature(function).parameters.items():
        is_one = parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
        need(not is_one or parameter.default is not parameter.empty or name in arguments, f"{name}: missing")


def _refused(call: Call, error: Exception, illegal: str | None, unsaid: str | None) -> tuple[str, str]:
    text = f"{type(error).__name__}: {error}"
    if isinstance(error, RoomError) and not illegal:
        return "accepted", text
    if not _is_clear(call, error, illegal or unsaid):
        if call.is_constructor and isinstance(error, TypeError) and illegal:
            return "Python's TypeError", text
        if not illegal and re.search(
            r"not enough memory|can't allocate|[Oo]verflow(ed)? (when unpacking|with sizes)", text
        ):
            return "accepted", "as much memory is not to be had"
        frame = traceback.extract_tb(error.__traceback__)[-1]
        return "raw error", f"{text[:400]} ({frame.filename.rpartition('/')[2]}:{frame.lineno}; {illegal or unsaid})"
    return ("clear error" if illegal or unsaid else "refusal of what is legal"), text


def _is_clear(call: Call, error: Exception, reason: str | None) -> bool:
    """The operator or class, a corrupted argument, and what was expected or what to do."""
    text = str(error)
    if isinstance(error, TypeError) and re.search(r"unexpected keyword argument|missing \d+ required", text):
        return True  # Python's own
    patterns = [name.replace("backend", "back-?end") for name in _names(call, reason)]
    is_named = any(re.search(rf"(?<![A-Za-z]){pattern}(?![a-z])", text) for pattern in patterns)
    begins = any(re.match(rf"(\w+\.)*{name}(_reference)?\b", text) for name in call.says)
    return isinstance(error, CLEAR) and begins and is_named and bool(ADVICE.search(text))


def _compared(call: Call, result: Any) -> tuple[str, str]:
    """With the definition, where there is one and the numbers are not random or beyond what rounding allows."""
    dropout = call.arguments.get("dropout_p", "0.0") != "0.0"
    if call.reference is None or dropout or "huge" in call.corrupted.values():
        return "accepted", ""
    arguments = values_of(call.arguments)
    for form in ("backend", "chunk_size"):
        arguments.pop(form, None)
    try:
        expected = tensors_in(evaluate(call.reference)(**arguments))
    except Exception as error:
        return "wrong numbers", f"accepted, the reference says {type(error).__name__}: {error}"
    found = tensors_in(result)
    if [(x.shape, x.dtype) for x in found] != [(x.shape, x.dtype) for x in expected]:
        return "wrong numbers", f"{[(list(x.shape), x.dtype) for x in found]} for {[list(x.shape) for x in expected]}"
    for x, y in zip(found, expected):
        # sums that hold an infinity are infinite or NaN by the order of their terms
        is_exact = not {"inf", "-inf"}.intersection(call.corrupted.values())
        why = _differs(x, y, _limit(arguments), is_exact=is_exact)
        if why:
            return "wrong numbers", why
    return "accepted", ""


def _limit(arguments: dict[str, Any]) -> float:
    """That of the lowest precision among the inputs."""
    dtypes = [x.dtype for x in tensors_in(list(arguments.values())) if x.dtype in LIMITS]
    return max((LIMITS[dtype] for dtype in dtypes), default=1e-6)


def _differs(found: torch.Tensor, expected: torch.Tensor, limit: float, *, is_exact: bool) -> str:
    """What is wrong, if anything; exact: NaN and infinities are of the same kind, not only in the same places."""
    if found.device.type == "meta" or not found.numel():
        return ""
    x, y = found.double(), expected.double()
    finite = y.isfinite()
    same_kind = torch.equal(x.isnan(), y.isnan()) and torch.equal(x[y.isinf()], y[y.isinf()])
    if not torch.equal(x.isfinite(), finite) or (is_exact and not same_kind):
        return f"{int((~x.isfinite()).sum())} not finite, the reference has {int((~finite).sum())} of {x.numel()}"
    if not finite.any():
        return ""
    error = ((x - y)[finite].abs().max() / y[finite].abs().max().clamp_min(1e-300)).item()
    return f"off by {error:.2g} of the largest" if error > limit else ""
