"""The package is built as ARCHITECTURE.md draws it: who imports whom, budgets, what starts fast."""

import ast
import graphlib
import re
import subprocess
import sys
import tokenize
from pathlib import Path
from typing import NamedTuple

import pytest
from helpers import flags

import torchmae

PACKAGE = Path(torchmae.__file__).parent
TESTS = Path(__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))

# Which rooms a room may import, beside the base: files at the root, and settings/.
WINGS = {"models", "data", "train"}
ROOMS = {
    "__init__": {"verbs", "presets", *WINGS},  # public names, imported on demand
    "__main__": {"cli"},
    "cli": {"verbs", "presets"},
    "verbs": {"benchmarks", "tasks", "interop", "models"},
    "presets": {"presets", "tasks"},
    "sklearn": {"interop", *WINGS},
    "benchmarks": {"benchmarks", "tasks", "eval", "report", "interop", *WINGS},  # it measures verbs
    "tasks": {"tasks", "eval", "report", "interop", *WINGS},
    "eval": {"eval", *WINGS},
    "report": {"report", *WINGS},
    "interop": {"interop", *WINGS},
    "models": {"models"},
    "data": {"data"},
    "train": {"train"},
    "settings": {"settings"},
}
ROOT = {path.stem for path in PACKAGE.glob("*.py")} - set(ROOMS)
BASE = {"settings", *ROOT}
# Each file or folder of models/ may import those before it.
MODELS = (
    "sizes patches masking mixing vit encoders targets decoders mae beside heads refine pyramid "
    "segmentation detection weights"
)

# Lines of code: without comments, docstrings and blank lines. "root" is the files beside the rooms.
FILE_LINES, FUNCTION_LINES, FILES_PER_FOLDER = 600, 60, 12
ROOM_LINES = {
    "root": 1300,
    "settings": 1100,
    "models": 3650,
    "data": 10_000,
    "train": 1850,
    "eval": 2200,
    "report": 3200,
    "interop": 1800,
    "tasks": 12_500,
    "presets": 280,
    "benchmarks": 1450,
}

# Tests of the whole program; every other test file has the name of what it tests.
WHOLE_PROGRAM = {
    "test_aspect",
    "test_decoding",
    "test_docs",
    "test_examples",
    "test_extending",
    "test_hostile",
    "test_house",
    "test_interruptions",
    "test_listing",
    "test_mistakes",
    "test_processes",
    "test_python_data",
    "test_rectangles",
    "test_readme",
    "test_reference",
    "test_resume",
    "test_witness",
}


