"""Specifications in one line, `slug:key=value,key=value`, parsed strictly."""

import difflib
import inspect
import re
import tomllib
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from weathered.core.errors import SpecError


def near(word: str, words: Iterable[str]) -> str:
    """' Did you mean ...?' for the closest of `words`, or an empty string."""
    hit = difflib.get_close_matches(word, list(words), 1)
    return f" Did you mean '{hit[0]}'?" if hit else ""


def parse(text: str) -> tuple[str, dict[str, Any]]:
    """Split `name:key=value,key=value` into the name and its options.

    Values are TOML: numbers, true and false, quoted or bare strings, lists. Raises SpecError for anything else.
    """
    name, _, rest = text.partition(":")
    name = name.strip()
    if not text.strip():
        raise SpecError("a name is empty; expected one such as mixup or mixup:alpha=0.2.")
    if not name:
        raise SpecError(f"'{text}' has no name before ':'.")
    options: dict[str, Any] = {}
    for item in split_commas(rest):
        if not item.strip():
            continue
        key, sign, value = item.partition("=")
        key = key.strip()
        if not sign or not key.isidentifier():
            raise SpecError(f"'{text}': expected key=value after ':', got '{item}'.")
        if key in options:
            raise SpecError(f"'{text}' gives '{key}' twice.")
        options[key] = _value(value.strip())
    return name, options


def split_commas(text: str) -> list[str]:
    """The items between commas outside brackets and quotes, empty ones included."""
    items, depth, quote, current = [], 0, "", ""
    for char in text:
        if quote:
            quote = "" if char == quote else quote
        elif char in "\"'":
            quote = char
        elif char in "[{(":
            depth += 1
        elif char in "]})":
            depth -= 1
        if char == "," and not depth and not quote:
            items.append(current)
            current = ""
        else:
            current += char
    return [*items, current]


def split_specs(text: str) -> list[str]:
    """`a,b:x=1,y=2,c` to its specifications; a comma separates them unless what follows is key=value."""
    specs: list[str] = []
    for item in split_commas(text):
        if specs and re.match(r"\s*\w+\s*=", item):
            specs[-1] += "," + item
        else:
            specs.append(item.strip())
    return specs


def _value(text: str) -> Any:
    try:
        return tomllib.loads(f"v = {text}")["v"]
    except tomllib.TOMLDecodeError:
        return text


def parameters(factory: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    """The named constructor arguments of a part."""
    return dict(inspect.signature(factory).parameters)


def option_types(factory: Callable[..., Any]) -> dict[str, Any]:
    """The annotation of each constructor argument, resolved."""
    target = factory.__init__ if inspect.isclass(factory) else factory
    return typing.get_type_hints(target)


def check_options(
    name: str, factory: Callable[..., Any], options: Mapping[str, Any], hidden: tuple[str, ...] = ()
) -> None:
    """Raise SpecError for an option that `factory` does not take or a value of the wrong type.

    hidden: arguments that the engine fills and a user may not give.
    """
    known = [key for key in parameters(factory) if key not in hidden]
    hints = option_types(factory)
    for key, value in options.items():
        if key not in known:
            listing = f" It has: {', '.join(known)}." if known else " It has no options."
            raise SpecError(f"{name} has no option '{key}'.{near(key, known)}{listing}")
        if key in hints and not fits(value, hints[key]):
            kind = type(value).__name__
            raise SpecError(
                f"{name}: option '{key}' takes {describe(hints[key])}, got {value!r} ({kind})."
                f"{_as_list(name, key, value, hints[key])}"
            )


LISTS = (list, tuple, Sequence)


def _items(annotation: Any) -> Any:
    """What a list of this annotation holds, None where it is no list."""
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return next((item for option in typing.get_args(annotation) if (item := _items(option)) is not None), None)
    found = typing.get_args(annotation)
    return found[0] if typing.get_origin(annotation) in LISTS and found else None


def _as_list(name: str, key: str, value: Any, annotation: Any) -> str:
    """How to write a text as a list of texts, which a shell takes the quotes from; empty where none is wanted."""
    item = _items(annotation)
    if not isinstance(value, str) or item is None or item in (float, int, bool):
        return ""
    texts = [text.strip(" '\"[]") for text in split_commas(value.strip("[] "))]
    quoted = ",".join(f"'{text}'" for text in texts if text)
    return f""" Texts in a list stand in quotes, and the whole in others: "{name}:{key}=[{quoted}]"."""


def fits(value: Any, annotation: Any) -> bool:
    """Whether a parsed value may stand for an argument annotated so; other annotations are left to the part."""
    origin = typing.get_origin(annotation)
    if origin in (typing.Union, types.UnionType):
        return any(fits(value, option) for option in typing.get_args(annotation))
    if origin is typing.Literal:
        return value in typing.get_args(annotation)
    if annotation is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    if annotation is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if annotation in (bool, str):
        return isinstance(value, annotation)
    if annotation is type(None):
        return value is None
    if origin in LISTS:
        item = _items(annotation)
        return isinstance(value, (list, tuple)) and (item is None or all(fits(one, item) for one in value))
    # parts and data are named
    return isinstance(value, (str, annotation)) if _is_named(annotation) else True


def _is_named(annotation: Any) -> bool:
    return inspect.isclass(annotation) and annotation not in (object, float, int, bool, str, type(None))


def as_annotated(value: Any, annotation: Any) -> Any:
    """A whole number where a float is wanted becomes one, so that 1 and 1.0 name the same recipe."""
    options = typing.get_args(annotation) or (annotation,)
    whole = isinstance(value, int) and not isinstance(value, bool)
    return float(value) if whole and float in options and int not in options else value


ITEMS = {float: "numbers", int: "whole numbers", str: "texts"}


def describe(annotation: Any) -> str:
    """An annotation in words for an error message."""
    origin = typing.get_origin(annotation)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(describe(option) for option in typing.get_args(annotation))
    if origin is typing.Literal:
        return "one of " + ", ".join(repr(option) for option in typing.get_args(annotation))
    if origin in LISTS:
        item = _items(annotation)
        return "a list" + (f" of {ITEMS[item]}" if item in ITEMS else " of names" if _is_named(item) else "")
    if _is_named(annotation):
        return "a name"
    names = {float: "a number", int: "a whole number", bool: "true or false", str: "text", type(None): "nothing"}
    return names.get(annotation, getattr(annotation, "__name__", str(annotation)))


def render(name: str, options: Mapping[str, Any]) -> str:
    """The one-line form of a name and its options, the inverse of `parse`."""

    def text(value: Any) -> str:
        if isinstance(value, bool):
            return str(value).lower()
        if isinstance(value, str):
            return value if _value(value) == value and "," not in value else f'"{value}"'
        if not isinstance(value, (list, tuple)):
            return str(value)
        # bare words are text by themselves, but not in a list
        return "[" + ",".join(f'"{item}"' if isinstance(item, str) else text(item) for item in value) + "]"

    return name + (":" + ",".join(f"{k}={text(v)}" for k, v in options.items()) if options else "")
