"""What every subpackage shares: errors, the profile, the figures folder, writing to a disk.

    LAD_PROFILE   `full` (default) or `fast`: the same notebooks and code, with fewer steps,
                  iterations and samples in `fast`, so that two CPU cores need minutes.
    LAD_FIGURES   the folder that figures are written to; default `figures/` of the checkout that
                  holds this package, else `./figures`. Nothing is read from it.

Every error raised on purpose is one line that says what was got, what was expected and what to do.
The command line prints it and exits with status 2; a notebook or widget shows it as it is.
"""

from __future__ import annotations

import dataclasses
import errno
import functools
import hashlib
import json
import os
import reprlib
import tempfile
from collections.abc import Mapping
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError, with_config
from pydantic.dataclasses import dataclass as pydantic_dataclass


class LADError(Exception):
    """Base class of every error raised on purpose."""


class InvalidInput(LADError, ValueError):
    """An argument is outside its range, unknown or empty."""


class AssetUnavailable(LADError):
    """Weights or data cannot be had: no network, no permission, or no such revision."""


class DamagedFile(LADError):
    """A file is there, but truncated, malformed or not the one its digest promises."""


class CacheError(LADError):
    """The cache cannot be written: read-only, or the disk is full."""


class AdapterMismatch(LADError):
    """An adapter is sound but was made for another backbone or another kind of denoiser."""


class NumericalError(LADError, ArithmeticError):
    """The model produced NaN or infinity."""


def profile() -> str:
    """The profile in force, `"fast"` or `"full"`; raises InvalidInput for any other."""
    name = os.environ.get("LAD_PROFILE") or "full"
    if name not in ("fast", "full"):
        raise InvalidInput(f"LAD_PROFILE is {name!r}: set it to 'fast' or 'full', or unset it")
    return name


def figures_folder() -> Path:
    """The absolute folder of figures, created if need be; raises CacheError if it cannot be.

    In a checkout it does not depend on the working folder: notebooks run in `notebooks/`.
    """
    chosen = os.environ.get("LAD_FIGURES")
    checkout = Path(__file__).resolve().parent.parent
    if chosen:
        folder = Path(chosen).expanduser().absolute()
    elif (checkout / "pyproject.toml").is_file() and (checkout / "notebooks").is_dir():
        folder = checkout / "figures"
    else:
        folder = Path.cwd() / "figures"
    with disk_errors(folder, "set LAD_FIGURES to another"):
        folder.mkdir(parents=True, exist_ok=True)
    return folder


def check_text(text: str) -> str:
    """The text, if it is Unicode; raises InvalidInput for other bytes and for half a character.

    UTF-8 on a command line whose locale could not read it is read here.
    """
    try:
        return text.encode("utf-8", "surrogateescape").decode("utf-8")
    except UnicodeError as error:
        raise InvalidInput(
            f"{text[:60]!a} holds bytes that are no UTF-8, or half a character: expected "
            "Unicode text; convert it, for example with iconv"
        ) from error


def check_writable(path: Path) -> None:
    """Raise CacheError for a file that cannot be written, before the work that it is to hold.

    InvalidInput for a device or a pipe: a file that is written whole would take its place.
    """
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, "", str(path))
        if path.exists() and not path.is_file():
            raise InvalidInput(f"{path} is a device or a pipe: expected a file; choose another")
        with tempfile.TemporaryFile(dir=path.parent) as file:
            file.write(b" ")


def write_whole(path: Path, data: bytes) -> None:
    """Write a file, and its folder, that appears complete or not at all; raises CacheError."""
    check_writable(path)
    path = path.resolve()  # a link stays, and what it leads to is written
    with disk_errors(path):
        handle, partial = tempfile.mkstemp(".partial", f".{path.name}-", path.parent)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(data)
            os.chmod(partial, 0o644)  # mkstemp makes files for their owner alone
            os.replace(partial, path)
        finally:
            Path(partial).unlink(missing_ok=True)


def replace_folder(new: Path, folder: Path) -> None:
    """Move `new` to `folder`; what was there is then beside `new`."""
    if folder.exists():
        folder.rename(new.with_name("old"))
    new.rename(folder)


def write_json(path: Path, values: dict) -> None:
    """Write plain values as `write_whole` writes bytes."""
    write_whole(path, (json.dumps(values, indent=1) + "\n").encode())


