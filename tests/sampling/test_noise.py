import hashlib
import statistics

import numpy as np
import pytest
import tensorflow as tf
from ai_edge_litert.interpreter import Interpreter, OpResolverType

from kddpm.sampling import noise

MODES = {"eager": lambda f: f, "graph": tf.function, "xla": tf.function(jit_compile=True)}
# Error rates of the statistical tests, all at 5 standard errors: a right generator fails a comparison with probability
# 6e-7 (once, when the seeds were chosen: they are fixed); one that is off by 8 standard errors passes with 1e-3.
STANDARD_ERRORS = 5


def signed(word):
    """A 32-bit word as the int32 of the same bits."""
    return word - 2**32 if word >= 2**31 else word


def words_of(tensors):
    return tuple(int(np.array(x).astype(np.uint32)) for x in tensors)


def plain_threefry(key, counter):
    """Threefry-2x32-20 in Python's integers: the eight rotations in turn, a key injection after every four rounds."""
    keys = [key[0], key[1], 0x1BD11BDA ^ key[0] ^ key[1]]
    x, y = ((c + k) % 2**32 for c, k in zip(counter, key, strict=True))
    for i in range(20):
        x = (x + y) % 2**32
        bits = (13, 15, 26, 6, 17, 29, 16, 24)[i % 8]
        y = ((y << bits | y >> 32 - bits) % 2**32) ^ x
        if i % 4 == 3:
            n = i // 4 + 1
            x, y = (x + keys[n % 3]) % 2**32, (y + keys[(n + 1) % 3] + n) % 2**32
    return x, y


