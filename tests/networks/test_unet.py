import json
import struct

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers.places import GOLDENS

import kddpm
from kddpm.base.errors import InputError
from kddpm.networks.layers import ResidualBlock

GOLDEN = GOLDENS / "diffusers_unet_tiny"


def batch(shape, size=2, seed=0):
    rng = np.random.default_rng(seed)
    return [rng.normal(size=(size, *shape)).astype("float32"), rng.integers(0, 20, size).astype("int32")]


def randomise(unet, seed=1):
    """Weights under which every part of the network shows in the output; the initial last layer is nearly zero."""
    rng = np.random.default_rng(seed)
    unet.set_weights([w + rng.normal(0, 0.05, w.shape).astype("float32") for w in unet.get_weights()])
    return unet


# Numbers of parameters.


def parameters(image_shape, width, multipliers, blocks, attention_resolutions, classes=0, out_channels=None):
    """Counted on paper: what Ho et al.'s code creates, level by level."""

    def linear(fan_in, fan_out):
        return fan_in * fan_out + fan_out

    def conv(channels_in, channels_out):
        return linear(9 * channels_in, channels_out)

    def attention(channels):
        return 2 * channels + 4 * linear(channels, channels)

    def block(channels_in, channels, attends):
        count = 2 * channels_in + conv(channels_in, channels) + linear(4 * width, channels)
        count += 2 * channels + conv(channels, channels)
        count += linear(channels_in, channels) if channels_in != channels else 0
        return count + (attention(channels) if attends else 0)

    total = linear(width, 4 * width) + linear(4 * width, 4 * width)
    total += (classes + 1) * 4 * width if classes else 0  # a row a class, and one for "no class"
    total += conv(image_shape[2], width)
    levels = [(width * m, max(image_shape[:2]) >> i in attention_resolutions) for i, m in enumerate(multipliers)]
    channels, skips = width, [width]
    for i, (wide, attends) in enumerate(levels):
        for _ in range(blocks):
            total += block(channels, wide, attends)
            channels = wide
            skips.append(channels)
        if i + 1 < len(levels):
            total += conv(channels, channels)
            skips.append(channels)
    total += block(channels, channels, True) + block(channels, channels, False)
    for i, (wide, attends) in reversed(list(enumerate(levels))):
        for _ in range(blocks + 1):
            total += block(channels + skips.pop(), wide, attends)
            channels = wide
        if i:
            total += conv(channels, channels)
    return total + 2 * channels + conv(channels, out_channels or image_shape[2])


def test_the_paper_s_network_has_35_746_307_parameters():
    assert parameters((32, 32, 3), 128, (1, 2, 2, 2), 2, (16,)) == 35_746_307
    assert kddpm.UNet(image_shape=(32, 32, 3)).count_params() == 35_746_307


def test_the_paper_s_256x256_network_has_113_673_219_parameters():
    """The 114 million of appendix B."""
    assert parameters((256, 256, 3), 128, (1, 1, 2, 2, 4, 4), 2, (16,)) == 113_673_219
    unet = kddpm.UNet(image_shape=(256, 256, 3), multipliers=(1, 1, 2, 2, 4, 4), dropout=0)
    assert unet.count_params() == 113_673_219


@pytest.mark.parametrize(
    "arguments",
    [
        ((8, 8, 1), 8, (1, 2), 1, (4,)),
        ((8, 12, 2), 4, (3,), 2, (12,)),
        ((16, 8, 4), 4, (1, 2, 3), 3, (8, 16)),
        ((8, 8, 3), 8, (2, 1), 1, (), 5),
        ((8, 8, 3), 8, (1,), 1, (), 0, 6),
    ],
)
def test_other_networks_have_the_counted_number_of_parameters(arguments):
    classes, out_channels = (*arguments[5:], None, None)[:2]
    unet = kddpm.UNet(*arguments[:5], num_classes=classes or None, out_channels=out_channels)
    assert unet.count_params() == parameters(*arguments)


# The same output as an independent implementation.


