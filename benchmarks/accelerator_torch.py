"""The same network in PyTorch, compiled by `torch.compile`: a training step and a sampler."""

import time

import network_file
import numpy as np
import torch
import torch.nn.functional as F
import torch_unet
from accelerator_jax import coefficients_of

PRODUCT = {"gpu": 8192, "cpu": 1024}  # the side of the matrices whose product is the device's ceiling


class Program:
    """What `accelerator.py` measures of PyTorch; the methods are those of `accelerator_jax.Program`.

    Args:
        path: a file of `network_file.write`.
        preset: whose network it is.
        device: "gpu" or "cpu".
        cuda_graphs: whether kernels are recorded and replayed; without that the host can be the slower of the two.

    Raises:
        RuntimeError: PyTorch has no such device.
    """

    def __init__(self, path, preset, device, cuda_graphs):
        self.config, self.path, self.kind = network_file.config_of(preset), path, device
        self.mode = "reduce-overhead" if cuda_graphs else None
        self.name = f"PyTorch {torch.__version__} {'with' if cuda_graphs else 'without'} CUDA graphs"
        self.on = torch.device("cuda" if device == "gpu" else "cpu")
        self.device = torch.cuda.get_device_name() if device == "gpu" else "cpu"
        self._step = self._sample = None
        torch.backends.cudnn.benchmark = True  # shapes are static

    def _use(self, precision):
        """Products of float32 in full or in TF32."""
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = precision == "tf32"

    def _autocast(self, precision):
        return torch.autocast(self.on.type, torch.bfloat16, enabled=precision == "bfloat16")

    def _network(self, dropout=0.0):
        file = network_file.read(self.path)
        network = torch_unet.UNet(**file.architecture, dropout=dropout)
        torch_unet.load_weights(network, file.weights)
        return network.to(self.on, memory_format=torch.channels_last)

    def eps(self, precision):
        """What the network makes of the inputs in the file, float32 (B, H, W, C)."""
        self._use(precision)
        file = network_file.read(self.path)
        with torch.inference_mode(), self._autocast(precision):
            x = torch.from_numpy(file.x).to(self.on).permute(0, 3, 1, 2)
            eps = self._network().eval()(x, torch.from_numpy(file.t).to(self.on))
        return eps.float().permute(0, 2, 3, 1).cpu().numpy()

    def prepare_training(self, precision, batch):
        """Compile the training step; returns seconds, and the bytes that it holds."""
        self._use(precision)
        config, network = self.config, self._network(self.config.dropout).train()
        weights = list(network.parameters())
        averages = [weight.detach().clone() for weight in weights]
        optimizer = torch.optim.Adam(weights, config.learning_rate, fused=True)
        x_0 = self._image_like(batch).uniform_(-1, 1)
        schedule = config.noise_schedule
        signal, std = (
            torch.tensor(np.sqrt(column), dtype=torch.float32, device=self.on)[:, None, None, None]
            for column in (schedule.alpha_bars, schedule.one_minus_alpha_bars)
        )
        taken = 0

        @torch.compile(dynamic=False, mode=self.mode)
        def loss_of():
            t = torch.randint(config.num_timesteps, (batch,), device=self.on)
            noise = torch.randn_like(x_0)
            with self._autocast(precision):
                eps = network(signal[t] * x_0 + std[t] * noise, t)
            return F.mse_loss(eps.float(), noise)

        def step():
            nonlocal taken
            torch.compiler.cudagraph_mark_step_begin()
            loss = loss_of()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(weights, config.clip_norm)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            momentum = min(config.ema_momentum, (1 + taken) / (10 + taken))
            with torch.no_grad():
                torch._foreach_lerp_(averages, weights, 1 - momentum)
            taken += 1
            return loss

        self._step, self._batch = step, batch
        return self._first(lambda: self.train(1)), self._held(lambda: self.train(2))

    def train(self, steps):
        """Take steps; returns images."""
        for _ in range(steps):
            loss = self._step()
        if not np.isfinite(loss.item()):
            raise ArithmeticError(f"the loss is {loss.item()}")
        return steps * self._batch

    def prepare_sampling(self, precision, batch):
        """Compile the sampler's step; returns seconds, and the bytes that it holds."""
        self._use(precision)
        network = self._network().eval()

        @torch.compile(dynamic=False, mode=self.mode)
        def step(x, t, row, z):
            a, b, c, d, std = row
            with self._autocast(precision):
                output = network(x, t)
            return c * torch.clamp(a * x + b * output.float(), -1, 1) + d * x + std * z

        self._sample, self._batch = step, batch
        return self._first(lambda: self.sample("ddim", 1)), self._held(lambda: self.sample("ddim", 2))

    def sample(self, sampler, steps):
        """Paint a batch; returns images."""
        timesteps, coefficients = coefficients_of(self.config, sampler, steps)
        timesteps = torch.from_numpy(timesteps).to(self.on)[:, None].expand(-1, self._batch).contiguous()
        rows = torch.from_numpy(coefficients.T.copy()).to(self.on)
        with torch.no_grad():
            x = self._image_like(self._batch).normal_()
            z = torch.zeros_like(x)
            for index in range(len(timesteps)):
                torch.compiler.cudagraph_mark_step_begin()
                draw = z.normal_() if coefficients[4, index] else z
                x = self._sample(x, timesteps[index], rows[index], draw).clone()  # the next call writes over it
            pictures = x.cpu().numpy()
        if not np.isfinite(pictures).all():
            raise ArithmeticError("a picture is not finite")
        return self._batch

    def _image_like(self, batch):
        shape = (batch, self.config.channels, *self.config.image_size)
        return torch.empty(shape, device=self.on).to(memory_format=torch.channels_last)

    def _first(self, call):
        """Seconds of a first call, which compiles."""
        start = time.perf_counter()
        call()
        return time.perf_counter() - start

    def _held(self, call):
        """Most bytes of the device's memory during a call; 0 on a CPU."""
        if self.kind == "cpu":
            call()
            return 0
        torch.cuda.reset_peak_memory_stats()
        call()
        return torch.cuda.max_memory_allocated()

    def release(self):
        """Let go of what was prepared."""
        self._step = self._sample = None
        torch._dynamo.reset()
        if self.kind == "gpu":
            torch.cuda.empty_cache()

    def operations(self):
        """Floating-point operations of the network for one image: products and sums of convolutions and matrices."""
        from torch.utils.flop_counter import FlopCounterMode

        network = torch_unet.UNet(**network_file.read(self.path).architecture)
        x = torch.zeros(1, self.config.channels, *self.config.image_size)
        with torch.inference_mode(), FlopCounterMode(display=False) as counter:
            network(x, torch.zeros(1))
        return counter.get_total_flops()

    def ceiling(self, precision, rounds=20):
        """Operations/s of a product of two large matrices."""
        self._use(precision)
        side, dtype = PRODUCT[self.kind], torch.bfloat16 if precision == "bfloat16" else torch.float32
        a, b = (torch.randn(side, side, device=self.on, dtype=dtype) for _ in range(2))
        for count in (3, rounds):
            self._wait()
            start = time.perf_counter()
            for _ in range(count):
                a @ b
            self._wait()
        return rounds * 2 * side**3 / (time.perf_counter() - start)

    def _wait(self):
        if self.kind == "gpu":
            torch.cuda.synchronize()
