"""The gRPC methods: a message becomes a request, the engine runs it, its answer a message.

An error leaves a method as a GenserveError; the server around it makes it a status, and sets the
`request_id` of every answer.
"""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing
from functools import partial
from typing import Any, TypeAlias, TypeVar

import grpc
from google.protobuf.message import Message

from service.core.engine import Answer, Engine
from service.core.feed import Feed
from service.core.models import Model
from service.core.painting.streaming import Preview, Rows
from service.core.requests import Request
from service.errors import GenserveError, MalformedRequest
from service.metrics import Metrics
from service.rpc import reading, writing
from service.rpc.feed import answer_in_order
from service.rpc.pb import generation_service_pb2 as pb
from service.rpc.pb.generation_service_pb2_grpc import GenerationServiceServicer
from service.rpc.status import to_entry
from service.rpc.writing import Generation

Read = Callable[[Any], Request]
Context: TypeAlias = grpc.aio.ServicerContext
Streaming: TypeAlias = pb.StreamSampleRequest | pb.StreamCompleteRequest
Step = TypeVar("Step", pb.StreamSampleResponse, pb.StreamCompleteResponse)

MAXIMUM_UNANSWERED = 32
"""Messages of a feed that are read and not yet answered."""

_LARGE_BYTES = 128 * 1024  # converting more than this takes milliseconds
_LARGE_VALUES = 50_000  # writing more than this takes milliseconds


