"""The Open Inference Protocol over gRPC: messages become requests, responses become messages.

An error leaves a method as a GenserveError, which the server around it makes a status. In a stream
it is a response of its own, since other requests share the stream.
"""

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from functools import partial
from typing import Any, TypeAlias

import grpc
import numpy as np
from google.protobuf.json_format import ParseDict

from service.core.engine import INFER, Engine
from service.core.open_inference.inference import (
    EXTENSIONS,
    Inference,
    InferenceRequest,
    InferenceResponse,
    describe_outputs,
    refuse_parameters,
)
from service.core.open_inference.models import SERVER_NAME
from service.core.open_inference.tensors import Tensor
from service.core.requests import MAXIMUM_LISTED
from service.errors import GenserveError, InvalidRequest, MalformedRequest, ModelNotFound
from service.metrics import Metrics
from service.rpc.feed import answer_as_they_come
from service.rpc.pb import inference_service_pb2 as pb
from service.rpc.pb.inference_service_pb2_grpc import GRPCInferenceServiceServicer
from service.rpc.servicer import MAXIMUM_UNANSWERED

Context: TypeAlias = grpc.aio.ServicerContext

_LARGE_BYTES = 128 * 1024  # converting more than this takes milliseconds
_CONTENTS = {
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    "INT32": "int_contents",
    "INT64": "int64_contents",
    "UINT8": "uint_contents",
}

log = logging.getLogger(__name__)


class InferenceServicer(GRPCInferenceServiceServicer):
    """inference.GRPCInferenceService over an engine."""

    def __init__(self, engine: Engine, metrics: Metrics, version: str) -> None:
        self._engine = engine
        self._metrics = metrics
        self._version = version
        self._inference = Inference(engine, metrics)

    async def ServerLive(
        self, message: pb.ServerLiveRequest, context: Context
    ) -> pb.ServerLiveResponse:
        """Say that the process lives."""
        return pb.ServerLiveResponse(live=True)

    async def ServerReady(
        self, message: pb.ServerReadyRequest, context: Context
    ) -> pb.ServerReadyResponse:
        """Say whether every default model serves and work is taken."""
        return pb.ServerReadyResponse(ready=self._inference.ready)

    async def ModelReady(
        self, message: pb.ModelReadyRequest, context: Context
    ) -> pb.ModelReadyResponse:
        """Say whether a model is loaded."""
        model = self._inference.find(message.name, message.version)
        return pb.ModelReadyResponse(ready=model.ready)

    async def ServerMetadata(
        self, message: pb.ServerMetadataRequest, context: Context
    ) -> pb.ServerMetadataResponse:
        """Name the server."""
        return pb.ServerMetadataResponse(
            name=SERVER_NAME, version=self._version, extensions=EXTENSIONS
        )

    async def ModelMetadata(
        self, message: pb.ModelMetadataRequest, context: Context
    ) -> pb.ModelMetadataResponse:
        """Describe a model's tensors."""
        model = self._inference.find(message.name, message.version)
        metadata = pb.ModelMetadataResponse()
        ParseDict(self._inference.metadata(model), metadata)
        return metadata

    async def ModelConfig(
        self, message: pb.ModelConfigRequest, context: Context
    ) -> pb.ModelConfigResponse:
        """Describe a model as Triton does."""
        model = self._inference.find(message.name, message.version)
        config = ParseDict(self._inference.configuration(model), pb.ModelConfig())
        return pb.ModelConfigResponse(config=config)

    async def ModelStatistics(
        self, message: pb.ModelStatisticsRequest, context: Context
    ) -> pb.ModelStatisticsResponse:
        """Count what a model was asked, or all of them."""
        models = self._inference.models()
        if message.name:
            models = [self._inference.find(message.name, message.version)]
        statistics = pb.ModelStatisticsResponse()
        ParseDict({"model_stats": self._inference.statistics(models)}, statistics)
        return statistics

    async def RepositoryIndex(
        self, message: pb.RepositoryIndexRequest, context: Context
    ) -> pb.RepositoryIndexResponse:
        """List the models."""
        _check_repository(message.repository_name)
        index = pb.RepositoryIndexResponse()
        ParseDict({"models": self._inference.index(message.ready)}, index)
        return index

    async def RepositoryModelLoad(
        self, message: pb.RepositoryModelLoadRequest, context: Context
    ) -> pb.RepositoryModelLoadResponse:
        """Load an artifact anew."""
        _check_repository(message.repository_name)
        await self._inference.load(message.model_name, _parameters(message))
        return pb.RepositoryModelLoadResponse()

    async def RepositoryModelUnload(
        self, message: pb.RepositoryModelUnloadRequest, context: Context
    ) -> pb.RepositoryModelUnloadResponse:
        """Unload an artifact."""
        _check_repository(message.repository_name)
        await self._inference.unload(message.model_name, _parameters(message))
        return pb.RepositoryModelUnloadResponse()

    async def ModelInfer(
        self, message: pb.ModelInferRequest, context: Context
    ) -> pb.ModelInferResponse:
        """Run a model."""
        asked = await self._read(message)
        return _write(await self._inference.infer(asked, context.time_remaining()))

    async def ModelStreamInfer(
        self,
        messages: AsyncIterator[pb.ModelInferRequest | MalformedRequest],
        context: Context,
    ) -> AsyncGenerator[pb.ModelStreamInferResponse, None]:
        """Run models; bytes that were no message come as the error to answer them with."""
        answers = answer_as_they_come(
            messages,
            partial(self._respond, context),
            at_once=MAXIMUM_UNANSWERED,
            stopping=self._engine.until_draining,
        )
        with self._engine.feed():
            async with aclosing(answers):
                async for answer in answers:
                    yield answer

    async def _respond(
        self, context: Context, message: pb.ModelInferRequest | MalformedRequest
    ) -> AsyncGenerator[pb.ModelStreamInferResponse, None]:
        """Yield the responses to one request of a stream, or why there is none."""
        request_id = ""
        try:
            if isinstance(message, MalformedRequest):
                with self._metrics.counting_refusals(INFER):
                    raise message
            request_id = message.id
            asked = await self._read(message)
            responses = self._inference.stream(asked, context.time_remaining())
            async with aclosing(responses):
                async for response in responses:
                    yield pb.ModelStreamInferResponse(infer_response=_write(response))
        except GenserveError as error:
            yield _refusal(request_id, error.message)
        except Exception:
            log.exception("unexpected error")
            yield _refusal(request_id, "the server failed; its log says why")

    async def _read(self, message: pb.ModelInferRequest) -> InferenceRequest:
        with self._metrics.counting_refusals(INFER):
            large = message.ByteSize() > _LARGE_BYTES
            return await asyncio.to_thread(_read, message) if large else _read(message)