def read_safetensors(path):
    """The format in full: the header's length in 8 bytes, the header in JSON, then the raw numbers."""
    content = path.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + length])
    header.pop("__metadata__", None)
    tensors = {}
    for name, entry in header.items():
        assert entry["dtype"] == "F32"
        begin, end = (8 + length + offset for offset in entry["data_offsets"])
        tensors[name] = np.frombuffer(content[begin:end], "<f4").reshape(entry["shape"])
    return tensors


def load_diffusers(unet, tensors):
    """Put the tensors of a diffusers UNet2DModel into a UNet; every one of them must be used."""
    tensors = dict(tensors)

    def kernel(name):
        value = tensors.pop(f"{name}.weight")
        return value.transpose(2, 3, 1, 0) if value.ndim == 4 else value.T

    def put(layer, *names):
        kernels, biases = [kernel(name) for name in names], [tensors.pop(f"{name}.bias") for name in names]
        value = np.concatenate(kernels, axis=-1)
        weights = layer.get_weights()
        layer.set_weights([value.reshape(weights[0].shape), np.concatenate(biases)])

    def put_norm(layer, name):
        layer.set_weights([tensors.pop(f"{name}.weight"), tensors.pop(f"{name}.bias")])

    def put_block(block, name, attention):
        put_norm(block.norm_1, f"{name}.norm1")
        put(block.conv_1, f"{name}.conv1")
        put(block.timestep, f"{name}.time_emb_proj")
        put_norm(block.norm_2, f"{name}.norm2")
        put(block.conv_2, f"{name}.conv2")
        if block.shortcut is not None:
            put(block.shortcut, f"{name}.conv_shortcut")  # a 1x1 convolution there, a dense layer here
        if block.attention is not None:
            put_norm(block.attention.norm, f"{attention}.group_norm")
            put(block.attention.qkv, *(f"{attention}.to_{part}" for part in "qkv"))
            put(block.attention.out, f"{attention}.to_out.0")

    def put_levels(layers, side, resampler):
        level = i = 0
        for layer in layers:
            name = f"{side}_blocks.{level}"
            if isinstance(layer, ResidualBlock):
                put_block(layer, f"{name}.resnets.{i}", f"{name}.attentions.{i}")
                i += 1
            else:
                put(layer, f"{name}.{resampler}.0.conv")
                level, i = level + 1, 0

    put(unet.embed_timestep.hidden, "time_embedding.linear_1")
    put(unet.embed_timestep.out, "time_embedding.linear_2")
    put(unet.conv_in, "conv_in")
    put_levels(unet.down, "down", "downsamplers")
    for i, block in enumerate(unet.middle):
        put_block(block, f"mid_block.resnets.{i}", "mid_block.attentions.0")
    put_levels(unet.up, "up", "upsamplers")
    put_norm(unet.norm_out, "conv_norm_out")
    put(unet.conv_out, "conv_out")
    assert not tensors