class GenerationServicer(GenerationServiceServicer):
    """genserve.v1.GenerationService over an engine."""

    def __init__(self, engine: Engine, metrics: Metrics) -> None:
        self._engine = engine
        self._metrics = metrics

    async def Sample(self, message: pb.SampleRequest, context: Context) -> pb.SampleResponse:
        """Draw images."""
        return await self._generate("sample", message, context, reading.sample, pb.SampleResponse)

    async def Encode(self, message: pb.EncodeRequest, context: Context) -> pb.EncodeResponse:
        """Map images to latents."""
        answer = await self._run("encode", message, context, reading.encode)
        return writing.encoding(answer, reading.parts(message))

    async def Decode(self, message: pb.DecodeRequest, context: Context) -> pb.DecodeResponse:
        """Map latents to images."""
        return await self._generate("decode", message, context, reading.decode, pb.DecodeResponse)

    async def Reconstruct(
        self, message: pb.ReconstructRequest, context: Context
    ) -> pb.ReconstructResponse:
        """Map images to latents and back."""
        return await self._generate(
            "reconstruct", message, context, reading.reconstruct, pb.ReconstructResponse
        )

    async def Likelihood(
        self, message: pb.LikelihoodRequest, context: Context
    ) -> pb.LikelihoodResponse:
        """Score images."""
        answer = await self._run("likelihood", message, context, reading.likelihood)
        return await _scored(answer, message)

    async def Interpolate(
        self, message: pb.InterpolateRequest, context: Context
    ) -> pb.InterpolateResponse:
        """Decode a path, a grid or latent arithmetic."""
        return await self._generate(
            "interpolate", message, context, reading.interpolate, pb.InterpolateResponse
        )

    async def Complete(self, message: pb.CompleteRequest, context: Context) -> pb.CompleteResponse:
        """Draw the rest of an image."""
        return await self._generate(
            "complete", message, context, reading.complete, pb.CompleteResponse
        )

    async def Score(self, message: pb.ScoreRequest, context: Context) -> pb.ScoreResponse:
        """Ask a discriminator or critic how real images look."""
        return writing.scores(await self._run("score", message, context, reading.score))

    async def Classify(self, message: pb.ClassifyRequest, context: Context) -> pb.ClassifyResponse:
        """Ask which class images are of."""
        answer = await self._run("classify", message, context, reading.classify)
        return writing.classes(answer)

    def StreamSample(
        self, message: pb.StreamSampleRequest, context: Context
    ) -> AsyncGenerator[pb.StreamSampleResponse, None]:
        """Draw images, and show them while they are painted."""
        forms = pb.StreamSampleResponse, pb.SampleResponse
        return self._stream("sample", message, context, reading.sample, *forms)

    def StreamComplete(
        self, message: pb.StreamCompleteRequest, context: Context
    ) -> AsyncGenerator[pb.StreamCompleteResponse, None]:
        """Draw the rest of an image, and show it while it is painted."""
        forms = pb.StreamCompleteResponse, pb.CompleteResponse
        return self._stream("complete", message, context, reading.complete, *forms)

    async def StreamLikelihood(
        self,
        messages: AsyncIterator[pb.StreamLikelihoodRequest | MalformedRequest],
        context: Context,
    ) -> AsyncGenerator[pb.StreamLikelihoodResponse, None]:
        """Score a feed; bytes that were no message come as the error to answer them with."""
        with self._metrics.open_streams.track_inprogress(), self._engine.feed() as feed:
            answers = answer_in_order(
                messages,
                partial(self._score, context, feed),
                at_once=MAXIMUM_UNANSWERED,
                stopping=self._engine.until_draining,
            )
            async with aclosing(answers):
                async for answer in answers:
                    yield answer

    async def _score(
        self, context: Context, feed: Feed, message: pb.StreamLikelihoodRequest | MalformedRequest
    ) -> pb.StreamLikelihoodResponse:
        """Answer one message of a feed, with its error where there is one."""
        try:
            if isinstance(message, MalformedRequest):
                with self._metrics.counting_refusals("likelihood"):
                    raise message
            asked = await self._asked("likelihood", message.request, context, reading.likelihood)
            # Read before the engine drained, if it does: so it is answered.
            answer = await self._engine.run("likelihood", **asked, feed=feed)
            result = await _scored(answer, message.request)
        except GenserveError as error:
            return pb.StreamLikelihoodResponse(error=to_entry(error))
        return pb.StreamLikelihoodResponse(result=result)

    async def ListModels(
        self, message: pb.ListModelsRequest, context: Context
    ) -> pb.ListModelsResponse:
        """Describe all models."""
        models = self._engine.models.all()
        return pb.ListModelsResponse(models=[self._describe(found) for found in models])

    async def GetModel(self, message: pb.GetModelRequest, context: Context) -> pb.GetModelResponse:
        """Describe one model."""
        found = self._engine.models.find(message.model)
        return pb.GetModelResponse(model=self._describe(found))

    async def LoadModel(
        self, message: pb.LoadModelRequest, context: Context
    ) -> pb.LoadModelResponse:
        """Load a model anew."""
        loaded = await self._engine.load_model(message.model)
        return pb.LoadModelResponse(model=self._describe(loaded))

    async def UnloadModel(
        self, message: pb.UnloadModelRequest, context: Context
    ) -> pb.UnloadModelResponse:
        """Unload a model."""
        unloaded = await self._engine.unload_model(message.model)
        return pb.UnloadModelResponse(models=[self._describe(each) for each in unloaded])

    async def RescanModels(
        self, message: pb.RescanModelsRequest, context: Context
    ) -> pb.RescanModelsResponse:
        """Take over what changed in the repository."""
        changes = await self._engine.rescan_models()
        return pb.RescanModelsResponse(changes=map(writing.change, changes))

    def _describe(self, model: Model) -> pb.Model:
        return writing.model(model, self._engine.default_for(model))

    async def _generate(
        self,
        operation: str,
        message: Message,
        context: Context,
        read: Read,
        response: type[Generation],
    ) -> Generation:
        answer = await self._run(operation, message, context, read)
        return await _written(response, answer, message)

    async def _stream(
        self,
        operation: str,
        message: Streaming,
        context: Context,
        read: Read,
        step: type[Step],
        response: type[Generation],
    ) -> AsyncGenerator[Step, None]:
        """Yield what is painted meanwhile, then the answer."""
        with self._metrics.counting_refusals(operation):
            stream = reading.stream(message)
        asked = await self._asked(operation, message.request, context, read)
        async with aclosing(self._engine.stream(operation, stream=stream, **asked)) as events:
            async for event in events:
                if isinstance(event, Rows):
                    yield step(rows=writing.rows(event))
                elif isinstance(event, Preview):
                    yield step(preview=await asyncio.to_thread(writing.preview, event))
                elif isinstance(event, Answer):
                    yield step(result=await _written(response, event, message.request))

    async def _run(self, operation: str, message: Message, context: Context, read: Read) -> Answer:
        asked = await self._asked(operation, message, context, read)
        return await self._engine.run(operation, **asked)

    async def _asked(
        self, operation: str, message: Message, context: Context, read: Read
    ) -> dict[str, Any]:
        """Return what the engine is asked, within the request's timeout and the call's deadline."""
        with self._metrics.counting_refusals(operation):
            reading.check_answerable(message)
            large = message.ByteSize() > _LARGE_BYTES
            return {
                "timeout_seconds": reading.timeout_seconds(message, context.time_remaining()),
                "request": await asyncio.to_thread(read, message) if large else read(message),
                "model": message.model if message.HasField("model") else None,
            }


async def _written(response: type[Generation], answer: Answer, message: Message) -> Generation:
    png, parts = reading.as_png(message), reading.parts(message)
    if answer.result.count * answer.manifest.event.dimensions > _LARGE_VALUES:
        # On a thread, so that other calls are answered meanwhile.
        return await asyncio.to_thread(writing.generation, response, answer, parts, png)
    return writing.generation(response, answer, parts, png)


async def _scored(answer: Answer, message: pb.LikelihoodRequest) -> pb.LikelihoodResponse:
    png, parts = reading.as_png(message), reading.parts(message)
    if "log_likelihood_map" in parts:
        return await asyncio.to_thread(writing.likelihoods, answer, parts, png)
    return writing.likelihoods(answer, parts, png)
