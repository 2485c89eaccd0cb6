import hashlib
import io
import socket
import threading
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from click.testing import CliRunner

from featurestore.errors import SourceError, SpecError
from pipelines import download
from pipelines.download import ARCHIVES, Archive, command, fetch, is_complete
from pipelines.movielens import FORMATS

RATINGS = "".join(f"{n}::{n * 7 % 3000}::{n % 5 + 1}::97830{n:04d}\n" for n in range(9000)).encode()
FILES = {
    "ratings.dat": RATINGS,
    "movies.dat": "1::Léon (1994)::Drama\n".encode("latin-1"),
    "README": b"terms",
}


def zip_of(members):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as zipped:
        for name, data in members.items():
            zipped.writestr(name, data)
    return buffer.getvalue()


def archive_of(body):
    """Describe ``body`` as if it were the ml-10m archive, whose folder has another name."""
    return Archive("ml-10m", hashlib.md5(body).hexdigest(), "ml-10M100K", ("ratings.dat", "movies.dat"))


BODY = zip_of({f"ml-10M100K/{name}": data for name, data in FILES.items()})
ARCHIVE = archive_of(BODY)


class Server(ThreadingHTTPServer):
    """Serves ``body`` in the way of ``manner``, and remembers the Range header of every request."""

    def __init__(self, body):
        super().__init__(("127.0.0.1", 0), Answer)
        self.body, self.manner, self.ranges, self.paths = body, "ranges", [], []

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}/movielens"


