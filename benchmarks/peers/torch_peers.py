"""diffusers and lucidrains' denoising-diffusion-pytorch on MNIST, as their own recipes train it, for some minutes.

`peers.py` starts it, with benchmarks/requirements.txt and denoising-diffusion-pytorch in an environment of its own.
"""

import math
import pathlib
import sys
import time

import contestant
import numpy as np
import torch
from figures import Chain

sys.path.insert(0, str(pathlib.Path(__file__).parents[1] / "speed"))

import torch_worker  # for the arguments of diffusers' network


class TimeIsUp(Exception):
    """Ends a loop that knows steps alone."""


def nhwc(x):
    return x.permute(0, 2, 3, 1).numpy()


def nchw(x):
    return torch.from_numpy(np.ascontiguousarray(x)).permute(0, 3, 1, 2)


def of_diffusers(images, about, deadline):
    """The recipe of diffusers' examples/unconditional_image_generation/train_unconditional.py, at its defaults and with
    --use_ema, without its flips, which digits do not bear.

    Batches of 16, AdamW with betas 0.95 and 0.999 and a weight decay of 1e-6, a rate of 1e-4 that, after 500 steps of
    warm-up, falls as a cosine until its time is up, gradients clipped at 1, linear betas, T = 1000, an average with a
    growing momentum (power 3/4, at most 0.9999). The network is a `UNet2DModel` of as many parameters as kddpm's.
    """
    from diffusers import DDPMScheduler, UNet2DModel
    from diffusers.training_utils import EMAModel

    network, noising = UNet2DModel(**torch_worker.arguments_of_diffusers(about["architecture"])), DDPMScheduler()
    average = EMAModel(network.parameters(), decay=0.9999, use_ema_warmup=True, inv_gamma=1.0, power=0.75)
    optimizer = torch.optim.AdamW(network.parameters(), 1e-4, betas=(0.95, 0.999), weight_decay=1e-6, eps=1e-8)
    x, batch, steps, warm = nchw(images).float() / 127.5 - 1, 16, 0, None  # warm: when the warm-up ended
    while (now := time.time()) < deadline:
        if steps < 500:
            share = steps / 500
        else:
            warm = warm or now
            share = 0.5 * (1 + math.cos(math.pi * (now - warm) / (deadline - warm)))
        optimizer.param_groups[0]["lr"] = 1e-4 * share
        clean = x[torch.randint(len(x), (batch,))]
        noise, t = torch.randn_like(clean), torch.randint(1000, (batch,))
        loss = torch.nn.functional.mse_loss(network(noising.add_noise(clean, noise, t), t).sample, noise)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        average.step(network.parameters())
        steps += 1
    average.copy_to(network.parameters())
    network.eval()

    def eps_of(x_t, t):
        with torch.no_grad():
            return nhwc(network(nchw(x_t), torch.from_numpy(t)).sample)

    parameters = sum(weight.numel() for weight in network.parameters())
    return Chain(eps_of, noising.alphas_cumprod.double().numpy()), steps, parameters


def of_lucidrains(images, about, deadline):
    """`Unet`, `GaussianDiffusion` and `Trainer` as in the README of denoising-diffusion-pytorch, without flips.

    v is predicted on a sigmoid schedule of T = 1000, Adam with a rate of 8e-5, batches of 32 with gradients of two of
    them added, an average of momentum 0.995. The width is the one whose number of parameters is nearest to kddpm's.
    """
    from denoising_diffusion_pytorch import GaussianDiffusion, Trainer, Unet

    def network_of(dim):
        return Unet(dim=dim, dim_mults=(1, 2, 4), channels=1, flash_attn=False)

    def size_of(dim):
        return sum(weight.numel() for weight in network_of(dim).parameters())

    dim = min(range(8, 65, 4), key=lambda dim: abs(size_of(dim) - about["parameters"]))
    diffusion = GaussianDiffusion(network_of(dim), image_size=images.shape[1], timesteps=1000, sampling_timesteps=50)
    trainer = Trainer(
        diffusion, about["folder"], train_batch_size=32, train_lr=8e-5, train_num_steps=10**9,
        gradient_accumulate_every=2, ema_decay=0.995, amp=False, calculate_fid=False, save_and_sample_every=10**9,
        results_folder=about["out"], augment_horizontal_flip=False, convert_image_to="L",
    )  # fmt: skip
    losses = diffusion.p_losses

    def until_deadline(*arguments, **options):
        if time.time() > deadline:
            raise TimeIsUp
        return losses(*arguments, **options)

    diffusion.p_losses = until_deadline
    try:
        trainer.train()
    except TimeIsUp:
        pass
    trained = trainer.ema.ema_model
    trained.eval()
    alpha_bars = trained.alphas_cumprod.double().numpy()

    def eps_of(x_t, t):
        a = torch.from_numpy(alpha_bars[t]).float()[:, None, None, None]
        with torch.no_grad():
            v = trained.model(nchw(x_t), torch.from_numpy(t))
        return nhwc(a.sqrt() * v + (1 - a).sqrt() * nchw(x_t))

    return Chain(eps_of, alpha_bars), trainer.step, size_of(dim)


if __name__ == "__main__":
    contestant.run({"diffusers": of_diffusers, "lucidrains": of_lucidrains})
