# SPDX-FileCopyrightText: The tavrida authors
# SPDX-License-Identifier: Apache-2.0
"""``opentelemetry``: a span for whatever is handled, sent and waited for. docs/observability.md."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Self
from weakref import WeakKeyDictionary

from tavrida import context, exceptions, plugins
from tavrida.messages import (
    IncomingMessage,
    IncomingRequest,
    IncomingResponse,
    Message,
    Notification,
    Request,
)
from tavrida.middleware import Middleware, Vitals
from tavrida.plugins.middleware.harmless import harmless

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.trace import Link, Span, TracerProvider

LOG = logging.getLogger(__name__)

#: The header by which a message that is tried again names the span of the attempt before.
RETRY_HEADER = "retry_traceparent"

#: Where packages register what exports spans, by the names that OpenTelemetry has for it.
EXPORTERS = "opentelemetry_traces_exporter"


class OpenTelemetry(Middleware):
    """Spans by the semantic conventions for messaging, of the global tracer provider.

    Name it first in ``incoming_middleware``, so that spans hold all that the others do, and last
    in ``outgoing_middleware``, of clients too. The trace goes with the messages in their headers,
    by the global propagator: ``traceparent``, if nobody chose another.

    Raises:
        ConfigError: OpenTelemetry is not installed, or the exporter is not.
    """

    def __init__(
        self,
        exporter: str = "",
        service_name: str = "",
        tracer_provider: TracerProvider | None = None,
    ) -> None:
        try:
            import opentelemetry.context
            import opentelemetry.propagate
            import opentelemetry.trace
            from opentelemetry.trace.propagation import tracecontext
        except ModuleNotFoundError:
            raise _missing("opentelemetry-api") from None
        self._context = opentelemetry.context
        self._propagate = opentelemetry.propagate
        self._trace = opentelemetry.trace
        self._w3c = tracecontext.TraceContextTextMapPropagator()
        self._exporter = _exporter_of(exporter) if exporter else None
        self._service_name = service_name
        self._tracer = self._trace.get_tracer("tavrida", plugins.version(), tracer_provider)
        self._system = "rabbitmq"
        self.complained_at = -math.inf
        # What is handled, with the context that has its span; answers may be sent much later.
        self._handled: WeakKeyDictionary[context.Handled, Context] = WeakKeyDictionary()
        # By message id: what is on its way to the broker, and what is waited for.
        self._sent: dict[str, Span] = {}
        self._called: dict[str, Span] = {}

    @classmethod
    def list_opts(cls) -> list[Any]:
        from oslo_config import cfg

        return [
            cfg.StrOpt(
                "exporter",
                default="",
                help="Where spans go: the name of an installed exporter, such as otlp or console, "
                "which OTEL_... variables set up. Without it, the program or "
                "opentelemetry-instrument has to set up a tracer provider.",
            ),
            cfg.StrOpt(
                "service_name",
                default="",
                help="What the traces call this process, unless OTEL_SERVICE_NAME does. Default: "
                "tavrida.",
            ),
        ]

    @classmethod
    def from_options(cls, options: Mapping[str, Any]) -> Self:
        return cls(options["exporter"], options["service_name"])

    def observe(self, vitals: Vitals) -> None:
        # The embedded bus has no name in the conventions: it is called as its urls begin.
        self._system = "rabbitmq" if vitals.scheme.startswith("amqp") else vitals.scheme
        exporter, self._exporter = self._exporter, None
        if exporter is None:
            return
        if not isinstance(self._trace.get_tracer_provider(), self._trace.ProxyTracerProvider):
            LOG.info(
                "This process has a tracer provider already, and its spans go there: exporter and "
                "service_name of [middleware:opentelemetry] are not used."
            )
            return
        # Here and not before: this runs in the worker process, whose thread is to export.
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor

        name = os.environ.get("OTEL_SERVICE_NAME") or self._service_name or "tavrida"
        provider = TracerProvider(resource=Resource.create({"service.name": name}))
        provider.add_span_processor(BatchSpanProcessor(exporter()))
        self._trace.set_tracer_provider(provider)

    # -- on the way in

    @harmless
    def before_handle(self, message: Message) -> None:
        assert isinstance(message, IncomingMessage)
        it = context.handled.get()
        assert it is not None
        service, method = context.names_of(it)
        is_call = isinstance(message, IncomingRequest) and message.expects_answer
        kinds = self._trace.SpanKind
        carrier = _carrier_of(message)
        parent = self._propagate.extract(carrier)
        attributes = {
            **self._attributes(message, "process", f"{service}.{method}"),
            "rpc.service": service,
            "rpc.method": method,
        }
        delivery = getattr(it, "delivery", None)
        if delivery is not None:
            attributes["messaging.destination.name"] = ":".join(
                filter(None, (delivery.exchange, delivery.routing_key, delivery.queue))
            )
        if message.attempt > 1:
            attributes["tavrida.attempt"] = message.attempt
        span = self._tracer.start_span(
            f"process {service}.{method}",
            parent,
            kinds.SERVER if is_call else kinds.CONSUMER,
            attributes,
            self._links(carrier),
        )
        here = self._trace.set_span_in_context(span, parent)
        # Never detached: each message is handled in a context of its own, which ends with it.
        self._context.attach(here)
        self._handled[it] = here

    def _links(self, carrier: Mapping[str, str]) -> list[Link]:
        before = self._w3c.extract({"traceparent": carrier.get(RETRY_HEADER, "")})
        span_context = self._trace.get_current_span(before).get_span_context()
        return [self._trace.Link(span_context)] if span_context.is_valid else []

    @harmless
    def after_handle(self, message: Message, error: BaseException | None) -> None:
        here = self._handled_now()
        if here is not None:
            self._end(self._trace.get_current_span(here), error)

    def _handled_now(self) -> Context | None:
        it = context.handled.get()
        return None if it is None else self._handled.get(it)

    @harmless
    def before_retry(
        self, message: IncomingMessage, error: BaseException
    ) -> Mapping[str, Any] | None:
        carrier: dict[str, str] = {}
        self._w3c.inject(carrier, self._handled_now())
        return {RETRY_HEADER: carrier["traceparent"]} if "traceparent" in carrier else None

    # -- on the way out

    @harmless
    def before_publish(self, message: Message) -> None:
        if not isinstance(message, Request | Notification):
            here = self._handled_now()  # an answer belongs to what handled its request
        else:
            span = self._called.get(message.message_id)
            if span is None:
                span = self._start(message, "send", self._trace.SpanKind.PRODUCER)
                self._sent[message.message_id] = span
            here = self._trace.set_span_in_context(span)
        self._propagate.inject(message.extra_headers, here)

    @harmless
    def after_publish(self, message: Message, error: BaseException | None) -> None:
        span = self._sent.pop(message.message_id, None)
        if span is not None:
            self._end(span, error)

    @harmless
    def before_call(self, message: Request) -> None:
        self._called[message.message_id] = self._start(message, "call", self._trace.SpanKind.CLIENT)

    @harmless
    def after_call(
        self, message: Request, answer: IncomingResponse | None, error: BaseException | None
    ) -> None:
        span = self._called.pop(message.message_id, None)
        if span is not None:
            self._end(span, error)

    # -- spans

    def _start(self, message: Message, operation: str, kind: Any) -> Span:
        goal = message.destination if isinstance(message, Request) else message.source
        attributes = self._attributes(message, operation, str(goal or ""))
        attributes["messaging.destination.name"] = str(goal or "")
        if isinstance(message, Request) and goal is not None:
            attributes |= {"rpc.service": goal.service, "rpc.method": goal.method}
        parent = None
        if not self._trace.get_current_span().get_span_context().is_valid:
            # What the program gave as headers itself, for want of a span of its own.
            parent = self._propagate.extract(_carrier_of(message))
        return self._tracer.start_span(f"{operation} {goal}", parent, kind, attributes)

    def _attributes(self, message: Message, operation: str, entry_point: str) -> dict[str, Any]:
        attributes = {
            "messaging.system": self._system,
            "messaging.operation.name": operation,
            "messaging.operation.type": "process" if operation == "process" else "send",
            "messaging.message.id": message.message_id,
            "messaging.message.conversation_id": message.correlation_id,
            "rpc.system": "tavrida",
            "tavrida.kind": message.message_type,
            "tavrida.source": str(message.source or ""),
        }
        if self._system == "rabbitmq":
            attributes["messaging.rabbitmq.destination.routing_key"] = entry_point
        return attributes

    def _end(self, span: Span, error: BaseException | None) -> None:
        if error is not None:
            span.set_attribute("error.type", type(error).__name__)
            span.record_exception(error)
            text = exceptions.printable(exceptions.text_of(error))
            span.set_status(self._trace.StatusCode.ERROR, text)
        span.end()


def _carrier_of(message: Message) -> dict[str, str]:
    return {k: v for k, v in message.extra_headers.items() if isinstance(v, str)}


def _missing(package: str) -> exceptions.ConfigError:
    return exceptions.ConfigError(
        f"the middleware opentelemetry needs {package}, which is not installed: pip install "
        "'tavrida[opentelemetry]'"
    )


def _exporter_of(name: str) -> Any:
    """Return what makes the exporter of a name; only that one is imported."""
    points = plugins.installed(EXPORTERS)
    for point in points:
        if point.name == name:
            try:
                return point.load()
            except Exception as error:
                raise exceptions.ConfigError(
                    f"exporter {name!r} ({plugins.origin_of(point)}) cannot be imported: "
                    f"{type(error).__name__}: {error}"
                ) from error
    names = sorted({point.name for point in points})
    raise exceptions.ConfigError(
        f"there is no exporter {name!r}{exceptions.did_you_mean(name, names)}. Installed: "
        f"{', '.join(names) or 'none'}. otlp is in opentelemetry-exporter-otlp"
    )
