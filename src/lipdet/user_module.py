"""Modules in code that is not lipdet's, named `package.module:callable` or `ultralytics:FILE`.

Importing one runs that code.
"""

from __future__ import annotations

import importlib
import inspect
import re
import sys
from pathlib import Path

from torch import nn

from lipdet.errors import InputError
from lipdet.ultralytics_yolo import PREFIX, load_yolo


def names_module(spec: str) -> bool:
    """Return whether a DETECTOR names a callable, or a file of ultralytics, and no file of ours."""
    return (
        spec.startswith(PREFIX) or re.fullmatch(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*", spec) is not None
    )


def load_module(spec: str) -> nn.Module:
    """Call `package.module:callable`, looked for here first, and take the module it returns.

    `ultralytics:FILE` is the YOLO in that file.

    Raises:
        InputError: it cannot be imported, is no callable, or returns no nn.Module.
    """
    if spec.startswith(PREFIX):
        return load_yolo(spec.removeprefix(PREFIX))
    name, _, attribute = spec.partition(":")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        try:
            build = getattr(importlib.import_module(name), attribute)
        except (ImportError, AttributeError) as error:
            raise InputError(f"{spec} cannot be imported ({error}).") from None
        if isinstance(build, nn.Module) or not callable(build):
            raise InputError(
                f"{spec} must be a function or class that is called without arguments."
            )
        try:
            inspect.signature(build).bind()
        except TypeError as error:
            raise InputError(
                f"{spec} must be a function or class that is called without arguments ({error})."
            ) from None
        except ValueError:
            pass  # what is not written in Python may have no signature
        module = build()
    except OSError as error:
        # Weights that cannot be downloaded or read are the likeliest; no file of ours is meant.
        raise InputError(f"{spec}, your code, failed with: {error}") from error
    if not isinstance(module, nn.Module):
        raise InputError(f"{spec} returned {type(module).__name__}; it must return an nn.Module.")
    return module.eval()
