"""Weights of a network from a file: read, matched by name, and refused where they do not fit."""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from metricweight.checks import InputError

WRAPPERS = ("module.", "backbone.", "model.")  # what distributed training, self-supervision and we put before names
HEADS = ("fc.", "fc_", "classifier.", "head.", "heads.", "head_", "last_linear.", "aux1.", "aux2.", "AuxLogits.")


def read(path: Path) -> dict[str, Tensor]:
    """The tensors of a file by name: a state dict, or one below `state_dict` or `model`; .safetensors too.

    Nothing in the file is executed. Raises InputError where it cannot be read, or holds other things than tensors.
    """
    try:
        if path.suffix == ".safetensors":
            return _safetensors(path)
        state: Any = torch.load(path, map_location="cpu", weights_only=True)
    except InputError:
        raise
    except OSError as error:
        raise InputError(f"model.weights: {path} cannot be read: {error.strerror or error}.") from None
    except Exception as error:  # a damaged file fails in many ways
        if "Unsupported global" in str(error):
            raise InputError(
                f"model.weights: {path} holds more than tensors, which could run code when read; "
                "load it where you trust it and save its state dict alone."
            ) from None
        raise InputError(f"model.weights: {path} is damaged or not a file of weights; give a state dict.") from None
    for key in ("state_dict", "model"):
        if isinstance(state, Mapping) and isinstance(state.get(key), Mapping):
            state = state[key]
    if not isinstance(state, Mapping) or not state:
        raise InputError(f"model.weights: {path} holds no state dict; save one with torch.save(net.state_dict(), ...).")
    others = [str(key) for key, value in state.items() if not isinstance(value, Tensor)]
    if others:
        raise InputError(f"model.weights: {path} is not a state dict; these are not tensors: {_few(others)}.")
    return {str(key): value for key, value in state.items()}


def _safetensors(path: Path) -> dict[str, Tensor]:
    try:
        from safetensors.torch import load_file
    except ImportError:
        raise InputError("reading .safetensors needs safetensors: pip install 'metricweight[timm]'") from None
    loaded: dict[str, Tensor] = load_file(path)
    return loaded


def fit(network: nn.Module, state: Mapping[str, Tensor], source: str, name: str) -> None:
    """Copies tensors into a network whose classification layers were taken off.

    What stands before the names in the file (`module.`, `backbone.`, `model.`) is dropped where the network's names
    do not begin so. Ignored are classification layers that the network does not have, and counts of batches that
    are missing.

    source, name    of the tensors and of the network, as errors say them

    Raises InputError, and changes nothing, where a tensor is missing, is unexpected or has another shape.
    """
    own = network.state_dict()
    given = {_bare(key, own): value for key, value in state.items()}
    missing = [key for key in own if key not in given and not key.endswith(".num_batches_tracked")]
    unexpected = [key for key in given if key not in own and not key.startswith(HEADS)]
    shapes = [
        f"{key} {list(given[key].shape)} for {list(own[key].shape)}"
        for key in own
        if key in given and given[key].shape != own[key].shape
    ]
    if not any(key in own for key in given):
        raise InputError(
            f"model.weights: {source} fits nothing in {name}: it has {_few(list(given))}, "
            f"where the network has {_few(list(own))}; give the backbone that it was saved from."
        )
    problems = {"missing": missing, "unexpected": unexpected, "of another shape": shapes}
    if any(problems.values()):
        found = "; ".join(f"{len(keys)} {what} ({_few(keys)})" for what, keys in problems.items() if keys)
        raise InputError(f"model.weights: {source} does not fit {name}: {found}.")
    network.load_state_dict({key: given.get(key, value) for key, value in own.items()})


def _bare(key: str, own: Mapping[str, Any]) -> str:
    """A name without what stands before it and is not the network's."""
    strange = [prefix for prefix in WRAPPERS if not any(name.startswith(prefix) for name in own)]
    while prefix := next((prefix for prefix in strange if key.startswith(prefix)), None):
        key = key.removeprefix(prefix)
    return key


def _few(keys: Sequence[str]) -> str:
    return ", ".join(keys[:3]) + (", ..." if len(keys) > 3 else "")


def checksum(network: nn.Module) -> str:
    """The SHA-256 of a network's tensors in order of name, with their names and shapes."""
    found = hashlib.sha256()
    for key, value in sorted(network.state_dict().items()):
        found.update(f"{key} {list(value.shape)} {value.dtype}\n".encode())
        found.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return found.hexdigest()