def sha256_file(path: str | Path) -> str:
    """Hex sha256 of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


ELSEWHERE = "choose another path or free space"
CACHE = "free space there, or set LAD_CACHE (HF_HOME for models from the hub) to another"


@contextmanager
def disk_errors(path: str | Path, remedy: str = ELSEWHERE):
    """Turn what a disk answers to a write (full, read-only, not a folder) into CacheError."""
    try:
        yield
    except Exception as error:  # a CacheError from within gets this path and remedy
        reason = disk_reason(error)
        if reason is None or (isinstance(error, LADError) and not isinstance(error, CacheError)):
            raise
        raise CacheError(
            f"cannot write to {path} ({reason}): expected a writable folder with room; {remedy}"
        ) from error


FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)
IN_THE_WAY = (errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EEXIST, errno.EISDIR, errno.ENOENT)


def disk_reason(error: BaseException | None) -> str | None:
    """What is wrong with the disk, if that is what this error, or one it came from, says."""
    while error is not None:
        if isinstance(error, OSError) and (
            error.errno in FULL
            # Sockets are refused with some of these codes too, but they have no file name.
            or (error.errno in IN_THE_WAY and error.filename is not None)
        ):
            return os.strerror(error.errno)
        for code in FULL:  # pip and libraries written in Rust say it in words
            if f"[Errno {code}]" in str(error) or f"(os error {code})" in str(error):
                return os.strerror(code)
        error = error.__cause__ or error.__context__
    return None


def one_line(error: object) -> str:
    """What an error of somebody else's says, short enough to stand inside one of ours."""
    return " ".join(str(error).split())[:200] or type(error).__name__


STRICT = ConfigDict(strict=True, allow_inf_nan=False)  # no bool for a number, no NaN
LARGEST = 2**31 - 1  # of whole numbers without a limit of their own
Count = Annotated[int, Field(ge=0, le=LARGEST)]
# Decorates the TypedDict of a JSON object; what it does not name may be there too.
record = with_config(ConfigDict(**STRICT, extra="allow"))
adapter = functools.cache(TypeAdapter)
SHORT = reprlib.Repr()  # of values that may be large, deep or doubled many times over
SHORT.maxlevel, SHORT.maxstring, SHORT.maxother = 3, 80, 80
SHORT.repr_int = SHORT.repr_instance  # which gives way where Python refuses to print a number


def checked(value: object, kind: object) -> Any:
    """A value, or JSON text, as a type strictly; a ValueError of one line where it is none."""
    is_text = isinstance(value, str | bytes)
    validate = adapter(kind).validate_json if is_text else adapter(kind).validate_python
    try:
        return validate(value)
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        what = ".".join(map(str, problem["loc"]))
        if what and problem["type"] != "missing":
            what += f" = {SHORT.repr(problem['input'])[:80]}"
        message = problem["msg"].removeprefix("Value error, ")  # of a validator of ours
        raise ValueError(f"{what}: {message}".removeprefix(": ")) from None


MALFORMED = (ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RecursionError)


@contextmanager
def damaged_file(path: str | Path, remedy: str, *more: type[Exception]):
    """Turn what reading a damaged file raises, and errors of `more` types, into DamagedFile."""
    try:
        yield
    except DamagedFile:
        raise
    except (OSError, *MALFORMED, *more) as error:
        reason = one_line(error if isinstance(error, OSError | ValueError) else repr(error))
        raise DamagedFile(f"{path} is unusable ({reason}): {remedy}") from error


def check_least(least: int, **numbers: int | None) -> None:
    """Raise InvalidInput for a number below `least`; None is a number that was not given."""
    for name, number in numbers.items():
        if number is not None and number < least:
            raise InvalidInput(f"{name} = {number}: expected at least {least}")


def check_same(path: str | Path, found: Mapping, expected: Mapping, remedy: str) -> None:
    """Raise InvalidInput where the file of an earlier run has other values than this run."""
    for name, value in expected.items():
        if found.get(name) != value:
            before, now = SHORT.repr(found.get(name)), SHORT.repr(value)
            raise InvalidInput(f"{path} was made with {name} = {before}, now it is {now}: {remedy}")


def setting(
    default: object, help: str, ge=None, le=None, gt=None, min_length=None, **extra: object
):
    """A field of a `settings` class: its default, what it does, its range (to LARGEST at most).

    `extra` is free for readers of the field, such as `group` and `label` for widgets and the
    command line. A field of a few values has a `Literal` type and no range.
    """
    le = LARGEST if le is None and ge is not None else le
    limits = {"ge": ge, "le": le, "gt": gt, "min_length": min_length}
    return Field(default, description=help, **limits, json_schema_extra=extra or None)


