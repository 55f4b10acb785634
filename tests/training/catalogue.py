"""Keras' losses, metrics and layers, each in a small model, for `test_like_keras`."""

import keras
import numpy as np
from keras import layers as L
from keras import losses, metrics

N, CLASSES = 53, 3
rng = np.random.default_rng(0)
ROWS = np.eye(CLASSES, dtype=np.float32)[rng.integers(0, CLASSES, N)]  # one-hot
CLASS = ROWS.argmax(1).astype(np.int32)
SIGNS = 2 * ROWS - 1
NUMBERS = rng.uniform(0.1, 1, (N, CLASSES)).astype(np.float32)

# Each with the labels it takes; all are given probabilities.
LOSSES = {
    "BinaryCrossentropy": (lambda: losses.BinaryCrossentropy(), ROWS),
    "BinaryFocalCrossentropy": (lambda: losses.BinaryFocalCrossentropy(), ROWS),
    "CategoricalCrossentropy": (lambda: losses.CategoricalCrossentropy(label_smoothing=0.1), ROWS),
    "CategoricalFocalCrossentropy": (lambda: losses.CategoricalFocalCrossentropy(), ROWS),
    "CategoricalGeneralizedCrossEntropy": (
        lambda: losses.CategoricalGeneralizedCrossEntropy(),
        CLASS,
    ),
    "CategoricalHinge": (lambda: losses.CategoricalHinge(), ROWS),
    "Circle": (lambda: losses.Circle(gamma=2), CLASS),
    "CosineSimilarity": (lambda: losses.CosineSimilarity(), NUMBERS),
    "Dice": (lambda: losses.Dice(), ROWS),
    "Hinge": (lambda: losses.Hinge(), SIGNS),
    "Huber": (lambda: losses.Huber(0.3), NUMBERS),
    "KLDivergence": (lambda: losses.KLDivergence(), NUMBERS),
    "LogCosh": (lambda: losses.LogCosh(), NUMBERS),
    "MeanAbsoluteError": (lambda: losses.MeanAbsoluteError(), NUMBERS),
    "MeanAbsolutePercentageError": (lambda: losses.MeanAbsolutePercentageError(), NUMBERS),
    "MeanSquaredError": (lambda: losses.MeanSquaredError(), NUMBERS),
    "MeanSquaredLogarithmicError": (lambda: losses.MeanSquaredLogarithmicError(), NUMBERS),
    "Poisson": (lambda: losses.Poisson(), NUMBERS),
    "SparseCategoricalCrossentropy": (lambda: losses.SparseCategoricalCrossentropy(), CLASS),
    "SquaredHinge": (lambda: losses.SquaredHinge(), SIGNS),
    "Tversky": (lambda: losses.Tversky(), ROWS),
    # Not of the catalogue, but ways to give a loss.
    "a name": (lambda: "mse", NUMBERS),
    "dice by name": (lambda: "dice", ROWS),
    "a function": (lambda: losses.kl_divergence, NUMBERS),
    "own function": (lambda: own_loss, NUMBERS),
    "own mean": (lambda: lambda y, p: keras.ops.mean(own_loss(y, p)), NUMBERS),
    "own sum": (lambda: lambda y, p: keras.ops.sum(own_loss(y, p)), NUMBERS),
    "ignored class": (lambda: losses.SparseCategoricalCrossentropy(ignore_class=1), CLASS),
    "sum": (lambda: losses.MeanSquaredError(reduction="sum"), NUMBERS),
    "weighted mean": (
        lambda: losses.MeanSquaredError(reduction="mean_with_sample_weight"),
        NUMBERS,
    ),
    "along the batch": (lambda: losses.CategoricalCrossentropy(axis=0), ROWS),
    "a column": (lambda: losses.SparseCategoricalCrossentropy(), CLASS[:, None]),
}
NOT_LOSSES = {"Loss", "CTC"}  # the second is for sequences of labels


def own_loss(y, p):
    return keras.ops.mean(keras.ops.abs(y - p) ** 1.5, -1)


