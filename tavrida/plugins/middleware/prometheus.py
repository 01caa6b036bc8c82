# SPDX-FileCopyrightText: The tavrida authors
# SPDX-License-Identifier: Apache-2.0
"""``prometheus``: counts and times what servers and clients do; see docs/observability.md."""

from __future__ import annotations

import asyncio
import concurrent.futures
import functools
import logging
import math
import operator
import os
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from tavrida import context, exceptions
from tavrida.messages import IncomingMessage, IncomingResponse, Message, Notification, Request
from tavrida.middleware import Middleware, Vitals
from tavrida.plugins.middleware.harmless import harmless

if TYPE_CHECKING:
    from prometheus_client.metrics import MetricWrapperBase

LOG = logging.getLogger(__name__)

#: Seconds: from handlers that look something up to those that work for a minute.
BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 60.0)

#: Label sets of a metric at most: names come from messages too. What is beyond has OTHER.
MAX_SERIES = 500
OTHER = "other"

#: Where prometheus_client looks for the folder that processes share.
ENVIRONMENT = "PROMETHEUS_MULTIPROC_DIR"

#: Bytes that are set aside in that folder for each process and kind of metric, so that no disk
#: that fills up later can end the process: it writes to memory that is mapped from these files.
SET_ASIDE = {"counter": 1 << 20, "gauge_livesum": 1 << 18, "histogram": 1 << 22}

#: How the name of such a file ends until it has its room.
UNNAMED = ".new"

#: What the program's registry is given to keep for all clients.
_SHARED = "_tavrida_families"

#: Held by who counts and by who forks. A child that is forked while another thread counts would
#: wait for ever for a lock of prometheus_client, and messages with it.
_COUNTING = threading.RLock()
os.register_at_fork(
    before=_COUNTING.acquire,
    after_in_parent=_COUNTING.release,
    after_in_child=_COUNTING.release,
)

#: How a call that was waited for ended.
_FAILURES: tuple[tuple[type[BaseException], str], ...] = (
    (exceptions.CallTimeout, "timeout"),
    (exceptions.ServiceUnavailable, "unavailable"),
    (exceptions.TransportError, "connection"),
    (asyncio.CancelledError, "cancelled"),
    (concurrent.futures.CancelledError, "cancelled"),
)