def _check_repository(name: str) -> None:
    if name:
        raise ModelNotFound("there is one repository, and it has no name; leave it out")


def _read(message: pb.ModelInferRequest) -> InferenceRequest:
    raw = message.raw_input_contents
    if raw and len(raw) != len(message.inputs):
        raise MalformedRequest(
            f"there are {len(raw)} raw_input_contents for {len(message.inputs)} inputs; give one "
            "for each input, or none"
        )
    if max(len(message.inputs), len(message.outputs)) > MAXIMUM_LISTED:
        raise InvalidRequest(f"at most {MAXIMUM_LISTED} inputs and outputs are taken")
    for output in message.outputs:
        refuse_parameters("output", output.name, output.parameters)
    return InferenceRequest(
        model_name=message.model_name,
        model_version=message.model_version,
        id=message.id,
        parameters=_parameters(message),
        tensors=[
            _tensor(part, raw[index] if raw else None) for index, part in enumerate(message.inputs)
        ],
        outputs=[output.name for output in message.outputs],
    )


def _tensor(part: Any, raw: bytes | None) -> Tensor:
    # KServe's client says it here too, where the bytes say it themselves.
    size = part.parameters.get("binary_data_size")
    if size is not None and raw is not None and size.int64_param != len(raw):
        raise MalformedRequest(
            f"binary_data_size of input {part.name[:100]} is {size.int64_param}, and there are "
            f"{len(raw)} bytes"
        )
    refuse_parameters("input", part.name, set(part.parameters) - {"binary_data_size"})
    if raw is not None and part.HasField("contents"):
        raise InvalidRequest(
            f"input {part.name[:100]} is given twice, in contents and in raw_input_contents"
        )
    content: Any = raw
    if raw is None:
        # The field of another type is passed over: then there are too few elements.
        field = _CONTENTS.get(part.datatype)
        content = np.array(getattr(part.contents, field) if field else ())
    return Tensor(name=part.name, datatype=part.datatype, shape=part.shape, content=content)


def _parameters(message: Any) -> dict[str, object]:
    return {name: _value(name, part) for name, part in message.parameters.items()}


def _value(name: str, part: pb.InferParameter | pb.ModelRepositoryParameter) -> object:
    choice = part.WhichOneof("parameter_choice")
    if choice is None:
        raise InvalidRequest(f"parameter {name[:100]} has no value")
    value: object = getattr(part, choice)
    return value


def _refusal(request_id: str, message: str) -> pb.ModelStreamInferResponse:
    response = pb.ModelInferResponse(id=request_id)
    return pb.ModelStreamInferResponse(error_message=message, infer_response=response)


def _write(response: InferenceResponse) -> pb.ModelInferResponse:
    message = pb.ModelInferResponse(
        model_name=response.model_name,
        model_version=response.model_version,
        id=response.id,
        outputs=[
            pb.ModelInferResponse.InferOutputTensor(**described)
            for described in describe_outputs(response)
        ],
        raw_output_contents=[array.tobytes() for array in response.outputs.values()],
    )
    for name, value in response.parameters.items():
        if isinstance(value, bool):
            message.parameters[name].bool_param = value
        else:
            message.parameters[name].int64_param = value
    return message
