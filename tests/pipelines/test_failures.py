import pytest

from pipelines.failures import system_error


@pytest.mark.parametrize(
    ("trace", "said"),
    [
        ("ValueError: [Errno 28] full [while running 'Write']\n", "ValueError: [Errno 28] full"),
        ("a\nOSError: When writing: NO_BUCKET [while running 'W']\nb", "OSError: When writing: NO_BUCKET"),
        ("  builtins.FileNotFoundError: gone", "builtins.FileNotFoundError: gone"),
        ("OSError: first\nPermissionError: last", "PermissionError: last"),
        ("KeyError: 'x'\nprint: x\nRuntimeError: no", None),
        ("", None),
    ],
)  # fmt: skip
def test_the_line_that_says_why(trace, said):
    assert system_error(trace) == said