class Prometheus(Middleware):
    """Metrics of handlers, messages and calls, and the page /metrics of the health server.

    Name it first in ``incoming_middleware``, so that its times hold those of all others, and in
    ``outgoing_middleware``. With several processes, ``multiprocess_dir`` is the folder in which
    they add up their numbers; any of them answers for all. The workers of ``tavrida-server`` are
    given one.

    In a client it has what concerns messages that are sent, and calls, in the registry of the
    program (``prometheus_client.REGISTRY``), together with all other clients there.

    Raises:
        ConfigError: prometheus_client is not installed, or an option cannot work.
    """

    def __init__(
        self, buckets: Sequence[float] = BUCKETS, multiprocess_dir: str | Path = ""
    ) -> None:
        if not buckets or list(buckets) != sorted(
            {each for each in buckets if not math.isnan(each)}
        ):
            raise exceptions.ConfigError(
                f"buckets {', '.join(map(str, buckets)) or 'are missing'}: name growing numbers of "
                "seconds"
            )
        folder = str(multiprocess_dir) or os.environ.get(ENVIRONMENT, "")
        if folder:
            share(folder)
        try:
            import prometheus_client
        except ModuleNotFoundError:
            raise exceptions.ConfigError(
                "the middleware prometheus needs prometheus_client, which is not installed: pip "
                "install 'tavrida[prometheus]'"
            ) from None
        if folder and not _is_shared():
            raise exceptions.ConfigError(
                "multiprocess_dir comes too late: something imported prometheus_client before. Set "
                f"{ENVIRONMENT}={folder} in the environment instead"
            )
        self._client = prometheus_client
        self._folder = folder
        self._buckets = tuple(buckets)
        self.complained_at = -math.inf
        self._began: dict[context.Handled | None, float] = {}
        self._calls: dict[str, float] = {}
        self._late_answers = 0
        #: The metrics of this object alone; the page shows those of the program too.
        self.registry = prometheus_client.CollectorRegistry()
        self._is_off = self._has_looks = False
        self._make()
        if not folder:
            self._make_for_looks()

    @classmethod
    def list_opts(cls) -> list[Any]:
        from oslo_config import cfg, types

        return [
            cfg.ListOpt(
                "buckets",
                item_type=types.Float(min=0),
                default=list(BUCKETS),
                help="The upper limits of the histograms' buckets, in seconds.",
            ),
            cfg.StrOpt(
                "multiprocess_dir",
                default="",
                help="A folder in which several processes add up their numbers; empty it before "
                "they start. Default: PROMETHEUS_MULTIPROC_DIR of the environment, or with "
                "[server] workers a temporary one.",
            ),
        ]

    @classmethod
    def from_options(cls, options: Mapping[str, Any]) -> Self:
        return cls(options["buckets"], options["multiprocess_dir"])

    def _make(self) -> None:
        """Make the metrics that have labels: with several processes, they open no file yet."""
        counter = functools.partial(self._client.Counter, registry=self.registry)
        gauge = functools.partial(
            self._client.Gauge, registry=self.registry, multiprocess_mode="livesum"
        )
        histogram = functools.partial(
            self._client.Histogram, registry=self.registry, buckets=self._buckets
        )
        of_handler = ("service", "method", "kind")
        self._handled = _Family(
            histogram(
                "tavrida_handler_seconds",
                "How long handlers ran, with their middleware.",
                (*of_handler, "outcome"),
            )
        )
        self._in_flight = _Family(
            gauge("tavrida_in_flight_messages", "Messages whose handlers run.", of_handler)
        )
        # In a folder, two counters of one name would write over each other.
        self._published, self._called = (
            _of_program(self._buckets) if self._folder else _of_sent(self.registry, self._buckets)
        )
        self._retried = _Family(
            counter(
                "tavrida_retried_messages_total",
                "Messages that failed and were put off, to come again.",
                of_handler,
            )
        )
        self._dead = _Family(
            counter(
                "tavrida_dead_letters_total",
                "Messages that went to the dead-letter queue.",
                of_handler,
            )
        )

    def _make_for_looks(self) -> None:
        """Make the metrics without labels, which open their files at once."""
        self._has_looks = True
        self._late = self._client.Counter(
            "tavrida_late_answers_total",
            "Answers that came when nobody waited any more.",
            registry=self.registry,
        )
        self._connected = self._client.Gauge(
            "tavrida_connected",
            "Processes that are connected and whose consumers the broker has confirmed.",
            registry=self.registry,
            multiprocess_mode="livesum",
        )

    # -- the server or client

    def observe(self, vitals: Vitals) -> None:
        if vitals.is_server:
            vitals.pages["/metrics"] = self._page
        if self._folder:
            try:
                _set_aside(Path(self._folder))
            except OSError as error:
                self._is_off = True
                LOG.error(  # noqa: TRY400 - the sentence says it all
                    "This process counts nothing: there is no room in %s (multiprocess_dir): %s.",
                    self._folder,
                    error,
                )
                return
        if not vitals.is_server:
            self._published, self._called = _of_program(self._buckets)
            return
        if not self._has_looks:
            # Not before: a file that is open already would lose its room when it grows.
            self._make_for_looks()
        vitals.looks.append(functools.partial(self._look, vitals))

    @harmless
    def _look(self, vitals: Vitals) -> None:
        late = vitals.late_answers
        with _COUNTING:
            self._connected.set(vitals.is_ready)
            self._late.inc(max(0, late - self._late_answers))
        self._late_answers = late

    def _page(self, accept: str) -> tuple[str, bytes]:
        encode, content_type = self._client.exposition.choose_encoder(accept)
        if self._folder:
            from prometheus_client.multiprocess import MultiProcessCollector

            _forget_the_dead(Path(self._folder))
            registry = self._client.CollectorRegistry()
            MultiProcessCollector(registry, self._folder)  # type: ignore[no-untyped-call]
        else:
            registry = _Both(self.registry, self._client.REGISTRY)  # type: ignore[assignment]
        return content_type, encode(registry)

    # -- on the way in

    @harmless
    def before_handle(self, message: Message) -> None:
        if self._is_off:
            return
        it = context.handled.get()
        self._began[it] = time.perf_counter()
        self._in_flight.count(*context.names_of(it), message.message_type)

    @harmless
    def after_handle(self, message: Message, error: BaseException | None) -> None:
        it = context.handled.get()
        began = self._began.pop(it, None)
        if began is None:
            return
        names = (*context.names_of(it), message.message_type)
        self._in_flight.count(*names, by=-1)
        outcome = "ok" if error is None else "error"
        self._handled.observe(time.perf_counter() - began, *names, outcome)

    @harmless
    def before_retry(self, message: IncomingMessage, error: BaseException) -> None:
        self._count(self._retried, message)

    @harmless
    def before_dead_letter(self, message: IncomingMessage, error: BaseException) -> None:
        self._count(self._dead, message)

    def _count(self, family: _Family, message: Message) -> None:
        if not self._is_off:
            names = context.names_of(context.handled.get())
            family.count(*names, message.message_type)

    # -- on the way out

    @harmless
    def after_publish(self, message: Message, error: BaseException | None) -> None:
        if self._is_off:
            return
        outcome = "confirmed" if error is None else "failed"
        self._published.count(*_names_of_sent(message), message.message_type, outcome)

    @harmless
    def before_call(self, message: Request) -> None:
        self._calls[message.request_id] = time.perf_counter()

    @harmless
    def after_call(
        self, message: Request, answer: IncomingResponse | None, error: BaseException | None
    ) -> None:
        began = self._calls.pop(message.request_id, None)
        if began is None or self._is_off:
            return
        outcome = "ok"
        if error is not None:
            known = (name for kind, name in _FAILURES if isinstance(error, kind))
            outcome = next(known, "error")
        names = _names_of_sent(message)
        self._called.observe(time.perf_counter() - began, *names, outcome)