def test_the_output_is_that_of_diffusers():
    config = json.loads((GOLDEN / "config.json").read_text())
    # What a UNet takes for granted.
    assert (config["norm_eps"], config["freq_shift"], config["flip_sin_to_cos"]) == (1e-6, 1, False)
    assert (config["mid_block_scale_factor"], config["attention_head_dim"], config["downsample_padding"]) == (
        1,
        None,
        0,
    )
    width, *_ = config["block_out_channels"]
    side = config["sample_size"]
    unet = kddpm.UNet(
        image_shape=(side, side, config["in_channels"]),
        width=width,
        multipliers=[channels // width for channels in config["block_out_channels"]],
        blocks_per_level=config["layers_per_block"],
        attention_resolutions=[side >> i for i, kind in enumerate(config["down_block_types"]) if "Attn" in kind],
        groups=config["norm_num_groups"],
    )
    load_diffusers(unet, read_safetensors(GOLDEN / "diffusion_pytorch_model.safetensors"))
    with np.load(GOLDEN / "io.npz") as io:
        np.testing.assert_allclose(unet([io["x"], io["t"]]), io["eps"], rtol=0, atol=2e-5)


# Shapes.


@pytest.mark.parametrize(
    "image_shape, multipliers",
    [((8, 8, 1), (1, 2)), ((4, 8, 2), (1, 1, 1)), ((6, 2, 3), (1, 2)), ((4, 4, 4), (1, 1, 1)), ((5, 3, 1), (1,))],
)
def test_any_size_that_can_be_halved_and_any_channels(make_unet, image_shape, multipliers):
    unet = randomise(make_unet(image_shape=image_shape, multipliers=multipliers))
    inputs = batch(image_shape, size=3)
    output = unet(inputs)
    assert output.shape == (3, *image_shape) and output.dtype == "float32"
    assert unet.compute_output_shape([x.shape for x in inputs]) == (3, *image_shape)
    # Every image and every timestep counts, each for its own output.
    x, t = inputs[0].copy(), inputs[1].copy()
    x[0] += 1
    t[1] += 100
    changed = np.abs(unet([x, t]) - output).max((1, 2, 3))
    assert changed[0] > 1e-3 and changed[1] > 1e-3 and changed[2] < 1e-5


def test_more_output_channels_than_the_image_has(make_unet):
    """2 C for a learned variance: each an output of its own, behind the same network."""
    assert make_unet(image_shape=(8, 8, 3)).out_channels == 3
    unet = randomise(make_unet(image_shape=(8, 8, 3), out_channels=6))
    inputs = batch((8, 8, 3))
    output = unet(inputs).numpy()
    assert output.shape == unet.compute_output_shape([x.shape for x in inputs]) == (2, 8, 8, 6)
    assert len({channel.tobytes() for channel in np.moveaxis(output, -1, 0)}) == 6
    half = make_unet(image_shape=(8, 8, 3))
    half.set_weights([*unet.get_weights()[:-2], *(w[..., :3] for w in unet.get_weights()[-2:])])
    np.testing.assert_allclose(half(inputs), output[..., :3], atol=1e-6)


@pytest.mark.parametrize("image_shape", [(8, 6, 1), (2, 4, 1), (7, 8, 3)])
def test_sizes_that_cannot_be_halved(make_unet, image_shape):
    height, width, _ = image_shape
    with pytest.raises(
        InputError, match=f"`image_shape` must be divisible by 4, because 3 levels .* Received: {height}x{width}"
    ):
        make_unet(image_shape=image_shape, multipliers=(1, 1, 1))


@pytest.mark.parametrize("image_shape", [(8, 8), (8, 8, 0), (-8, 8, 1), (8.0, 8, 1), (None, 8, 1)])
def test_shapes_that_are_none(make_unet, image_shape):
    with pytest.raises(InputError, match=r"`image_shape` must be \(height, width, channels\). Received: "):
        make_unet(image_shape=image_shape)


def test_groups(make_unet):
    assert make_unet(width=12, groups=None).groups == 2
    assert make_unet(width=128, groups=None).groups == 32
    with pytest.raises(InputError, match="`groups` must divide the channels. Received: groups=3, channels=8"):
        make_unet(groups=3)


def test_default_groups_let_the_timestep_through(make_unet):
    unet = randomise(make_unet(width=32, multipliers=(1,), groups=None))
    x, t = batch((8, 8, 1))
    assert np.abs(unet([x, t + 100]) - unet([x, t])).max() > 1e-3


def test_attention_stands_where_it_was_asked_for(make_unet):
    unet = make_unet(image_shape=(16, 8, 1), multipliers=(1, 1, 1), attention_resolutions=(8,))
    attends = {b.name: b.attention is not None for b in [*unet.down, *unet.middle, *unet.up] if hasattr(b, "attention")}
    assert {name for name, has in attends.items() if has} == {"down_1_0", "middle_0", "up_1_0", "up_1_1"}


# Classes.


def test_labels_matter(make_unet):
    unet = randomise(make_unet(num_classes=3))
    x, t = batch((8, 8, 1))
    outputs = np.stack([unet([x, t, np.array([label, 0])]) for label in range(4)])  # 3 stands for "no class"
    assert min(np.abs(outputs[i, 0] - outputs[j, 0]).max() for i in range(4) for j in range(i)) > 1e-3
    np.testing.assert_allclose(outputs[1, 1], outputs[0, 1], atol=1e-5)


def test_labels_out_of_range_end_in_an_error(make_unet):
    """On a CPU; GPUs read zeros there. `DiffusionModel` looks at labels before they get here."""
    unet = make_unet(num_classes=3)
    with tf.device("CPU"), pytest.raises(tf.errors.InvalidArgumentError, match=r"4 is not in \[0, 4\)"):
        unet([*batch((8, 8, 1)), np.array([0, 4])])


# Saving, modes, precision.


def test_a_unet_survives_saving(make_unet, tmp_path):
    unet = randomise(make_unet(num_classes=3, dropout=0.2, groups=2, out_channels=2))
    inputs = [*batch((8, 8, 1)), np.array([0, 3])]
    assert unet.get_config()["out_channels"] == kddpm.UNet.from_config(unet.get_config()).out_channels == 2
    unet.save(tmp_path / "unet.keras")
    again = keras.models.load_model(tmp_path / "unet.keras")
    assert again.get_config() == unet.get_config()
    np.testing.assert_array_equal(again(inputs), unet(inputs))


@pytest.mark.parametrize("jit_compile", [False, True])
def test_eager_graph_and_xla_agree(make_unet, jit_compile):
    unet = randomise(make_unet(dropout=0.3))
    inputs, seed = [tf.constant(x) for x in batch((8, 8, 1))], tf.constant([3, 7])

    def call(x, t, seed):
        return unet([x, t], training=True, seed=seed)

    compiled = tf.function(call, jit_compile=jit_compile, autograph=False)
    np.testing.assert_allclose(compiled(*inputs, seed), call(*inputs, seed), atol=5e-5)


def test_dropout_is_a_function_of_the_seed(make_unet):
    unet, inputs = randomise(make_unet(dropout=0.3)), batch((8, 8, 1))

    def output(seed, training=True):
        return unet(inputs, training=training, seed=tf.constant(seed)).numpy()

    np.testing.assert_array_equal(output([1, 2]), output([1, 2]))
    assert np.abs(output([1, 2]) - output([1, 3])).max() > 1e-3
    np.testing.assert_array_equal(output([1, 2], training=False), output([1, 3], training=False))


def test_every_block_draws_its_own_mask(make_unet, monkeypatch):
    unet = make_unet(dropout=0.3)
    seeds = []
    call = kddpm.layers.Dropout.call
    monkeypatch.setattr(
        kddpm.layers.Dropout, "call", lambda self, x, seed=None, **kw: seeds.append(seed) or call(self, x, seed, **kw)
    )
    unet(batch((8, 8, 1)), training=True, seed=tf.constant([5, 900]))
    assert len(seeds) == 8 and len({int(number) for seed in seeds for number in seed}) == 16


def test_mixed_precision_gives_float32_near_float32(make_unet):
    plain, mixed = randomise(make_unet()), make_unet(dtype="mixed_bfloat16")
    mixed.set_weights(plain.get_weights())
    inputs = batch((8, 8, 1))
    expected, rounded = plain(inputs).numpy(), mixed(inputs)
    assert rounded.dtype == "float32" and mixed.down[0].compute_dtype == "bfloat16"
    assert 0 < np.abs(rounded - expected).max() < 0.1 * np.abs(expected).max()


# Alone, without a DiffusionModel.


def test_inside_a_plain_keras_model(make_unet):
    unet = randomise(make_unet())
    x, t = keras.Input((8, 8, 1)), keras.Input((), dtype="int32")
    model = keras.Model([x, t], 2 * unet([x, t]))
    inputs = batch((8, 8, 1))
    np.testing.assert_allclose(model.predict(inputs, verbose=0), 2 * unet(inputs), atol=1e-5)


def test_a_training_step_of_one_s_own(make_unet):
    """Without a seed, dropout draws fresh masks from Keras's global generator, in a traced function too."""
    unet = make_unet(dropout=0.5)
    optimizer = keras.optimizers.Adam(1e-2)
    optimizer.build(unet.trainable_variables)
    x, t = (tf.constant(v) for v in batch((8, 8, 1)))

    @tf.function
    def loss():
        return tf.reduce_mean(tf.square(unet([x, t], training=True) - x))

    @tf.function
    def step():
        with tf.GradientTape() as tape:
            value = loss()
        optimizer.apply(tape.gradient(value, unet.trainable_variables), unet.trainable_variables)
        return value

    losses = [step().numpy() for _ in range(20)]
    assert np.mean(losses[-3:]) < 0.8 * np.mean(losses[:3])
    assert loss().numpy() != loss().numpy()
