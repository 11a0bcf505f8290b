"""Where the meter's folder lies: a path that fits, and another user's folder that does no harm."""

import json
import os
import socket
import stat
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from test_takeover import state

from meter.model import Reading, Snapshot
from meter.runtime.meter import _record
from meter.runtime.place import NoPlaceError, given_place, let_in, new_place
from meter.runtime.takeover import Gate, Notes, Stood
from meter.system.files import User, acting_as, read_file, replace_file
from meter.work import beside
from meter.work.listener import PATH_BYTES, Listener, ListenError
from meter.work.vllm.sender import Sender

IS_ROOT = os.geteuid() == 0
NOBODY = User(65534, 65534)


def long_folder(within, size):
    """A folder whose path has so many bytes."""
    missing = size - len(os.fsencode(within))
    folder = within / ("x" * (missing - 1))
    assert missing > 1
    folder.mkdir()
    return folder


@pytest.fixture
def short():
    """A folder with a short path, whatever pytest's own is."""
    with tempfile.TemporaryDirectory(prefix="jt", dir="/tmp") as folder:
        yield Path(folder)


def test_a_long_tmpdir_is_not_where_the_socket_goes(short):
    """A job's scratch folder: the next place that fits is taken, and a socket can be made there."""
    scratch = long_folder(short, 110)
    place = new_place({"TMPDIR": str(scratch)}, (str(short),))
    assert place.folder.parent == short
    listener = Listener(place.socket, lambda event: None)
    listener.start()
    listener.stop()
    assert (place.folder / "beside" / "joulemeter_vllm" / "__init__.py").exists()


@pytest.mark.parametrize(("more", "fits"), [(0, True), (1, False)])
def test_the_longest_tmpdir_that_fits_is_used(short, more, fits):
    """In bytes, to the last one."""
    scratch = long_folder(short, PATH_BYTES - len("/joulemeter-12345678/meter.sock") + more)
    place = new_place({"TMPDIR": str(scratch)}, (str(short),))
    assert (place.folder.parent == scratch) is fits
    assert len(os.fsencode(place.socket)) <= PATH_BYTES
    Listener(place.socket, lambda event: None).start()


def test_its_length_is_counted_in_bytes(short):
    """Letters beyond ASCII take two or more."""
    scratch = short / ("ä" * 40)
    scratch.mkdir()
    assert new_place({"TMPDIR": str(scratch)}, (str(short),)).folder.parent == short


@pytest.mark.parametrize("bad", ["/proc", "/nonexistent", "/dev/null", "relative"])
def test_a_tmpdir_that_cannot_be_written_is_passed_over(short, bad):
    """Read-only, not there, no folder at all, or not the same from everywhere."""
    assert new_place({"TMPDIR": bad}, (str(short),)).folder.parent == short


def test_the_users_own_runtime_folder_comes_before_the_common_ones(short):
    """``XDG_RUNTIME_DIR``."""
    (short / "run").mkdir()
    environ = {"TMPDIR": "/nonexistent", "XDG_RUNTIME_DIR": str(short / "run")}
    assert new_place(environ, (str(short),)).folder.parent == short / "run"


def test_where_there_is_no_place_the_variable_is_named(short):
    """With what was wrong with each, and what to set."""
    scratch = long_folder(short, 110)
    with pytest.raises(NoPlaceError) as failed:
        new_place({"TMPDIR": str(scratch)}, ("/proc",))
    said = str(failed.value)
    assert f"TMPDIR={scratch}" in said and "too long for a socket" in said
    assert "/proc: " in said
    assert said.endswith("set TMPDIR to one that can be written, its path of 76 bytes at most")


def test_a_given_path_that_is_too_long_is_said_so(short):
    """With its length and the limit."""
    path = long_folder(short, 100) / "meter.sock"
    with pytest.raises(ListenError, match="it is 111 bytes long, a socket's path may be 107"):
        Listener(path, lambda event: None).start()


def test_plugin_refuses_a_socket_that_no_engine_could_find(tmp_path):
    """Before the folder is made: the server would be started for nothing."""
    path = f"/run/{'x' * 110}/meter.sock"
    words = [sys.executable, "-m", "meter.cli", "plugin", str(tmp_path / "p"), "--socket", path]
    done = subprocess.run(words, check=False, capture_output=True, text=True)
    assert done.returncode == 2
    assert "--socket" in done.stderr and "107" in done.stderr
    assert not (tmp_path / "p").exists()


# --- folders of others