def settings(cls: type) -> type:
    """Class decorator: a frozen dataclass whose values are checked when it is made.

    It is pydantic's dataclass in strict mode (no bool for a number, no NaN, no unknown name), with
    `to_dict`, `from_dict` and errors of this package: `InvalidInput` names the setting, the value
    and what is expected. Use `dataclasses.replace` to change a value.
    """
    made = pydantic_dataclass(cls, frozen=True, config=ConfigDict(**STRICT, extra="forbid"))
    init = made.__init__

    @functools.wraps(init)
    def checked_init(self, *args, **kwargs):
        try:
            init(self, *args, **kwargs)
        except ValidationError as error:
            raise InvalidInput(_explain(made, error)) from None

    made.__init__ = checked_init
    made.to_dict = _to_dict
    made.from_dict = classmethod(_from_dict)
    return made


def describe(cls: type) -> dict[str, dict]:
    """Each field of a `settings` class by name, for option lists, sliders and docs.

    With `type` (annotation), `default`, `help`, `low`, `high` (None where unbounded), `choices`
    (tuple, or None), and everything that was given as `extra`.
    """
    found = {}
    for name, field in cls.__pydantic_fields__.items():
        limits = {
            k: getattr(m, k) for m in field.metadata for k in ("ge", "gt", "le") if hasattr(m, k)
        }
        kinds = [field.annotation, *get_args(field.annotation)]
        choices = next((get_args(kind) for kind in kinds if get_origin(kind) is Literal), None)
        found[name] = {
            "type": field.annotation,
            "default": field.get_default(call_default_factory=True),
            "help": field.description,
            "low": limits.get("ge", limits.get("gt")),
            "high": limits.get("le") if limits.get("le") != LARGEST else None,
            "choices": choices,
            **(field.json_schema_extra or {}),
        }
    return found


def _explain(cls: type, error: ValidationError) -> str:
    """The first problem of a validation as got, expected."""
    problem = error.errors(include_url=False)[0]
    raised = problem.get("ctx", {}).get("error")
    if isinstance(raised, InvalidInput):  # by __post_init__
        return str(raised)
    name, known = problem["loc"][0], describe(cls)
    name = list(known)[name] if isinstance(name, int) else name  # passed by position
    if name not in known:
        return f"unknown setting {name!r}: expected one of {', '.join(known)}"
    return f"{name} = {SHORT.repr(problem['input'])[:80]}: expected {_expected(known[name])}"


def _expected(field: dict) -> str:
    """The values a field can take, in words."""
    kinds = [field["type"], *get_args(field["type"])]
    if get_origin(field["type"]) is tuple:
        words = {int: "whole number", float: "number"}
        names = field["choices"] or [words[kind] for kind in kinds[1:] if kind is not ...]
        return f"a list of {', '.join(map(str, names))}"
    if field["choices"]:
        return f"one of {', '.join(map(str, field['choices']))}"
    if bool in kinds:
        return "True or False"
    if not {int, float} & set(kinds):
        return f"{getattr(field['type'], '__name__', field['type'])}"
    words = "a number" if float in kinds else "a whole number"
    low, high = field["low"], field["high"]
    if low is not None and high is not None:
        words += f" from {low} to {high}"
    elif low is not None:
        words += f" of at least {low}"
    return words + (" or nothing" if type(None) in kinds else "")


def _to_dict(self) -> dict:
    """Plain values, for JSON and YAML; `from_dict` reads them back."""
    return json.loads(json.dumps(dataclasses.asdict(self)))


def _from_dict(cls: type, values: Mapping):
    """Settings from plain values; what is not named keeps its default."""
    if not isinstance(values, Mapping):
        raise InvalidInput(
            f"settings of type {type(values).__name__}: expected names with values, as `to_dict` "
            "gives them"
        )
    given = {}
    for name, value in values.items():
        kind = getattr(cls.__pydantic_fields__.get(name), "annotation", None)
        if hasattr(kind, "from_dict") and isinstance(value, Mapping):
            value = kind.from_dict(value)
        given[str(name)] = tuple(value) if isinstance(value, list) else value
    return cls(**given)


def provenance(
    model: str, device: str, dtype: str, adapter_sha256: str | None, backbone_digest: str | None
) -> dict:
    """What a recorded number hangs on: model, adapter, device, precision and versions."""
    values = {"model": model, "backbone_digest": backbone_digest, "adapter_sha256": adapter_sha256}
    values |= {"device": device, "dtype": dtype.removeprefix("torch.")}
    return values | {package: version(package) for package in ("torch", "transformers")}
