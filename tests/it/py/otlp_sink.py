"""A collector: takes traces and metrics over OTLP and prints a line of JSON for each span and each point of a metric, once
it is ready and until it is ended.

otlp_sink.py PORT grpc|http [FOLDER]

With a folder it is spoken to over TLS, and writes there, as `ca.pem`, the authority that its certificate comes from.
"""

import http.server
import json
import pathlib
import ssl
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import grpc
from opentelemetry.proto.collector.metrics.v1 import metrics_service_pb2, metrics_service_pb2_grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc
from opentelemetry.proto.trace.v1 import trace_pb2

from certificates import certificates


def value(any_value):
    kind = any_value.WhichOneof("value")
    if kind == "array_value":
        return [value(item) for item in any_value.array_value.values]
    return getattr(any_value, kind) if kind else None


def attributes(pairs):
    return {pair.key: value(pair.value) for pair in pairs}


OUTPUT = threading.Lock()


def tell(line):
    with OUTPUT:
        print(line, flush=True)


def take_traces(request, authorization):
    for resource in request.resource_spans:
        emitter = attributes(resource.resource.attributes)
        for scope in resource.scope_spans:
            for span in scope.spans:
                told = {
                    "trace": span.trace_id.hex(),
                    "span": span.span_id.hex(),
                    "parent": span.parent_span_id.hex(),
                    "name": span.name,
                    "kind": trace_pb2.Span.SpanKind.Name(span.kind).removeprefix("SPAN_KIND_"),
                    "status": trace_pb2.Status.StatusCode.Name(span.status.code).removeprefix("STATUS_CODE_"),
                    "links": [link.span_id.hex() for link in span.links],
                    "attributes": attributes(span.attributes),
                    "events": len(span.events),
                    "emitter": emitter,
                    "authorization": authorization,
                }
                tell(json.dumps(told))


def take_metrics(request, authorization):
    for resource in request.resource_metrics:
        emitter = attributes(resource.resource.attributes)
        for scope in resource.scope_metrics:
            for metric in scope.metrics:
                for point in getattr(metric, metric.WhichOneof("data")).data_points:
                    kind = point.WhichOneof("value") if hasattr(point, "as_double") else "count"
                    told = {
                        "metric": metric.name,
                        "value": getattr(point, kind),
                        "attributes": attributes(point.attributes),
                        "emitter": emitter,
                        "authorization": authorization,
                    }
                    tell(json.dumps(told))


class Traces(trace_service_pb2_grpc.TraceServiceServicer):
    def Export(self, request, context):
        take_traces(request, dict(context.invocation_metadata()).get("authorization"))
        return trace_service_pb2.ExportTraceServiceResponse()


class Metrics(metrics_service_pb2_grpc.MetricsServiceServicer):
    def Export(self, request, context):
        take_metrics(request, dict(context.invocation_metadata()).get("authorization"))
        return metrics_service_pb2.ExportMetricsServiceResponse()


class Posted(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    signals = {
        "/v1/traces": (
            trace_service_pb2.ExportTraceServiceRequest, take_traces, trace_service_pb2.ExportTraceServiceResponse
        ),
        "/v1/metrics": (
            metrics_service_pb2.ExportMetricsServiceRequest, take_metrics, metrics_service_pb2.ExportMetricsServiceResponse
        ),
    }

    def do_POST(self):
        body = self.rfile.read(int(self.headers["content-length"]))
        if self.path not in self.signals or self.headers["content-type"] != "application/x-protobuf":
            self.send_error(404)
            return
        request, take, response = self.signals[self.path]
        take(request.FromString(body), self.headers["authorization"])
        answer = response().SerializeToString()
        self.send_response(200)
        self.send_header("content-type", "application/x-protobuf")
        self.send_header("content-length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *_):
        pass


port, protocol = int(sys.argv[1]), sys.argv[2]
tls = certificates(pathlib.Path(sys.argv[3])) if len(sys.argv) > 3 else None
if protocol == "grpc":
    server = grpc.server(ThreadPoolExecutor(4))
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(Traces(), server)
    metrics_service_pb2_grpc.add_MetricsServiceServicer_to_server(Metrics(), server)
    address = f"127.0.0.1:{port}"
    if tls:
        key, certificate = (path.read_bytes() for path in tls)
        bound = server.add_secure_port(address, grpc.ssl_server_credentials([(key, certificate)]))
    else:
        bound = server.add_insecure_port(address)
    if bound == 0:
        sys.exit(f"port {port} is taken")
    server.start()
else:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", port), Posted)
    if tls:
        key, certificate = tls
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate, key)
        server.socket = context.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
tell("ready")
threading.Event().wait()