def test_a_file_takes_the_place_of_a_link_and_follows_none(tmp_path):
    """Whatever it points to stays as it is; so with a link under the new name's old form."""
    precious = tmp_path / "precious"
    precious.write_text("keep")
    folder = tmp_path / "evil"
    folder.mkdir()
    for name in ("counters.json", "counters.new", ".counters.json"):
        (folder / name).symlink_to(precious)
    replace_file(folder, "counters.json", b"new")
    assert precious.read_text() == "keep"
    assert (folder / "counters.json").read_text() == "new"
    assert not (folder / "counters.json").is_symlink()
    assert stat.S_IMODE((folder / "counters.json").stat().st_mode) == 0o600


def test_a_folder_that_is_a_link_is_refused(tmp_path):
    """It leads to another's folder."""
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    with pytest.raises(OSError, match=r"Not a directory|symbolic"):
        replace_file(tmp_path / "link", "x", b"")


def test_a_write_that_fails_leaves_nothing_new(tmp_path):
    """And the old file whole."""
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "full").write_text("")
    with pytest.raises(OSError, match="directory"):
        replace_file(tmp_path, "x", b"data")
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


@pytest.mark.parametrize("kind", ["link", "fifo", "folder", "large"])
def test_what_is_no_plain_file_is_not_read(tmp_path, kind):
    """A pipe would be waited for."""
    path = tmp_path / "note"
    if kind == "link":
        (tmp_path / "real").write_text("{}")
        path.symlink_to(tmp_path / "real")
    elif kind == "fifo":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    else:
        path.write_text("x" * 11)
    with pytest.raises(OSError):
        read_file(path, 10, {os.geteuid()})


def test_another_users_note_is_not_believed(tmp_path):
    """Anybody may have put one beside a socket in /tmp."""
    (tmp_path / "note").write_text("{}")
    mine = os.geteuid()
    if IS_ROOT:
        os.chown(tmp_path / "note", *NOBODY)
        with pytest.raises(OSError, match="belongs to user 65534"):
            read_file(tmp_path / "note", 10, {mine})
    assert read_file(tmp_path / "note", 10, {mine, 65534}) == b"{}"


@pytest.mark.parametrize("stood", [Stood(10**9, 0), Stood(2 * 10**9 + 1, 5_000_000)])
def test_a_note_that_no_board_can_have_drawn_is_not_believed(stood):
    """From far below, or from the future: it would be joules that never were."""
    passed = []
    gate = Gate(passed.append)
    gate.open({"g": stood})
    reading = Reading("g", 2 * 10**9, 10**12)
    gate.push(reading)
    assert passed == [reading]


def test_the_plugin_is_written_over_no_link(tmp_path):
    """Its folder may have been another's before."""
    precious = tmp_path / "precious"
    precious.write_text("keep")
    package = tmp_path / "p" / beside.PACKAGE
    package.mkdir(parents=True)
    (package / "__init__.py").symlink_to(precious)
    beside.directory(tmp_path / "p")
    assert precious.read_text() == "keep"
    assert not (package / "__init__.py").is_symlink()
    assert stat.S_IMODE((package / "__init__.py").stat().st_mode) == 0o644


def test_a_socket_takes_the_place_of_no_link(tmp_path):
    """Nor is what it points to removed or made writable."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as other:
        other.bind(str(tmp_path / "other"))
        (tmp_path / "s").symlink_to(tmp_path / "other")
        with pytest.raises(ListenError, match="is no socket"):
            Listener(tmp_path / "s", lambda event: None).start()


def test_a_socket_is_never_open_to_others(tmp_path):
    """Not even between its making and a change of its mode: it is made with it."""
    before = os.umask(0)
    try:
        listener = Listener(tmp_path / "s", lambda event: None)
        bound = listener._bound()
        assert stat.S_IMODE((tmp_path / "s").stat().st_mode) == 0o600
        bound.close()
    finally:
        os.umask(before)


def test_a_trace_goes_through_no_link_of_another_user(tmp_path):
    """Root writes down a trace in a folder for all."""
    (tmp_path / "trace.jsonl").symlink_to(tmp_path / "precious")
    if IS_ROOT:
        os.chown(tmp_path / "trace.jsonl", *NOBODY, follow_symlinks=False)
        with pytest.raises(OSError, match="another user's link"):
            _record(tmp_path / "trace.jsonl", (), None, ())
    assert not (tmp_path / "precious").exists()


# --- root and the server's user


@pytest.fixture
def theirs(short):
    """A folder of another user's (ours, where we are not root), and a server of that user."""
    short.chmod(0o755)
    folder = short / "theirs"
    folder.mkdir()
    user = {"user": NOBODY.uid, "group": NOBODY.gid, "extra_groups": []} if IS_ROOT else {}
    if IS_ROOT:
        os.chown(folder, *NOBODY)
    with subprocess.Popen(["sleep", "60"], **user) as server:
        yield folder, server.pid
        server.kill()


