"""A gRPC client that knows only what reflection tells it samples an image; it goes out as JSON.

It shares nothing with the service but gRPC: `python reflection_calls.py GRPC`.
"""

import json
import sys

import grpc
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.json_format import MessageToDict, ParseDict
from google.protobuf.message_factory import GetMessageClass
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import (
    ProtoReflectionDescriptorDatabase,
)


def main():
    with grpc.insecure_channel(sys.argv[1]) as channel:
        database = ProtoReflectionDescriptorDatabase(channel)
        services = database.get_services()
        (name,) = [name for name in services if name.startswith("genserve.")]
        service = DescriptorPool(database).FindServiceByName(name)
        method = service.methods_by_name["Sample"]
        call = channel.unary_unary(
            f"/{service.full_name}/{method.name}",
            request_serializer=lambda message: message.SerializeToString(),
            response_deserializer=GetMessageClass(method.output_type).FromString,
        )
        request = GetMessageClass(method.input_type)()
        ParseDict({"model": sys.argv[2], "count": 2, "seed": 7}, request)
        print(json.dumps({"services": list(services), "answer": MessageToDict(call(request))}))


if __name__ == "__main__":
    main()
