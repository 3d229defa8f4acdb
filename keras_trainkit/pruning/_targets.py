"""Select the kernels of a model to prune, and their sparsities."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np

from keras_trainkit._checks import check_choice, check_in_range, reject
from keras_trainkit._model.kernels import Kernel, without_kernels
from keras_trainkit._model.select import (
    Selector,
    check_all_used,
    check_selectors,
    kernels_in,
    selected,
)
from keras_trainkit._model.select import chains as all_chains
from keras_trainkit._types import Tensor
from keras_trainkit.pruning._masks import (
    Blocks,
    NofM,
    least_zeros,
    masks,
    parse_pattern,
)


@dataclass(frozen=True)
class Rule:
    """The parsed arguments that all pruning functions share.

    Attributes:
        sparsity: The fraction of the entries to prune, or one for each selector.
        scope: Whether entries are ranked within each kernel or over all kernels.
        pattern: What is pruned as a whole.
        include: What to prune; everything if empty.
        exclude: What not to prune.
    """

    sparsity: float | Mapping[Selector, float]
    scope: str
    pattern: NofM | Blocks
    include: tuple[Selector, ...]
    exclude: tuple[Selector, ...]


def make_rule(
    sparsity: Any,
    scope: Any,
    pattern: Any,
    include: Any,
    exclude: Any,
    block_pooling: Any = "avg",
) -> Rule:
    """Check and parse the arguments.

    Raises:
        ValueError: If one is out of range or two contradict each other.
    """
    check_choice("scope", scope, ("layer", "global"))
    check_choice("block_pooling", block_pooling, ("avg", "max"))
    parsed = parse_pattern(pattern, block_pooling)
    if isinstance(sparsity, Mapping):
        check_selectors("sparsity", list(sparsity))
        for value in sparsity.values():
            check_in_range("sparsity", value, 0, 1, closed="left")
        if scope == "global" or isinstance(parsed, NofM):
            reject("sparsity", sparsity, 'one number with scope="global" or "N:M"')
    else:
        sparsity = check_in_range("sparsity", sparsity, 0, 1, closed="left")
        if isinstance(parsed, NofM) and not np.isclose(
            sparsity, 1 - parsed.n / parsed.m
        ):
            reject("sparsity", sparsity, f"{1 - parsed.n / parsed.m:g} with {parsed}")
    return Rule(
        sparsity,
        scope,
        parsed,
        check_selectors("include", include),
        check_selectors("exclude", exclude),
    )


@dataclass(frozen=True)
class Targets:
    """The kernels of a model that a rule prunes.

    Attributes:
        rule: The rule.
        kernels: The kernels.
        finals: The final sparsity of each kernel.
    """

    rule: Rule
    kernels: list[Kernel]
    finals: list[float]

    def masks(self, values: list[Tensor], sparsities: list[Tensor]) -> list[Tensor]:
        """Return a boolean mask of the entries to keep, for each kernel."""
        together = self.rule.scope == "global"
        return masks(self.kernels, values, sparsities, self.rule.pattern, together)

    def have(self, sparsities: list[float]) -> bool:
        """Whether the kernels have at least the zeros that these sparsities require."""
        together = self.rule.scope == "global"
        zeros = [
            int(kernel.variable.shape and np.sum(_array(kernel.variable) == 0))
            for kernel in self.kernels
        ]
        if together:
            zeros = [sum(zeros)]
        least = least_zeros(self.kernels, sparsities, self.rule.pattern, together)
        return all(a >= b for a, b in zip(zeros, least, strict=True))


def find_targets(
    model: keras.Model, rule: Rule, trainable_only: bool = False
) -> Targets:
    """Find the kernels of a built model that a rule prunes.

    Raises:
        ValueError: If there are none, or a selector matches no layer.
    """
    found, every = list(kernels_in(model)), list(all_chains(model))
    # Users may also name layers whose kernels cannot be pruned, to exclude them.
    chains = [chain for chain, _ in found]
    chains += [chain for chain in every if without_kernels(chain[-1])]
    per_layer = rule.sparsity if isinstance(rule.sparsity, Mapping) else {}
    check_all_used("include", chains, rule.include)
    check_all_used("exclude", chains, rule.exclude)
    check_all_used("sparsity", chains, list(per_layer))

    def wanted(chain: tuple) -> bool:
        if rule.include and not selected(chain, rule.include):
            return False
        if selected(chain, rule.exclude) or _final(chain, rule.sparsity) is None:
            return False
        return True

    for chain in every:
        reason = without_kernels(chain[-1])
        if reason and wanted(chain):
            name = chain[-1].name
            expected = f"such that its kernels can be pruned, or exclude {name!r}"
            reject("model", model.name, f"{expected}, which {reason}")
    kernels, finals = [], []
    for chain, kernel in found:
        if not wanted(chain):
            continue
        if trainable_only and not _trained(chain, kernel):
            continue
        final = _final(chain, rule.sparsity)
        if final is not None:
            kernels.append(kernel)
            finals.append(final)
    if not kernels:
        reject("model", model.name, "a built model with kernels to prune")
    return Targets(rule, kernels, finals)


def _final(chain: Sequence, sparsity: float | Mapping[Selector, float]) -> float | None:
    if not isinstance(sparsity, Mapping):
        return sparsity
    for selector, value in sparsity.items():
        if selected(tuple(chain), [selector]):
            return float(value)
    return None


def _trained(chain: Sequence, kernel: Kernel) -> bool:
    return any(v is kernel.variable for v in chain[0].trainable_variables)


def _array(variable) -> np.ndarray:
    return keras.ops.convert_to_numpy(variable)