def test_in_a_users_folder_root_acts_as_that_user(theirs, short):
    """What the user may not write root does not write there either; what is made is the user's,
    and its engine reaches the socket."""
    folder, server = theirs
    place = given_place(folder / "sub" / "meter.sock", server, was_told=False)
    uid = place.folder.stat().st_uid
    assert uid == (NOBODY.uid if IS_ROOT else os.geteuid())
    listener = Listener(place.socket, lambda e: None, user=place.user, engine=place.engine)
    listener.start()
    try:
        made = place.socket.stat()
        assert (made.st_uid, stat.S_IMODE(made.st_mode)) == (uid, 0o600)
        with acting_as(User(uid, uid)):
            sender = Sender(str(place.socket))
            sender.hello({"engine": "0"})
            sender.flush()
            assert sender.connected
            sender.close()
    finally:
        listener.stop()
    assert not place.socket.exists()
    if IS_ROOT:
        (short / "roots").mkdir(mode=0o700)
        with acting_as(place.user), pytest.raises(PermissionError):
            (short / "roots" / "x").write_text("")


def test_an_environment_does_not_lead_root_into_its_own_folders(theirs, short):
    """The server's environment says where: that is the user's word."""
    _, server = theirs
    roots = short / "roots"
    roots.mkdir(mode=0o755)
    if not IS_ROOT:
        assert given_place(roots / "s", server, was_told=False).user is None
        return
    place = given_place(roots / "s", server, was_told=False)
    with pytest.raises(ListenError, match="Permission denied"):
        Listener(place.socket, lambda e: None, user=place.user, engine=place.engine).start()
    with pytest.raises(PermissionError):
        Notes(place.folder, place.user).write(snapshot(), ["a"])
    assert list(roots.iterdir()) == []


def test_a_third_users_folder_is_refused(theirs, short):
    """Neither the server's nor ours nor root's."""
    _, server = theirs
    strange = short / "strange"
    strange.mkdir(mode=0o777)
    if IS_ROOT:
        os.chown(strange, 12345, 12345)
        with pytest.raises(OSError, match="belongs to user 12345"):
            given_place(strange / "s", server, was_told=False)
    assert list(strange.iterdir()) == []


@pytest.mark.parametrize(("mode", "as_user"), [(0o755, False), (0o1777, False), (0o777, True)])
def test_a_socket_that_root_was_told_is_the_servers_users(theirs, short, mode, as_user):
    """In root's folder it is given away; where others can put something else in its place, it is
    made by that user."""
    _, server = theirs
    roots = short / "roots"
    roots.mkdir()
    roots.chmod(mode)
    place = given_place(roots / "s", server, was_told=True)
    assert (place.user == NOBODY) is (as_user and IS_ROOT)
    listener = Listener(place.socket, lambda e: None, user=place.user, engine=place.engine)
    listener.start()
    made = place.socket.stat()
    assert (made.st_uid, stat.S_IMODE(made.st_mode)) == (
        NOBODY.uid if IS_ROOT else os.geteuid(),
        0o600,
    )
    listener.stop()


def test_a_command_that_becomes_another_user_is_let_in(theirs, short):
    """``run`` by root of ``setpriv`` or ``gosu``: the engine reads the plugin and is heard."""
    _, server = theirs
    before = os.umask(0o077)
    try:
        place = new_place({"TMPDIR": str(short)}, ())
    finally:
        os.umask(before)
    listener = Listener(place.socket, lambda e: None)
    listener.start()
    let_in(place, [os.getpid(), server])
    made = place.socket.stat()
    assert (made.st_uid, stat.S_IMODE(made.st_mode)) == (
        NOBODY.uid if IS_ROOT else os.geteuid(),
        0o600,
    )
    with acting_as(NOBODY):
        package = place.folder / "beside" / beside.PACKAGE
        assert b"register" in (package / "__init__.py").read_bytes()
        sender = Sender(str(place.socket))
        sender.hello({"engine": "0"})
        sender.flush()
        assert sender.connected
        sender.close()
        if IS_ROOT:
            with pytest.raises(PermissionError):
                list(place.folder.iterdir())
    listener.stop()


def snapshot():
    return Snapshot(9, 7, devices=(state(8_000_000),))


def test_the_note_in_a_users_folder_is_the_users(theirs):
    """The next meter, of that user or of root, reads and replaces it; links are replaced."""
    folder, _ = theirs
    precious = folder.parent / "precious"
    precious.write_text("keep")
    precious.chmod(0o600)
    for name in ("counters.json", "counters.new"):
        (folder / name).symlink_to(precious)
    user = NOBODY if IS_ROOT else None
    notes = Notes(folder, user)
    assert notes.read() is None
    notes.write(snapshot(), ["a"])
    assert precious.read_text() == "keep"
    assert json.loads((folder / "counters.json").read_text())["sources"] == ["a"]
    assert (folder / "counters.json").stat().st_uid == folder.stat().st_uid
    assert Notes(folder, user).read().sources == {"a"}