def plain_normal(seed, stream, step, size):
    """One picture's noise from `plain_threefry`: x words, then y words, high halves first, then low halves."""
    pairs = [plain_threefry((seed % 2**32, stream), (element, step)) for element in range(-(-size // 4))]
    words = [x for x, _ in pairs] + [y for _, y in pairs]
    halves = [word >> 16 for word in words] + [word & 0xFFFF for word in words]
    signed_halves = [half - 2**16 if half >= 2**15 else half for half in halves[:size]]
    quantiles = [statistics.NormalDist().inv_cdf((half + 0.5) / 2**16 + 0.5) for half in signed_halves]
    return np.array([round(quantile * 2**12) / 2**12 for quantile in quantiles], np.float32)


@pytest.mark.parametrize(
    ("key", "counter", "words"),
    [  # kat_vectors of the Random123 distribution
        ((0, 0), (0, 0), (0x6B200159, 0x99BA4EFE)),
        ((0xFFFFFFFF, 0xFFFFFFFF), (0xFFFFFFFF, 0xFFFFFFFF), (0x1CB996FC, 0xBB002BE7)),
        ((0x13198A2E, 0x03707344), (0x243F6A88, 0x85A308D3), (0xC4923A9C, 0x483DF7A0)),
    ],
)
def test_threefry_gives_the_published_words(key, counter, words):
    key, counter = (tuple(signed(word) for word in pair) for pair in (key, counter))
    assert words_of(noise.threefry2x32(key, counter)) == words
    assert plain_threefry(*(tuple(word % 2**32 for word in pair) for pair in (key, counter))) == words


@pytest.mark.parametrize("mode", MODES)
def test_threefry_agrees_with_plain_integers(mode):
    words = np.random.default_rng(0).integers(-(2**31), 2**31, (4, 64)).astype(np.int32)
    x, y = MODES[mode](lambda k0, k1, c0, c1: noise.threefry2x32((k0, k1), (c0, c1)))(*words)
    expected = [plain_threefry((k0, k1), (c0, c1)) for k0, k1, c0, c1 in (words.T.astype(np.int64) % 2**32).tolist()]
    np.testing.assert_array_equal(np.stack([x, y], axis=1).astype(np.uint32), expected)


def test_normal_table_holds_the_quantiles():
    table = noise.normal_table()
    assert table.shape == (2**15,) and table.dtype == np.int16
    assert table[0] == 0 and np.all(np.diff(table) >= 0)
    assert abs(np.mean((table / 2**12) ** 2) - 1) < 3e-5
    quantile = statistics.NormalDist().inv_cdf
    for i in (0, 1, 100, 2**14, 2**15 - 2, 2**15 - 1):
        assert abs(table[i] / 2**12 - quantile((i + 0.5) / 2**16 + 0.5)) <= 2**-13
    # Half of all |normals| lie below the quartile 0.6744897501960817.
    assert table[2**14 - 1] / 2**12 - 2**-13 < 0.6744897501960817 < table[2**14] / 2**12 + 2**-13
    assert (
        hashlib.sha256(table.astype("<i2").tobytes()).hexdigest()
        == "2c80abe71f046094d7f8d8597d31e370cd0ee003c451a7b83d2f7f7f0bee4fe0"
    )


@pytest.mark.parametrize("shape", [(1,), (5,), (4, 4, 1), (3, 3, 3), (2, 7, 1)])
def test_normal_is_the_quantile_that_the_words_select(shape):
    seeds = [0, 1, -1, 2**31 - 1, -(2**31)]
    result = noise.normal(tf.constant(seeds), 7, 3, shape)
    expected = [plain_normal(seed, 7, 3, np.prod(shape)).reshape(shape) for seed in seeds]
    np.testing.assert_array_equal(result, expected)
    assert result.dtype == tf.float32


def test_moments_are_those_of_a_standard_normal():
    x = np.array(noise.normal(tf.range(16), noise.INITIAL_STREAM, 0, (64, 64, 4)), np.float64).ravel()
    table = noise.normal_table() / 2**12
    squares, fourths = np.mean(table**2), np.mean(table**4)  # 1 - 1e-5 and 3 - 1e-3: the tails end at 4.3
    standard_error = 1 / np.sqrt(x.size)
    assert abs(np.mean(x)) < STANDARD_ERRORS * standard_error
    assert abs(np.mean(x**2) - squares) < STANDARD_ERRORS * np.sqrt(2) * standard_error
    assert abs(np.mean(x**3)) < STANDARD_ERRORS * np.sqrt(15) * standard_error
    assert abs(np.mean(x**4) - fourths) < STANDARD_ERRORS * np.sqrt(96) * standard_error
    assert fourths == pytest.approx(3, abs=2e-3)


def test_seeds_streams_steps_and_elements_are_independent():
    def draw(seed=0, stream=noise.STEP_STREAM, step=0):
        return np.array(noise.normal(tf.constant([seed]), stream, step, (2**16,)), np.float64)[0]

    base = draw()
    quarter = base.reshape(4, -1)  # the two words of one call, and their halves
    pairs = {
        "seed": (base, draw(seed=1)),
        "negative seed": (draw(seed=1), draw(seed=-1)),
        "stream": (base, draw(stream=noise.INITIAL_STREAM)),
        "step": (base, draw(step=1)),
        "seed and stream": (draw(seed=1, stream=0), draw(seed=0, stream=1)),
        "next element": (base[:-1], base[1:]),
        "words": (quarter[0], quarter[1]),
        "halves": (quarter[0], quarter[2]),
        "halves of the second word": (quarter[1], quarter[3]),
    }
    for name, (x, y) in pairs.items():
        for part in (lambda x: x, np.abs):
            correlation = np.corrcoef(part(x), part(y))[0, 1]
            assert abs(correlation) < STANDARD_ERRORS / np.sqrt(x.size), name


def test_a_picture_depends_on_its_own_seed_alone():
    seeds = tf.constant([5, 0, -3, 5, 77])
    batch = noise.normal(seeds, noise.STEP_STREAM, 4, (3, 3, 3)).numpy()
    for k in range(5):
        alone = noise.normal(seeds[k : k + 1], noise.STEP_STREAM, 4, (3, 3, 3)).numpy()
        np.testing.assert_array_equal(batch[k], alone[0])
    np.testing.assert_array_equal(batch[0], batch[3])
    assert not np.array_equal(batch[0], batch[1])


@pytest.mark.parametrize("mode", ["graph", "xla"])
def test_every_mode_gives_the_same_bits(mode):
    seeds, step = tf.constant([0, -1, 123456789]), tf.constant(9)
    compiled = MODES[mode](lambda seeds, step: noise.normal(seeds, noise.STEP_STREAM, step, (33, 31, 3)))(seeds, step)
    np.testing.assert_array_equal(compiled, noise.normal(seeds, noise.STEP_STREAM, step, (33, 31, 3)))


@pytest.fixture(scope="module")
def litert_file():
    """`normal` as a TFLite file, by the converter's default target: builtin operators, or an error."""

    @tf.function(input_signature=[tf.TensorSpec([3], tf.int32), tf.TensorSpec([], tf.int32)])
    def draw(seeds, step):
        return noise.normal(seeds, noise.STEP_STREAM, step, (33, 31, 3))

    return tf.lite.TFLiteConverter.from_concrete_functions([draw.get_concrete_function()]).convert()


@pytest.mark.parametrize("resolver", [OpResolverType.AUTO, OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES])
def test_litert_gives_the_same_bits(litert_file, resolver):
    interpreter = Interpreter(model_content=litert_file, experimental_op_resolver_type=resolver)
    interpreter.allocate_tensors()
    by_rank = {len(detail["shape"]): detail["index"] for detail in interpreter.get_input_details()}
    (output,) = interpreter.get_output_details()
    for seeds, step in (([0, 1, 2], 0), ([-1, 2**31 - 1, -(2**31)], 999)):
        interpreter.set_tensor(by_rank[1], np.array(seeds, np.int32))
        interpreter.set_tensor(by_rank[0], np.array(step, np.int32))
        interpreter.invoke()
        expected = noise.normal(tf.constant(seeds), noise.STEP_STREAM, step, (33, 31, 3))
        np.testing.assert_array_equal(interpreter.get_tensor(output["index"]), expected)


def test_litert_needs_integers_and_a_gather_only(litert_file):
    """CAST and MUL turn the sign bit into +-1 and apply it: exact, like everything else in the list."""
    interpreter = Interpreter(
        model_content=litert_file, experimental_op_resolver_type=OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES
    )
    operators = {operator["op_name"] for operator in interpreter._get_ops_details()}
    shapes = {"RESHAPE", "STRIDED_SLICE", "SLICE", "CONCATENATION", "BROADCAST_TO", "EXPAND_DIMS"}
    assert {"BITWISE_XOR", "RIGHT_SHIFT", "GATHER"} <= operators
    assert operators <= {"ADD", "SUB", "MUL", "BITWISE_XOR", "RIGHT_SHIFT", "GATHER", "CAST"} | shapes
