"""Other libraries' warnings and failures leave one line, or none, on the terminal; the rest is in a file."""

from __future__ import annotations

import logging
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest

from anyres.cli.others import OthersHandler, others_file, quiet_others


@pytest.fixture
def quieted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A process whose other libraries are quiet; everything is as before afterwards."""
    monkeypatch.setenv("ANYRES_CACHE", str(tmp_path))
    monkeypatch.setattr(threading, "excepthook", threading.excepthook)
    monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)
    quiet_others()
    yield
    for log in (logging.getLogger(), logging.getLogger("torch")):
        for handler in [each for each in log.handlers if isinstance(each, OthersHandler)]:
            log.removeHandler(handler)


def _fail() -> None:
    raise OSError(28, "No space left on device", "events")


@pytest.mark.usefixtures("quieted")
def test_a_thread_that_fails_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    thread = threading.Thread(target=_fail)
    thread.start()
    thread.join()
    said = capsys.readouterr().err
    assert said == "note: a background thread ended: [Errno 28] No space left on device: 'events'\n"
    assert "Traceback" in others_file().read_text()


@pytest.mark.usefixtures("quieted")
def test_a_library_warns_in_the_file_and_a_user_on_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        quiet_others()
        warnings.warn_explicit("of a library", UserWarning, warnings.__file__, 1)
        warnings.warn("of a user", stacklevel=1)
    logging.getLogger("some.library").warning("logged")
    assert capsys.readouterr().err == "note: of a user\n"
    kept = others_file().read_text().splitlines()
    assert [line for line in kept if "of a library" in line]
    assert kept[-1].endswith("some.library: logged")