def _names_of_sent(message: Message) -> tuple[str, str]:
    """Return service and method of what a request is for, a notification is about, or answers."""
    if isinstance(message, Request | Notification):
        named = message.destination if isinstance(message, Request) else message.source
        return (named.service, named.method) if named is not None else ("", "")
    # Not the names in the answer: those of a request without a handler are its sender's.
    return context.names_of(context.handled.get())


class _Family:
    """A metric by its labels: each set is looked up in a dict of our own, and their number held."""

    def __init__(self, metric: MetricWrapperBase) -> None:
        self._metric = metric
        self._children: dict[tuple[str, ...], Any] = {}

    def count(self, *labels: str, by: float = 1) -> None:
        """Add to the counter or gauge of these labels."""
        with _COUNTING:
            self.of(*labels).inc(by)

    def observe(self, seconds: float, *labels: str) -> None:
        """Add a time to the histogram of these labels."""
        with _COUNTING:
            self.of(*labels).observe(seconds)

    def of(self, *labels: str) -> Any:
        """Return the counter, gauge or histogram of these labels."""
        child = self._children.get(labels)
        if child is None:
            if len(self._children) >= MAX_SERIES:
                return self._metric.labels(*[OTHER] * len(labels))
            child = self._children[labels] = self._metric.labels(*labels)
        return child


def _of_sent(registry: Any, buckets: Sequence[float]) -> tuple[_Family, _Family]:
    """Return the metrics of what is sent and of calls, which servers and clients have."""
    import prometheus_client

    published = prometheus_client.Counter(
        "tavrida_published_messages_total",
        "Messages that were sent: confirmed by the broker, or failed.",
        ("service", "method", "kind", "outcome"),
        registry=registry,
    )
    called = prometheus_client.Histogram(
        "tavrida_call_seconds",
        "How long handlers and clients waited for the answers of others.",
        ("service", "method", "outcome"),
        registry=registry,
        buckets=buckets,
    )
    return _Family(published), _Family(called)


def _of_program(buckets: Sequence[float]) -> tuple[_Family, _Family]:
    """Return those in the program's registry, which has each name once: all clients share them.

    The buckets are those of the first client.
    """
    import prometheus_client

    registry: Any = prometheus_client.REGISTRY
    with _COUNTING:
        if not hasattr(registry, _SHARED):
            setattr(registry, _SHARED, _of_sent(registry, buckets))
        families: tuple[_Family, _Family] = getattr(registry, _SHARED)
        return families


class _Both:
    """Two registries as one, to be written. What is in both is added up."""

    def __init__(self, *registries: Any) -> None:
        self._registries = registries

    def collect(self) -> Iterator[Any]:
        families: dict[str, Any] = {}
        for registry in self._registries:
            for family in registry.collect():
                known = families.setdefault(family.name, family)
                if known is not family:
                    known.samples = _added_up((*known.samples, *family.samples))
        yield from families.values()


def _added_up(samples: Iterable[Any]) -> list[Any]:
    """Return one sample for each name and set of labels."""
    found: dict[Any, Any] = {}
    for sample in samples:
        key = sample.name, frozenset(sample.labels.items())
        same = found.setdefault(key, sample)
        if same is not sample:
            add = min if sample.name.endswith("_created") else operator.add
            found[key] = same._replace(value=add(same.value, sample.value))
    return list(found.values())


# -- the folder that processes share


def share(folder: str) -> None:
    """Have prometheus_client keep its numbers there; it looks once, when it is imported."""
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise exceptions.ConfigError(
            f"multiprocess_dir {folder!r} cannot be made: {error.strerror}"
        ) from None
    os.environ[ENVIRONMENT] = folder


def _is_shared() -> bool:
    from prometheus_client import values

    return bool(getattr(values.ValueClass, "_multiprocess", False))


def _set_aside(folder: Path) -> None:
    for kind, size in SET_ASIDE.items():
        path = folder / f"{kind}_{os.getpid()}.db"
        # With an empty one among them, no page could be made: it gets its name with its room.
        file = path if path.exists() else path.with_suffix(UNNAMED)
        try:
            with file.open("ab") as opened:
                if opened.seek(0, os.SEEK_END) < size:
                    os.posix_fallocate(opened.fileno(), 0, size)
        except OSError:
            path.with_suffix(UNNAMED).unlink(missing_ok=True)
            raise
        file.rename(path)


def _forget_the_dead(folder: Path) -> None:
    """Remove what processes that ended left behind of what only living ones have."""
    for path in folder.glob("gauge_live*_*.db"):
        pid = path.stem.rpartition("_")[2]
        if pid.isdigit() and not _is_alive(int(pid)):
            path.unlink(missing_ok=True)


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True
