"""What the traced MCP client and server share: OpenTelemetry's SDK, set up to send every span of a kept trace at once."""

from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ALWAYS_ON, ParentBased


def start(service, collector, *, roots):
    """`roots`: whether traces that start here are kept. A caller's decision on its own trace is followed."""
    provider = TracerProvider(
        resource=Resource.create({"service.name": service}),
        sampler=ParentBased(ALWAYS_ON if roots else ALWAYS_OFF),
    )
    provider.add_span_processor(SimpleSpanProcessor(OTLPSpanExporter(endpoint=f"http://{collector}", insecure=True)))
    trace.set_tracer_provider(provider)
    return provider
