"""A collector: takes OTLP over gRPC and prints a line of JSON for each span, once it is ready and until it is ended.

otlp_sink.py PORT
"""

import json
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc
from opentelemetry.proto.trace.v1 import trace_pb2


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


class Sink(trace_service_pb2_grpc.TraceServiceServicer):
    def Export(self, request, context):
        authorization = dict(context.invocation_metadata()).get("authorization")
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
        return trace_service_pb2.ExportTraceServiceResponse()


server = grpc.server(ThreadPoolExecutor(4))
trace_service_pb2_grpc.add_TraceServiceServicer_to_server(Sink(), server)
if server.add_insecure_port(f"127.0.0.1:{sys.argv[1]}") == 0:
    sys.exit(f"port {sys.argv[1]} is taken")
server.start()
tell("ready")
threading.Event().wait()
