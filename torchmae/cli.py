"""The command `mae`: a verb and its flags to the function that does it; mistakes in a line or two,
no traceback."""

import errno
import io
import logging
import os
import signal
import sys
import threading
from collections.abc import Sequence
from contextlib import suppress
from itertools import pairwise

from torchmae.errors import RunError, UserError, choose, printable
from torchmae.settings.options import options_of
from torchmae.settings.parser import parse
from torchmae.verbs import VERBS, load, start, with_second_word
from torchmae.version import __version__

EXAMPLES = """examples:
  mae pretrain photos/                         a run folder from any folder of images
  mae reconstruct runs/photos cat.jpg          what the model sees in 25 % of a picture
  mae knn runs/photos labelled/                how good are the features?
  mae finetune runs/photos labelled/           a classifier from a few labels
  mae embed runs/photos photos/ --out f.npz    features for your own use

mae VERB --help lists the flags of a verb; --debug shows the traceback of an error."""


class ConsoleHandler(logging.Handler):
    """Writes what the logger "torchmae" says to stdout, above any progress bar; warnings begin with
    "warning: ".

    No work ends because nobody can read of it: the reader of a pipe, a terminal or room on a disk
    may be gone.

    Attributes:
        lost: why something could not be written.
    """

    lost: OSError | None = None

    def emit(self, record: logging.LogRecord) -> None:
        from tqdm import tqdm

        prefix = "warning: " if record.levelno >= logging.WARNING else ""
        text = printable(record.getMessage(), keep="\n")
        try:
            tqdm.write(prefix + text, file=sys.stdout)
            sys.stdout.flush()
        except OSError as error:
            self.lost = error
        except (ValueError, RuntimeError):  # it is closed; this thread is writing already
            pass


def show_messages() -> None:
    """Installs the handler once. A user of the library who does not call this sees warnings only,
    Python's default."""
    logger = logging.getLogger("torchmae")
    if not console_handlers():
        logger.addHandler(ConsoleHandler())
    logger.setLevel(logging.INFO)


def console_handlers() -> list[ConsoleHandler]:
    """The handler, if it is installed."""
    handlers = logging.getLogger("torchmae").handlers
    return [handler for handler in handlers if isinstance(handler, ConsoleHandler)]


def usage() -> str:
    """What `mae --help` prints."""
    width = max(map(len, VERBS)) + 2
    rows = [f"  {verb:<{width}}{entry.help}" for verb, entry in VERBS.items()]
    return "\n".join(
        ["usage: mae VERB ...", "", "Masked Autoencoders in PyTorch.", "", *rows, "", EXAMPLES]
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one verb.

    Returns:
        The exit code: 0; 2 for a mistake of the user; 1 for a failed run, 65 for a loss that is not
        finite; 129, 130 and 143 after SIGHUP, SIGINT (Ctrl-C) and SIGTERM.
    """
    # SIGUSR1 asks a training to save. Before and between trainings there is nothing to save, and
    # its default would end the process.
    ignores = hasattr(signal, "SIGUSR1") and threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGUSR1, signal.SIG_IGN) if ignores else None
    try:
        return answer(list(sys.argv[1:] if arguments is None else arguments))
    finally:
        settle_output()
        if ignores:  # the caller's again, and that of the processes it starts
            signal.signal(signal.SIGUSR1, before or signal.SIG_DFL)


def answer(words: list[str]) -> int:
    """Runs one verb, as `main` does."""
    # Before torch is loaded: threads that wait for work must not burn the cores that loading images
    # needs.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    for stream in (
        sys.stdout,
        sys.stderr,
    ):  # file names can be anything: what cannot be printed is shown as \\x..
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    debug = "--debug" in words
    words = [word for word in words if word != "--debug"]
    if words[0:1] == ["help"] and words[1:]:
        words = [*words[1:], "--help"]
    if not words or words[0] in ("-h", "--help", "help"):
        print(usage())
        return 0 if words else 2
    if words[0] in ("-V", "--version"):
        print(f"torchmae {__version__}")
        return 0
    try:
        run_verb(words[0], words[1:])
        return 0
    except KeyboardInterrupt:
        complain("interrupted")
        return 130
    except BrokenPipeError:
        return 1
    except Exception as error:
        if debug:
            raise
        return report(error)


def run_verb(verb: str, words: Sequence[str]) -> None:
    """Parses the words behind a verb and calls its function. A plugin comes first: it may bring the
    verb, or a preset."""
    from torchmae.presets import PRESETS

    plugins = plugins_in(words)
    if plugins:
        from torchmae.plugins import load_plugin

        for plugin in plugins:
            load_plugin(plugin)
    show_messages()
    verb, words = with_second_word(verb, words)
    entry = choose(VERBS, verb, "verb")
    settings = load(entry.config)
    if plugins and "plugin" not in options_of(settings):
        words = without_plugin(words)  # a plugin's own verb need not have the flag
    config = parse(settings, verb, words, PRESETS.get(verb, {}))
    start(entry, config)


def plugins_in(words: Sequence[str]) -> list[str]:
    """The files behind --plugin, before the verb's own flags are known."""
    spaced = [after for word, after in pairwise(words) if word == "--plugin"]
    joined = [word.partition("=")[2] for word in words if word.startswith("--plugin=")]
    return spaced + joined


def without_plugin(words: Sequence[str]) -> list[str]:
    """The words without --plugin and its file."""
    kept, skip = [], False
    for word in words:
        if not skip and word != "--plugin" and not word.startswith("--plugin="):
            kept.append(word)
        skip = word == "--plugin"
    return kept


def report(error: Exception) -> int:
    """Prints an error, and returns its exit code.

    A user's mistake is the same in every process, so the first one alone prints it.
    """
    if not isinstance(error, UserError | RunError):
        failed = printable(f"{type(error).__name__}: {error}")
        complain(f"failed: {failed} (--debug shows where)")
        return 1
    rank = int(os.environ.get("RANK", "0"))
    if rank == 0 or isinstance(error, RunError):
        text = str(error).strip()  # a loading process hands its error on with a traceback around it
        text = text.splitlines()[-1] if "DataLoader worker" in text else text
        complain(f"{f'process {rank}: ' if rank else ''}{printable(text)}")
    return error.exit_code


def complain(text: str) -> None:
    """Prints to stderr; the exit code is right even where nobody reads that."""
    with suppress(OSError, ValueError):
        print(f"mae: {text}", file=sys.stderr, flush=True)


def settle_output() -> None:
    """Flushes what was printed. What cannot be written is dropped, or Python would end with 120."""
    lost = [handler.lost for handler in console_handlers() if handler.lost]
    if lost and lost[0].errno not in (errno.EPIPE, errno.EIO):
        complain(f"messages could not be written to stdout: {lost[0].strerror}")
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):
            with suppress(OSError, ValueError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
