"""The run folder of a training: made, locked, and the settings that go on in it."""

import logging
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from torchmae import runfolder
from torchmae.errors import UserError
from torchmae.settings.options import changeable, requested
from torchmae.train.checkpoint import lock, return_to, verified
from torchmae.train.config import TrainConfig
from torchmae.train.distributed import World
from torchmae.train.loop import finished_line
from torchmae.train.optim import can_lengthen, trunk

logger = logging.getLogger(__name__)


@contextmanager
def run_folder(out: Path, data: str, world: World) -> Iterator[bool]:
    """The run folder, made and locked as long as it is open.

    Args:
        out: the folder.
        data: what is trained on, as the user named it; the folder must not lie inside.
        world: its main process makes and locks.

    Yields:
        Whether there is a training to resume; one of its checkpoints is good then.
    """
    new = not out.exists()
    with ExitStack() as stack:
        resuming = world.on_main(lambda: runfolder.prepare(out, data))
        if new and world.is_main:
            stack.push(lambda _, error, trace: runfolder.discard(out, error))
        world.on_main(lambda: stack.enter_context(lock(out)))
        if resuming:  # before a model is built
            world.on_main(lambda: verified(out))
        yield resuming


def resume(
    config: Any,
    verb: str,
    identity: dict[str, Any],
    plan: TrainConfig | None,
    out: Path,
    world: World,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The settings to resume a training with, and its model's description; says what has changed.

    A run may be lengthened where its first steps are also those of a longer one; in the decay of a
    wsd schedule it returns to the checkpoint before it.

    Args:
        config: the settings of this call.
        verb: the verb of this call.
        identity: of the data now.
        plan: of the run until now; None where its first steps are never those of a longer one.
        out: the run folder.
        world: its main process writes and warns.

    Raises:
        UserError: it is another run, or longer than it can become.
    """
    asked, free = requested(config), changeable(type(config))
    done = world.on_main(lambda: runfolder.last_step(out))
    go_on_from = None
    if plan is not None and (asked["epochs"] or 0) > runfolder.stored_settings(out)["epochs"]:
        go_on_from = done if can_lengthen(plan, done) else trunk(plan)
        if go_on_from is None and done >= plan.steps:
            raise UserError(finished_line(plan, out, "--from" if "from_run" in asked else ""))
    if go_on_from is not None:
        free |= {"epochs"}
    settings, described = runfolder.resume(out, verb, asked, free, identity)
    if go_on_from is not None and go_on_from < done:
        # Before config.json: after a kill between them the command finds the same way again.
        step = go_on_from
        world.on_main(lambda: return_to(out, step))
        if world.is_main:
            logger.info(f"{out}: back to step {step:,}, before the learning rate fell")
    notes = [runfolder.other_times(out, identity)]
    if plan is None or go_on_from is not None or done < plan.steps:  # it computes something
        notes.append(runfolder.other_versions(out))
    for note in notes:
        if note is not None and world.is_main:
            logger.warning(note)
    was = runfolder.read_any_config(out)["data"]
    newly_named = any(map(runfolder.is_unknown, (was, was.get("val") or {})))
    if go_on_from is not None or newly_named:
        world.on_main(lambda: runfolder.write_config(out, verb, settings, identity, described))
    settings["cache"] = config.runtime.cache  # machines differ, and it decides nothing
    return settings, described