def name_of(path: Path) -> str:
    return str(path.relative_to(PACKAGE).with_suffix("")).replace("/", ".")


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(path: Path) -> set[str]:
    """Full names of everything a file imports, at any depth: `package.module.name`."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def own_imports(path: Path) -> set[str]:
    """Modules of torchmae that a file imports, without the leading `torchmae.`."""
    modules = {name_of(p).removesuffix(".__init__") for p in FILES}
    found = set()
    for name in imports(path):
        if name.startswith("torchmae."):
            name = name.removeprefix("torchmae.")
            while name not in modules and "." in name:
                name = name.rpartition(".")[0]
            found.add(name)
    return found


class Lines(NamedTuple):
    """Line numbers of a file: those with code, and those of docstrings (also of fields)."""

    code: set[int]
    docs: set[int]


def lines_of(path: Path) -> Lines:
    docs: set[int] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        text = node.value if isinstance(node, ast.Expr) else None
        if isinstance(text, ast.Constant) and isinstance(text.value, str):
            docs.update(range(text.lineno, (text.end_lineno or 0) + 1))
    blank = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT}
    code: set[int] = set()
    with path.open("rb") as file:
        for token in tokenize.tokenize(file.readline):
            if token.type not in blank | {tokenize.ENCODING, tokenize.ENDMARKER}:
                code.update(range(token.start[0], token.end[0] + 1))
    return Lines(code - docs, docs)


def test_every_file_is_in_a_known_room() -> None:
    assert {room_of(path) for path in FILES} <= set(ROOMS) | ROOT
    assert not list((PACKAGE / "tasks").glob("[!_]*.py")), "a verb is a folder"


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_imports_go_down_never_up_nor_sideways(path: Path) -> None:
    allowed = ROOMS.get(room_of(path), set()) | BASE
    wrong = {name for name in own_imports(path) if name.partition(".")[0] not in allowed}
    assert not wrong, f"{name_of(path)} must not import {sorted(wrong)}"


def test_no_import_cycles() -> None:
    graph = {name_of(path).removesuffix(".__init__"): own_imports(path) for path in FILES}
    graph.pop("__init__")
    graphlib.TopologicalSorter(graph).prepare()  # its CycleError names the files


def test_a_verb_imports_another_verb_only_to_run_it() -> None:
    """That is its function `run`, also as `verb.run(config)`, and the config class it takes."""
    wrong = []
    for path in sorted((PACKAGE / "tasks").glob("*/*.py")):
        text = path.read_text()
        others = {name for name in imports(path) if name.startswith("torchmae.tasks.")}
        for name in sorted(others):
            verb, _, rest = name.removeprefix("torchmae.tasks.").partition(".")
            allowed = bool(re.fullmatch(r"run|run\.run|config\.[A-Z]\w*", rest))
            if rest == "run":  # `from torchmae.tasks.verb import run as verb`
                allowed = set(re.findall(rf"\b{verb}\.(\w+)", text)) <= {"run", "config"}
            if verb != path.parent.name and not allowed:
                wrong.append(f"{name_of(path)} imports {verb}.{rest}")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("path", sorted((PACKAGE / "models").rglob("[!_]*.py")), ids=name_of)
def test_the_order_inside_models(path: Path) -> None:
    own = path.relative_to(PACKAGE / "models").parts[0].removesuffix(".py")
    order = MODELS.split()
    assert own in order, f"{own} needs its place in the order of MODELS"
    above = set(order[order.index(own) + 1 :])
    wrong = {
        name for name in own_imports(path) if name.split(".")[1:2] and name.split(".")[1] in above
    }
    assert not wrong, f"{name_of(path)} must not import {sorted(wrong)}"


def test_train_does_not_know_what_it_trains() -> None:
    for path in sorted((PACKAGE / "train").rglob("*.py")):
        words = set(re.findall(r"[a-z]+", path.read_text().lower()))
        assert not words & {"encoder", "decoder", "patchify", "autoencoder"}, name_of(path)


def test_torch_distributed_in_one_file_only() -> None:
    def uses(path: Path) -> bool:
        named = any(
            name.startswith(("torch.distributed", "torch.nn.parallel")) for name in imports(path)
        )
        lines = path.read_text().splitlines()
        return named or any("torch.distributed." in lines[i - 1] for i in lines_of(path).code)

    assert [name_of(path) for path in FILES if uses(path)] == ["train.distributed"]


def test_no_drawers() -> None:
    drawers = {"utils", "util", "common", "base", "helpers", "helper", "misc"}
    assert not {path.stem for path in FILES} & drawers


def test_no_pickle_is_ever_loaded() -> None:
    for path in FILES:
        packages = {name.partition(".")[0] for name in imports(path)}
        assert not packages & {"pickle", "cPickle", "dill", "joblib"}, name_of(path)
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Call):
                continue
            function = ast.unparse(node.func)
            # `mae import` of a .pth that the user named; weights_only=True is tested there.
            if path.name != "foreign.py":
                assert function not in {"torch.load", "torch.save"}, name_of(path)
            if function == "np.load":
                arguments = {word.arg: ast.unparse(word.value) for word in node.keywords}
                assert arguments.get("allow_pickle", "False") == "False", name_of(path)


def test_no_synchronization_in_a_training_step() -> None:
    text = (PACKAGE / "train/trainer.py").read_text()
    assert not re.search(r"\.item\(\)|\.tolist\(\)|synchronize", text)


# Budgets. Line length (100) and the number of parameters (6) are ruff's: E501 and PLR0913.


def test_files_and_rooms_stay_within_their_budgets() -> None:
    lines = {path: len(lines_of(path).code) for path in FILES}
    assert {name_of(p): count for p, count in lines.items() if count > FILE_LINES} == {}
    rooms = dict.fromkeys(ROOM_LINES, 0)
    for path, count in lines.items():
        rooms[room_of(path) if room_of(path) in rooms else "root"] += count
    over = {room: count for room, count in rooms.items() if count > ROOM_LINES[room]}
    assert not over, f"delete something, or raise the budget and say why: {over}"


def test_functions_stay_within_their_budget() -> None:
    long = {}
    for path in FILES:
        code = lines_of(path).code
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                count = len(code & set(range(node.lineno, (node.end_lineno or 0) + 1)))
                if count > FUNCTION_LINES:
                    long[f"{name_of(path)}.{node.name}"] = count
    assert not long, f"more than {FUNCTION_LINES} lines of code: {long}"


def test_folders_stay_within_their_budget() -> None:
    folders = {path.parent for path in FILES}
    counts = {str(f.relative_to(PACKAGE)): len(list(f.glob("[!_]*.py"))) for f in folders}
    assert {f: count for f, count in counts.items() if count > FILES_PER_FOLDER} == {}


def test_attributes_are_assigned_one_by_one() -> None:
    """Not `self.a, self.b, self.c = a, b, c`; unpacking what one call returns is fine."""
    wrong = []
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Assign) and isinstance(node.value, ast.Tuple):
                for target in node.targets:
                    names = target.elts if isinstance(target, ast.Tuple) else []
                    if sum(isinstance(name, ast.Attribute) for name in names) >= 3:
                        wrong.append(f"{name_of(path)}:{node.lineno}")
    assert not wrong, wrong


# The tree of tests.


def test_tests_mirror_the_package() -> None:
    """`models/test_vit.py` tests `models/vit.py`; `tasks/test_knn.py` the folder `tasks/knn`."""
    strays = []
    for path in sorted(TESTS.rglob("test_*.py")):
        room, subject = PACKAGE / path.parent.relative_to(TESTS), path.stem.removeprefix("test_")
        found = (room / f"{subject}.py").exists() or (room / subject).is_dir()
        if not found and room.name != subject and path.stem not in WHOLE_PROGRAM:
            strays.append(str(path.relative_to(TESTS)))
    assert not strays, f"no such file in torchmae/: {strays}"


def test_no_test_imports_another_test_file() -> None:
    stems = {path.stem for path in TESTS.rglob("test_*.py")}
    for path in TESTS.rglob("*.py"):
        wrong = {name for name in imports(path) if stems & set(name.split("."))}
        assert not wrong, f"{path.relative_to(TESTS)} imports {wrong}: use tests/helpers/"


# What starts fast.


def python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


HEAVY = "torchvision matplotlib timm transformers datasets sklearn pandas pyarrow onnx"


def blocked(packages: str) -> str:
    """Code after which these packages cannot be imported."""
    return f"import sys; sys.modules.update(dict.fromkeys({packages.split()}))\n"


def test_root_files_and_configs_are_imported_without_torch_or_numpy() -> None:
    light = [
        path
        for path in FILES
        if path.stem == "config" or room_of(path) in {*BASE, "cli", "verbs", "presets"}
    ]
    names = [f"torchmae.{name_of(path)}".removesuffix(".__init__") for path in light]
    code = f"""
