from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Scale(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    SCALE_UNSPECIFIED: _ClassVar[Scale]
    SCALE_LEVELS: _ClassVar[Scale]
    SCALE_UNIT: _ClassVar[Scale]

class ImageFormat(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    IMAGE_FORMAT_UNSPECIFIED: _ClassVar[ImageFormat]
    IMAGE_FORMAT_ARRAY: _ClassVar[ImageFormat]
    IMAGE_FORMAT_PNG: _ClassVar[ImageFormat]

class Show(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    SHOW_UNSPECIFIED: _ClassVar[Show]
    SHOW_ROWS: _ClassVar[Show]
    SHOW_PREVIEW: _ClassVar[Show]

class GenerationPart(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    GENERATION_PART_UNSPECIFIED: _ClassVar[GenerationPart]
    GENERATION_PART_IMAGES: _ClassVar[GenerationPart]
    GENERATION_PART_LATENTS: _ClassVar[GenerationPart]
    GENERATION_PART_LOG_LIKELIHOOD: _ClassVar[GenerationPart]
    GENERATION_PART_LOG_WEIGHT: _ClassVar[GenerationPart]
    GENERATION_PART_CODES: _ClassVar[GenerationPart]
    GENERATION_PART_VECTORS: _ClassVar[GenerationPart]

class EncodingPart(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    ENCODING_PART_UNSPECIFIED: _ClassVar[EncodingPart]
    ENCODING_PART_LATENTS: _ClassVar[EncodingPart]
    ENCODING_PART_DEVIATIONS: _ClassVar[EncodingPart]
    ENCODING_PART_DRAWS: _ClassVar[EncodingPart]
    ENCODING_PART_CODES: _ClassVar[EncodingPart]

class LikelihoodPart(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    LIKELIHOOD_PART_UNSPECIFIED: _ClassVar[LikelihoodPart]
    LIKELIHOOD_PART_LOG_LIKELIHOOD: _ClassVar[LikelihoodPart]
    LIKELIHOOD_PART_SCORES: _ClassVar[LikelihoodPart]
    LIKELIHOOD_PART_LOG_LIKELIHOOD_MAP: _ClassVar[LikelihoodPart]

class Estimator(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    ESTIMATOR_UNSPECIFIED: _ClassVar[Estimator]
    ESTIMATOR_MONTE_CARLO: _ClassVar[Estimator]

class Binarisation(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    BINARISATION_UNSPECIFIED: _ClassVar[Binarisation]
    BINARISATION_THRESHOLD: _ClassVar[Binarisation]
    BINARISATION_STOCHASTIC: _ClassVar[Binarisation]

class InterpolationMode(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    INTERPOLATION_MODE_UNSPECIFIED: _ClassVar[InterpolationMode]
    INTERPOLATION_MODE_SLERP: _ClassVar[InterpolationMode]
    INTERPOLATION_MODE_LERP: _ClassVar[InterpolationMode]

class Reproducibility(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    REPRODUCIBILITY_UNSPECIFIED: _ClassVar[Reproducibility]
    REPRODUCIBILITY_BITWISE: _ClassVar[Reproducibility]
    REPRODUCIBILITY_NUMERIC: _ClassVar[Reproducibility]

class Quantity(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    QUANTITY_UNSPECIFIED: _ClassVar[Quantity]
    QUANTITY_PROBABILITY: _ClassVar[Quantity]
    QUANTITY_DENSITY: _ClassVar[Quantity]

class LikelihoodKind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    LIKELIHOOD_KIND_UNSPECIFIED: _ClassVar[LikelihoodKind]
    LIKELIHOOD_KIND_EXACT: _ClassVar[LikelihoodKind]
    LIKELIHOOD_KIND_LOWER_BOUND: _ClassVar[LikelihoodKind]
    LIKELIHOOD_KIND_ESTIMATE: _ClassVar[LikelihoodKind]

class BaseMeasure(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    BASE_MEASURE_UNSPECIFIED: _ClassVar[BaseMeasure]
    BASE_MEASURE_COUNTING: _ClassVar[BaseMeasure]
    BASE_MEASURE_LEBESGUE: _ClassVar[BaseMeasure]

class HigherMeans(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    HIGHER_MEANS_UNSPECIFIED: _ClassVar[HigherMeans]
    HIGHER_MEANS_MORE_REAL: _ClassVar[HigherMeans]
    HIGHER_MEANS_LESS_REAL: _ClassVar[HigherMeans]

class Conditioning(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    CONDITIONING_UNSPECIFIED: _ClassVar[Conditioning]
    CONDITIONING_GIVEN: _ClassVar[Conditioning]
    CONDITIONING_NONE: _ClassVar[Conditioning]
    CONDITIONING_MARGINAL: _ClassVar[Conditioning]

class ModelState(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    MODEL_STATE_UNSPECIFIED: _ClassVar[ModelState]
    MODEL_STATE_AVAILABLE: _ClassVar[ModelState]
    MODEL_STATE_LOADING: _ClassVar[ModelState]
    MODEL_STATE_READY: _ClassVar[ModelState]
    MODEL_STATE_REFUSED: _ClassVar[ModelState]
    MODEL_STATE_UNLOADED: _ClassVar[ModelState]

class ModelChangeKind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    MODEL_CHANGE_KIND_UNSPECIFIED: _ClassVar[ModelChangeKind]
    MODEL_CHANGE_KIND_LOADED: _ClassVar[ModelChangeKind]
    MODEL_CHANGE_KIND_FOUND: _ClassVar[ModelChangeKind]
    MODEL_CHANGE_KIND_REFUSED: _ClassVar[ModelChangeKind]
    MODEL_CHANGE_KIND_REMOVED: _ClassVar[ModelChangeKind]
    MODEL_CHANGE_KIND_KEPT: _ClassVar[ModelChangeKind]
SCALE_UNSPECIFIED: Scale
SCALE_LEVELS: Scale
SCALE_UNIT: Scale
IMAGE_FORMAT_UNSPECIFIED: ImageFormat
IMAGE_FORMAT_ARRAY: ImageFormat
IMAGE_FORMAT_PNG: ImageFormat
SHOW_UNSPECIFIED: Show
SHOW_ROWS: Show
SHOW_PREVIEW: Show
GENERATION_PART_UNSPECIFIED: GenerationPart
GENERATION_PART_IMAGES: GenerationPart
GENERATION_PART_LATENTS: GenerationPart
GENERATION_PART_LOG_LIKELIHOOD: GenerationPart
GENERATION_PART_LOG_WEIGHT: GenerationPart
GENERATION_PART_CODES: GenerationPart
GENERATION_PART_VECTORS: GenerationPart
ENCODING_PART_UNSPECIFIED: EncodingPart
ENCODING_PART_LATENTS: EncodingPart
ENCODING_PART_DEVIATIONS: EncodingPart
ENCODING_PART_DRAWS: EncodingPart
ENCODING_PART_CODES: EncodingPart
LIKELIHOOD_PART_UNSPECIFIED: LikelihoodPart
LIKELIHOOD_PART_LOG_LIKELIHOOD: LikelihoodPart
LIKELIHOOD_PART_SCORES: LikelihoodPart
LIKELIHOOD_PART_LOG_LIKELIHOOD_MAP: LikelihoodPart
ESTIMATOR_UNSPECIFIED: Estimator
ESTIMATOR_MONTE_CARLO: Estimator
BINARISATION_UNSPECIFIED: Binarisation
BINARISATION_THRESHOLD: Binarisation
BINARISATION_STOCHASTIC: Binarisation
INTERPOLATION_MODE_UNSPECIFIED: InterpolationMode
INTERPOLATION_MODE_SLERP: InterpolationMode
INTERPOLATION_MODE_LERP: InterpolationMode
REPRODUCIBILITY_UNSPECIFIED: Reproducibility
REPRODUCIBILITY_BITWISE: Reproducibility
REPRODUCIBILITY_NUMERIC: Reproducibility
QUANTITY_UNSPECIFIED: Quantity
QUANTITY_PROBABILITY: Quantity
QUANTITY_DENSITY: Quantity
LIKELIHOOD_KIND_UNSPECIFIED: LikelihoodKind
LIKELIHOOD_KIND_EXACT: LikelihoodKind
LIKELIHOOD_KIND_LOWER_BOUND: LikelihoodKind
LIKELIHOOD_KIND_ESTIMATE: LikelihoodKind
BASE_MEASURE_UNSPECIFIED: BaseMeasure
BASE_MEASURE_COUNTING: BaseMeasure
BASE_MEASURE_LEBESGUE: BaseMeasure
HIGHER_MEANS_UNSPECIFIED: HigherMeans
HIGHER_MEANS_MORE_REAL: HigherMeans
HIGHER_MEANS_LESS_REAL: HigherMeans
CONDITIONING_UNSPECIFIED: Conditioning
CONDITIONING_GIVEN: Conditioning
CONDITIONING_NONE: Conditioning
CONDITIONING_MARGINAL: Conditioning
MODEL_STATE_UNSPECIFIED: ModelState
MODEL_STATE_AVAILABLE: ModelState
MODEL_STATE_LOADING: ModelState
MODEL_STATE_READY: ModelState
MODEL_STATE_REFUSED: ModelState
MODEL_STATE_UNLOADED: ModelState
MODEL_CHANGE_KIND_UNSPECIFIED: ModelChangeKind
MODEL_CHANGE_KIND_LOADED: ModelChangeKind
MODEL_CHANGE_KIND_FOUND: ModelChangeKind
MODEL_CHANGE_KIND_REFUSED: ModelChangeKind
MODEL_CHANGE_KIND_REMOVED: ModelChangeKind
MODEL_CHANGE_KIND_KEPT: ModelChangeKind

class SampleRequest(_message.Message):
    __slots__ = ("model", "timeout_ms", "count", "seed", "class_label", "condition", "temperature", "truncation", "scale", "returns", "image_format", "top_k", "top_p", "greedy", "burn_in", "thinning", "chains")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    TIMEOUT_MS_FIELD_NUMBER: _ClassVar[int]
    COUNT_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    CLASS_LABEL_FIELD_NUMBER: _ClassVar[int]
    CONDITION_FIELD_NUMBER: _ClassVar[int]
    TEMPERATURE_FIELD_NUMBER: _ClassVar[int]
    TRUNCATION_FIELD_NUMBER: _ClassVar[int]
    SCALE_FIELD_NUMBER: _ClassVar[int]
    RETURNS_FIELD_NUMBER: _ClassVar[int]
    IMAGE_FORMAT_FIELD_NUMBER: _ClassVar[int]
    TOP_K_FIELD_NUMBER: _ClassVar[int]
    TOP_P_FIELD_NUMBER: _ClassVar[int]
    GREEDY_FIELD_NUMBER: _ClassVar[int]
    BURN_IN_FIELD_NUMBER: _ClassVar[int]
    THINNING_FIELD_NUMBER: _ClassVar[int]
    CHAINS_FIELD_NUMBER: _ClassVar[int]
    model: str
    timeout_ms: int
    count: int
    seed: int
    class_label: _containers.RepeatedScalarFieldContainer[int]
    condition: Condition
    temperature: float
    truncation: float
    scale: Scale
    returns: _containers.RepeatedScalarFieldContainer[GenerationPart]
    image_format: ImageFormat
    top_k: int
    top_p: float
    greedy: bool
    burn_in: int
    thinning: int
    chains: int
    def __init__(self, model: _Optional[str] = ..., timeout_ms: _Optional[int] = ..., count: _Optional[int] = ..., seed: _Optional[int] = ..., class_label: _Optional[_Iterable[int]] = ..., condition: _Optional[_Union[Condition, _Mapping]] = ..., temperature: _Optional[float] = ..., truncation: _Optional[float] = ..., scale: _Optional[_Union[Scale, str]] = ..., returns: _Optional[_Iterable[_Union[GenerationPart, str]]] = ..., image_format: _Optional[_Union[ImageFormat, str]] = ..., top_k: _Optional[int] = ..., top_p: _Optional[float] = ..., greedy: bool = ..., burn_in: _Optional[int] = ..., thinning: _Optional[int] = ..., chains: _Optional[int] = ...) -> None: ...

class SampleResponse(_message.Message):
    __slots__ = ("model", "artifact_digest", "request_id", "noise_scheme", "reproducible", "seed", "images", "latents", "latent_space", "class_weights", "class_label", "log_likelihood", "log_weight", "codes", "vectors")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    ARTIFACT_DIGEST_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    NOISE_SCHEME_FIELD_NUMBER: _ClassVar[int]
    REPRODUCIBLE_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    IMAGES_FIELD_NUMBER: _ClassVar[int]
    LATENTS_FIELD_NUMBER: _ClassVar[int]
    LATENT_SPACE_FIELD_NUMBER: _ClassVar[int]
    CLASS_WEIGHTS_FIELD_NUMBER: _ClassVar[int]
    CLASS_LABEL_FIELD_NUMBER: _ClassVar[int]
    LOG_LIKELIHOOD_FIELD_NUMBER: _ClassVar[int]
    LOG_WEIGHT_FIELD_NUMBER: _ClassVar[int]
    CODES_FIELD_NUMBER: _ClassVar[int]
    VECTORS_FIELD_NUMBER: _ClassVar[int]
    model: str
    artifact_digest: str
    request_id: str
    noise_scheme: str
    reproducible: Reproducibility
    seed: int
    images: Images
    latents: Latents
    latent_space: str
    class_weights: ClassWeights
    class_label: _containers.RepeatedScalarFieldContainer[int]
    log_likelihood: _containers.RepeatedScalarFieldContainer[float]
    log_weight: _containers.RepeatedScalarFieldContainer[float]
    codes: Codes
    vectors: Vectors
    def __init__(self, model: _Optional[str] = ..., artifact_digest: _Optional[str] = ..., request_id: _Optional[str] = ..., noise_scheme: _Optional[str] = ..., reproducible: _Optional[_Union[Reproducibility, str]] = ..., seed: _Optional[int] = ..., images: _Optional[_Union[Images, _Mapping]] = ..., latents: _Optional[_Union[Latents, _Mapping]] = ..., latent_space: _Optional[str] = ..., class_weights: _Optional[_Union[ClassWeights, _Mapping]] = ..., class_label: _Optional[_Iterable[int]] = ..., log_likelihood: _Optional[_Iterable[float]] = ..., log_weight: _Optional[_Iterable[float]] = ..., codes: _Optional[_Union[Codes, _Mapping]] = ..., vectors: _Optional[_Union[Vectors, _Mapping]] = ...) -> None: ...

class EncodeRequest(_message.Message):
    __slots__ = ("model", "timeout_ms", "images", "binarisation", "seed", "scale", "returns", "vectors")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    TIMEOUT_MS_FIELD_NUMBER: _ClassVar[int]
    IMAGES_FIELD_NUMBER: _ClassVar[int]
    BINARISATION_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    SCALE_FIELD_NUMBER: _ClassVar[int]
    RETURNS_FIELD_NUMBER: _ClassVar[int]
    VECTORS_FIELD_NUMBER: _ClassVar[int]
    model: str
    timeout_ms: int
    images: Images
    binarisation: Binarisation
    seed: int
    scale: Scale
    returns: _containers.RepeatedScalarFieldContainer[EncodingPart]
    vectors: Vectors
    def __init__(self, model: _Optional[str] = ..., timeout_ms: _Optional[int] = ..., images: _Optional[_Union[Images, _Mapping]] = ..., binarisation: _Optional[_Union[Binarisation, str]] = ..., seed: _Optional[int] = ..., scale: _Optional[_Union[Scale, str]] = ..., returns: _Optional[_Iterable[_Union[EncodingPart, str]]] = ..., vectors: _Optional[_Union[Vectors, _Mapping]] = ...) -> None: ...

class EncodeResponse(_message.Message):
    __slots__ = ("model", "artifact_digest", "request_id", "noise_scheme", "reproducible", "seed", "latents", "latent_space", "deviations", "draws", "codes")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    ARTIFACT_DIGEST_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    NOISE_SCHEME_FIELD_NUMBER: _ClassVar[int]
    REPRODUCIBLE_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    LATENTS_FIELD_NUMBER: _ClassVar[int]
    LATENT_SPACE_FIELD_NUMBER: _ClassVar[int]
    DEVIATIONS_FIELD_NUMBER: _ClassVar[int]
    DRAWS_FIELD_NUMBER: _ClassVar[int]
    CODES_FIELD_NUMBER: _ClassVar[int]
    model: str
    artifact_digest: str
    request_id: str
    noise_scheme: str
    reproducible: Reproducibility
    seed: int
    latents: Latents
    latent_space: str
    deviations: Latents
    draws: Latents
    codes: Codes
    def __init__(self, model: _Optional[str] = ..., artifact_digest: _Optional[str] = ..., request_id: _Optional[str] = ..., noise_scheme: _Optional[str] = ..., reproducible: _Optional[_Union[Reproducibility, str]] = ..., seed: _Optional[int] = ..., latents: _Optional[_Union[Latents, _Mapping]] = ..., latent_space: _Optional[str] = ..., deviations: _Optional[_Union[Latents, _Mapping]] = ..., draws: _Optional[_Union[Latents, _Mapping]] = ..., codes: _Optional[_Union[Codes, _Mapping]] = ...) -> None: ...

class DecodeRequest(_message.Message):
    __slots__ = ("model", "timeout_ms", "latents", "latent_space", "class_label", "condition", "seed", "scale", "returns", "image_format", "codes")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    TIMEOUT_MS_FIELD_NUMBER: _ClassVar[int]
    LATENTS_FIELD_NUMBER: _ClassVar[int]
    LATENT_SPACE_FIELD_NUMBER: _ClassVar[int]
    CLASS_LABEL_FIELD_NUMBER: _ClassVar[int]
    CONDITION_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    SCALE_FIELD_NUMBER: _ClassVar[int]
    RETURNS_FIELD_NUMBER: _ClassVar[int]
    IMAGE_FORMAT_FIELD_NUMBER: _ClassVar[int]
    CODES_FIELD_NUMBER: _ClassVar[int]
    model: str
    timeout_ms: int
    latents: Latents
    latent_space: str
    class_label: _containers.RepeatedScalarFieldContainer[int]
    condition: Condition
    seed: int
    scale: Scale
    returns: _containers.RepeatedScalarFieldContainer[GenerationPart]
    image_format: ImageFormat
    codes: Codes
    def __init__(self, model: _Optional[str] = ..., timeout_ms: _Optional[int] = ..., latents: _Optional[_Union[Latents, _Mapping]] = ..., latent_space: _Optional[str] = ..., class_label: _Optional[_Iterable[int]] = ..., condition: _Optional[_Union[Condition, _Mapping]] = ..., seed: _Optional[int] = ..., scale: _Optional[_Union[Scale, str]] = ..., returns: _Optional[_Iterable[_Union[GenerationPart, str]]] = ..., image_format: _Optional[_Union[ImageFormat, str]] = ..., codes: _Optional[_Union[Codes, _Mapping]] = ...) -> None: ...

class DecodeResponse(_message.Message):
    __slots__ = ("model", "artifact_digest", "request_id", "noise_scheme", "reproducible", "seed", "images", "latents", "latent_space", "class_weights", "class_label", "codes", "vectors")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    ARTIFACT_DIGEST_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    NOISE_SCHEME_FIELD_NUMBER: _ClassVar[int]
    REPRODUCIBLE_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    IMAGES_FIELD_NUMBER: _ClassVar[int]
    LATENTS_FIELD_NUMBER: _ClassVar[int]
    LATENT_SPACE_FIELD_NUMBER: _ClassVar[int]
    CLASS_WEIGHTS_FIELD_NUMBER: _ClassVar[int]
    CLASS_LABEL_FIELD_NUMBER: _ClassVar[int]
    CODES_FIELD_NUMBER: _ClassVar[int]
    VECTORS_FIELD_NUMBER: _ClassVar[int]
    model: str
    artifact_digest: str
    request_id: str
    noise_scheme: str
    reproducible: Reproducibility
    seed: int
    images: Images
    latents: Latents
    latent_space: str
    class_weights: ClassWeights
    class_label: _containers.RepeatedScalarFieldContainer[int]
    codes: Codes
    vectors: Vectors
    def __init__(self, model: _Optional[str] = ..., artifact_digest: _Optional[str] = ..., request_id: _Optional[str] = ..., noise_scheme: _Optional[str] = ..., reproducible: _Optional[_Union[Reproducibility, str]] = ..., seed: _Optional[int] = ..., images: _Optional[_Union[Images, _Mapping]] = ..., latents: _Optional[_Union[Latents, _Mapping]] = ..., latent_space: _Optional[str] = ..., class_weights: _Optional[_Union[ClassWeights, _Mapping]] = ..., class_label: _Optional[_Iterable[int]] = ..., codes: _Optional[_Union[Codes, _Mapping]] = ..., vectors: _Optional[_Union[Vectors, _Mapping]] = ...) -> None: ...

class ReconstructRequest(_message.Message):
    __slots__ = ("model", "timeout_ms", "images", "binarisation", "class_label", "condition", "seed", "scale", "returns", "image_format", "vectors")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    TIMEOUT_MS_FIELD_NUMBER: _ClassVar[int]
    IMAGES_FIELD_NUMBER: _ClassVar[int]
    BINARISATION_FIELD_NUMBER: _ClassVar[int]
    CLASS_LABEL_FIELD_NUMBER: _ClassVar[int]
    CONDITION_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    SCALE_FIELD_NUMBER: _ClassVar[int]
    RETURNS_FIELD_NUMBER: _ClassVar[int]
    IMAGE_FORMAT_FIELD_NUMBER: _ClassVar[int]
    VECTORS_FIELD_NUMBER: _ClassVar[int]
    model: str
    timeout_ms: int
    images: Images
    binarisation: Binarisation
    class_label: _containers.RepeatedScalarFieldContainer[int]
    condition: Condition
    seed: int
    scale: Scale
    returns: _containers.RepeatedScalarFieldContainer[GenerationPart]
    image_format: ImageFormat
    vectors: Vectors
    def __init__(self, model: _Optional[str] = ..., timeout_ms: _Optional[int] = ..., images: _Optional[_Union[Images, _Mapping]] = ..., binarisation: _Optional[_Union[Binarisation, str]] = ..., class_label: _Optional[_Iterable[int]] = ..., condition: _Optional[_Union[Condition, _Mapping]] = ..., seed: _Optional[int] = ..., scale: _Optional[_Union[Scale, str]] = ..., returns: _Optional[_Iterable[_Union[GenerationPart, str]]] = ..., image_format: _Optional[_Union[ImageFormat, str]] = ..., vectors: _Optional[_Union[Vectors, _Mapping]] = ...) -> None: ...

class ReconstructResponse(_message.Message):
    __slots__ = ("model", "artifact_digest", "request_id", "noise_scheme", "reproducible", "seed", "images", "latents", "latent_space", "class_weights", "class_label", "codes", "vectors")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    ARTIFACT_DIGEST_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    NOISE_SCHEME_FIELD_NUMBER: _ClassVar[int]
    REPRODUCIBLE_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    IMAGES_FIELD_NUMBER: _ClassVar[int]
    LATENTS_FIELD_NUMBER: _ClassVar[int]
    LATENT_SPACE_FIELD_NUMBER: _ClassVar[int]
    CLASS_WEIGHTS_FIELD_NUMBER: _ClassVar[int]
    CLASS_LABEL_FIELD_NUMBER: _ClassVar[int]
    CODES_FIELD_NUMBER: _ClassVar[int]
    VECTORS_FIELD_NUMBER: _ClassVar[int]
    model: str
    artifact_digest: str
    request_id: str
    noise_scheme: str
    reproducible: Reproducibility
    seed: int
    images: Images
    latents: Latents
    latent_space: str
    class_weights: ClassWeights
    class_label: _containers.RepeatedScalarFieldContainer[int]
    codes: Codes
    vectors: Vectors
    def __init__(self, model: _Optional[str] = ..., artifact_digest: _Optional[str] = ..., request_id: _Optional[str] = ..., noise_scheme: _Optional[str] = ..., reproducible: _Optional[_Union[Reproducibility, str]] = ..., seed: _Optional[int] = ..., images: _Optional[_Union[Images, _Mapping]] = ..., latents: _Optional[_Union[Latents, _Mapping]] = ..., latent_space: _Optional[str] = ..., class_weights: _Optional[_Union[ClassWeights, _Mapping]] = ..., class_label: _Optional[_Iterable[int]] = ..., codes: _Optional[_Union[Codes, _Mapping]] = ..., vectors: _Optional[_Union[Vectors, _Mapping]] = ...) -> None: ...

class ScoreRequest(_message.Message):
    __slots__ = ("model", "timeout_ms", "images", "scale", "class_label", "condition", "vectors")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    TIMEOUT_MS_FIELD_NUMBER: _ClassVar[int]
    IMAGES_FIELD_NUMBER: _ClassVar[int]
    SCALE_FIELD_NUMBER: _ClassVar[int]
    CLASS_LABEL_FIELD_NUMBER: _ClassVar[int]
    CONDITION_FIELD_NUMBER: _ClassVar[int]
    VECTORS_FIELD_NUMBER: _ClassVar[int]
    model: str
    timeout_ms: int
    images: Images
    scale: Scale
    class_label: _containers.RepeatedScalarFieldContainer[int]
    condition: Condition
    vectors: Vectors
    def __init__(self, model: _Optional[str] = ..., timeout_ms: _Optional[int] = ..., images: _Optional[_Union[Images, _Mapping]] = ..., scale: _Optional[_Union[Scale, str]] = ..., class_label: _Optional[_Iterable[int]] = ..., condition: _Optional[_Union[Condition, _Mapping]] = ..., vectors: _Optional[_Union[Vectors, _Mapping]] = ...) -> None: ...

class ScoreResponse(_message.Message):
    __slots__ = ("model", "artifact_digest", "request_id", "noise_scheme", "reproducible", "seed", "score", "higher_means", "unit", "meaning", "conditioning")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    ARTIFACT_DIGEST_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    NOISE_SCHEME_FIELD_NUMBER: _ClassVar[int]
    REPRODUCIBLE_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    SCORE_FIELD_NUMBER: _ClassVar[int]
    HIGHER_MEANS_FIELD_NUMBER: _ClassVar[int]
    UNIT_FIELD_NUMBER: _ClassVar[int]
    MEANING_FIELD_NUMBER: _ClassVar[int]
    CONDITIONING_FIELD_NUMBER: _ClassVar[int]
    model: str
    artifact_digest: str
    request_id: str
    noise_scheme: str
    reproducible: Reproducibility
    seed: int
    score: _containers.RepeatedScalarFieldContainer[float]
    higher_means: HigherMeans
    unit: str
    meaning: str
    conditioning: Conditioning
    def __init__(self, model: _Optional[str] = ..., artifact_digest: _Optional[str] = ..., request_id: _Optional[str] = ..., noise_scheme: _Optional[str] = ..., reproducible: _Optional[_Union[Reproducibility, str]] = ..., seed: _Optional[int] = ..., score: _Optional[_Iterable[float]] = ..., higher_means: _Optional[_Union[HigherMeans, str]] = ..., unit: _Optional[str] = ..., meaning: _Optional[str] = ..., conditioning: _Optional[_Union[Conditioning, str]] = ...) -> None: ...

class ClassifyRequest(_message.Message):
    __slots__ = ("model", "timeout_ms", "images", "binarisation", "samples", "seed", "scale", "vectors")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    TIMEOUT_MS_FIELD_NUMBER: _ClassVar[int]
    IMAGES_FIELD_NUMBER: _ClassVar[int]
    BINARISATION_FIELD_NUMBER: _ClassVar[int]
    SAMPLES_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    SCALE_FIELD_NUMBER: _ClassVar[int]
    VECTORS_FIELD_NUMBER: _ClassVar[int]
    model: str
    timeout_ms: int
    images: Images
    binarisation: Binarisation
    samples: int
    seed: int
    scale: Scale
    vectors: Vectors
    def __init__(self, model: _Optional[str] = ..., timeout_ms: _Optional[int] = ..., images: _Optional[_Union[Images, _Mapping]] = ..., binarisation: _Optional[_Union[Binarisation, str]] = ..., samples: _Optional[int] = ..., seed: _Optional[int] = ..., scale: _Optional[_Union[Scale, str]] = ..., vectors: _Optional[_Union[Vectors, _Mapping]] = ...) -> None: ...

class ClassifyResponse(_message.Message):
    __slots__ = ("model", "artifact_digest", "request_id", "noise_scheme", "reproducible", "seed", "class_label", "posterior", "class_names", "log_likelihood", "kind", "estimator", "draws", "binarisation")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    ARTIFACT_DIGEST_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    NOISE_SCHEME_FIELD_NUMBER: _ClassVar[int]
    REPRODUCIBLE_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    CLASS_LABEL_FIELD_NUMBER: _ClassVar[int]
    POSTERIOR_FIELD_NUMBER: _ClassVar[int]
    CLASS_NAMES_FIELD_NUMBER: _ClassVar[int]
    LOG_LIKELIHOOD_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    ESTIMATOR_FIELD_NUMBER: _ClassVar[int]
    DRAWS_FIELD_NUMBER: _ClassVar[int]
    BINARISATION_FIELD_NUMBER: _ClassVar[int]
    model: str
    artifact_digest: str
    request_id: str
    noise_scheme: str
    reproducible: Reproducibility
    seed: int
    class_label: _containers.RepeatedScalarFieldContainer[int]
    posterior: _containers.RepeatedScalarFieldContainer[float]
    class_names: _containers.RepeatedScalarFieldContainer[str]
    log_likelihood: _containers.RepeatedScalarFieldContainer[float]
    kind: LikelihoodKind
    estimator: str
    draws: int
    binarisation: Binarisation
    def __init__(self, model: _Optional[str] = ..., artifact_digest: _Optional[str] = ..., request_id: _Optional[str] = ..., noise_scheme: _Optional[str] = ..., reproducible: _Optional[_Union[Reproducibility, str]] = ..., seed: _Optional[int] = ..., class_label: _Optional[_Iterable[int]] = ..., posterior: _Optional[_Iterable[float]] = ..., class_names: _Optional[_Iterable[str]] = ..., log_likelihood: _Optional[_Iterable[float]] = ..., kind: _Optional[_Union[LikelihoodKind, str]] = ..., estimator: _Optional[str] = ..., draws: _Optional[int] = ..., binarisation: _Optional[_Union[Binarisation, str]] = ...) -> None: ...

class LikelihoodRequest(_message.Message):
    __slots__ = ("model", "timeout_ms", "images", "binarisation", "samples", "seed", "scale", "class_label", "condition", "estimator", "returns", "false_positive_rate", "calibration", "group", "image_format", "vectors")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    TIMEOUT_MS_FIELD_NUMBER: _ClassVar[int]
    IMAGES_FIELD_NUMBER: _ClassVar[int]
    BINARISATION_FIELD_NUMBER: _ClassVar[int]
    SAMPLES_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    SCALE_FIELD_NUMBER: _ClassVar[int]
    CLASS_LABEL_FIELD_NUMBER: _ClassVar[int]
    CONDITION_FIELD_NUMBER: _ClassVar[int]
    ESTIMATOR_FIELD_NUMBER: _ClassVar[int]
    RETURNS_FIELD_NUMBER: _ClassVar[int]
    FALSE_POSITIVE_RATE_FIELD_NUMBER: _ClassVar[int]
    CALIBRATION_FIELD_NUMBER: _ClassVar[int]
    GROUP_FIELD_NUMBER: _ClassVar[int]
    IMAGE_FORMAT_FIELD_NUMBER: _ClassVar[int]
    VECTORS_FIELD_NUMBER: _ClassVar[int]
    model: str
    timeout_ms: int
    images: Images
    binarisation: Binarisation
    samples: int
    seed: int
    scale: Scale
    class_label: _containers.RepeatedScalarFieldContainer[int]
    condition: Condition
    estimator: Estimator
    returns: _containers.RepeatedScalarFieldContainer[LikelihoodPart]
    false_positive_rate: float
    calibration: str
    group: bool
    image_format: ImageFormat
    vectors: Vectors
    def __init__(self, model: _Optional[str] = ..., timeout_ms: _Optional[int] = ..., images: _Optional[_Union[Images, _Mapping]] = ..., binarisation: _Optional[_Union[Binarisation, str]] = ..., samples: _Optional[int] = ..., seed: _Optional[int] = ..., scale: _Optional[_Union[Scale, str]] = ..., class_label: _Optional[_Iterable[int]] = ..., condition: _Optional[_Union[Condition, _Mapping]] = ..., estimator: _Optional[_Union[Estimator, str]] = ..., returns: _Optional[_Iterable[_Union[LikelihoodPart, str]]] = ..., false_positive_rate: _Optional[float] = ..., calibration: _Optional[str] = ..., group: bool = ..., image_format: _Optional[_Union[ImageFormat, str]] = ..., vectors: _Optional[_Union[Vectors, _Mapping]] = ...) -> None: ...

class LikelihoodResponse(_message.Message):
    __slots__ = ("model", "artifact_digest", "request_id", "noise_scheme", "reproducible", "seed", "log_likelihood", "standard_error", "bits_per_dim", "quantity", "kind", "base_measure", "estimator", "conditioning", "draws", "binarisation", "scores", "p_value", "percentile", "q_value", "anomalous", "calibration", "group_p_value", "log_likelihood_map")
    class ScoresEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: Score
        def __init__(self, key: _Optional[str] = ..., value: _Optional[_Union[Score, _Mapping]] = ...) -> None: ...
    MODEL_FIELD_NUMBER: _ClassVar[int]
    ARTIFACT_DIGEST_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    NOISE_SCHEME_FIELD_NUMBER: _ClassVar[int]
    REPRODUCIBLE_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    LOG_LIKELIHOOD_FIELD_NUMBER: _ClassVar[int]
    STANDARD_ERROR_FIELD_NUMBER: _ClassVar[int]
    BITS_PER_DIM_FIELD_NUMBER: _ClassVar[int]
    QUANTITY_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    BASE_MEASURE_FIELD_NUMBER: _ClassVar[int]
    ESTIMATOR_FIELD_NUMBER: _ClassVar[int]
    CONDITIONING_FIELD_NUMBER: _ClassVar[int]
    DRAWS_FIELD_NUMBER: _ClassVar[int]
    BINARISATION_FIELD_NUMBER: _ClassVar[int]
    SCORES_FIELD_NUMBER: _ClassVar[int]
    P_VALUE_FIELD_NUMBER: _ClassVar[int]
    PERCENTILE_FIELD_NUMBER: _ClassVar[int]
    Q_VALUE_FIELD_NUMBER: _ClassVar[int]
    ANOMALOUS_FIELD_NUMBER: _ClassVar[int]
    CALIBRATION_FIELD_NUMBER: _ClassVar[int]
    GROUP_P_VALUE_FIELD_NUMBER: _ClassVar[int]
    LOG_LIKELIHOOD_MAP_FIELD_NUMBER: _ClassVar[int]
    model: str
    artifact_digest: str
    request_id: str
    noise_scheme: str
    reproducible: Reproducibility
    seed: int
    log_likelihood: _containers.RepeatedScalarFieldContainer[float]
    standard_error: _containers.RepeatedScalarFieldContainer[float]
    bits_per_dim: _containers.RepeatedScalarFieldContainer[float]
    quantity: Quantity
    kind: LikelihoodKind
    base_measure: BaseMeasure
    estimator: str
    conditioning: Conditioning
    draws: int
    binarisation: Binarisation
    scores: _containers.MessageMap[str, Score]
    p_value: _containers.RepeatedScalarFieldContainer[float]
    percentile: _containers.RepeatedScalarFieldContainer[float]
    q_value: _containers.RepeatedScalarFieldContainer[float]
    anomalous: _containers.RepeatedScalarFieldContainer[bool]
    calibration: AppliedCalibration
    group_p_value: float
    log_likelihood_map: LogLikelihoodMap
    def __init__(self, model: _Optional[str] = ..., artifact_digest: _Optional[str] = ..., request_id: _Optional[str] = ..., noise_scheme: _Optional[str] = ..., reproducible: _Optional[_Union[Reproducibility, str]] = ..., seed: _Optional[int] = ..., log_likelihood: _Optional[_Iterable[float]] = ..., standard_error: _Optional[_Iterable[float]] = ..., bits_per_dim: _Optional[_Iterable[float]] = ..., quantity: _Optional[_Union[Quantity, str]] = ..., kind: _Optional[_Union[LikelihoodKind, str]] = ..., base_measure: _Optional[_Union[BaseMeasure, str]] = ..., estimator: _Optional[str] = ..., conditioning: _Optional[_Union[Conditioning, str]] = ..., draws: _Optional[int] = ..., binarisation: _Optional[_Union[Binarisation, str]] = ..., scores: _Optional[_Mapping[str, Score]] = ..., p_value: _Optional[_Iterable[float]] = ..., percentile: _Optional[_Iterable[float]] = ..., q_value: _Optional[_Iterable[float]] = ..., anomalous: _Optional[_Iterable[bool]] = ..., calibration: _Optional[_Union[AppliedCalibration, _Mapping]] = ..., group_p_value: _Optional[float] = ..., log_likelihood_map: _Optional[_Union[LogLikelihoodMap, _Mapping]] = ...) -> None: ...

class Score(_message.Message):
    __slots__ = ("unit", "value", "p_value")
    UNIT_FIELD_NUMBER: _ClassVar[int]
    VALUE_FIELD_NUMBER: _ClassVar[int]
    P_VALUE_FIELD_NUMBER: _ClassVar[int]
    unit: str
    value: _containers.RepeatedScalarFieldContainer[float]
    p_value: _containers.RepeatedScalarFieldContainer[float]
    def __init__(self, unit: _Optional[str] = ..., value: _Optional[_Iterable[float]] = ..., p_value: _Optional[_Iterable[float]] = ...) -> None: ...

class AppliedCalibration(_message.Message):
    __slots__ = ("id", "count", "decision", "false_positive_rate", "realised_rate", "coverage")
    ID_FIELD_NUMBER: _ClassVar[int]
    COUNT_FIELD_NUMBER: _ClassVar[int]
    DECISION_FIELD_NUMBER: _ClassVar[int]
    FALSE_POSITIVE_RATE_FIELD_NUMBER: _ClassVar[int]
    REALISED_RATE_FIELD_NUMBER: _ClassVar[int]
    COVERAGE_FIELD_NUMBER: _ClassVar[int]
    id: str
    count: int
    decision: str
    false_positive_rate: float
    realised_rate: _containers.RepeatedScalarFieldContainer[float]
    coverage: float
    def __init__(self, id: _Optional[str] = ..., count: _Optional[int] = ..., decision: _Optional[str] = ..., false_positive_rate: _Optional[float] = ..., realised_rate: _Optional[_Iterable[float]] = ..., coverage: _Optional[float] = ...) -> None: ...

class LogLikelihoodMap(_message.Message):
    __slots__ = ("count", "height", "width", "values", "png")
    COUNT_FIELD_NUMBER: _ClassVar[int]
    HEIGHT_FIELD_NUMBER: _ClassVar[int]
    WIDTH_FIELD_NUMBER: _ClassVar[int]
    VALUES_FIELD_NUMBER: _ClassVar[int]
    PNG_FIELD_NUMBER: _ClassVar[int]
    count: int
    height: int
    width: int
    values: _containers.RepeatedScalarFieldContainer[float]
    png: PngFiles
    def __init__(self, count: _Optional[int] = ..., height: _Optional[int] = ..., width: _Optional[int] = ..., values: _Optional[_Iterable[float]] = ..., png: _Optional[_Union[PngFiles, _Mapping]] = ...) -> None: ...

class InterpolateRequest(_message.Message):
    __slots__ = ("model", "timeout_ms", "start", "end", "corners", "arithmetic", "steps", "mode", "class_label", "condition", "seed", "scale", "returns", "image_format")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    TIMEOUT_MS_FIELD_NUMBER: _ClassVar[int]
    START_FIELD_NUMBER: _ClassVar[int]
    END_FIELD_NUMBER: _ClassVar[int]
    CORNERS_FIELD_NUMBER: _ClassVar[int]
    ARITHMETIC_FIELD_NUMBER: _ClassVar[int]
    STEPS_FIELD_NUMBER: _ClassVar[int]
    MODE_FIELD_NUMBER: _ClassVar[int]
    CLASS_LABEL_FIELD_NUMBER: _ClassVar[int]
    CONDITION_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    SCALE_FIELD_NUMBER: _ClassVar[int]
    RETURNS_FIELD_NUMBER: _ClassVar[int]
    IMAGE_FORMAT_FIELD_NUMBER: _ClassVar[int]
    model: str
    timeout_ms: int
    start: Endpoint
    end: Endpoint
    corners: _containers.RepeatedCompositeFieldContainer[Endpoint]
    arithmetic: Arithmetic
    steps: int
    mode: InterpolationMode
    class_label: _containers.RepeatedScalarFieldContainer[int]
    condition: Condition
    seed: int
    scale: Scale
    returns: _containers.RepeatedScalarFieldContainer[GenerationPart]
    image_format: ImageFormat
    def __init__(self, model: _Optional[str] = ..., timeout_ms: _Optional[int] = ..., start: _Optional[_Union[Endpoint, _Mapping]] = ..., end: _Optional[_Union[Endpoint, _Mapping]] = ..., corners: _Optional[_Iterable[_Union[Endpoint, _Mapping]]] = ..., arithmetic: _Optional[_Union[Arithmetic, _Mapping]] = ..., steps: _Optional[int] = ..., mode: _Optional[_Union[InterpolationMode, str]] = ..., class_label: _Optional[_Iterable[int]] = ..., condition: _Optional[_Union[Condition, _Mapping]] = ..., seed: _Optional[int] = ..., scale: _Optional[_Union[Scale, str]] = ..., returns: _Optional[_Iterable[_Union[GenerationPart, str]]] = ..., image_format: _Optional[_Union[ImageFormat, str]] = ...) -> None: ...

class InterpolateResponse(_message.Message):
    __slots__ = ("model", "artifact_digest", "request_id", "noise_scheme", "reproducible", "seed", "images", "latents", "latent_space", "class_weights", "class_label", "vectors")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    ARTIFACT_DIGEST_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    NOISE_SCHEME_FIELD_NUMBER: _ClassVar[int]
    REPRODUCIBLE_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    IMAGES_FIELD_NUMBER: _ClassVar[int]
    LATENTS_FIELD_NUMBER: _ClassVar[int]
    LATENT_SPACE_FIELD_NUMBER: _ClassVar[int]
    CLASS_WEIGHTS_FIELD_NUMBER: _ClassVar[int]
    CLASS_LABEL_FIELD_NUMBER: _ClassVar[int]
    VECTORS_FIELD_NUMBER: _ClassVar[int]
    model: str
    artifact_digest: str
    request_id: str
    noise_scheme: str
    reproducible: Reproducibility
    seed: int
    images: Images
    latents: Latents
    latent_space: str
    class_weights: ClassWeights
    class_label: _containers.RepeatedScalarFieldContainer[int]
    vectors: Vectors
    def __init__(self, model: _Optional[str] = ..., artifact_digest: _Optional[str] = ..., request_id: _Optional[str] = ..., noise_scheme: _Optional[str] = ..., reproducible: _Optional[_Union[Reproducibility, str]] = ..., seed: _Optional[int] = ..., images: _Optional[_Union[Images, _Mapping]] = ..., latents: _Optional[_Union[Latents, _Mapping]] = ..., latent_space: _Optional[str] = ..., class_weights: _Optional[_Union[ClassWeights, _Mapping]] = ..., class_label: _Optional[_Iterable[int]] = ..., vectors: _Optional[_Union[Vectors, _Mapping]] = ...) -> None: ...

class CompleteRequest(_message.Message):
    __slots__ = ("model", "timeout_ms", "count", "seed", "class_label", "condition", "temperature", "truncation", "scale", "returns", "image_format", "top_k", "top_p", "greedy", "image", "prefix_rows", "known", "candidates", "burn_in", "thinning", "chains")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    TIMEOUT_MS_FIELD_NUMBER: _ClassVar[int]
    COUNT_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    CLASS_LABEL_FIELD_NUMBER: _ClassVar[int]
    CONDITION_FIELD_NUMBER: _ClassVar[int]
    TEMPERATURE_FIELD_NUMBER: _ClassVar[int]
    TRUNCATION_FIELD_NUMBER: _ClassVar[int]
    SCALE_FIELD_NUMBER: _ClassVar[int]
    RETURNS_FIELD_NUMBER: _ClassVar[int]
    IMAGE_FORMAT_FIELD_NUMBER: _ClassVar[int]
    TOP_K_FIELD_NUMBER: _ClassVar[int]
    TOP_P_FIELD_NUMBER: _ClassVar[int]
    GREEDY_FIELD_NUMBER: _ClassVar[int]
    IMAGE_FIELD_NUMBER: _ClassVar[int]
    PREFIX_ROWS_FIELD_NUMBER: _ClassVar[int]
    KNOWN_FIELD_NUMBER: _ClassVar[int]
    CANDIDATES_FIELD_NUMBER: _ClassVar[int]
    BURN_IN_FIELD_NUMBER: _ClassVar[int]
    THINNING_FIELD_NUMBER: _ClassVar[int]
    CHAINS_FIELD_NUMBER: _ClassVar[int]
    model: str
    timeout_ms: int
    count: int
    seed: int
    class_label: _containers.RepeatedScalarFieldContainer[int]
    condition: Condition
    temperature: float
    truncation: float
    scale: Scale
    returns: _containers.RepeatedScalarFieldContainer[GenerationPart]
    image_format: ImageFormat
    top_k: int
    top_p: float
    greedy: bool
    image: Images
    prefix_rows: int
    known: bytes
    candidates: int
    burn_in: int
    thinning: int
    chains: int
    def __init__(self, model: _Optional[str] = ..., timeout_ms: _Optional[int] = ..., count: _Optional[int] = ..., seed: _Optional[int] = ..., class_label: _Optional[_Iterable[int]] = ..., condition: _Optional[_Union[Condition, _Mapping]] = ..., temperature: _Optional[float] = ..., truncation: _Optional[float] = ..., scale: _Optional[_Union[Scale, str]] = ..., returns: _Optional[_Iterable[_Union[GenerationPart, str]]] = ..., image_format: _Optional[_Union[ImageFormat, str]] = ..., top_k: _Optional[int] = ..., top_p: _Optional[float] = ..., greedy: bool = ..., image: _Optional[_Union[Images, _Mapping]] = ..., prefix_rows: _Optional[int] = ..., known: _Optional[bytes] = ..., candidates: _Optional[int] = ..., burn_in: _Optional[int] = ..., thinning: _Optional[int] = ..., chains: _Optional[int] = ...) -> None: ...

class CompleteResponse(_message.Message):
    __slots__ = ("model", "artifact_digest", "request_id", "noise_scheme", "reproducible", "seed", "images", "latents", "latent_space", "class_weights", "class_label", "log_likelihood", "log_weight", "late_known_pixels", "note", "candidate")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    ARTIFACT_DIGEST_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    NOISE_SCHEME_FIELD_NUMBER: _ClassVar[int]
    REPRODUCIBLE_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    IMAGES_FIELD_NUMBER: _ClassVar[int]
    LATENTS_FIELD_NUMBER: _ClassVar[int]
    LATENT_SPACE_FIELD_NUMBER: _ClassVar[int]
    CLASS_WEIGHTS_FIELD_NUMBER: _ClassVar[int]
    CLASS_LABEL_FIELD_NUMBER: _ClassVar[int]
    LOG_LIKELIHOOD_FIELD_NUMBER: _ClassVar[int]
    LOG_WEIGHT_FIELD_NUMBER: _ClassVar[int]
    LATE_KNOWN_PIXELS_FIELD_NUMBER: _ClassVar[int]
    NOTE_FIELD_NUMBER: _ClassVar[int]
    CANDIDATE_FIELD_NUMBER: _ClassVar[int]
    model: str
    artifact_digest: str
    request_id: str
    noise_scheme: str
    reproducible: Reproducibility
    seed: int
    images: Images
    latents: Latents
    latent_space: str
    class_weights: ClassWeights
    class_label: _containers.RepeatedScalarFieldContainer[int]
    log_likelihood: _containers.RepeatedScalarFieldContainer[float]
    log_weight: _containers.RepeatedScalarFieldContainer[float]
    late_known_pixels: int
    note: str
    candidate: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, model: _Optional[str] = ..., artifact_digest: _Optional[str] = ..., request_id: _Optional[str] = ..., noise_scheme: _Optional[str] = ..., reproducible: _Optional[_Union[Reproducibility, str]] = ..., seed: _Optional[int] = ..., images: _Optional[_Union[Images, _Mapping]] = ..., latents: _Optional[_Union[Latents, _Mapping]] = ..., latent_space: _Optional[str] = ..., class_weights: _Optional[_Union[ClassWeights, _Mapping]] = ..., class_label: _Optional[_Iterable[int]] = ..., log_likelihood: _Optional[_Iterable[float]] = ..., log_weight: _Optional[_Iterable[float]] = ..., late_known_pixels: _Optional[int] = ..., note: _Optional[str] = ..., candidate: _Optional[_Iterable[int]] = ...) -> None: ...

class StreamSampleRequest(_message.Message):
    __slots__ = ("request", "show", "every_rows", "resume_token")
    REQUEST_FIELD_NUMBER: _ClassVar[int]
    SHOW_FIELD_NUMBER: _ClassVar[int]
    EVERY_ROWS_FIELD_NUMBER: _ClassVar[int]
    RESUME_TOKEN_FIELD_NUMBER: _ClassVar[int]
    request: SampleRequest
    show: Show
    every_rows: int
    resume_token: str
    def __init__(self, request: _Optional[_Union[SampleRequest, _Mapping]] = ..., show: _Optional[_Union[Show, str]] = ..., every_rows: _Optional[int] = ..., resume_token: _Optional[str] = ...) -> None: ...

class StreamSampleResponse(_message.Message):
    __slots__ = ("rows", "result", "preview")
    ROWS_FIELD_NUMBER: _ClassVar[int]
    RESULT_FIELD_NUMBER: _ClassVar[int]
    PREVIEW_FIELD_NUMBER: _ClassVar[int]
    rows: Rows
    result: SampleResponse
    preview: Preview
    def __init__(self, rows: _Optional[_Union[Rows, _Mapping]] = ..., result: _Optional[_Union[SampleResponse, _Mapping]] = ..., preview: _Optional[_Union[Preview, _Mapping]] = ...) -> None: ...

class StreamCompleteRequest(_message.Message):
    __slots__ = ("request", "show", "every_rows", "resume_token")
    REQUEST_FIELD_NUMBER: _ClassVar[int]
    SHOW_FIELD_NUMBER: _ClassVar[int]
    EVERY_ROWS_FIELD_NUMBER: _ClassVar[int]
    RESUME_TOKEN_FIELD_NUMBER: _ClassVar[int]
    request: CompleteRequest
    show: Show
    every_rows: int
    resume_token: str
    def __init__(self, request: _Optional[_Union[CompleteRequest, _Mapping]] = ..., show: _Optional[_Union[Show, str]] = ..., every_rows: _Optional[int] = ..., resume_token: _Optional[str] = ...) -> None: ...

class StreamCompleteResponse(_message.Message):
    __slots__ = ("rows", "result", "preview")
    ROWS_FIELD_NUMBER: _ClassVar[int]
    RESULT_FIELD_NUMBER: _ClassVar[int]
    PREVIEW_FIELD_NUMBER: _ClassVar[int]
    rows: Rows
    result: CompleteResponse
    preview: Preview
    def __init__(self, rows: _Optional[_Union[Rows, _Mapping]] = ..., result: _Optional[_Union[CompleteResponse, _Mapping]] = ..., preview: _Optional[_Union[Preview, _Mapping]] = ...) -> None: ...

class StreamLikelihoodRequest(_message.Message):
    __slots__ = ("request",)
    REQUEST_FIELD_NUMBER: _ClassVar[int]
    request: LikelihoodRequest
    def __init__(self, request: _Optional[_Union[LikelihoodRequest, _Mapping]] = ...) -> None: ...

class StreamLikelihoodResponse(_message.Message):
    __slots__ = ("result", "error")
    RESULT_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    result: LikelihoodResponse
    error: Error
    def __init__(self, result: _Optional[_Union[LikelihoodResponse, _Mapping]] = ..., error: _Optional[_Union[Error, _Mapping]] = ...) -> None: ...

class Error(_message.Message):
    __slots__ = ("reason", "message", "metadata")
    class MetadataEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    REASON_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    METADATA_FIELD_NUMBER: _ClassVar[int]
    reason: str
    message: str
    metadata: _containers.ScalarMap[str, str]
    def __init__(self, reason: _Optional[str] = ..., message: _Optional[str] = ..., metadata: _Optional[_Mapping[str, str]] = ...) -> None: ...

class Rows(_message.Message):
    __slots__ = ("image", "first_row", "count", "width", "levels", "rows_done", "rows_total", "resume_token")
    IMAGE_FIELD_NUMBER: _ClassVar[int]
    FIRST_ROW_FIELD_NUMBER: _ClassVar[int]
    COUNT_FIELD_NUMBER: _ClassVar[int]
    WIDTH_FIELD_NUMBER: _ClassVar[int]
    LEVELS_FIELD_NUMBER: _ClassVar[int]
    ROWS_DONE_FIELD_NUMBER: _ClassVar[int]
    ROWS_TOTAL_FIELD_NUMBER: _ClassVar[int]
    RESUME_TOKEN_FIELD_NUMBER: _ClassVar[int]
    image: int
    first_row: int
    count: int
    width: int
    levels: bytes
    rows_done: int
    rows_total: int
    resume_token: str
    def __init__(self, image: _Optional[int] = ..., first_row: _Optional[int] = ..., count: _Optional[int] = ..., width: _Optional[int] = ..., levels: _Optional[bytes] = ..., rows_done: _Optional[int] = ..., rows_total: _Optional[int] = ..., resume_token: _Optional[str] = ...) -> None: ...

class Preview(_message.Message):
    __slots__ = ("png", "rows_done", "rows_total", "resume_token")
    PNG_FIELD_NUMBER: _ClassVar[int]
    ROWS_DONE_FIELD_NUMBER: _ClassVar[int]
    ROWS_TOTAL_FIELD_NUMBER: _ClassVar[int]
    RESUME_TOKEN_FIELD_NUMBER: _ClassVar[int]
    png: bytes
    rows_done: int
    rows_total: int
    resume_token: str
    def __init__(self, png: _Optional[bytes] = ..., rows_done: _Optional[int] = ..., rows_total: _Optional[int] = ..., resume_token: _Optional[str] = ...) -> None: ...

class ListModelsRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListModelsResponse(_message.Message):
    __slots__ = ("models", "request_id")
    MODELS_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    models: _containers.RepeatedCompositeFieldContainer[Model]
    request_id: str
    def __init__(self, models: _Optional[_Iterable[_Union[Model, _Mapping]]] = ..., request_id: _Optional[str] = ...) -> None: ...

class GetModelRequest(_message.Message):
    __slots__ = ("model",)
    MODEL_FIELD_NUMBER: _ClassVar[int]
    model: str
    def __init__(self, model: _Optional[str] = ...) -> None: ...

class GetModelResponse(_message.Message):
    __slots__ = ("model", "request_id")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    model: Model
    request_id: str
    def __init__(self, model: _Optional[_Union[Model, _Mapping]] = ..., request_id: _Optional[str] = ...) -> None: ...

class LoadModelRequest(_message.Message):
    __slots__ = ("model",)
    MODEL_FIELD_NUMBER: _ClassVar[int]
    model: str
    def __init__(self, model: _Optional[str] = ...) -> None: ...

class LoadModelResponse(_message.Message):
    __slots__ = ("model", "request_id")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    model: Model
    request_id: str
    def __init__(self, model: _Optional[_Union[Model, _Mapping]] = ..., request_id: _Optional[str] = ...) -> None: ...

class UnloadModelRequest(_message.Message):
    __slots__ = ("model",)
    MODEL_FIELD_NUMBER: _ClassVar[int]
    model: str
    def __init__(self, model: _Optional[str] = ...) -> None: ...

class UnloadModelResponse(_message.Message):
    __slots__ = ("models", "request_id")
    MODELS_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    models: _containers.RepeatedCompositeFieldContainer[Model]
    request_id: str
    def __init__(self, models: _Optional[_Iterable[_Union[Model, _Mapping]]] = ..., request_id: _Optional[str] = ...) -> None: ...

class RescanModelsRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class RescanModelsResponse(_message.Message):
    __slots__ = ("changes", "request_id")
    CHANGES_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    changes: _containers.RepeatedCompositeFieldContainer[ModelChange]
    request_id: str
    def __init__(self, changes: _Optional[_Iterable[_Union[ModelChange, _Mapping]]] = ..., request_id: _Optional[str] = ...) -> None: ...

class ModelChange(_message.Message):
    __slots__ = ("model", "kind", "reason")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    model: str
    kind: ModelChangeKind
    reason: str
    def __init__(self, model: _Optional[str] = ..., kind: _Optional[_Union[ModelChangeKind, str]] = ..., reason: _Optional[str] = ...) -> None: ...

class Images(_message.Message):
    __slots__ = ("count", "height", "width", "channels", "levels", "unit_values", "png")
    COUNT_FIELD_NUMBER: _ClassVar[int]
    HEIGHT_FIELD_NUMBER: _ClassVar[int]
    WIDTH_FIELD_NUMBER: _ClassVar[int]
    CHANNELS_FIELD_NUMBER: _ClassVar[int]
    LEVELS_FIELD_NUMBER: _ClassVar[int]
    UNIT_VALUES_FIELD_NUMBER: _ClassVar[int]
    PNG_FIELD_NUMBER: _ClassVar[int]
    count: int
    height: int
    width: int
    channels: int
    levels: bytes
    unit_values: bytes
    png: PngFiles
    def __init__(self, count: _Optional[int] = ..., height: _Optional[int] = ..., width: _Optional[int] = ..., channels: _Optional[int] = ..., levels: _Optional[bytes] = ..., unit_values: _Optional[bytes] = ..., png: _Optional[_Union[PngFiles, _Mapping]] = ...) -> None: ...

class PngFiles(_message.Message):
    __slots__ = ("files",)
    FILES_FIELD_NUMBER: _ClassVar[int]
    files: _containers.RepeatedScalarFieldContainer[bytes]
    def __init__(self, files: _Optional[_Iterable[bytes]] = ...) -> None: ...

class Vectors(_message.Message):
    __slots__ = ("count", "size", "values")
    COUNT_FIELD_NUMBER: _ClassVar[int]
    SIZE_FIELD_NUMBER: _ClassVar[int]
    VALUES_FIELD_NUMBER: _ClassVar[int]
    count: int
    size: int
    values: _containers.RepeatedScalarFieldContainer[float]
    def __init__(self, count: _Optional[int] = ..., size: _Optional[int] = ..., values: _Optional[_Iterable[float]] = ...) -> None: ...

class Latents(_message.Message):
    __slots__ = ("count", "size", "values")
    COUNT_FIELD_NUMBER: _ClassVar[int]
    SIZE_FIELD_NUMBER: _ClassVar[int]
    VALUES_FIELD_NUMBER: _ClassVar[int]
    count: int
    size: int
    values: _containers.RepeatedScalarFieldContainer[float]
    def __init__(self, count: _Optional[int] = ..., size: _Optional[int] = ..., values: _Optional[_Iterable[float]] = ...) -> None: ...

class Codes(_message.Message):
    __slots__ = ("count", "size", "values")
    COUNT_FIELD_NUMBER: _ClassVar[int]
    SIZE_FIELD_NUMBER: _ClassVar[int]
    VALUES_FIELD_NUMBER: _ClassVar[int]
    count: int
    size: int
    values: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, count: _Optional[int] = ..., size: _Optional[int] = ..., values: _Optional[_Iterable[int]] = ...) -> None: ...

class Condition(_message.Message):
    __slots__ = ("classes", "class_weights")
    CLASSES_FIELD_NUMBER: _ClassVar[int]
    CLASS_WEIGHTS_FIELD_NUMBER: _ClassVar[int]
    classes: _containers.RepeatedScalarFieldContainer[int]
    class_weights: ClassWeights
    def __init__(self, classes: _Optional[_Iterable[int]] = ..., class_weights: _Optional[_Union[ClassWeights, _Mapping]] = ...) -> None: ...

class ClassWeights(_message.Message):
    __slots__ = ("count", "size", "values")
    COUNT_FIELD_NUMBER: _ClassVar[int]
    SIZE_FIELD_NUMBER: _ClassVar[int]
    VALUES_FIELD_NUMBER: _ClassVar[int]
    count: int
    size: int
    values: _containers.RepeatedScalarFieldContainer[float]
    def __init__(self, count: _Optional[int] = ..., size: _Optional[int] = ..., values: _Optional[_Iterable[float]] = ...) -> None: ...

class Endpoint(_message.Message):
    __slots__ = ("seed", "latent", "image", "vector", "latent_space")
    SEED_FIELD_NUMBER: _ClassVar[int]
    LATENT_FIELD_NUMBER: _ClassVar[int]
    IMAGE_FIELD_NUMBER: _ClassVar[int]
    VECTOR_FIELD_NUMBER: _ClassVar[int]
    LATENT_SPACE_FIELD_NUMBER: _ClassVar[int]
    seed: int
    latent: Latents
    image: Images
    vector: Vectors
    latent_space: str
    def __init__(self, seed: _Optional[int] = ..., latent: _Optional[_Union[Latents, _Mapping]] = ..., image: _Optional[_Union[Images, _Mapping]] = ..., vector: _Optional[_Union[Vectors, _Mapping]] = ..., latent_space: _Optional[str] = ...) -> None: ...

class Arithmetic(_message.Message):
    __slots__ = ("plus", "minus")
    PLUS_FIELD_NUMBER: _ClassVar[int]
    MINUS_FIELD_NUMBER: _ClassVar[int]
    plus: _containers.RepeatedCompositeFieldContainer[Endpoint]
    minus: _containers.RepeatedCompositeFieldContainer[Endpoint]
    def __init__(self, plus: _Optional[_Iterable[_Union[Endpoint, _Mapping]]] = ..., minus: _Optional[_Iterable[_Union[Endpoint, _Mapping]]] = ...) -> None: ...

class Model(_message.Message):
    __slots__ = ("name", "version", "state", "reason", "family", "licence", "artifact_digest", "operations", "event", "latent", "condition", "controls", "binarisations", "binarisation_required_by", "quality", "default_for", "calibrations", "refused_calibrations", "compatibility", "codes")
    class ControlsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: Control
        def __init__(self, key: _Optional[str] = ..., value: _Optional[_Union[Control, _Mapping]] = ...) -> None: ...
    NAME_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    FAMILY_FIELD_NUMBER: _ClassVar[int]
    LICENCE_FIELD_NUMBER: _ClassVar[int]
    ARTIFACT_DIGEST_FIELD_NUMBER: _ClassVar[int]
    OPERATIONS_FIELD_NUMBER: _ClassVar[int]
    EVENT_FIELD_NUMBER: _ClassVar[int]
    LATENT_FIELD_NUMBER: _ClassVar[int]
    CONDITION_FIELD_NUMBER: _ClassVar[int]
    CONTROLS_FIELD_NUMBER: _ClassVar[int]
    BINARISATIONS_FIELD_NUMBER: _ClassVar[int]
    BINARISATION_REQUIRED_BY_FIELD_NUMBER: _ClassVar[int]
    QUALITY_FIELD_NUMBER: _ClassVar[int]
    DEFAULT_FOR_FIELD_NUMBER: _ClassVar[int]
    CALIBRATIONS_FIELD_NUMBER: _ClassVar[int]
    REFUSED_CALIBRATIONS_FIELD_NUMBER: _ClassVar[int]
    COMPATIBILITY_FIELD_NUMBER: _ClassVar[int]
    CODES_FIELD_NUMBER: _ClassVar[int]
    name: str
    version: str
    state: ModelState
    reason: str
    family: str
    licence: str
    artifact_digest: str
    operations: _containers.RepeatedScalarFieldContainer[str]
    event: Event
    latent: LatentSpace
    condition: ConditionSpace
    controls: _containers.MessageMap[str, Control]
    binarisations: _containers.RepeatedScalarFieldContainer[Binarisation]
    binarisation_required_by: _containers.RepeatedScalarFieldContainer[str]
    quality: _containers.RepeatedCompositeFieldContainer[Figure]
    default_for: _containers.RepeatedScalarFieldContainer[str]
    calibrations: _containers.RepeatedCompositeFieldContainer[Calibration]
    refused_calibrations: _containers.RepeatedCompositeFieldContainer[RefusedCalibration]
    compatibility: Compatibility
    codes: CodeSpace
    def __init__(self, name: _Optional[str] = ..., version: _Optional[str] = ..., state: _Optional[_Union[ModelState, str]] = ..., reason: _Optional[str] = ..., family: _Optional[str] = ..., licence: _Optional[str] = ..., artifact_digest: _Optional[str] = ..., operations: _Optional[_Iterable[str]] = ..., event: _Optional[_Union[Event, _Mapping]] = ..., latent: _Optional[_Union[LatentSpace, _Mapping]] = ..., condition: _Optional[_Union[ConditionSpace, _Mapping]] = ..., controls: _Optional[_Mapping[str, Control]] = ..., binarisations: _Optional[_Iterable[_Union[Binarisation, str]]] = ..., binarisation_required_by: _Optional[_Iterable[str]] = ..., quality: _Optional[_Iterable[_Union[Figure, _Mapping]]] = ..., default_for: _Optional[_Iterable[str]] = ..., calibrations: _Optional[_Iterable[_Union[Calibration, _Mapping]]] = ..., refused_calibrations: _Optional[_Iterable[_Union[RefusedCalibration, _Mapping]]] = ..., compatibility: _Optional[_Union[Compatibility, _Mapping]] = ..., codes: _Optional[_Union[CodeSpace, _Mapping]] = ...) -> None: ...

class Compatibility(_message.Message):
    __slots__ = ("model", "artifact_digest", "latents", "conditions", "calibrations", "differences")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    ARTIFACT_DIGEST_FIELD_NUMBER: _ClassVar[int]
    LATENTS_FIELD_NUMBER: _ClassVar[int]
    CONDITIONS_FIELD_NUMBER: _ClassVar[int]
    CALIBRATIONS_FIELD_NUMBER: _ClassVar[int]
    DIFFERENCES_FIELD_NUMBER: _ClassVar[int]
    model: str
    artifact_digest: str
    latents: bool
    conditions: bool
    calibrations: bool
    differences: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, model: _Optional[str] = ..., artifact_digest: _Optional[str] = ..., latents: bool = ..., conditions: bool = ..., calibrations: bool = ..., differences: _Optional[_Iterable[str]] = ...) -> None: ...

class Calibration(_message.Message):
    __slots__ = ("id", "count", "source", "protocol", "decision", "scores")
    ID_FIELD_NUMBER: _ClassVar[int]
    COUNT_FIELD_NUMBER: _ClassVar[int]
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    PROTOCOL_FIELD_NUMBER: _ClassVar[int]
    DECISION_FIELD_NUMBER: _ClassVar[int]
    SCORES_FIELD_NUMBER: _ClassVar[int]
    id: str
    count: int
    source: str
    protocol: CalibrationProtocol
    decision: str
    scores: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, id: _Optional[str] = ..., count: _Optional[int] = ..., source: _Optional[str] = ..., protocol: _Optional[_Union[CalibrationProtocol, _Mapping]] = ..., decision: _Optional[str] = ..., scores: _Optional[_Iterable[str]] = ...) -> None: ...

class CalibrationProtocol(_message.Message):
    __slots__ = ("conditioning", "binarisation", "estimator", "draws", "seed", "codec")
    CONDITIONING_FIELD_NUMBER: _ClassVar[int]
    BINARISATION_FIELD_NUMBER: _ClassVar[int]
    ESTIMATOR_FIELD_NUMBER: _ClassVar[int]
    DRAWS_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    CODEC_FIELD_NUMBER: _ClassVar[int]
    conditioning: Conditioning
    binarisation: Binarisation
    estimator: str
    draws: int
    seed: int
    codec: str
    def __init__(self, conditioning: _Optional[_Union[Conditioning, str]] = ..., binarisation: _Optional[_Union[Binarisation, str]] = ..., estimator: _Optional[str] = ..., draws: _Optional[int] = ..., seed: _Optional[int] = ..., codec: _Optional[str] = ...) -> None: ...

class RefusedCalibration(_message.Message):
    __slots__ = ("file", "reason")
    FILE_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    file: str
    reason: str
    def __init__(self, file: _Optional[str] = ..., reason: _Optional[str] = ...) -> None: ...

class Event(_message.Message):
    __slots__ = ("height", "width", "channels", "levels", "base_measure", "kind", "size")
    HEIGHT_FIELD_NUMBER: _ClassVar[int]
    WIDTH_FIELD_NUMBER: _ClassVar[int]
    CHANNELS_FIELD_NUMBER: _ClassVar[int]
    LEVELS_FIELD_NUMBER: _ClassVar[int]
    BASE_MEASURE_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    SIZE_FIELD_NUMBER: _ClassVar[int]
    height: int
    width: int
    channels: int
    levels: int
    base_measure: BaseMeasure
    kind: str
    size: int
    def __init__(self, height: _Optional[int] = ..., width: _Optional[int] = ..., channels: _Optional[int] = ..., levels: _Optional[int] = ..., base_measure: _Optional[_Union[BaseMeasure, str]] = ..., kind: _Optional[str] = ..., size: _Optional[int] = ...) -> None: ...

class LatentSpace(_message.Message):
    __slots__ = ("space", "size", "prior", "prior_meaning")
    SPACE_FIELD_NUMBER: _ClassVar[int]
    SIZE_FIELD_NUMBER: _ClassVar[int]
    PRIOR_FIELD_NUMBER: _ClassVar[int]
    PRIOR_MEANING_FIELD_NUMBER: _ClassVar[int]
    space: str
    size: int
    prior: str
    prior_meaning: str
    def __init__(self, space: _Optional[str] = ..., size: _Optional[int] = ..., prior: _Optional[str] = ..., prior_meaning: _Optional[str] = ...) -> None: ...

class CodeSpace(_message.Message):
    __slots__ = ("space", "size", "maps", "prior_meaning")
    SPACE_FIELD_NUMBER: _ClassVar[int]
    SIZE_FIELD_NUMBER: _ClassVar[int]
    MAPS_FIELD_NUMBER: _ClassVar[int]
    PRIOR_MEANING_FIELD_NUMBER: _ClassVar[int]
    space: str
    size: int
    maps: _containers.RepeatedCompositeFieldContainer[CodeMap]
    prior_meaning: str
    def __init__(self, space: _Optional[str] = ..., size: _Optional[int] = ..., maps: _Optional[_Iterable[_Union[CodeMap, _Mapping]]] = ..., prior_meaning: _Optional[str] = ...) -> None: ...

class CodeMap(_message.Message):
    __slots__ = ("name", "shape", "levels")
    NAME_FIELD_NUMBER: _ClassVar[int]
    SHAPE_FIELD_NUMBER: _ClassVar[int]
    LEVELS_FIELD_NUMBER: _ClassVar[int]
    name: str
    shape: _containers.RepeatedScalarFieldContainer[int]
    levels: int
    def __init__(self, name: _Optional[str] = ..., shape: _Optional[_Iterable[int]] = ..., levels: _Optional[int] = ...) -> None: ...

class ConditionSpace(_message.Message):
    __slots__ = ("kinds", "names", "prior", "optional")
    KINDS_FIELD_NUMBER: _ClassVar[int]
    NAMES_FIELD_NUMBER: _ClassVar[int]
    PRIOR_FIELD_NUMBER: _ClassVar[int]
    OPTIONAL_FIELD_NUMBER: _ClassVar[int]
    kinds: _containers.RepeatedScalarFieldContainer[str]
    names: _containers.RepeatedScalarFieldContainer[str]
    prior: _containers.RepeatedScalarFieldContainer[float]
    optional: bool
    def __init__(self, kinds: _Optional[_Iterable[str]] = ..., names: _Optional[_Iterable[str]] = ..., prior: _Optional[_Iterable[float]] = ..., optional: bool = ...) -> None: ...

class Control(_message.Message):
    __slots__ = ("meaning", "minimum", "maximum", "default_value")
    MEANING_FIELD_NUMBER: _ClassVar[int]
    MINIMUM_FIELD_NUMBER: _ClassVar[int]
    MAXIMUM_FIELD_NUMBER: _ClassVar[int]
    DEFAULT_VALUE_FIELD_NUMBER: _ClassVar[int]
    meaning: str
    minimum: float
    maximum: float
    default_value: float
    def __init__(self, meaning: _Optional[str] = ..., minimum: _Optional[float] = ..., maximum: _Optional[float] = ..., default_value: _Optional[float] = ...) -> None: ...

class Figure(_message.Message):
    __slots__ = ("name", "value", "unit", "protocol", "standard_error")
    NAME_FIELD_NUMBER: _ClassVar[int]
    VALUE_FIELD_NUMBER: _ClassVar[int]
    UNIT_FIELD_NUMBER: _ClassVar[int]
    PROTOCOL_FIELD_NUMBER: _ClassVar[int]
    STANDARD_ERROR_FIELD_NUMBER: _ClassVar[int]
    name: str
    value: float
    unit: str
    protocol: str
    standard_error: float
    def __init__(self, name: _Optional[str] = ..., value: _Optional[float] = ..., unit: _Optional[str] = ..., protocol: _Optional[str] = ..., standard_error: _Optional[float] = ...) -> None: ...