class Answer(BaseHTTPRequestHandler):
    def do_GET(self):
        server, asked = self.server, self.headers.get("Range")
        server.ranges.append(asked)
        server.paths.append(self.path)
        start = int(asked.removeprefix("bytes=").removesuffix("-")) if asked else 0
        if server.manner == "missing":
            self.send_error(404)
        elif asked and server.manner != "no ranges" and start >= len(server.body):
            self.answer(416, b"", f"bytes */{len(server.body)}")
        elif asked and server.manner == "other range":
            self.answer(206, server.body[5:], f"bytes 5-{len(server.body) - 1}/{len(server.body)}")
        elif asked and server.manner != "no ranges":
            self.answer(206, server.body[start:], f"bytes {start}-{len(server.body) - 1}/{len(server.body)}")
        else:
            self.answer(200, server.body)

    def answer(self, status, body, content_range=None):
        self.send_response(status)
        if self.server.manner != "no length":
            self.send_header("Content-Length", str(len(body)))
        if content_range:
            self.send_header("Content-Range", content_range)
        self.end_headers()
        self.wfile.write(body[: len(body) // 2] if self.server.manner == "breaks off" else body)

    def log_message(self, *args):
        pass


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch):
    monkeypatch.setenv("no_proxy", "*")


@pytest.fixture
def server():
    with Server(BODY) as serving:
        thread = threading.Thread(target=serving.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield serving
        serving.shutdown()
        thread.join()


@pytest.fixture
def part(tmp_path):
    return tmp_path / "ml-10m.zip.part"


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def check_unpacked(tmp_path):
    assert names(tmp_path) == ["ml-10m"]  # no part file, no scratch folder
    assert {path.name: path.read_bytes() for path in (tmp_path / "ml-10m").iterdir()} == FILES


# --- fetching


@pytest.mark.parametrize("manner", ["ranges", "no ranges", "no length"])
def test_fetch_unpacks_into_a_folder_of_the_archives_name(tmp_path, server, manner):
    server.manner = manner
    steps = []
    folder = fetch(ARCHIVE, tmp_path / "deep" / "data", server.url + "/", lambda *step: steps.append(step))
    assert folder == tmp_path / "deep" / "data" / "ml-10m"
    check_unpacked(folder.parent)
    assert (server.paths, server.ranges) == (["/movielens/ml-10m.zip"], [None])
    assert steps[-1] == (len(BODY), None if manner == "no length" else len(BODY))
    assert len(steps) > 2


def test_a_complete_folder_is_kept_without_asking_the_server(tmp_path, server):
    fetch(ARCHIVE, tmp_path, server.url)
    (tmp_path / "ml-10m" / "README").write_text("my notes")
    assert fetch(ARCHIVE, tmp_path, server.url) == tmp_path / "ml-10m"
    assert (tmp_path / "ml-10m" / "README").read_text() == "my notes"
    assert len(server.ranges) == 1


def test_an_empty_folder_is_filled(tmp_path, server):
    (tmp_path / "ml-10m").mkdir()
    fetch(ARCHIVE, tmp_path, server.url)
    check_unpacked(tmp_path)


def test_a_folder_of_something_else_is_left_alone(tmp_path, server):
    (tmp_path / "ml-10m").mkdir()
    (tmp_path / "ml-10m" / "ratings.dat").write_text("mine")
    with pytest.raises(
        SourceError, match=r"ml-10m: exists but lacks some of ratings\.dat, movies\.dat; remove"
    ):
        fetch(ARCHIVE, tmp_path, server.url)
    assert server.ranges == []
    assert names(tmp_path / "ml-10m") == ["ratings.dat"]


# --- resuming


def test_a_download_that_broke_off_is_taken_up_by_the_next_run(tmp_path, server, part):
    server.manner = "breaks off"
    with pytest.raises(SourceError, match=r"broke off .*run again to fetch the rest"):
        fetch(ARCHIVE, tmp_path, server.url)
    half = len(BODY) // 2
    assert part.read_bytes() == BODY[:half]
    assert names(tmp_path) == ["ml-10m.zip.part"]
    server.manner = "ranges"
    steps = []
    fetch(ARCHIVE, tmp_path, server.url, lambda *step: steps.append(step))
    check_unpacked(tmp_path)
    assert server.ranges == [None, f"bytes={half}-"]
    assert steps[0][0] > half
    assert steps[-1] == (len(BODY), len(BODY))


@pytest.mark.parametrize("manner", ["no ranges", "other range"])
def test_servers_that_cannot_resume_send_everything_again(tmp_path, server, part, manner):
    server.manner = manner
    part.write_bytes(BODY[:1000])
    fetch(ARCHIVE, tmp_path, server.url)
    check_unpacked(tmp_path)
    assert server.ranges == (["bytes=1000-"] if manner == "no ranges" else ["bytes=1000-", None])


def test_a_part_longer_than_the_archive_is_thrown_away(tmp_path, server, part):
    part.write_bytes(b"x" * (len(BODY) + 10))
    fetch(ARCHIVE, tmp_path, server.url)
    check_unpacked(tmp_path)
    assert server.ranges == [f"bytes={len(BODY) + 10}-", None]


def test_a_whole_part_needs_no_server(tmp_path, server, part):
    part.write_bytes(BODY)
    fetch(ARCHIVE, tmp_path, server.url)
    check_unpacked(tmp_path)
    assert server.ranges == []


# --- what can go wrong


def test_altered_bytes_are_named_and_removed(tmp_path, server, part):
    server.body = BODY[:500] + bytes([BODY[500] ^ 1]) + BODY[501:]
    found = hashlib.md5(server.body).hexdigest()
    with pytest.raises(SourceError, match=f"has MD5 {found}, expected {ARCHIVE.md5}; it was deleted"):
        fetch(ARCHIVE, tmp_path, server.url)
    assert names(tmp_path) == []


def test_a_part_of_other_bytes_is_found_by_the_checksum_and_the_next_run_is_clean(tmp_path, server, part):
    part.write_bytes(b"?" * 1000)
    with pytest.raises(SourceError, match="it was deleted: run again"):
        fetch(ARCHIVE, tmp_path, server.url)
    fetch(ARCHIVE, tmp_path, server.url)
    check_unpacked(tmp_path)


def test_offline_says_what_was_tried_and_what_to_do(tmp_path):
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # bound but not listening: connections are refused
        url = f"http://127.0.0.1:{closed.getsockname()[1]}"
        with pytest.raises(SourceError) as raised:
            fetch(ARCHIVE, tmp_path, url)
    message = str(raised.value)
    assert message.startswith(f"{url}/ml-10m.zip: cannot be fetched (")
    assert f"move its folder ml-10M100K to {tmp_path / 'ml-10m'}" in message
    assert "synthetic:ml-1m" in message
    assert names(tmp_path) == []


def test_a_server_without_the_file_keeps_the_part(tmp_path, server, part):
    server.manner = "missing"
    part.write_bytes(BODY[:1000])
    with pytest.raises(SourceError, match=r"cannot be fetched \(HTTP Error 404: Not Found\)"):
        fetch(ARCHIVE, tmp_path, server.url)
    assert part.read_bytes() == BODY[:1000]


@pytest.mark.parametrize("url", ["file:///etc", "ftp://127.0.0.1", "files.grouplens.org"])
def test_only_http_is_spoken(tmp_path, url):
    with pytest.raises(ValueError, match="expected http://"):
        fetch(ARCHIVE, tmp_path, url)


@pytest.mark.parametrize("name", ["../evil", "/evil", "ml-10M100K/../../evil", "..\\evil", "C:\\evil"])
def test_paths_out_of_the_folder_are_refused_before_anything_is_written(tmp_path, server, name):
    server.body = zip_of({"ml-10M100K/ratings.dat": b"", "ml-10M100K/movies.dat": b"", name: b"evil"})
    data = tmp_path / "data"
    with pytest.raises(SourceError, match="a path out of the folder; nothing was unpacked"):
        fetch(archive_of(server.body), data, server.url)
    assert names(tmp_path) == ["data"]
    assert names(data) == ["ml-10m.zip.part"]


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"<html>Please log in</html>", "is not a zip archive"),
        (
            zip_of({"ml-10M100K/ratings.dat": b""}),
            r"lacks some of ml-10M100K/ratings\.dat, ml-10M100K/movies\.dat",
        ),
    ],
)
def test_archives_of_another_content_leave_no_folder(tmp_path, server, body, message):
    server.body = body
    with pytest.raises(SourceError, match=message):
        fetch(archive_of(body), tmp_path, server.url)
    assert names(tmp_path) == ["ml-10m.zip.part"]


