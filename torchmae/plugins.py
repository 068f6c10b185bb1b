"""A user's own Python file, loaded before a verb runs: it adds maskings, targets, decoders,
encoders, sources or verbs."""

import importlib.util
import logging
import sys
from pathlib import Path
from typing import Any

from torchmae.errors import UserError
from torchmae.runfolder import is_run, read_config
from torchmae.settings.options import changed, flatten

logger = logging.getLogger(__name__)

RUN_SETTINGS = (
    "run",
    "from_run",
    "out",
    "model",
)  # settings that may name a run folder, whose plugin is needed too


def load_plugin(path: str) -> Path:
    """Loads a file once in a process, as the module of its name, and returns where it is.

    Raises:
        UserError: it is missing, has the name of a module that exists already, or fails.
    """
    file = Path(path).expanduser().resolve()
    if not file.is_file() or file.suffix != ".py":
        raise UserError(f"--plugin {path}: no such file, or not a .py file")
    name = file.stem
    if name in sys.modules and is_at(getattr(sys.modules[name], "__file__", None), file):
        return file
    # A file in the current folder, which `python -m` puts on the path, is found under its own name.
    found = importlib.util.find_spec(name) if name.isidentifier() else None
    taken = name in sys.modules or (found is not None and not is_at(found.origin, file))
    if taken or not name.isidentifier():
        raise UserError(
            f"--plugin {path}: '{name}' is not free as the name of a module; rename the file"
        )
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None
    assert spec.loader is not None
    sys.modules[name] = module = importlib.util.module_from_spec(spec)
    sys.path.append(
        str(file.parent)
    )  # loading processes that are spawned, not forked, import it by name
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[name]
        raise UserError(f"--plugin {path} failed: {type(error).__name__}: {error}") from error
    return file


def is_at(origin: str | None, file: Path) -> bool:
    """Whether a module's file is this one."""
    return origin is not None and Path(origin).resolve() == file


def load_run_plugin(run: str | Path) -> None:
    """Loads the plugin that a run was made with, if it was made with one.

    Never a file inside the run folder: a run that comes from somebody else must not bring code
    along.

    Raises:
        UserError: the plugin is not where it was, and no other file of its name is loaded.
    """
    path = read_config(run)["config"].get("plugin")
    if path is None or Path(path).stem in sys.modules:
        return
    file = Path(path)
    if not file.is_absolute() or file.resolve().is_relative_to(Path(run).resolve()):
        raise UserError(
            f"{run} names the plugin {path}, which is not loaded by itself: --plugin {path} if you "
            "trust it"
        )
    if not file.is_file():
        raise UserError(
            f"{run} was made with the plugin {path}, which is not there: name its new place with "
            "--plugin"
        )
    logger.info(f"loading the plugin {path} of {run}")
    load_plugin(path)


def prepare(config: Any) -> Any:
    """Loads the plugin that a config names, and those of the runs that it names.

    Returns:
        The config, its plugin as an absolute path.
    """
    values = flatten(config)
    if values.get("plugin") is not None:
        config = changed(config, plugin=str(load_plugin(values["plugin"])))
    for name in RUN_SETTINGS:
        value = values.get(name)
        if (
            isinstance(value, str)
            and is_run(Path(value))
            and (Path(value) / "config.json").exists()
        ):
            load_run_plugin(value)
    return config