class Count(metrics.Metric):
    """Counts outputs above a half, whatever their weights."""

    def __init__(self, name="own_count"):
        super().__init__(name=name)
        self.total = self.add_weight(name="total", initializer="zeros")

    def update_state(self, y, p, sample_weight=None):
        self.total.assign_add(keras.ops.sum(keras.ops.cast(p > 0.5, "float32")))

    def result(self):
        return self.total + 0


def scalar_metric(y, p):
    return keras.ops.mean(keras.ops.abs(y - p))


# By the labels they take: those that look at one example at a time, for which a short batch is
# filled up (`engines.filling.METRICS`), and the others.
METRICS = {
    "rows": lambda: [
        *("accuracy", "mae", metrics.mean_squared_error),
        metrics.Accuracy(),
        metrics.BinaryAccuracy(),
        metrics.BinaryCrossentropy(),
        metrics.CategoricalAccuracy(),
        metrics.CategoricalCrossentropy(),
        metrics.CategoricalHinge(),
        metrics.Hinge(),
        metrics.KLDivergence(),
        metrics.MeanAbsoluteError(),
        metrics.MeanAbsolutePercentageError(),
        metrics.MeanSquaredError(),
        metrics.MeanSquaredLogarithmicError(),
        metrics.Poisson(),
        metrics.SquaredHinge(),
        metrics.TopKCategoricalAccuracy(2),
    ],
    "rows, the others": lambda: [
        *(scalar_metric, Count()),
        metrics.AUC(),
        metrics.BinaryIoU(),
        metrics.ConcordanceCorrelation(),
        metrics.CosineSimilarity(),
        metrics.F1Score(),
        metrics.FBetaScore(),
        metrics.FalseNegatives(),
        metrics.FalsePositives(),
        metrics.LogCoshError(),
        metrics.MeanMetricWrapper(own_loss, name="own_metric"),
        metrics.OneHotIoU(CLASSES, [0, 1]),
        metrics.OneHotMeanIoU(CLASSES),
        metrics.PearsonCorrelation(),
        metrics.Precision(),
        metrics.PrecisionAtRecall(0.5),
        metrics.R2Score(),
        metrics.Recall(),
        metrics.RecallAtPrecision(0.5),
        metrics.RootMeanSquaredError(),
        metrics.SensitivityAtSpecificity(0.5),
        metrics.SpecificityAtSensitivity(0.5),
        metrics.TrueNegatives(),
        metrics.TruePositives(),
    ],
    "classes": lambda: [
        "accuracy",
        metrics.SparseCategoricalAccuracy(),
        metrics.SparseCategoricalCrossentropy(),
        metrics.SparseTopKCategoricalAccuracy(2),
    ],
    "classes, the others": lambda: [
        metrics.IoU(CLASSES, [0, 1], sparse_y_pred=False),
        metrics.MeanIoU(CLASSES, sparse_y_pred=False),
    ],
}
NOT_METRICS = {"Metric", "Mean", "Sum"}  # of values, not of labels and outputs


class AcrossBatch(L.Layer):
    """Centres the batch: a user's layer that looks across its examples."""

    def call(self, x):
        return x - keras.ops.mean(x, axis=0, keepdims=True)


class Adds(L.Layer):
    """Adds to the loss."""

    def call(self, x):
        self.add_loss(0.1 * keras.ops.mean(keras.ops.square(x)))
        return x


def twice(layer):
    """A layer of two inputs, from one tensor."""
    return lambda x: layer([L.Dense(4)(x), L.Dense(4)(x)])


def attention(layer):
    return lambda x: layer(x, x)