import importlib
for name in {names}:
    try:
        importlib.import_module(name)
    except ImportError as error:
        print(f"{{name}}: {{error}}")
"""
    assert python(blocked(f"{HEAVY} torch numpy") + code).splitlines() == []


def test_public_names_are_imported_without_optional_packages() -> None:
    code = """
import torchmae
for name in torchmae.__all__:
    assert getattr(torchmae, name) is not None, name
"""
    python(blocked(HEAVY) + code)


def test_help_and_mistakes_answer_without_torch_or_numpy() -> None:
    code = """
import contextlib, io
from torchmae import cli, verbs
for line in (["--help"], *([verb, "--help"] for verb in verbs.VERBS), ["pretran"], ["pretrain"],
             ["pretrain", "photos", "--mask-rato", "1"], ["pretrain", "photos", "--epochs", "a"]):
    text = io.StringIO()
    with contextlib.redirect_stdout(text), contextlib.redirect_stderr(text):
        try:
            code = cli.main(line)
        except SystemExit as exit:
            code = exit.code or 0
    if code != (0 if "--help" in line else 2) or "Traceback" in text.getvalue():
        print(line, code, text.getvalue())
"""
    assert python(blocked(f"{HEAVY} torch numpy") + code) == ""


def test_flags_and_defaults_are_those_agreed_on() -> None:
    """A flag that comes, goes or changes its default belongs in CHANGELOG.md."""
    agreed = (TESTS / "flags.txt").read_text().splitlines()
    assert flags.text().splitlines() == agreed, flags.__doc__
