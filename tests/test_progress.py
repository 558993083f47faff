"""Progress is for terminals, and never changes what is counted."""

import io

import pytest

from service.progress import counted


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(("stream", "shown"), [(Terminal(), True), (io.StringIO(), False)])
def test_progress_is_shown_on_a_terminal_alone(
    monkeypatch: pytest.MonkeyPatch, stream: io.StringIO, shown: bool
) -> None:
    monkeypatch.setattr("sys.stderr", stream)
    assert list(counted([(2, "a"), (3, "b")], 5, "images")) == ["a", "b"]
    assert stream.getvalue().endswith("5 of 5 images, 0 s left \n") == shown
    assert bool(stream.getvalue()) == shown
