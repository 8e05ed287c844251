"""What the configuration of a Keras model names besides the layers, functions and operators of Keras.

Keras rebuilds a model from a configuration in JSON. Each object in it names a class or a function, by module
and name in newer files, and the loaders import it: tf_keras any function of any module, and its operator
layers any function of TensorFlow, called with constants from the file.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, NamedTuple

from .tensorflow_operators import ALLOWED as OPERATORS

LAYERS = frozenset(
    """
    AbstractRNNCell Activation ActivityRegularization AdaptiveAveragePooling1D AdaptiveAveragePooling2D
    AdaptiveAveragePooling3D AdaptiveMaxPooling1D AdaptiveMaxPooling2D AdaptiveMaxPooling3D Add AddLoss
    AddMetric AdditiveAttention AlphaDropout Attention AugMix AutoContrast Average AveragePooling1D
    AveragePooling2D AveragePooling3D AvgPool1D AvgPool2D AvgPool3D BaseRandomLayer BatchNormalization
    BatchNormalizationBase BatchNormalizationV1 BatchNormalizationV2 Bidirectional CategoryEncoding
    CenterCrop Concatenate ContrastLimitedAdaptiveHistogramEqualization Conv1D Conv1DTranspose Conv2D
    Conv2DTranspose Conv3D Conv3DTranspose ConvLSTM1D ConvLSTM2D ConvLSTM3D Convolution1D
    Convolution1DTranspose Convolution2D Convolution2DTranspose Convolution3D Convolution3DTranspose
    Cropping1D Cropping2D Cropping3D CuDNNGRU CuDNNLSTM CutMix Dense DepthwiseConv1D DepthwiseConv2D
    DeviceWrapper Discretization Dot Dropout DropoutWrapper ELU EinsumDense Embedding Equalization
    Flatten Functional GRU GRUCell GRUCellV1 GRUCellV2 GRUV1 GRUV2 GaussianDropout GaussianNoise
    GlobalAveragePooling1D GlobalAveragePooling2D GlobalAveragePooling3D GlobalAvgPool1D GlobalAvgPool2D
    GlobalAvgPool3D GlobalMaxPool1D GlobalMaxPool2D GlobalMaxPool3D GlobalMaxPooling1D GlobalMaxPooling2D
    GlobalMaxPooling3D GroupNormalization GroupQueryAttention HashedCrossing Hashing Identity InputLayer
    InputSpec IntegerLookup LSTM LSTMCell LSTMCellV1 LSTMCellV2 LSTMV1 LSTMV2 Layer LayerNormalization
    LeakyReLU LocallyConnected1D LocallyConnected2D Masking MaxNumBoundingBoxes MaxPool1D MaxPool2D
    MaxPool3D MaxPooling1D MaxPooling2D MaxPooling3D Maximum MelSpectrogram Minimum MixUp Model
    MultiHeadAttention Multiply Normalization PReLU Permute Pipeline PreprocessingLayer RMSNormalization
    RNN RandAugment RandomBrightness RandomColorDegeneration RandomColorJitter RandomContrast RandomCrop
    RandomElasticTransform RandomErasing RandomFlip RandomFourierFeatures RandomGaussianBlur
    RandomGrayscale RandomHeight RandomHue RandomInvert RandomPerspective RandomPosterization
    RandomRotation RandomSaturation RandomSharpness RandomShear RandomTranslation RandomWidth RandomZoom
    ReLU RepeatVector Rescaling Reshape ResidualWrapper Resizing ReversibleEmbedding STFTSpectrogram
    SeparableConv1D SeparableConv2D SeparableConvolution1D SeparableConvolution2D Sequential SimpleRNN
    SimpleRNNCell Softmax Solarization SpatialDropout1D SpatialDropout2D SpatialDropout3D
    SpectralNormalization StackedRNNCells StringLookup Subtract SyncBatchNormalization TextVectorization
    ThresholdedReLU TimeDistributed UnitNormalization UpSampling1D UpSampling2D UpSampling3D Wrapper
    ZeroPadding1D ZeroPadding2D ZeroPadding3D
    CustomScaleLayer LayerScale StochasticDepth
    """.split()
)
"""Layers and models of Keras 2 and 3, in the last line those of its applications. Left out are those that run
code or open files of their own: Lambda, TorchModuleWrapper, JaxLayer, FlaxLayer, TFSMLayer, and the feature
columns."""

PARTS = frozenset(
    """
    Constant GlorotNormal GlorotUniform HeNormal HeUniform IdentityInitializer Initializer LecunNormal
    LecunUniform Ones Orthogonal OrthogonalInitializer RandomNormal RandomUniform STFT STFTInitializer
    TruncatedNormal VarianceScaling Zeros L1 L1L2 L2 OrthogonalRegularizer Regularizer Constraint MaxNorm
    MinMaxNorm NonNeg RadialConstraint UnitNorm AWQDTypePolicy DTypePolicy DTypePolicyMap
    FloatDTypePolicy GPTQDTypePolicy Int4DTypePolicy Policy QuantizedDTypePolicy
    QuantizedFloat8DTypePolicy AWQConfig AbsMaxQuantizer Float8QuantizationConfig GPTQConfig
    Int4QuantizationConfig Int8QuantizationConfig QuantizationConfig Adadelta Adafactor Adagrad Adam
    AdamW Adamax Ftrl Lamb Lion LossScaleOptimizer Muon Nadam Optimizer RMSprop SGD ScheduleFreeAdamW
    CosineDecay CosineDecayRestarts ExponentialDecay InverseTimeDecay LearningRateSchedule
    PiecewiseConstantDecay PolynomialDecay BinaryCrossentropy BinaryFocalCrossentropy CTC
    CategoricalCrossentropy CategoricalFocalCrossentropy CategoricalGeneralizedCrossEntropy
    CategoricalHinge Circle CosineSimilarity Dice Hinge Huber KLDivergence LogCosh Loss MeanAbsoluteError
    MeanAbsolutePercentageError MeanSquaredError MeanSquaredLogarithmicError Poisson Reduction
    SparseCategoricalCrossentropy SquaredHinge Tversky AUC Accuracy BinaryAccuracy BinaryIoU
    CategoricalAccuracy ConcordanceCorrelation F1Score FBetaScore FalseNegatives FalsePositives IoU
    LogCoshError Mean MeanIoU MeanMetricWrapper MeanRelativeError MeanTensor Metric OneHotIoU
    OneHotMeanIoU PearsonCorrelation Precision PrecisionAtRecall R2Score Recall RecallAtPrecision
    RootMeanSquaredError SensitivityAtSpecificity SparseCategoricalAccuracy SparseTopKCategoricalAccuracy
    SpecificityAtSensitivity Sum TopKCategoricalAccuracy TrueNegatives TruePositives
    """.split()
)
"""Initializers, regularizers, constraints, dtype policies, optimizers, losses and metrics."""

VALUES = frozenset(
    "TensorShape TypeSpec CompositeTensor __tuple__ __ellipsis__ __bytes__ __slice__ __tensor__ __numpy__ "
    "__keras_tensor__".split()
)
"""Encoded values: shapes, tuples, arrays."""

ACTIVATIONS = frozenset(
    "celu elu exponential gelu glu hard_shrink hard_sigmoid hard_silu hard_swish hard_tanh leaky_relu "
    "linear log_sigmoid log_softmax mish relu relu6 selu sigmoid silu soft_shrink softmax softplus "
    "softsign sparse_plus sparse_sigmoid sparsemax squareplus swish tanh tanh_shrink threshold".split()
)
SCORES = frozenset(
    "KLD MAE MAPE MSE MSLE binary_accuracy binary_crossentropy binary_focal_crossentropy "
    "categorical_accuracy categorical_crossentropy categorical_focal_crossentropy "
    "categorical_generalized_cross_entropy categorical_hinge circle concordance_correlation "
    "cosine_similarity ctc dice hinge huber kl_divergence kld kullback_leibler_divergence log_cosh "
    "logcosh mae mape mean_absolute_error mean_absolute_percentage_error mean_squared_error "
    "mean_squared_logarithmic_error mse msle pearson_correlation poisson sparse_categorical_accuracy "
    "sparse_categorical_crossentropy sparse_top_k_categorical_accuracy squared_hinge "
    "top_k_categorical_accuracy tversky".split()
)
"""Functions of losses and metrics."""
LEGACY_PARTS = frozenset(
    "constant glorot_normal glorot_uniform he_normal he_uniform identity lecun_normal lecun_uniform ones "
    "orthogonal random_normal random_uniform truncated_normal variance_scaling zeros l1 l1_l2 l2 max_norm "
    "min_max_norm non_neg radial_constraint unit_norm normal uniform one zero orthogonal_regularizer "
    "stft".split()
)
"""Initializers, regularizers and constraints by the names of Keras 1 and 2."""
FUNCTIONS = ACTIVATIONS | SCORES

SPECS = frozenset("TensorSpec SparseTensorSpec RaggedTensorSpec".split())

OPERATOR_LAYERS = frozenset(("TFOpLambda", "SlicingOpLambda"))
ATTRIBUTES = frozenset(
    "values flat_values row_splits nested_row_splits indices dense_shape value_rowids nested_value_rowids "
    "nrows row_starts row_limits row_lengths nested_row_lengths bounding_shape with_values "
    "with_flat_values with_row_splits_dtype merge_dims to_tensor to_sparse".split()
)
"""Properties and methods of ragged and sparse tensors that Keras 2 turns into layers."""

_NAMESPACES = (
    "math nn linalg signal bitwise image random strings sparse quantization sets dtypes ragged".split()
)
_FUNCTION = re.compile(r"(?:compat\.v[12]\.)?(?:{}|math\.special)\.[a-z]\w*".format("|".join(_NAMESPACES)))
"""Public functions of namespaces in which all functions only compute, but for those of ``_FILES``."""
_FILES = ("fixed_unigram_candidate_sampler",)
_TOP = frozenset(
    """
    abs acos acosh add add_n argmax argmin argsort as_string asin asinh atan atan2 atanh batch_to_space
    bitcast boolean_mask broadcast_dynamic_shape broadcast_static_shape broadcast_to cast
    clip_by_global_norm clip_by_norm clip_by_value complex concat constant convert_to_tensor cos cosh
    cumsum div divide dynamic_partition dynamic_stitch edit_distance eig eigvals einsum ensure_shape
    equal exp expand_dims extract_volume_patches eye fftnd fill floor floordiv floormod gather gather_nd
    greater greater_equal histogram_fixed_width identity identity_n ifftnd less less_equal linspace log
    logical_and logical_not logical_or logical_xor matmul matrix_square_root maximum meshgrid minimum mod
    multiply negative norm not_equal one_hot ones ones_like pad parallel_stack pow range rank realdiv
    reduce_all reduce_any reduce_logsumexp reduce_max reduce_mean reduce_min reduce_prod reduce_std
    reduce_sum reduce_variance repeat reshape reverse reverse_sequence rfftnd irfftnd roll round rsqrt
    saturate_cast scatter_nd searchsorted sequence_mask shape shape_n sigmoid sign sin sinh size slice
    sort space_to_batch space_to_batch_nd split sqrt square squared_difference squeeze stack
    stop_gradient strided_slice subtract tan tanh tensor_scatter_nd_add tensor_scatter_nd_max
    tensor_scatter_nd_min tensor_scatter_nd_sub tensor_scatter_nd_update tensordot tile transpose truediv
    truncatediv truncatemod unique unique_with_counts unravel_index unstack where zeros zeros_like
    """.split()
)
_OPERATORS = re.compile(r"__operators__\.(add|eq|ne|getitem|ragged_getitem)")


class Finding(NamedTuple):
    """An object of a configuration that is not part of Keras, or reaches out of the file."""

    label: str
    """Name of the layer and its class."""
    reason: str
    """What it would do: a clause for a message."""
    code: bool
    """True if trust can allow it; False for a class that the file does not contain."""

    def __str__(self) -> str:
        return f"{self.label} {self.reason}"


def objects(config: Any) -> Iterator[dict[str, Any]]:
    """Every serialized object of a configuration, outermost first."""
    # Iterative: a hostile file may nest deeper than Python's recursion limit.
    waiting = [config]
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict):
            if "class_name" in value:
                yield value
            waiting.extend(value.values())
        elif isinstance(value, list):
            waiting.extend(value)


def findings(config: Any) -> list[Finding]:
    """Everything in a configuration that would run code, open files, or is not part of Keras."""
    if isinstance(config, dict) and "compile_config" in config:
        # Models are loaded with compile=False: the losses and metrics of the outermost model are not built.
        config = {key: value for key, value in config.items() if key != "compile_config"}
    return [found for value in objects(config) for found in [_finding(value)] if found is not None]


def label(value: dict[str, Any]) -> str:
    """The name of a layer, as its author sees it, and its class."""
    config = value.get("config")
    name = config.get("name") if isinstance(config, dict) else None
    kind = str(value.get("registered_name") or value["class_name"])
    return f"{name!r} ({kind})" if name else f"({kind})"


def _finding(value: dict[str, Any]) -> Finding | None:
    kind, module, config = value["class_name"], value.get("module"), value.get("config")
    if kind in ("Lambda", "__lambda__"):
        return Finding(label(value), "runs code from the file", True)
    if kind == "function":
        name = config if isinstance(config, str) else value.get("registered_name")
        names = (name, value.get("registered_name"))
        if _of_keras(module) and all(each in (None, "function") or _named(each, FUNCTIONS) for each in names):
            return None
        return Finding(f"({name})", f"is a function of {module!r}", True)
    if not isinstance(kind, str):
        return Finding(repr(kind)[:80], "is not the name of a class", False)
    options = config if isinstance(config, dict) else {}
    if kind in OPERATOR_LAYERS:
        return None if _computes(options.get("function")) else _calls(value, options.get("function"))
    if kind in ("InstanceProperty", "InstanceMethod"):
        return (
            None if _named(options.get("attr_name"), ATTRIBUTES) else _calls(value, options.get("attr_name"))
        )
    if kind == "ClassMethod":
        return _calls(value, "{}.{}".format(options.get("cls_symbol"), options.get("method_name")))
    if kind == "TensorFlowOpLayer":
        node = options.get("node_def")
        operator = node.get("op") if isinstance(node, dict) else None
        return None if _named(operator, OPERATORS) else _calls(value, operator)
    if kind == "__typespec__":
        known = _named(value.get("spec_name"), SPECS) and str(module).startswith("tensorflow.")
        return None if known else Finding(label(value), f"is a type of {module!r}", True)
    if kind in VALUES:
        return None
    if isinstance(options.get("vocabulary"), str):
        return Finding(label(value), "reads the file {!r}".format(options["vocabulary"]), True)
    return _of_unknown_class(value, kind, module)


def _of_unknown_class(value: dict[str, Any], kind: str, module: Any) -> Finding | None:
    registered = value.get("registered_name")
    known = LAYERS | PARTS | LEGACY_PARTS
    operation = (
        isinstance(module, str) and module.startswith("keras.src.ops.") and re.fullmatch(r"[A-Z]\w*", kind)
    )
    if (
        (kind in known or operation)
        and _of_keras(module)
        and (registered in (None, kind) or _named(registered, known))
    ):
        return None
    if module and kind not in known:
        return Finding(label(value), f"is a class of {module!r}", True)
    if module:
        return Finding(label(value), f"is imported from {module!r}", True)
    return Finding(label(value), "is not part of Keras", kind in _CODE)


_CODE = frozenset("TorchModuleWrapper JaxLayer FlaxLayer TFSMLayer DenseFeatures SequenceFeatures".split())
"""Layers of Keras that run code or open files: trust allows them."""


def _of_keras(module: Any) -> bool:
    """Whether a module is absent, as in files of Keras 2, or a module of Keras."""
    return module in (None, "keras", "tf_keras", "builtins") or (
        isinstance(module, str)
        and re.fullmatch(r"(tf_)?keras\.(?!utils\b|saving\b|config\b)[\w.]+", module) is not None
    )


def _computes(function: Any) -> bool:
    """Whether a function of TensorFlow, by its public name, only computes."""
    if not isinstance(function, str):
        return False
    name = re.sub(r"^compat\.v[12]\.", "", function)
    first, _, rest = name.partition(".")
    if first == "raw_ops":
        return rest in OPERATORS
    if first == "keras":
        return rest.startswith("activations.") and rest[len("activations.") :] in ACTIVATIONS
    if _OPERATORS.fullmatch(name) or name in _TOP:
        return True
    return _FUNCTION.fullmatch(name) is not None and not name.endswith(_FILES)


def _named(value: Any, names: frozenset[str]) -> bool:
    return isinstance(value, str) and value in names


def _calls(value: dict[str, Any], function: Any) -> Finding:
    return Finding(label(value), f"calls {str(function)[:80]} of TensorFlow", True)
