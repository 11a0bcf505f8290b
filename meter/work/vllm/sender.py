"""The engine's end of the wire: tells the meter what the engine does, and never waits for it.

How an engine uses it (vLLM's plugin does, and the demo's engine too)::

    sender = Sender(os.environ["JOULEMETER_SOCKET"])
    sender.hello({"engine": "0", "model": "m", "params": 8.0e9, ...}, "ready")   # see ``hello``
    sender.opened(t_ns, "r1", parent="chatcmpl-1", prompt_tokens=512)
    sender.step(0, t0_ns, t1_ns, [("r1", 512, 0, "p")])                           # full form
    sender.step(1, t0_ns, t1_ns, [("r1", 1, 512, "d")])
    sender.step(2, t0_ns, t1_ns, [], same=True)                                   # change form
    sender.closed(t_ns, "r1", "stop", prompt=512, cached=0, completion=3)
    sender.flush()                                                                # once a step

Nothing is sent before ``flush``; flush at least after every step, and after ``opened`` before a
long step. All times are ``CLOCK_MONOTONIC`` nanoseconds. A request closes after the last step that
names it. To be called from one thread.

**The wire.** ``AF_UNIX`` datagrams, each one JSON array ``["jm1", source, number, [record …]]``:
``source`` names one life of one engine, ``number`` counts its datagrams from 0. The records:

======================================================  ============================================
``["H", t, event, {facts}]``                            who speaks, and its state: up or ready
``["O", t, id, parent, prompt_tokens, model, tenant]``  a request was taken; last four may be null
``["F", seq, t0, t1, [work …]]``                        a step in full form
``["S", seq, t0, t1, [work …], [id …]]``                a step in change form: others, dropped ids
``["P", seq, [work …]]``                                more work of step ``seq``, before its F or S
``["D", seq, t0, t1]``                                  a dummy step; ``seq`` is the last step's
``["C", t, id, reason, prompt, cached, completion]``    a request is done
``["E", t, event]``                                     down
======================================================  ============================================

``work`` is ``[id, tokens, context, phase]`` or ``[id, tokens, context, phase, kept]``, phases and
change form as in ``meter.model.Step``.

**What can go wrong.** A datagram that was sent is never lost, so the sender knows what the meter
has. A full queue (the kernel holds 10) keeps the buffer; a flush 2 ms later sends it merged. A
buffer that grows too large drops its steps, and a jump in ``seq`` tells so. Without a listener
steps are dropped at once; a connection is tried twice a second, and a new one begins with ``H``
and an ``O`` for every open request. After either loss ``wants_full`` asks for a step in full form;
until it comes, steps in change form are not sent: they would have no base. (It asks every ten
seconds too, for whoever lost a step that did arrive.) The ``H`` of a connection that comes in
mid-life says with ``next_seq`` which step comes next, how many were missed by whom it is told, and
how many requests are open.

An engine that falls idle flushes no more. From ``ready`` on a thread flushes in its place what a
full queue has left behind, and says every half second without a word that the engine is there: so
an idle engine notices that its meter has died, and finds the next one.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import socket
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

DATAGRAM_BYTES = 64 * 1024
BUFFER_BYTES = 1024 * 1024
RETRY_NS = 500_000_000
FLUSH_S = 0.02
FULL_NS = 2_000_000
#: Who lost a step elsewhere (a full inbox, a damaged trace) follows again after so long.
FULL_FORM_EVERY_NS = 10_000_000_000

# A full step of this many requests still fits one datagram of the default socket buffer.
_WORK_PER_RECORD = 1000
_STEPS = ('["S"', '["F"')
_STEP_RECORDS = (*_STEPS, '["P"', '["D"')
_FULL_QUEUE = {errno.EAGAIN, errno.EWOULDBLOCK, errno.ENOBUFS, errno.ENOMEM}


def _encoder() -> Callable[[object], str]:
    """``JSONEncoder.encode`` with its C encoder made once: it makes a new one for every call."""
    plain = json.JSONEncoder(separators=(",", ":")).encode
    probe = ['é"', 1, None, {"a": [1.5, ()]}]
    try:
        make: Any = vars(json.encoder)["c_make_encoder"]
        text: Any = json.encoder.encode_basestring_ascii
        chunks = make(None, None, text, None, ":", ",", False, False, True)

        def encode(value: object) -> str:
            return "".join(chunks(value, 0))

        return encode if encode(probe) == plain(probe) else plain
    except Exception:  # another Python's json: slower, and as good
        return plain


_encode = _encoder()

WorkRow = Sequence[object]


class Sender:
    """Non-blocking, bounded, reconnecting. No method waits or raises for the meter's sake.

    ``path``: the meter's socket. ``clock``: ``CLOCK_MONOTONIC`` in ns. ``flush_s``: how long after
    a full queue it is tried again without the engine (``None``: never, there is no thread).
    ``lost_steps`` counts steps that were not sent, ``datagrams`` those that were.
    """

    def __init__(
        self,
        path: str,
        clock: Callable[[], int] = time.monotonic_ns,
        buffer_bytes: int = BUFFER_BYTES,
        flush_s: float | None = FLUSH_S,
    ) -> None:
        self._path = path
        self._clock = clock
        self._buffer_bytes = buffer_bytes
        self._limit = buffer_bytes
        self._flush_s = flush_s
        self._lock = threading.Lock()  # held for one non-blocking send at most
        self._left = threading.Event()
        self._thread: threading.Thread | None = None
        self.source = f"{os.getpid()}-{clock()}"
        self._facts: Mapping[str, object] | None = None
        self._event = "up"
        self._socket: socket.socket | None = None
        self._retry_ns = 0
        self._full_ns = 0  # a queue that was full is not tried before; 0: it was not
        self._open: dict[str, str] = {}  # id -> its "O" record
        self._buffer: list[str] = []
        self._size = 0
        self._stalled = False
        self._needs_full = True
        self._full_form_ns = 0  # when a step was last told in full form
        self._full_form_due = False
        self._next_seq = 0
        self._heard = -1  # datagrams when the thread looked last
        self._told_lost = 0  # of the lost steps, those that whoever listens can tell
        self.datagrams = 0
        self.lost_steps = 0

    @property
    def connected(self) -> bool:
        return self._socket is not None

    @property
    def pending(self) -> bool:
        """True while something waits that a listener would take."""
        return bool(self._buffer)

    @property
    def wants_full(self) -> bool:
        """True where the next step has to be in full form for the meter to follow."""
        wanted = self._needs_full or self._full_form_due
        return wanted and self._socket is not None and not self._stalled

    # --- what the engine says

    def hello(self, facts: Mapping[str, object], event: str = "ready") -> None:
        """Say who speaks. ``event``: ``up`` (still loading) or ``ready``. Connects.

        ``facts``, where known: ``engine`` (its label), ``model`` (served name), ``params``,
        ``active_params`` (counts), ``weight_bytes``, ``kv_bytes_per_token``, ``layers``, ``heads``,
        ``head_dim``, ``engine_version``, ``dtype``, ``tp``, ``pp``, ``dp``, ``ep``
        (ranks), ``experts_total``, ``experts_active`` (of a mixture of experts: routed ones in a
        layer, and used by one token), ``pid``, ``cuda_visible_devices``.
        """
        with self._lock:
            self._facts = dict(facts)
            self._event = event
            if self._socket is not None:
                self._put(_encode(("H", self._clock(), event, self._facts)))
        self.flush()
        if event == "ready":  # not before: an engine that loads may fork, without the thread
            self._keep_in_touch()

    def opened(
        self,
        t_ns: int,
        request: str,
        parent: str | None = None,
        prompt_tokens: int | None = None,
        model: str | None = None,
        tenant: str | None = None,
    ) -> None:
        """The engine took ``request``; ``parent`` is the id that the client saw."""
        text = _encode(("O", t_ns, request, parent, prompt_tokens, model, tenant))
        with self._lock:
            self._open[request] = text
            self._put(text)

    def step(
        self,
        seq: int,
        t0_ns: int,
        t1_ns: int,
        work: Sequence[WorkRow],
        same: bool = False,
        drop: Sequence[str] = (),
    ) -> None:
        """A step ended. ``work``: rows ``(id, tokens, context, phase[, kept])``."""
        with self._lock:
            self._next_seq = seq + 1
            self._step(seq, t0_ns, t1_ns, work, same, drop)

    def _step(
        self,
        seq: int,
        t0_ns: int,
        t1_ns: int,
        work: Sequence[WorkRow],
        same: bool,
        drop: Sequence[str],
    ) -> None:
        if self._socket is None or self._stalled or (same and self._needs_full):
            self._needs_full = True
            self.lost_steps += 1
            return
        if len(work) > _WORK_PER_RECORD:
            work = self._put_parts(seq, work)
            if self._stalled:
                return
        if not same:
            self._needs_full = self._full_form_due = False
            self._full_form_ns = t1_ns
            self._put(_encode(("F", seq, t0_ns, t1_ns, work)))
        elif work or drop:
            self._put(_encode(("S", seq, t0_ns, t1_ns, work, drop)))
        else:
            self._put(f'["S",{seq},{t0_ns},{t1_ns},[],[]]')
        self._full_form_due = t1_ns - self._full_form_ns > FULL_FORM_EVERY_NS

    def _put_parts(self, seq: int, work: Sequence[WorkRow]) -> Sequence[WorkRow]:
        """Put all but the first rows into records of their own; the first rows are returned."""
        for start in range(_WORK_PER_RECORD, len(work), _WORK_PER_RECORD):
            self._put(_encode(("P", seq, work[start : start + _WORK_PER_RECORD])))
        return work[:_WORK_PER_RECORD]

    def dummy(self, seq: int, t0_ns: int, t1_ns: int) -> None:
        """A pass with nobody in it (data parallel); ``seq`` is that of the last step."""
        with self._lock:
            self._put(f'["D",{seq},{t0_ns},{t1_ns}]')

    def closed(
        self,
        t_ns: int,
        request: str,
        reason: str | None,
        prompt: int | None = None,
        cached: int | None = None,
        completion: int | None = None,
    ) -> None:
        """The engine is done with ``request``, and with the last step that named it."""
        text = _encode(("C", t_ns, request, reason, prompt, cached, completion))
        with self._lock:
            self._open.pop(request, None)
            self._put(text)

    def close(self) -> None:
        """The engine goes down, or is no longer watched. Says so, once, and lets go."""
        with self._lock:
            self._put(_encode(("E", self._clock(), "down")))
        self.flush()
        with self._lock:
            self._disconnect()
            self._facts = None
        self._left.set()

    # --- transport (what begins with "_" is called with the lock held)

    def flush(self) -> None:
        """Send what is there, as far as the meter takes it now."""
        with self._lock:
            buffer = self._buffer
            if self._socket is None:
                self._connect()
            elif self._full_ns and self._clock() < self._full_ns:
                return
            while buffer and self._socket is not None:
                count = len(buffer) if self._size <= DATAGRAM_BYTES else self._fitting()
                records = ",".join(buffer[:count])
                data = f'["jm1","{self.source}",{self.datagrams},[{records}]]'.encode()
                if not self._send(self._socket, data):
                    return
                self.datagrams += 1
                self._told_lost = self.lost_steps
                self._full_ns = 0
                self._stalled = False
                del buffer[:count]
                self._size -= len(records) + 1

    def _send(self, connection: socket.socket, data: bytes) -> bool:
        try:
            connection.send(data)
        except OSError as error:
            if error.errno not in _FULL_QUEUE:
                self._disconnect()
                return False
            self._full_ns = self._clock() + FULL_NS
            self._left.set()
            return False
        return True

    def _keep_in_touch(self) -> None:
        if self._flush_s is not None and self._thread is None:
            self._thread = threading.Thread(
                target=self._run, args=(self._flush_s,), name="joulemeter-flush", daemon=True
            )
            self._thread.start()

    def _run(self, wait_s: float) -> None:
        """The thread: takes the lock by ``flush`` and ``_say_hardly_anything`` alone."""
        while self._facts is not None:
            if self._left.wait(RETRY_NS / 1e9):
                self._left.clear()
                time.sleep(wait_s)
                self._full_ns = 0
            else:
                self._say_hardly_anything()
            self.flush()

    def _say_hardly_anything(self) -> None:
        """A datagram without a record, with the last one's number, where none was sent lately."""
        with self._lock:
            silent, self._heard = self.datagrams == self._heard, self.datagrams
            if silent and self._socket is not None and not self._buffer:
                self._send(
                    self._socket, f'["jm1","{self.source}",{self.datagrams - 1},[]]'.encode()
                )

    def _fitting(self) -> int:
        """How many records from the front fit one datagram (at least one)."""
        size = 0
        for count, text in enumerate(self._buffer):
            size += len(text) + 1
            if size > DATAGRAM_BYTES:
                return max(1, count)
        return len(self._buffer)

    def _put(self, text: str) -> None:
        if self._socket is None:
            return
        self._buffer.append(text)
        self._size += len(text) + 1
        if self._size > self._limit:
            self._overflow()

    def _overflow(self) -> None:
        """The meter has not read for long: its steps are given up, requests' ends are kept.

        Where those alone are too many, all goes, and a new connection starts afresh.
        """
        kept = [text for text in self._buffer if not text.startswith(_STEP_RECORDS)]
        self._count_lost()
        self._buffer[:] = kept
        self._size = sum(map(len, kept)) + len(kept)
        self._stalled = True
        self._needs_full = True
        if self._size > self._limit // 2:
            self._disconnect()

    def _connect(self) -> bool:
        now_ns = self._clock()
        if self._facts is None or now_ns < self._retry_ns:
            return False
        self._retry_ns = now_ns + RETRY_NS
        flags = socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC
        connection = socket.socket(socket.AF_UNIX, flags)
        try:
            with contextlib.suppress(OSError):
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, BUFFER_BYTES)
            connection.connect(self._path)
        except OSError:
            connection.close()
            return False
        self._socket = connection
        self._begin()
        return True

    def _begin(self) -> None:
        """What a listener that knows nothing has to be told first."""
        self._buffer[:] = [self._hello(), *self._open.values()]
        self._size = sum(map(len, self._buffer)) + len(self._buffer)
        self._limit = max(self._buffer_bytes, 4 * self._size)
        self._stalled = False
        self._full_ns = 0
        self._needs_full = True

    def _hello(self) -> str:
        facts = dict(self._facts or {})
        if self._next_seq:
            facts["next_seq"] = self._next_seq
            facts["missed_steps"] = self.lost_steps - self._told_lost
            facts["open_requests"] = len(self._open)
        return _encode(("H", self._clock(), self._event, facts))

    def _disconnect(self) -> None:
        if self._socket is not None:
            self._socket.close()
        self._socket = None
        self._needs_full = True
        self._count_lost()
        self._buffer.clear()
        self._size = 0

    def _count_lost(self) -> None:
        self.lost_steps += sum(text.startswith(_STEPS) for text in self._buffer)
