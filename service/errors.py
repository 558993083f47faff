"""The error tree.

GenserveError
  InvalidRequest
    MalformedRequest, UnsupportedMediaType, NotAcceptable, PayloadTooLarge
    InvalidImage, InvalidVector, InvalidLatent, InvalidCodes, OutOfRange, BinarisationRequired
    LatentSpaceMismatch, ControlNotOffered, ConditionNotOffered, ConditionRequired
    InvalidResumeToken, ResumeMismatch
  Unauthenticated
  ModelNotFound, OperationNotOffered, NotCalibrated, ModelUnavailable, ModelUnloaded
  AdministrationOff, ArtifactRefused, RepositoryUnavailable
  QueueFull, TooManyRequests, DeadlineExceeded, RequestCancelled, ShuttingDown, InferenceFailed
StartupError
  ArtifactError

A GenserveError answers a request; it knows no protocol. Each transport owns one table from these
classes to its status codes, and a test proves that both tables are complete and agree. A message
says what was wrong, what is allowed, and what to do next. A StartupError ends the process, or
keeps one model from serving.
"""

from typing import ClassVar


class GenserveError(Exception):
    """A request that can't be answered. `reason` is stable; `details` are JSON values."""

    reason: ClassVar[str]

    def __init__(self, message: str, **details: object) -> None:
        super().__init__(message)
        self.message = message
        self.details = details


class InvalidRequest(GenserveError):
    """The request contradicts itself or the published schema."""

    reason = "INVALID_REQUEST"


class MalformedRequest(InvalidRequest):
    """The bytes are not what their media type says."""

    reason = "MALFORMED_REQUEST"


class UnsupportedMediaType(InvalidRequest):
    """The body's media type is not one the operation reads."""

    reason = "UNSUPPORTED_MEDIA_TYPE"


class NotAcceptable(InvalidRequest):
    """None of the media types asked for can be written."""

    reason = "NOT_ACCEPTABLE"


class PayloadTooLarge(InvalidRequest):
    """The body is over the limit."""

    reason = "PAYLOAD_TOO_LARGE"


class InvalidImage(InvalidRequest):
    """An image is broken, oversized, or not of the model's shape and levels."""

    reason = "INVALID_IMAGE"


class InvalidVector(InvalidRequest):
    """A vector is not finite or not of the model's size, or the model is one of images."""

    reason = "INVALID_VECTOR"


class InvalidLatent(InvalidRequest):
    """A latent is not finite or not of the model's shape."""

    reason = "INVALID_LATENT"


class OutOfRange(InvalidRequest):
    """A number lies outside its allowed range."""

    reason = "OUT_OF_RANGE"


class BinarisationRequired(InvalidRequest):
    """A model of binary images was given grey levels and no binarisation rule."""

    reason = "BINARISATION_REQUIRED"


class InvalidCodes(InvalidRequest):
    """Codes are not whole numbers, have the wrong size, or are beyond the levels of their map."""

    reason = "INVALID_CODES"


class LatentSpaceMismatch(InvalidRequest):
    """Latents or codes come from another latent space than the model's."""

    reason = "LATENT_SPACE_MISMATCH"


class ControlNotOffered(InvalidRequest):
    """The model has no such control."""

    reason = "CONTROL_NOT_OFFERED"


class ConditionNotOffered(InvalidRequest):
    """The model can't be conditioned this way."""

    reason = "CONDITION_NOT_OFFERED"


class ConditionRequired(InvalidRequest):
    """The model judges images of a class, and was not told which."""

    reason = "CONDITION_REQUIRED"


class InvalidResumeToken(InvalidRequest):
    """A resume token is none that this service wrote."""

    reason = "INVALID_RESUME_TOKEN"


class ResumeMismatch(InvalidRequest):
    """A resume token is of another artifact, seed or request."""

    reason = "RESUME_MISMATCH"


class Unauthenticated(GenserveError):
    """The server answers to API keys only, and the request has none that it knows."""

    reason = "UNAUTHENTICATED"


class ModelNotFound(GenserveError):
    """No artifact has this name and version."""

    reason = "MODEL_NOT_FOUND"


class OperationNotOffered(GenserveError):
    """The model exists and doesn't have this operation."""

    reason = "OPERATION_NOT_OFFERED"


class NotCalibrated(GenserveError):
    """Scores or p-values are asked for, and the model has no calibration that holds for them."""

    reason = "NOT_CALIBRATED"


class ModelUnavailable(GenserveError):
    """The model's artifact was refused, so it can't serve."""

    reason = "MODEL_UNAVAILABLE"


class ModelUnloaded(GenserveError):
    """The model was unloaded, and serves again when it is loaded."""

    reason = "MODEL_UNLOADED"


class AdministrationOff(GenserveError):
    """Models can't be loaded or unloaded by requests to this server."""

    reason = "ADMINISTRATION_OFF"


class ArtifactRefused(GenserveError):
    """What is to be loaded is not sound; what served before serves on."""

    reason = "ARTIFACT_REFUSED"


class RepositoryUnavailable(GenserveError):
    """The model repository can't be read just now; what is loaded serves on."""

    reason = "REPOSITORY_UNAVAILABLE"


class QueueFull(GenserveError):
    """The queue is at its bound; try again after `retry_after_seconds`."""

    reason = "QUEUE_FULL"


class TooManyRequests(GenserveError):
    """The server holds as much as it takes at once; try again after `retry_after_seconds`."""

    reason = "TOO_MANY_REQUESTS"


class DeadlineExceeded(GenserveError):
    """The deadline passed before the result was there."""

    reason = "DEADLINE_EXCEEDED"


class RequestCancelled(GenserveError):
    """The client left before the result was there."""

    reason = "REQUEST_CANCELLED"


class ShuttingDown(GenserveError):
    """The server is draining and takes no new work."""

    reason = "SHUTTING_DOWN"


class InferenceFailed(GenserveError):
    """Running the model's graph failed. This is a fault of the server or the artifact."""

    reason = "INFERENCE_FAILED"


class StartupError(Exception):
    """The process can't start; the message is one sentence that names the cure."""


class ArtifactError(StartupError):
    """An artifact is missing a file, altered, or contradicts its own test vectors."""
