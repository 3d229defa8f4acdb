"""Which layers and weights an argument such as `include=` matches."""

import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeAlias

from keras.layers import Layer

from keras_trainkit._checks import reject
from keras_trainkit._keras import sublayers
from keras_trainkit._model.kernels import Kernel, own_kernels

Selector: TypeAlias = str | type | Layer | Callable[[Layer], bool]
"""A layer; a type of layers; a regular expression that matches the whole of a layer's
name or of its path; or a function of a layer. A plain name must be that of one layer:
where several have it, a path means one and an expression such as `.*/query` all."""

_EXPECTED = "a layer, a type of layers, a regular expression or a function of a layer"


def chains(model: Layer) -> Iterator[tuple[Layer, ...]]:
    """Every layer inside a model, each after the layers around it; not the model."""
    seen = set()

    def walk(layer: Layer, around: tuple[Layer, ...]) -> Iterator[tuple[Layer, ...]]:
        for part in sublayers(layer, recursive=False):
            if id(part) not in seen:
                seen.add(id(part))
                yield (*around, part)
                yield from walk(part, (*around, part))

    yield from walk(model, ())


def path_of(chain: Sequence[Layer]) -> str:
    """The names of the layers around a layer and its own, with slashes."""
    return "/".join(layer.name for layer in chain)


def paths(model: Layer) -> dict[Layer, str]:
    """The path of every layer inside a model."""
    return {chain[-1]: path_of(chain) for chain in chains(model)}


def kernels_in(model: Layer) -> Iterator[tuple[tuple[Layer, ...], Kernel]]:
    """Every kernel inside a model, with the layers around it."""
    for chain in chains(model):
        for kernel in own_kernels(chain[-1]):
            yield chain, kernel


def check_selectors(name: str, selectors: Any) -> tuple[Selector, ...]:
    """One selector or several as a tuple, or raise."""
    if selectors is None:
        return ()
    if isinstance(selectors, str | type | Layer) or callable(selectors):
        selectors = [selectors]
    if not isinstance(selectors, Sequence | set | frozenset):
        reject(name, selectors, f"{_EXPECTED}, or a list of these")
    for selector in selectors:
        if isinstance(selector, str):
            try:
                re.compile(selector)
            except re.error as error:
                reject(name, selector, f"a regular expression ({error})")
        elif not callable(selector):
            reject(name, selector, _EXPECTED)
    return tuple(selectors)


def selected(chain: tuple[Layer, ...], selectors: Sequence[Selector]) -> bool:
    """Whether a selector matches a layer or one of those around it."""
    path = ""
    for layer in chain:
        path = f"{path}/{layer.name}" if path else layer.name
        if any(_matches(selector, layer, path) for selector in selectors):
            return True
    return False


def check_all_used(
    name: str, chains: Sequence[tuple[Layer, ...]], selectors: Sequence[Selector]
) -> None:
    """Raise if a selector matches no layer, or is a name that several layers have."""
    for selector in selectors:
        if not any(selected(chain, [selector]) for chain in chains):
            names = ", ".join(sorted({chain[-1].name for chain in chains}))
            expected = f"such that it matches a layer of the model ({names})"
            reject(name, selector, expected)
        if isinstance(selector, str) and is_plain(selector):
            check_one_meant(name, selector, _paths_of(selector, chains))


def is_plain(selector: Any) -> bool:
    """Whether a selector is a name or a path rather than an expression."""
    return isinstance(selector, str) and not set(selector) & set(".^$*+?{}[]()|\\")


def check_one_meant(name: str, selector: str, paths: Sequence[str]) -> None:
    """Raise if a name is that of several layers, which stand at these paths."""
    if len(paths) > 1:
        reject(
            name,
            selector,
            f"the name of one layer, but {', '.join(sorted(paths)[:4])} have it: give "
            f"the path or the layer of one, or a regular expression for all, such as "
            f"'(.*/)?{selector}'",
        )


def _paths_of(wanted: str, chains: Sequence[tuple[Layer, ...]]) -> list[str]:
    """The path of each layer with a name, but of none inside one that has it too."""
    paths = {}
    for chain in chains:
        names = [layer.name for layer in chain]
        if wanted in names:
            place = names.index(wanted)
            paths[id(chain[place])] = "/".join(names[: place + 1])
    return list(paths.values())


def _matches(selector: Selector, layer: Layer, path: str) -> bool:
    if isinstance(selector, str):
        return any(re.fullmatch(selector, name) for name in (layer.name, path))
    if isinstance(selector, type):
        return isinstance(layer, selector)
    if isinstance(selector, Layer):
        return layer is selector
    return bool(selector(layer))