# --- the command


def run(*args, answer=None):
    return CliRunner().invoke(command, [str(arg) for arg in args], input=answer)


@pytest.fixture
def ml_10m(monkeypatch):
    monkeypatch.setitem(ARCHIVES, "ml-10m", ARCHIVE)


@pytest.fixture
def at_a_terminal(monkeypatch):
    monkeypatch.setattr(download, "_can_ask", lambda: True)


def test_command_shows_the_licence_and_downloads_what_is_accepted(tmp_path, server, ml_10m):
    result = run("ml-10m", "--dest", tmp_path, "--base-url", server.url, "--accept-licence")
    assert result.exit_code == 0
    assert "do not redistribute it without separate permission" in result.stderr
    assert "https://doi.org/10.1145/2827872" in result.stderr
    assert result.stdout.startswith(f"{tmp_path / 'ml-10m'}: 0.")
    check_unpacked(tmp_path)
    again = run("ml-10m", "--dest", tmp_path)
    assert (again.stdout, again.stderr) == (f"{tmp_path / 'ml-10m'}: already there\n", "")


def test_command_asks(tmp_path, server, ml_10m, at_a_terminal):
    refused = run("ml-10m", "--dest", tmp_path, "--base-url", server.url, answer="n\n").exception
    assert isinstance(refused, SourceError)
    assert "the licence was not accepted; nothing was downloaded" in str(refused)
    assert server.ranges == []
    accepted = run("ml-10m", "--dest", tmp_path, "--base-url", server.url, answer="y\n")
    assert "Do you accept these terms? [y/N]" in accepted.stderr
    check_unpacked(tmp_path)


def test_command_without_a_terminal_needs_the_flag(tmp_path, server, ml_10m):
    error = run("ml-10m", "--dest", tmp_path, "--base-url", server.url).exception
    assert isinstance(error, SpecError)
    assert "no terminal to ask on: pass --accept-licence" in str(error)
    assert server.ranges == []


def test_command_explains_a_wrong_base_url_and_a_disk_that_refuses(tmp_path, server, ml_10m):
    wrong = run("ml-10m", "--dest", tmp_path, "--base-url", "ftp://x", "--accept-licence").exception
    assert isinstance(wrong, SpecError)
    (tmp_path / "file").touch()
    refused = run(
        "ml-10m", "--dest", tmp_path / "file", "--base-url", server.url, "--accept-licence"
    ).exception
    assert isinstance(refused, SourceError)
    assert "cannot write the data set" in str(refused)


@pytest.mark.parametrize("name", list(ARCHIVES))
def test_an_archive_brings_the_files_of_a_format(name):
    assert set(ARCHIVES[name].files) in [set(source.files) for source in FORMATS.values()]


def test_known_archives_and_help():
    assert {name: archive.folder for name, archive in ARCHIVES.items()} == {
        "ml-100k": "ml-100k",
        "ml-1m": "ml-1m",
        "ml-10m": "ml-10M100K",
        "ml-20m": "ml-20m",
        "ml-25m": "ml-25m",
        "ml-32m": "ml-32m",
    }
    assert all(len(archive.md5) == 32 for archive in ARCHIVES.values())
    assert "slotstore download ml-1m" in run("--help").stdout
    assert not is_complete(ARCHIVES["ml-1m"], Path("nowhere"))
