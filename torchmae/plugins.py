"""A user's own Python files, loaded before a verb runs: they add maskings, targets, decoders,
encoders, sources or verbs."""

import hashlib
import importlib.util
import logging
import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

from torchmae.disk import cache_folder
from torchmae.errors import UserError
from torchmae.runfolder import is_run, stored_settings
from torchmae.settings.options import changed, flatten

logger = logging.getLogger(__name__)

RUN_SETTINGS = ("run", "from_run", "out", "model")  # settings that may name a run folder


def load_plugin(path: str) -> Path:
    """Loads a file that the user names, once in a process, as the module of its name.

    The user's cache remembers that it was named, so that runs may load it by themselves later.

    Returns:
        Where it is: absolute, without symbolic links.

    Raises:
        UserError: it is missing, has the name of a module that exists already, or fails.
    """
    file = Path(path).expanduser().resolve()
    if not file.is_file() or file.suffix != ".py":
        raise UserError(f"--plugin {path}: no such file, or not a .py file")
    execute(file)
    with suppress(OSError):
        mark = remembered(file)
        mark.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        mark.write_text(str(file))
    return file


def execute(file: Path) -> None:
    """Imports a file as the module of its name, unless it is imported already."""
    name = file.stem
    loaded = sys.modules.get(name)
    if loaded is not None and getattr(loaded, "__file__", None) == str(file):
        return
    found = importlib.util.find_spec(name) if name.isidentifier() and loaded is None else None
    other = found is not None and found.origin != str(file)  # in the current folder it finds itself
    if loaded is not None or not name.isidentifier() or other:
        raise UserError(
            f"--plugin {file}: '{name}' is not free as the name of a module; rename the file"
        )
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None
    assert spec.loader is not None
    sys.modules[name] = module = importlib.util.module_from_spec(spec)
    sys.path.append(str(file.parent))  # loading processes that are spawned, not forked, import it
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[name]
        raise UserError(f"--plugin {file} failed: {type(error).__name__}: {error}") from error


def remembered(file: Path) -> Path:
    """Where the user's cache remembers that a file was named as a plugin."""
    return cache_folder("plugins") / hashlib.sha256(str(file).encode()).hexdigest()


def load_run_plugins(run: str | os.PathLike[str]) -> tuple[str, ...]:
    """Loads the plugins that a run was made with.

    Only files that this user has named with --plugin before: a run that comes from somebody else
    must not bring code along.

    Returns:
        Their paths.

    Raises:
        UserError: one is not where it was, or was never named, and no module of its name is loaded.
    """
    paths = tuple(stored_settings(run).get("plugin") or ())
    loaded = []
    for path in paths:
        name = Path(path).stem
        if name in sys.modules:  # given with --plugin, from its new place, or imported by the user
            loaded.append(str(getattr(sys.modules[name], "__file__", path)))
            continue
        if not Path(path).is_file():
            raise UserError(
                f"{run} was made with the plugin {path}, which is not there: name its new place "
                "with --plugin (the file keeps its name)"
            )
        if not remembered(Path(path)).exists():
            raise UserError(
                f"{run} names the plugin {path}, which you have not used before, so it is not "
                f"loaded by itself: --plugin {path} if you trust it"
            )
        logger.info(f"loading the plugin {path} of {run}")
        execute(Path(path))
        loaded.append(path)
    return tuple(loaded)


def has_settings(run: str) -> bool:
    """Whether config.json of a run folder can be read; a verb that needs it says why not."""
    try:
        stored_settings(run)
    except UserError:
        return False
    return True


def prepare(config: Any) -> Any:
    """Loads the plugins that a config names, and those of the runs that it names.

    Returns:
        The config with all of these plugins, as absolute paths: what is trained now needs them too.
    """
    values = flatten(config)
    plugins = [str(load_plugin(path)) for path in values.get("plugin", ())]
    for name in RUN_SETTINGS:
        value = values.get(name)
        for place in value if isinstance(value, tuple) else (value,):
            if isinstance(place, str) and is_run(Path(place)) and has_settings(place):
                plugins += load_run_plugins(place)
    return changed(config, plugin=tuple(dict.fromkeys(plugins))) if "plugin" in values else config
