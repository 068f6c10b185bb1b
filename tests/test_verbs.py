"""The library: each verb is a function, with a signature that is its config, errors with a remedy
and a `Run` to go on with."""

import inspect
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.small import SMALL

import torchmae
from torchmae import cli, runfolder
from torchmae.settings.options import options_of
from torchmae.verbs import VERBS, function_name, load


@pytest.mark.parametrize("verb", [verb for verb in VERBS if " " not in verb])
def test_the_signature_of_a_function_is_its_config(verb):
    function = getattr(torchmae, function_name(verb))
    shown = inspect.signature(function).parameters
    settings = options_of(load(VERBS[verb].config))
    visible = {name: o for name, o in settings.items() if not o.metadata["hidden"]}
    images = {name for name, o in visible.items() if o.metadata.get("images")}
    assert list(shown) == [*visible, *(["data_id"] if images else [])]
    for name, setting in visible.items():
        assert shown[name].annotation == (Any if name in images else setting.type)
        assert name in function.__doc__
    assert function.__name__ in torchmae.__all__


@pytest.mark.parametrize(
    "function, options, message",
    [
        (
            "pretrain",
            {"epoch": 3},
            "unknown option of torchmae.pretrain: 'epoch'.*Did you mean epochs",
        ),
        ("pretrain", {"epochs": "three"}, "epochs='three': must be a number or None"),
        ("knn", {"data": "x"}, "torchmae.knn needs run"),
        ("import_", {"source": "x"}, "torchmae.import_ needs out"),
    ],
)
def test_a_wrong_option_is_a_user_error(function, options, message):
    arguments = ("photos",) if function == "pretrain" else ()
    with pytest.raises(torchmae.UserError, match=message):
        getattr(torchmae, function)(*arguments, **options)


def test_the_second_word_of_a_verb(tmp_path, monkeypatch, capfd):
    """`mae compare segment`, `torchmae.compare("segment", ...)`: settings of their own; a run of
    that name is one behind ./, or as a path."""
    monkeypatch.chdir(tmp_path)
    assert "`mae compare detect`" in torchmae.compare.__doc__
    with pytest.raises(torchmae.UserError, match="unknown option of torchmae.compare: 'labels_per"):
        torchmae.compare("segment", "x", "y", labels_per_class=[1])
    with pytest.raises(torchmae.UserError, match="torchmae.compare needs data"):
        torchmae.compare("segment", "x")
    assert cli.main(["compare-segment", "x", "y"]) == 2
    assert "Did you mean compare segment?" in capfd.readouterr().err
    Path("segment").mkdir()
    Path("segment/config.json").write_text('{"torchmae": 1}')
    assert cli.main(["compare", "segment", "photos"]) == 2
    out, err = capfd.readouterr()
    assert "a run folder too: for the run say ./segment" in out and "DATA is missing" in err
    for place in (Path("segment"), "./segment"):
        with pytest.raises(torchmae.UserError, match="segment"):
            torchmae.compare(place, "photos")


def test_a_run_is_a_path_with_results_and_an_encoder(run: Path, photos: Path, tmp_path: Path):
    made = torchmae.pretrain(photos, out=tmp_path / "run", epochs=1, **SMALL)
    assert isinstance(made, torchmae.Run)
    assert made.path == tmp_path / "run" == Path(os.fspath(made))
    assert (made / runfolder.CURVES).is_file()
    assert made.results == []
    encoder = made.encoder()
    again = torchmae.load(made)
    images = encoder.normalize(torch.zeros(1, 3, 32, 32, dtype=torch.uint8))
    assert torch.equal(encoder(images), again(images))
    measured = torchmae.knn(made, photos, device="cpu", k=3)
    assert made.results[-1]["verb"] == "knn"
    assert set(measured["knn"]) == {
        "features",
        "untrained encoder",
        "raw pixels",
        "commonest class",
    }


def test_every_public_name_is_there():
    for name in torchmae.__all__:
        assert getattr(torchmae, name) is not None
    assert set(torchmae.__all__) <= set(dir(torchmae))
    with pytest.raises(AttributeError, match="pretran"):
        torchmae.pretran  # noqa: B018
