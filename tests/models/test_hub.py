"""models/hub.py: where weights are found, and what happens without a network."""

import time

import pytest

from models import hub

REPOSITORY = "somebody/model"


def cache(folder, files):
    """A Hugging Face cache that holds these files of REPOSITORY; returns the folder they are in."""
    repository = folder / "models--somebody--model"
    snapshot = repository / "snapshots" / "0123abcd"
    snapshot.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0123abcd")
    for file in files:
        (snapshot / file).write_text(file)
    return snapshot


def test_package_is_located_and_not_imported(tmp_path, monkeypatch):
    (tmp_path / "weights_package").mkdir()
    (tmp_path / "weights_package" / "__init__.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    assert hub.packaged("weights_package/a/b.bin") == tmp_path / "weights_package" / "a" / "b.bin"
    assert hub.packaged("no_such_package/b.bin") is None


def test_cached_files_are_taken_in_the_order_asked_for(no_hub):
    snapshot = cache(no_hub, ["second", "first"])
    assert hub.fetch_file(REPOSITORY, ["missing", "first", "second"], download=False) == snapshot / "first"
    assert hub.fetch_folder(REPOSITORY, download=False) == snapshot


@pytest.mark.parametrize(
    "fetch",
    [lambda **o: hub.fetch_file(REPOSITORY, ["a"], **o), lambda **o: hub.fetch_folder(REPOSITORY, **o)],
    ids=["file", "folder"],
)
def test_without_a_hub_what_is_not_cached_fails_at_once(fetch, no_hub, monkeypatch):
    start = time.perf_counter()
    with pytest.raises(FileNotFoundError, match=f"{REPOSITORY}.*127.0.0.1"):
        fetch()
    assert time.perf_counter() - start < 3
    monkeypatch.setattr(hub, "answers", lambda: pytest.fail("the hub was asked"))
    with pytest.raises(FileNotFoundError, match=REPOSITORY):
        fetch(download=False)


def test_offline_mode_is_not_probed(no_hub, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "is_offline_mode", lambda: True)
    monkeypatch.setattr("socket.create_connection", lambda *args, **options: pytest.fail("the hub was asked"))
    assert not hub.answers()
