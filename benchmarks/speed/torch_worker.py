"""PyTorch, and the pipelines of diffusers, in a process that `contestants.serve` lets others call."""

import pathlib
import sys
import time

import contestants
import kernels

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))


class Worker:
    """What the questions measure; methods are those of `keras_worker.Worker`."""

    def check_network(self, path):
        """Return how far the network in a file of `network_file` is from what it should be, and its parameters."""
        import network_file
        import numpy as np
        import torch
        import torch_unet

        file = network_file.read(path)
        network = torch_unet.UNet(**file.architecture)
        torch_unet.load_weights(network, file.weights)
        call = torch_unet.DeviceCall(network).eval()
        with torch.inference_mode():
            error = np.abs(call(torch.from_numpy(file.x), torch.from_numpy(file.t)).numpy() - file.eps).max()
        return float(error), _parameters(network)

    def prepare_training(self, architecture, training, channels_last, compiled, bfloat16):
        """Take the first step of training; returns seconds since the process was started, and its memory.

        Args:
            architecture: arguments of `torch_unet.UNet`.
            training: `batch_size`, `learning_rate`, `clip_norm`, `ema_momentum`, `dropout` and `alpha_bars`.
            channels_last: the memory format.
            compiled: whether network and loss are compiled.
            bfloat16: whether to use autocast.
        """
        ends = {"python": contestants.age()}
        import torch
        import torch_training
        import torch_unet

        ends["torch"], imported = contestants.age(), contestants.peak_gib()
        network = torch_unet.UNet(**architecture, dropout=training["dropout"]).train()
        network.to(memory_format=_format(channels_last))
        self._batch, shape = training["batch_size"], architecture["image_shape"]
        pixels = torch.randint(256, (4 * self._batch, shape[2], *shape[:2]), dtype=torch.uint8)
        pixels = pixels.contiguous(memory_format=_format(channels_last))
        self._step = torch_training.step_of(network, pixels, training, compiled, bfloat16)
        ends["build"] = contestants.age()
        self._step().item()
        ends["step"] = contestants.age()
        precision = "bfloat16" if bfloat16 else "float32"
        return {"ends": ends, "imported_gib": imported, "parameters": _parameters(network), "precision": precision}

    def train(self, steps):
        """Take steps; returns images/s."""
        start = time.perf_counter()
        for _ in range(steps):
            loss = self._step()
        loss.item()
        return steps * self._batch / (time.perf_counter() - start)

    def peak_gib(self):
        """Most memory that this process has held."""
        return contestants.peak_gib()

    def prepare_sampling(self, architecture, parameters, channels_last, compiled, bfloat16):
        """Build diffusers' network.

        Raises:
            ValueError: it has another number of parameters.
        """
        import diffusers
        import torch

        torch.set_grad_enabled(False)
        network = (
            diffusers.UNet2DModel(**arguments_of_diffusers(architecture))
            .eval()
            .to(memory_format=_format(channels_last))
        )
        if _parameters(network) != parameters:
            raise ValueError(f"diffusers' network must have {parameters} parameters. Received: {_parameters(network)}")
        if compiled:
            network.compile(dynamic=False)
        self._network, self._bfloat16, self._shape = network, bfloat16, architecture["image_shape"]
        self._pipelines = {
            "ddim": diffusers.DDIMPipeline(network, diffusers.DDIMScheduler()),
            "ancestral": diffusers.DDPMPipeline(network, diffusers.DDPMScheduler()),
        }
        for pipeline in self._pipelines.values():
            pipeline.set_progress_bar_config(disable=True)

    def warm_up(self, batch, sampler, num_steps):
        """Compile what `sample` will run: the network alone, so two steps do."""
        self.sample(batch, batch, sampler, 2)

    def sample(self, pictures, batch, sampler, num_steps):
        """Paint; returns pictures/s."""
        start = time.perf_counter()
        with self._autocast():
            for _ in range(pictures // batch):
                self._pipelines[sampler](batch_size=batch, num_inference_steps=num_steps, output_type="np")
        return pictures / (time.perf_counter() - start)

    def network_ms(self, batch, calls):
        """Milliseconds of a call of the network alone."""
        import torch

        x, t = torch.zeros(batch, self._shape[2], *self._shape[:2]), torch.zeros(batch, dtype=torch.int64)
        with self._autocast():
            self._network(x, t)
            start = time.perf_counter()
            for _ in range(calls):
                x = self._network(x, t).sample
            return (time.perf_counter() - start) / calls * 1e3

    def ceiling(self, precision, seconds):
        """{operator: operations/s}, as in `kernels`."""
        import torch
        import torch.nn.functional as F

        dtype = getattr(torch, precision)

        def random(*shape):
            return torch.randn(*shape, dtype=dtype)

        def product(side):
            a, b = random(side, side), random(side, side)
            return lambda: a @ b

        def operands(batch, side, channels):
            shapes = (batch, channels, side, side), (channels, channels, 3, 3)
            return [random(*shape).contiguous(memory_format=torch.channels_last) for shape in shapes]

        def convolution(batch, side, channels):
            x, kernel = operands(batch, side, channels)
            return lambda: F.conv2d(x, kernel, padding=1)

        def backward(batch, side, channels):
            x, kernel = (each.requires_grad_() for each in operands(batch, side, channels))
            ones = torch.ones_like(x)
            return lambda: torch.autograd.grad(F.conv2d(x, kernel, padding=1), (x, kernel), ones)

        return kernels.rates(product, convolution, backward, seconds)

    def _autocast(self):
        import torch

        return torch.autocast("cpu", torch.bfloat16, enabled=self._bfloat16)

    def operations(self, architecture):
        """Floating-point operations of a call of the network at batch 1: of its convolutions and matrix products."""
        import torch
        import torch_unet
        from torch.utils.flop_counter import FlopCounterMode

        height, width, channels = architecture["image_shape"]
        network = torch_unet.UNet(**architecture).to("meta")
        with torch.device("meta"), FlopCounterMode(display=False) as counter:
            network(torch.zeros(1, channels, height, width), torch.zeros(1))
        return counter.get_total_flops()


def _parameters(network):
    return sum(weight.numel() for weight in network.parameters())


def _format(channels_last):
    import torch

    return torch.channels_last if channels_last else torch.contiguous_format


def arguments_of_diffusers(architecture):
    """The arguments of `UNet2DModel` that make it the network of Ho et al. 2020, as kddpm has it."""
    height, width, channels = architecture["image_shape"]
    side, widths = max(height, width), [architecture["width"] * m for m in architecture["multipliers"]]
    attends = [side // 2**level in architecture["attention_resolutions"] for level in range(len(widths))]
    return {
        "sample_size": (height, width), "in_channels": channels, "out_channels": channels,
        "layers_per_block": architecture["blocks_per_level"], "block_out_channels": widths,
        "down_block_types": ["AttnDownBlock2D" if attention else "DownBlock2D" for attention in attends],
        "up_block_types": ["AttnUpBlock2D" if attention else "UpBlock2D" for attention in reversed(attends)],
        "norm_num_groups": architecture["groups"], "norm_eps": 1e-6, "attention_head_dim": None,
        "downsample_padding": 0, "flip_sin_to_cos": False, "freq_shift": 1,
    }  # fmt: skip


if __name__ == "__main__":
    contestants.serve(Worker())