VECTOR, SEQUENCE, IMAGE, VOLUME, MOVIE = (6,), (5, 4), (8, 8, 3), (4, 4, 4, 2), (3, 6, 6, 2)
SEED = {"seed": 1}
# By the shape of an example: what is made of the input before the logits.
LAYERS = {
    VECTOR: {
        "Activation": lambda: L.Activation("tanh"),
        "ActivityRegularization": lambda: L.ActivityRegularization(l2=0.1),
        "Add": lambda: twice(L.Add()),
        "AlphaDropout": lambda: L.AlphaDropout(0.3, **SEED),
        "Average": lambda: twice(L.Average()),
        "BatchNormalization": lambda: L.BatchNormalization(),
        "Concatenate": lambda: twice(L.Concatenate()),
        "Dense": lambda: L.Dense(4, activation="relu", kernel_regularizer="l2"),
        "Discretization": lambda: L.Discretization([-0.5, 0.0, 0.5]),
        "Dot": lambda: twice(L.Dot(1)),
        "Dropout": lambda: L.Dropout(0.3, **SEED),
        "ELU": lambda: L.ELU(),
        "EinsumDense": lambda: L.EinsumDense("ab,bc->ac", 4),
        "Flatten": lambda: L.Flatten(),
        "GaussianDropout": lambda: L.GaussianDropout(0.3, **SEED),
        "GaussianNoise": lambda: L.GaussianNoise(0.3, **SEED),
        "GroupNormalization": lambda: L.GroupNormalization(2),
        "Identity": lambda: L.Identity(),
        "Lambda": lambda: L.Lambda(lambda x: x - keras.ops.mean(x, 0)),
        "LayerNormalization": lambda: L.LayerNormalization(),
        "LeakyReLU": lambda: L.LeakyReLU(),
        "Maximum": lambda: twice(L.Maximum()),
        "Minimum": lambda: twice(L.Minimum()),
        "Multiply": lambda: twice(L.Multiply()),
        "Normalization": lambda: L.Normalization(mean=0.1, variance=2.0),
        "PReLU": lambda: L.PReLU(),
        "RMSNormalization": lambda: L.RMSNormalization(),
        "ReLU": lambda: L.ReLU(),
        "RepeatVector": lambda: L.RepeatVector(2),
        "Rescaling": lambda: L.Rescaling(0.5),
        "Reshape": lambda: L.Reshape((2, 3)),
        "Softmax": lambda: L.Softmax(),
        "SpectralNormalization": lambda: L.SpectralNormalization(L.Dense(4)),
        "Subtract": lambda: twice(L.Subtract()),
        "UnitNormalization": lambda: L.UnitNormalization(),
        "across the batch": AcrossBatch,
        "an activation across the batch": lambda: L.Dense(
            4, activation=lambda x: x - keras.ops.mean(x, axis=0)
        ),
        "an operation": lambda: lambda x: x - keras.ops.mean(x, axis=0),
        "add_loss": Adds,
        "a frozen one": lambda: L.Dense(4, trainable=False),
        "frozen normalisation": lambda: L.BatchNormalization(trainable=False),
        "a model inside": lambda: keras.Sequential([L.Dense(4), L.BatchNormalization()]),
    },
    SEQUENCE: {
        "AdaptiveAveragePooling1D": lambda: L.AdaptiveAveragePooling1D(2),
        "AdaptiveMaxPooling1D": lambda: L.AdaptiveMaxPooling1D(2),
        "AdditiveAttention": lambda: twice(L.AdditiveAttention()),
        "Attention": lambda: twice(L.Attention()),
        "AveragePooling1D": lambda: L.AveragePooling1D(2),
        "Bidirectional": lambda: L.Bidirectional(L.LSTM(3)),
        "Conv1D": lambda: L.Conv1D(3, 2),
        "Conv1DTranspose": lambda: L.Conv1DTranspose(3, 2),
        "Cropping1D": lambda: L.Cropping1D(1),
        "DepthwiseConv1D": lambda: L.DepthwiseConv1D(2),
        "GRU": lambda: L.GRU(3),
        "GlobalAveragePooling1D": lambda: L.GlobalAveragePooling1D(),
        "GlobalMaxPooling1D": lambda: L.GlobalMaxPooling1D(),
        "GroupedQueryAttention": lambda: attention(L.GroupQueryAttention(2, 2, 1)),
        "LSTM": lambda: L.LSTM(3, dropout=0.2, **SEED),
        "Masking": lambda: lambda x: L.LSTM(3)(L.Masking()(x)),
        "MaxPooling1D": lambda: L.MaxPooling1D(2),
        "MultiHeadAttention": lambda: attention(L.MultiHeadAttention(2, 2)),
        "Permute": lambda: L.Permute((2, 1)),
        "RNN": lambda: L.RNN([L.GRUCell(3), L.LSTMCell(3), L.SimpleRNNCell(3)]),
        "SeparableConv1D": lambda: L.SeparableConv1D(3, 2),
        "SimpleRNN": lambda: L.SimpleRNN(3),
        "SpatialDropout1D": lambda: L.SpatialDropout1D(0.3, **SEED),
        "StackedRNNCells": lambda: L.RNN(L.StackedRNNCells([L.GRUCell(3), L.GRUCell(2)])),
        "TimeDistributed": lambda: L.TimeDistributed(L.Dense(2)),
        "UpSampling1D": lambda: L.UpSampling1D(2),
        "ZeroPadding1D": lambda: L.ZeroPadding1D(1),
    },
    IMAGE: {
        "AdaptiveAveragePooling2D": lambda: L.AdaptiveAveragePooling2D(2),
        "AdaptiveMaxPooling2D": lambda: L.AdaptiveMaxPooling2D(2),
        "AugMix": lambda: L.AugMix((0, 1), **SEED),
        "AutoContrast": lambda: L.AutoContrast((0, 1)),
        "AveragePooling2D": lambda: L.AveragePooling2D(2),
        "CenterCrop": lambda: L.CenterCrop(4, 4),
        "ContrastLimitedAdaptiveHistogramEqualization": lambda: (
            L.ContrastLimitedAdaptiveHistogramEqualization((0, 1))
        ),
        "Conv2D": lambda: L.Conv2D(3, 3, activation="gelu"),
        "Conv2DTranspose": lambda: L.Conv2DTranspose(3, 2),
        "Cropping2D": lambda: L.Cropping2D(1),
        "CutMix": lambda: L.CutMix(**SEED),
        "DepthwiseConv2D": lambda: L.DepthwiseConv2D(2),
        "Equalization": lambda: L.Equalization((0, 1)),
        "GlobalAveragePooling2D": lambda: L.GlobalAveragePooling2D(),
        "GlobalMaxPooling2D": lambda: L.GlobalMaxPooling2D(),
        "MaxPooling2D": lambda: L.MaxPooling2D(2),
        "MixUp": lambda: L.MixUp(**SEED),
        "Pipeline": lambda: L.Pipeline([L.Rescaling(0.5), L.RandomFlip(**SEED)]),
        "RandAugment": lambda: L.RandAugment((0, 1), **SEED),
        "RandomBrightness": lambda: L.RandomBrightness(0.2, (0, 1), **SEED),
        "RandomColorDegeneration": lambda: L.RandomColorDegeneration(0.5, (0, 1), **SEED),
        "RandomColorJitter": lambda: L.RandomColorJitter((0, 1), 0.2, **SEED),
        "RandomContrast": lambda: L.RandomContrast(0.2, (0, 1), **SEED),
        "RandomCrop": lambda: L.RandomCrop(6, 6, **SEED),
        "RandomElasticTransform": lambda: L.RandomElasticTransform(value_range=(0, 1), **SEED),
        "RandomErasing": lambda: L.RandomErasing(value_range=(0, 1), **SEED),
        "RandomFlip": lambda: L.RandomFlip(**SEED),
        "RandomGaussianBlur": lambda: L.RandomGaussianBlur(value_range=(0, 1), **SEED),
        "RandomGrayscale": lambda: L.RandomGrayscale(**SEED),
        "RandomHue": lambda: L.RandomHue(0.2, (0, 1), **SEED),
        "RandomInvert": lambda: L.RandomInvert(0.5, (0, 1), **SEED),
        "RandomPerspective": lambda: L.RandomPerspective(**SEED),
        "RandomPosterization": lambda: L.RandomPosterization(4, (0, 1), **SEED),
        "RandomRotation": lambda: L.RandomRotation(0.1, **SEED),
        "RandomSaturation": lambda: L.RandomSaturation(0.5, (0, 1), **SEED),
        "RandomSharpness": lambda: L.RandomSharpness(0.5, (0, 1), **SEED),
        "RandomShear": lambda: L.RandomShear(0.2, 0.2, **SEED),
        "RandomTranslation": lambda: L.RandomTranslation(0.1, 0.1, **SEED),
        "RandomZoom": lambda: L.RandomZoom(0.1, **SEED),
        "Resizing": lambda: L.Resizing(4, 4),
        "SeparableConv2D": lambda: L.SeparableConv2D(3, 2),
        "Solarization": lambda: L.Solarization(value_range=(0, 1), **SEED),
        "SpatialDropout2D": lambda: L.SpatialDropout2D(0.3, **SEED),
        "UpSampling2D": lambda: L.UpSampling2D(2),
        "ZeroPadding2D": lambda: L.ZeroPadding2D(1),
    },
    VOLUME: {
        "AdaptiveAveragePooling3D": lambda: L.AdaptiveAveragePooling3D(2),
        "AdaptiveMaxPooling3D": lambda: L.AdaptiveMaxPooling3D(2),
        "AveragePooling3D": lambda: L.AveragePooling3D(2),
        "Conv3D": lambda: L.Conv3D(2, 2),
        "Conv3DTranspose": lambda: L.Conv3DTranspose(2, 2),
        "ConvLSTM1D": lambda: lambda x: L.ConvLSTM1D(2, 2)(L.Reshape((4, 4, 8))(x)),
        "Cropping3D": lambda: L.Cropping3D(1),
        "GlobalAveragePooling3D": lambda: L.GlobalAveragePooling3D(),
        "GlobalMaxPooling3D": lambda: L.GlobalMaxPooling3D(),
        "MaxPooling3D": lambda: L.MaxPooling3D(2),
        "SpatialDropout3D": lambda: L.SpatialDropout3D(0.3, **SEED),
        "UpSampling3D": lambda: L.UpSampling3D(2),
        "ZeroPadding3D": lambda: L.ZeroPadding3D(1),
        "ConvLSTM2D": lambda: L.ConvLSTM2D(2, 2),
        "ConvLSTM3D": lambda: lambda x: L.ConvLSTM3D(2, 2)(L.Reshape((2, 2, 4, 4, 2))(x)),
    },
}
WHOLE = {  # of whole numbers 0..6, five an example
    "CategoryEncoding": lambda: L.CategoryEncoding(7, output_mode="multi_hot"),
    "Embedding": lambda: L.Embedding(7, 3),
    "Embedding with a mask": lambda: lambda x: L.LSTM(3)(L.Embedding(7, 3, mask_zero=True)(x)),
    "HashedCrossing": lambda: lambda x: L.HashedCrossing(5)((x[:, :1], x[:, 1:2])),
    "Hashing": lambda: L.Hashing(5),
    "IntegerLookup": lambda: L.IntegerLookup(vocabulary=[1, 2, 3]),
    "ReversibleEmbedding": lambda: L.ReversibleEmbedding(7, 3),
}
NOT_LAYERS = {
    *("Layer", "InputLayer", "InputSpec", "Wrapper", "GRUCell", "LSTMCell", "SimpleRNNCell"),
    *("FlaxLayer", "JaxLayer", "TFSMLayer", "TorchModuleWrapper"),  # hold other programs
    *("StringLookup", "TextVectorization"),  # of texts, which no model is trained on here
    *("MaxNumBoundingBoxes", "MelSpectrogram", "STFTSpectrogram"),  # boxes and sounds
}
